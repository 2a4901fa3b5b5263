"""A live audit, by a collector in the guest itself and without debug info, gives the same rows as the guest's core."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.fanout.runner import frame
from pipeline.fanout.runner.frame import Failure, Snapshot
from tests.lab.bundle import INCIDENTAL_COLUMNS

pytestmark = pytest.mark.lab

CHANGING_COLUMNS = {
    *INCIDENTAL_COLUMNS,
    "captured_at",
    "uptime_s",
    "slab_cache_active_objects",
    "slab_cache_bytes",
    "charged_scan_bytes",
    "slab_unreclaimable_bytes",
    "slab_reclaimable_bytes",
    "percpu_bytes",
    "machine_id",  # of a running host only
    "notes",
}
"""Columns of targets with times, or that a running process changes; notes say that the kernel ran."""
MAX_OWN_DENTRIES = 2
"""drgn looks up /proc/PID/fd/N of its process; the dentry is on the LRU of /proc while the collector runs."""
AUDITS = ("root", "kptr_restrict", "charged")
RAN_ON = "charged objects were counted while the kernel ran: some can be missing"
MAX_BOOTS = 3
"""Boots of a guest whose kernel changes by itself between the audits and the dump."""


@pytest.fixture(scope="module", params=["deb510-n2", "deb7-n2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a core, and of the live audits from before its dump."""
    for _ in range(MAX_BOOTS):
        folder = tmp_path_factory.mktemp(request.param)
        subprocess.run([sys.executable, "-m", "tests.lab", "boot", request.param, "--live", "-o", folder], check=True)
        if all(is_still(*audits(folder, audit)) for audit in AUDITS):
            break
    return folder


def audits(folder: Path, audit: str) -> tuple[Snapshot | Failure, Snapshot]:
    """A live audit, and the same audit of the core."""
    live = frame.parse((folder / "truth/live" / audit).read_bytes())
    has_scan = isinstance(live, Snapshot) and live.columns["charged_scan_bytes"] is not None
    option = "--charged" if has_scan else "--no-charged"
    command = [sys.executable, "-m", "pipeline.collector", folder / "vmcore", option]
    core = frame.parse(subprocess.run(command, check=True, capture_output=True).stdout)
    assert isinstance(core, Snapshot), core
    return live, core


def is_still(live: Snapshot | Failure, core: Snapshot) -> bool:
    """Whether the live audit's tables differ from the core's by the audit itself only."""
    if not isinstance(live, Snapshot) or live.tables["memcgs"] != core.tables["memcgs"]:
        return False
    return without_own(live, core) == rows(core.tables["list_lrus"])


def without_own(live: Snapshot, core: Snapshot) -> list[dict[str, Any]]:
    """The rows of list_lrus of a live audit, without the collector's own dentries."""
    # The first proc is the oldest; the others are private to users of the shape.
    proc = next(row["address"] for row in rows(core.tables["superblocks"]) if row["fstype"] == "proc")
    live_rows = rows(live.tables["list_lrus"])
    for live_row, core_row in zip(live_rows, rows(core.tables["list_lrus"]), strict=False):
        own_dentries = live_row["items"] - core_row["items"]
        if (live_row["superblock"], live_row["name"]) == (proc, "dentry") and 0 <= own_dentries <= MAX_OWN_DENTRIES:
            live_row["items"] -= own_dentries
            live_row["root_items"] -= own_dentries
    return live_rows


def rows(table: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


@pytest.mark.parametrize("audit", AUDITS)
def test_live_and_core_agree_row_for_row(folder: Path, audit: str) -> None:
    live, core = audits(folder, audit)
    assert isinstance(live, Snapshot), live
    assert live.columns["types_source"] == "btf"
    # Only an eager kernel has an estimate, for which objects are counted without --charged.
    assert live.columns["notes"] == (RAN_ON if audit == "charged" or is_eager(live) else None)
    assert live.columns["captured_at"] < core.columns["captured_at"]
    assert {**live.columns, **dict.fromkeys(CHANGING_COLUMNS)} == {**core.columns, **dict.fromkeys(CHANGING_COLUMNS)}
    assert live.tables["superblocks"] == core.tables["superblocks"]
    assert live.tables["memcgs"] == core.tables["memcgs"]
    assert without_own(live, core) == rows(core.tables["list_lrus"])


def is_eager(live: Snapshot) -> bool:
    return live.columns["lazy_basis"] is not None


def test_without_charged_the_same_objects_are_found_in_less_memory(folder: Path) -> None:
    limited, whole = (frame.parse((folder / "truth/live" / audit).read_bytes()) for audit in ("root", "charged"))
    assert isinstance(limited, Snapshot)
    assert isinstance(whole, Snapshot)
    if not is_eager(limited):
        assert limited.columns["charged_scan_bytes"] is None
        return
    assert limited.columns["lazy_basis"] == whole.columns["lazy_basis"] == "charged"
    assert 2 * limited.columns["charged_scan_bytes"] < whole.columns["charged_scan_bytes"]


def test_symbols_were_hidden_from_root(folder: Path) -> None:
    assert (folder / "truth/live/kallsyms").read_text().startswith("0000000000000000 ")


@pytest.mark.parametrize("audit", ["root", "kptr_restrict"])
def test_a_live_audit_stays_within_its_memory(folder: Path, audit: str) -> None:
    live = frame.parse((folder / "truth/live" / audit).read_bytes())
    assert live.columns["peak_rss_bytes"] < 150e6


def test_a_user_who_may_not_read_the_kernel_is_denied_and_told_what_to_do(folder: Path) -> None:
    failure = frame.parse((folder / "truth/live/nobody").read_bytes())
    assert failure.status == "denied"
    assert failure.error.startswith("live: /proc/kcore: run as root")
