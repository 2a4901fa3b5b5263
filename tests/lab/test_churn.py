"""A guest that makes and removes memcgs and mounts while it is audited again and again: no number from half a walk."""

from __future__ import annotations

import contextlib
import gc
import io
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.collector.__main__ import main
from pipeline.fanout.runner import frame
from pipeline.fanout.runner.frame import Failure, Snapshot
from tests.lab import boot, kernels
from tests.lab.initramfs import GUEST
from tests.lab.shapes import Shape

pytestmark = pytest.mark.lab

AUDITS = {"live": 12, "qmp": 100}
"""Inside the guest, where the emulated CPUs also churn, one takes 15 s."""
GOOD = {"live": 0.25, "qmp": 0.9}
"""Share of the audits that has to find three walks' time without a change."""
KEPT = {"nodes": 2, "memory_mb": 384, "memcgs": 60, "kept": 30, "tmpfs": 20, "ext4": 2, "users": 5, "files": 4}
MADE = {name: int(count) for name, count in re.findall(r"^(\w+)=(\d+)$", (GUEST / "churn").read_text(), re.MULTILINE)}


class Churned:
    """The outcomes of the audits, in order, and what the guest said of itself before it began to churn."""

    def __init__(self, shape: Shape, kind: str, folder: Path) -> None:
        self.shape, self.kind = shape, kind
        self.outcomes: list[Snapshot | Failure] = []
        kernel = kernels.of(shape.series)
        if kind == "live":
            boot.take_core(shape, kernel, folder, live=True, churn=True)
            assert (folder / "truth/stderr").read_text() == ""
            self.outcomes = [frame.parse(file.read_bytes()) for file in sorted((folder / "truth/live").iterdir())]
        else:
            boot.take_core(shape, kernel, folder, churn=True, at_rest=self.audit)
        assert len(self.outcomes) == AUDITS[kind]
        mounts = (folder / "truth/mounts").read_text().split("\n")
        self.kept_mounts = {line.split()[1] for line in mounts if " /m/" in line}
        dirs = (folder / "truth/cgroup_dirs").read_text().split("\n")
        self.kept_memcgs = {line.split()[1].removeprefix("/sys/fs/cgroup") or "/" for line in dirs if line}

    def audit(self, work: Path) -> None:
        for number in range(AUDITS["qmp"]):
            stdout = io.StringIO()
            with contextlib.redirect_stdout(stdout):
                main([f"qmp:{work / 'audit'}", "--charged" if number % 2 else "--no-charged"])
            gc.collect()  # a program is in a cycle with its finders, and has the monitor until it is gone
            self.outcomes.append(frame.parse(stdout.getvalue().encode()))

    @property
    def good(self) -> list[Snapshot]:
        return [outcome for outcome in self.outcomes if isinstance(outcome, Snapshot)]


@pytest.fixture(scope="module", params=["5.10-live", "5.10-qmp", "6.1-qmp"])
def churned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Churned:
    series, kind = request.param.split("-")
    return Churned(Shape("churn", series, **KEPT), kind, tmp_path_factory.mktemp("churn"))


def rows(snapshot: Snapshot, table: str) -> list[dict[str, Any]]:
    found = snapshot.tables[table]
    return [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]


def test_an_audit_is_good_or_says_that_the_kernel_changed(churned: Churned) -> None:
    bad = [outcome for outcome in churned.outcomes if isinstance(outcome, Failure)]
    counts = Counter(f"ok {snapshot.columns['consistency']}" for snapshot in churned.good)
    counts.update(failure.status for failure in bad)
    print(churned.shape.series, churned.kind, dict(counts))
    # A QEMU that is busy may not greet within the 5 s that a monitor has.
    ways = {"inconsistent", "unreachable"} if churned.kind == "qmp" else {"inconsistent"}
    assert {failure.status for failure in bad} <= ways, bad
    assert len(churned.good) >= GOOD[churned.kind] * AUDITS[churned.kind]


def test_what_stays_is_in_every_audit_and_nothing_that_was_never_made(churned: Churned) -> None:
    made = {f"/m/churn{n}" for n in range(1, MADE["churned_mounts"] + 1)}
    for snapshot in churned.good:
        mounts = {row["mountpoint"] for row in rows(snapshot, "superblocks") if row["mountpoint"]}
        mounts = {mount for mount in mounts if mount.startswith("/m/")}
        assert churned.kept_mounts <= mounts <= churned.kept_mounts | made
        memcgs = {row["path"] for row in rows(snapshot, "memcgs") if row["state"] == "online"}
        assert churned.kept_memcgs <= memcgs
        assert all(re.fullmatch(r"/(churn|staying)\d+", path) for path in memcgs - churned.kept_memcgs)
        assert len(memcgs - churned.kept_memcgs) <= MADE["churned_memcgs"] + MADE["staying"]


def test_what_only_grows_grows(churned: Churned) -> None:
    staying = [sum(row["path"].startswith("/staying") for row in rows(found, "memcgs")) for found in churned.good]
    assert staying == sorted(staying)
    assert staying[-1] > staying[0]
    cache_ids = [found.columns["memcg_nr_cache_ids"] for found in churned.good]
    if churned.shape.series == "5.10":
        assert cache_ids == sorted(cache_ids)
        # An id is given back some time after its memcg is gone: only what was ever made bounds them.
        for found in churned.good:
            ever_made = max(row["serial_nr"] for row in rows(found, "memcgs"))
            assert found.columns["online_memcgs"] <= found.columns["memcg_nr_cache_ids"] <= 2 * (ever_made + 1)


def test_every_superblock_has_its_two_list_lrus(churned: Churned) -> None:
    for snapshot in churned.good:
        owners = Counter(row["superblock"] for row in rows(snapshot, "list_lrus") if row["owner"] == "superblock")
        assert owners == dict.fromkeys((row["address"] for row in rows(snapshot, "superblocks")), 2)


def test_all_sizes_come_from_one_memcg_nr_cache_ids(churned: Churned) -> None:
    """By hand: kmalloc(16 + 8 * ids) is a power of two, a list_lru_one takes 32 bytes."""
    if churned.shape.series != "5.10":
        pytest.skip("lazy kernels have no such arrays")
    for snapshot in churned.good:
        ids = snapshot.columns["memcg_nr_cache_ids"]
        array_bytes = 1 << (16 + 8 * ids - 1).bit_length()
        for row in rows(snapshot, "list_lrus"):
            nodes = churned.shape.nodes if row["memcg_aware"] else 0
            assert row["list_lru_one_objects"] == nodes * ids
            assert row["list_lru_one_bytes"] == 32 * nodes * ids
            assert row["pointer_array_bytes"] == nodes * array_bytes
