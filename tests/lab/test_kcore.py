"""A live audit in a guest that masks or refuses /proc/kcore, and in one that hides the files of symbols and types."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.fanout.runner import frame
from pipeline.fanout.runner.frame import Failure, Snapshot
from tests.lab import kernels, scripted
from tests.lab.shapes import SHAPES

pytestmark = pytest.mark.lab

AUDITS = """
audit='python -m pipeline.collector live:'
$audit > /dev/null || true
$audit || true
echo NEXT
mount --bind /dev/null /proc/kallsyms
mount -t tmpfs none /sys/kernel/btf
$audit || true
umount /proc/kallsyms
umount /sys/kernel/btf
echo NEXT
mount --bind /dev/null /proc/kcore
$audit || true
umount /proc/kcore
echo NEXT
unshare -U -r $audit || true
"""


def test_files_that_a_container_hides_are_denied_or_read_from_memory(tmp_path: Path) -> None:
    shape, kernel = SHAPES["deb510-n1"], kernels.debian_kernel("5.10")
    _, output = scripted.take_core(shape, kernel, tmp_path, AUDITS, collector=True)
    plain, hidden, masked, foreign = (frame.parse(text.encode()) for text in output.split("NEXT\n"))
    assert isinstance(plain, Snapshot), plain
    assert isinstance(hidden, Snapshot), hidden
    assert hidden.columns["types_source"] == "btf"
    assert hidden.columns["memcg_nr_cache_ids"] == plain.columns["memcg_nr_cache_ids"]
    for table in ("superblocks", "memcgs"):
        assert len(hidden.tables[table]["rows"]) >= len(plain.tables[table]["rows"]) > 0
    assert isinstance(masked, Failure)
    assert (masked.status, masked.error_type) == ("denied", "Masked")
    assert masked.error.startswith("live: /proc/kcore is masked by /dev/null: ")
    assert isinstance(foreign, Failure)
    assert (foreign.status, foreign.error_type) == ("denied", "PermissionError")
    assert foreign.error.startswith("live: /proc/kcore: this root is that of a user namespace ")
