"""On a disk that fails at any operation, a run is published whole and durable or not at all, and nothing else is lost.

A campaign on a FUSE file system: each operation of each scenario fails in turn, once or from then on, with each error
that it can have. Then the disk is healed, and the work finished. TEST_FULL=1 tries all of some 2,200 faults.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import warehouse
from pipeline.common.errors import AuditError
from pipeline.warehouse.errors import storage_errors
from tests import campaign
from tests.warehouse import faulty_disk
from tests.warehouse.outcomes import failure, ok, run, skip_checks

pytestmark = pytest.mark.faults

OLD, NEW, STAGED, NEXT = (f"2025110{day}T000000Z-0000000{day}" for day in (1, 2, 3, 4))
AUDIT = {"audit": "crash", "model_version": 2}
TARGETS = [{"name": name, "kind": "vmcore"} for name in "ab"]
BYTES = ("list_lru_one_bytes", "pointer_array_bytes", "node_array_bytes")
# Faults of each scenario in a sample.
SAMPLE = 8


def core(target: str) -> dict[str, Any]:
    outcome = ok(target)
    outcome["row"]["input_digest"] = f"digest of {target}"
    return outcome


def unchanged(target: str) -> dict[str, Any]:
    return {**ok(target), "unchanged": True, "tables": {}}


def publish_next(root: Path) -> None:
    """What `run` does: one target is an unchanged core."""
    with warehouse.exclusive_audit(root, "crash"):
        warehouse.probe(root)
        values = run(NEXT, targets=2, **AUDIT)
        staging = warehouse.Staging.create(root, values, {}, TARGETS, private_fields={"b": {}}, carries_cores=True)
        finish(staging)


def revise(root: Path) -> None:
    finish(warehouse.Staging.revise(root, NEW, run_id=NEXT, tool_version="0.1.0", model_version=2))


def resume(root: Path) -> None:
    finish(warehouse.Staging(root, STAGED))


def finish(staging: warehouse.Staging) -> None:
    staging.key()
    for target in sorted({"a", "b"} - staging.finished_targets()):
        staging.append(unchanged(target) if target in staging.known_digests() else core(target))
    staging.publish(skip_checks)


def expire(root: Path) -> None:
    for removal in warehouse.removals(root, warehouse.RetentionRules(last=1), interrupted_days=0):
        removal.carry_out()


def read(root: Path) -> None:
    *states, staged_state = [row["state"] for row in warehouse.overview(root)]
    assert states == ["published", "published"]
    assert staged_state in ("unfinished", "running")  # a lock that cannot be tried counts as held
    for run_id in (OLD, NEW):
        for line in warehouse.problems(root, run_id, skip_checks):
            raise AuditError(line)
    with storage_errors(root):  # Arrow's own
        assert figures(root) == {OLD: 2, NEW: 1}


def figures(root: Path) -> dict[str, int]:
    """Return the number of targets of each run that are `ok` and whose total is the sum of their rows."""
    tables = warehouse.tables(root)
    sums: Counter[tuple[str, str]] = Counter()
    for row in tables["list_lrus"].to_table(columns=["run_id", "target", *BYTES]).to_pylist():
        sums[row["run_id"], row["target"]] += sum(row[name] for name in BYTES)
    targets = tables["targets"].to_table(columns=["run_id", "target", "list_lru_bytes"]).to_pylist()
    return Counter(row["run_id"] for row in targets if row["list_lru_bytes"] == sums[row["run_id"], row["target"]])


SCENARIOS: dict[str, tuple[Callable[[Path], None], str | None]] = {
    "publish": (publish_next, NEXT),
    "revise": (revise, NEXT),
    "resume": (resume, STAGED),
    "expire": (expire, None),
    "read": (read, None),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warehouse with two published runs, a staged one, and what a killed expire left."""
    root = tmp_path_factory.mktemp("template") / "w"
    for run_id, outcomes in ((OLD, [core("a"), core("b")]), (NEW, [core("a"), failure("b")])):
        staging = warehouse.Staging.create(root, run(run_id, targets=2, **AUDIT), {}, TARGETS)
        for outcome in outcomes:
            staging.append(outcome)
        staging.publish(skip_checks)
    staging = warehouse.Staging.create(root, run(STAGED, targets=2, **AUDIT), {}, TARGETS, carries_cores=True)
    staging.append(core("b"))
    shutil.copytree(root / "runs" / OLD, root / "staging" / "20251031T000000Z-00000000.expired")
    return root


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[faulty_disk.Disk]:
    with faulty_disk.mounted(tmp_path_factory.mktemp("faulty")) as disk:
        yield disk


