"""Audits of a live guest with more charged objects than the limit allows for, by a collector in the guest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest

from pipeline.fanout.runner import frame
from pipeline.fanout.runner.frame import Snapshot
from tests.lab import kernels, scripted
from tests.lab.initramfs import GUEST
from tests.lab.shapes import SHAPES
from tests.lab.test_live import rows

pytestmark = pytest.mark.lab

LIMITS_MB = (16, 32)
"""Instead of charges.LIVE_BYTES: for the guest's 39,000 files a whole scan reads 57 MB."""
SCRIPT = r"""
mount -t cgroup2 cgroup2 $cgroups
echo +memory > $cgroups/cgroup.subtree_control
mkdir /m live
for i in $(seq 24); do mkdir /m/$i; mount -t tmpfs -o nr_inodes=0 tmpfs /m/$i; done
python /files.py $cgroups 36
audit='import sys; from pipeline.collector.__main__ import main; from pipeline.collector.walk import charges
limit, *options = sys.argv[1:]; charges.LIVE_BYTES = int(limit) << 20; sys.exit(main(["live:", *options]))'
for limit in LIMITS; do python -c "$audit" $limit > live/$limit; done
python -c "$audit" 0 --charged > live/charged
""".replace("LIMITS", " ".join(map(str, LIMITS_MB)))


@pytest.fixture(scope="module")
def audits(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Snapshot]:
    """The audits by their limit in MB, and `charged`."""
    folder = tmp_path_factory.mktemp("samples")
    shape = dataclasses.replace(SHAPES["deb510-n2"], memory_mb=768)
    kernel = kernels.debian_kernel(shape.series)
    core, _ = scripted.take_core(shape, kernel, folder, SCRIPT, files=[GUEST / "files.py"], collector=True)
    core.unlink()
    outcomes = {file.name: frame.parse(file.read_bytes()) for file in (folder / "truth/live").iterdir()}
    snapshots = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, Snapshot)}
    assert snapshots == outcomes
    return snapshots


def total(snapshot: Snapshot, column: str) -> int:
    return sum(row[column] for row in rows(snapshot.tables["list_lrus"]))


@pytest.mark.parametrize("limit_mb", LIMITS_MB)
def test_a_sample_has_the_figure_of_the_whole_scan_in_its_interval(
    audits: Mapping[str, Snapshot], limit_mb: int
) -> None:
    sample, whole = audits[str(limit_mb)], audits["charged"]
    assert (sample.columns["lazy_basis"], whole.columns["lazy_basis"]) == ("sampled", "charged")
    assert abs(total(sample, "lazy_bytes") - total(whole, "lazy_bytes")) <= sample.columns["lazy_error_bytes"]
    assert sample.columns["charged_scan_bytes"] <= limit_mb << 20 < whole.columns["charged_scan_bytes"]


def test_a_larger_sample_has_a_smaller_error(audits: Mapping[str, Snapshot]) -> None:
    small, large = (audits[str(limit_mb)] for limit_mb in LIMITS_MB)
    error_bytes = large.columns["lazy_error_bytes"]
    assert error_bytes < small.columns["lazy_error_bytes"]
    # It says more than what is certain: not all memcgs use all lists.
    assert total(large, "lazy_bytes") + error_bytes < total(large, "lazy_high_bytes")
