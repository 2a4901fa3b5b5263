"""Repeated audits of a guest that creates and removes memcgs and mounts: no number comes from an inconsistent walk."""

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
from tests.campaign import IS_FULL
from tests.lab import boot, kernels
from tests.lab.initramfs import GUEST
from tests.lab.shapes import Shape

pytestmark = pytest.mark.lab

AUDITS = {"live": 12, "qmp": 100 if IS_FULL else 20}
"""Number of audits. Inside the guest, whose emulated CPUs also churn, an audit takes 15 s."""
MIN_GOOD_SHARE = {"live": 0.25, "qmp": 0.5}
"""Minimum share of audits that find a consistent state within three walks. By QMP 0.85 did on a busy machine, where
the guest changes more during a walk."""
BASE_STATE = {"nodes": 2, "memory_mb": 384, "memcgs": 60, "kept": 30, "tmpfs": 20, "ext4": 2, "users": 5, "files": 4}
CHURN_COUNTS = {
    name: int(count) for name, count in re.findall(r"^(\w+)=(\d+)$", (GUEST / "churn").read_text(), re.MULTILINE)
}


class ChurnRun:
    """The outcomes of the audits, in order, and the guest's report from before the churn."""

    def __init__(self, shape: Shape, kind: str, folder: Path) -> None:
        self.shape, self.kind = shape, kind
        self.outcomes: list[Snapshot | Failure] = []
        kernel = kernels.debian_kernel(shape.series)
        if kind == "live":
            boot.take_core(shape, kernel, folder, live=True, churn=True)
            assert (folder / "truth/stderr").read_text() == ""
            self.outcomes = [frame.parse(file.read_bytes()) for file in sorted((folder / "truth/live").iterdir())]
        else:
            boot.take_core(shape, kernel, folder, churn=True, idle_action=self.audit)
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
            gc.collect()  # a program is in a reference cycle with its finders, and keeps the monitor until it is freed
            self.outcomes.append(frame.parse(stdout.getvalue().encode()))

    @property
    def snapshots(self) -> list[Snapshot]:
        return [outcome for outcome in self.outcomes if isinstance(outcome, Snapshot)]


@pytest.fixture(scope="module", params=["5.10-live", "5.10-qmp", "6.1-qmp"])
def churn_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ChurnRun:
    series, kind = request.param.split("-")
    return ChurnRun(Shape("churn", series, **BASE_STATE), kind, tmp_path_factory.mktemp("churn"))


def rows(snapshot: Snapshot, table_name: str) -> list[dict[str, Any]]:
    table = snapshot.tables[table_name]
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def test_an_audit_is_good_or_says_that_the_kernel_changed(churn_run: ChurnRun) -> None:
    failures = [outcome for outcome in churn_run.outcomes if isinstance(outcome, Failure)]
    counts = Counter(f"ok {snapshot.columns['consistency']}" for snapshot in churn_run.snapshots)
    counts.update(failure.status for failure in failures)
    print(churn_run.shape.series, churn_run.kind, dict(counts))
    # A busy QEMU may not send its greeting within the 5 s that the collector waits.
    statuses = {"inconsistent", "unreachable"} if churn_run.kind == "qmp" else {"inconsistent"}
    assert {failure.status for failure in failures} <= statuses, failures
    assert len(churn_run.snapshots) >= MIN_GOOD_SHARE[churn_run.kind] * AUDITS[churn_run.kind]


def test_what_stays_is_in_every_audit_and_nothing_that_was_never_made(churn_run: ChurnRun) -> None:
    churn_mounts = {f"/m/churn{n}" for n in range(1, CHURN_COUNTS["churned_mounts"] + 1)}
    for snapshot in churn_run.snapshots:
        mounts = {row["mountpoint"] for row in rows(snapshot, "superblocks") if row["mountpoint"]}
        mounts = {mount for mount in mounts if mount.startswith("/m/")}
        assert churn_run.kept_mounts <= mounts <= churn_run.kept_mounts | churn_mounts
        memcgs = {row["path"] for row in rows(snapshot, "memcgs") if row["state"] == "online"}
        assert churn_run.kept_memcgs <= memcgs
        assert {p for p in memcgs - churn_run.kept_memcgs if not re.fullmatch(r"/(churn|staying)\d+", p)} == set()
        assert len(memcgs - churn_run.kept_memcgs) <= CHURN_COUNTS["churned_memcgs"] + CHURN_COUNTS["staying"]


def test_what_only_grows_grows(churn_run: ChurnRun) -> None:
    staying_counts = [
        sum(row["path"].startswith("/staying") for row in rows(snapshot, "memcgs")) for snapshot in churn_run.snapshots
    ]
    assert staying_counts == sorted(staying_counts)
    assert staying_counts[-1] > staying_counts[0]
    cache_ids = [snapshot.columns["memcg_nr_cache_ids"] for snapshot in churn_run.snapshots]
    if churn_run.shape.series == "5.10":
        assert cache_ids == sorted(cache_ids)
        # An id is free again some time after its memcg is removed. So only the memcgs ever created bound the ids.
        for snapshot in churn_run.snapshots:
            last_serial_nr = max(row["serial_nr"] for row in rows(snapshot, "memcgs"))
            columns = snapshot.columns
            assert columns["online_memcgs"] <= columns["memcg_nr_cache_ids"] <= 2 * (last_serial_nr + 1)


def test_every_superblock_has_its_two_list_lrus(churn_run: ChurnRun) -> None:
    for snapshot in churn_run.snapshots:
        owners = Counter(row["superblock"] for row in rows(snapshot, "list_lrus") if row["owner"] == "superblock")
        assert owners == dict.fromkeys((row["address"] for row in rows(snapshot, "superblocks")), 2)


def test_all_sizes_come_from_one_memcg_nr_cache_ids(churn_run: ChurnRun) -> None:
    """Computed by hand: kmalloc(16 + 8 * ids) is a power of two, and a list_lru_one takes 32 bytes."""
    if churn_run.shape.series != "5.10":
        pytest.skip("needs an eager kernel")
    for snapshot in churn_run.snapshots:
        ids = snapshot.columns["memcg_nr_cache_ids"]
        array_bytes = 1 << (16 + 8 * ids - 1).bit_length()
        for row in rows(snapshot, "list_lrus"):
            nodes = churn_run.shape.nodes if row["memcg_aware"] else 0
            assert row["list_lru_one_objects"] == nodes * ids
            assert row["list_lru_one_bytes"] == 32 * nodes * ids
            assert row["pointer_array_bytes"] == nodes * array_bytes