@pytest.fixture
def copies(template: Path, disk: faulty_disk.Disk) -> Iterator[Callable[[], Path]]:
    """Returns a new copy of the template on the disk."""

    def copy() -> Path:
        shutil.rmtree(disk.directory / "w", ignore_errors=True)
        shutil.copytree(template, disk.directory / "w")
        return disk.mount_point / "w"

    yield copy
    disk.set_fault()


def faults(operations: list[str], count: int) -> list[tuple[int, int | None, bool]]:
    """Return faults of these operations: all, or a sample with the same chance for each kind of operation."""
    choice = random.Random(campaign.SEED)
    all_faults = [
        (number, error, choice.random() < 0.3)
        for number, name in enumerate(operations)
        for error in faulty_disk.ERRORS[name]
        if name != "write" or choice.random() < 0.1  # most are a few bytes of a Parquet page
    ]
    if campaign.IS_FULL:
        return all_faults
    kinds = choice.choices(sorted(set(operations)), k=count)
    return [choice.choice([fault for fault in all_faults if operations[fault[0]] == kind]) for kind in kinds]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_fault_loses_nothing_and_the_healed_disk_works(scenario, template, disk, copies):
    act, run_id = SCENARIOS[scenario]
    root = copies()
    act(root)
    operations = disk.log().operations
    wrong = []
    for number, error, is_sticky in faults(operations, SAMPLE):
        root = copies()
        disk.set_fault(number, error, is_sticky)
        refusal = attempt(act, root)
        log = disk.log()
        disk.set_fault()
        try:
            check_refusal(refusal, root, run_id, error)
            check_disk(log, root, disk, template, run_id if refusal is None else None)
            if refusal is not None:
                act_again(act, root, run_id)
            check_result(act, root, run_id)
        except Exception as failed:  # every fault is tried, so that one seed shows all that is wrong
            step = f"{operations[number]} {number} of {log.failed_path}: {os.strerror(error or 0)}, {is_sticky}"
            wrong.append(f"{step}: {failed!r}")
        gc.collect()
    assert not wrong, "\n".join(wrong)


def attempt(act: Callable[[Path], None], root: Path) -> str | None:
    """Run a scenario and return its error for the user, if any; another exception is a defect."""
    try:
        act(root)
    except AuditError as error:
        return str(error)
    except Exception as error:
        return f"a defect: {error!r}"
    finally:
        gc.collect()  # closes the staged run, as the end of a process does
    return None


def check_refusal(refusal: str | None, root: Path, run_id: str | None, error: int | None) -> None:
    """Check that an error is one line with file and cause, and does not say of a published run that it is not."""
    if refusal is None:
        return
    assert "\n" not in refusal
    assert refusal.startswith((f"{root}/", f"{root}: ")), refusal
    assert os.strerror(error or 0) in refusal or "error closing file" in refusal, refusal  # Arrow's has no errno
    if run_id and run_id in published_ids(root):
        assert f"{root}/runs/{run_id}: published, but a power cut might undo it" in refusal


def check_disk(log: faulty_disk.Log, root: Path, disk: faulty_disk.Disk, template: Path, run_id: str | None) -> None:
    """Check that the earlier runs are unchanged, and that a published one was durable first, its name too."""
    assert log.early == []
    for path in (root / "runs").glob("*/*"):
        if path.parent.name in (OLD, NEW):
            assert path.read_bytes() == (template / path.relative_to(root)).read_bytes()
    if run_id:
        published = [root, root / "runs", root / "runs" / run_id, *(root / "runs" / run_id).iterdir()]
        assert not {path.lstat().st_ino for path in published} & set(log.undurable)


def act_again(act: Callable[[Path], None], root: Path, run_id: str | None) -> None:
    if run_id in warehouse.staged_runs(root):
        finish(warehouse.Staging(root, run_id))
    elif run_id is None or run_id not in published_ids(root):
        clean(root)
        act(root)


def check_result(act: Callable[[Path], None], root: Path, run_id: str | None) -> None:
    expected = {OLD: 2, NEW: 1} if act is not expire else {NEW: 1}
    if run_id:
        expected[run_id] = 2
    assert figures(root) == expected
    assert [line for run_id in expected for line in warehouse.problems(root, run_id, skip_checks)] == []
    clean(root, interrupted_days=0)
    assert [path for path in (root / "staging").iterdir() if not path.name.startswith(".lru-audit-probe.")] == []


def clean(root: Path, interrupted_days: float | None = None) -> None:
    for removal in warehouse.removals(root, warehouse.RetentionRules(), interrupted_days):
        removal.carry_out()


def published_ids(root: Path) -> list[str]:
    return [manifest.run_id for manifest in warehouse.published_runs(root)]
