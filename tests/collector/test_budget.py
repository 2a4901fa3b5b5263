"""An audit that costs its host more than it may ends as over_budget and says what it used."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.collector import budget
from pipeline.fanout import runner
from pipeline.inventory import Target
from tests.warehouse.outcomes import session

VMCORES = Path(__file__).parents[1] / "vmcores"
ROOT = Path(__file__).parents[2]
COSTS = ("reads", "read_bytes", "peak_rss_bytes")


def run(core: str, max_reads: int | None = None, **limits: int) -> dict:
    target = Target("t", "vmcore", str(VMCORES / core / "vmcore"), max_reads=max_reads)
    return runner.run(target, 1, runner.Limits(**limits))


@pytest.mark.parametrize("core", ["bytedance", "deb510-n2", "deb7-n2"])
def test_reads_over_the_budget_end_an_audit_of_a_real_core(core: str) -> None:
    unlimited = run(core)["columns"]["reads"]
    limit = unlimited // 2
    attempt = run(core, limit)["attempt"]
    assert (attempt["status"], attempt["error_type"]) == ("over_budget", "OverBudget")
    said = re.search(r"needs more than (\d+) reads; stopped after (\d+) reads of (\d+) bytes", attempt["error"])
    assert int(said[1]) == limit
    assert limit < int(said[2]) <= unlimited + 50
    assert int(said[3]) > 1_000_000
    assert re.search(r"with at most \d+ MiB resident$", attempt["error"])


def test_the_command_line_sets_the_budget_of_a_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "run", VMCORES / "deb510-n1", "-w", tmp_path, "--max-reads", "100"]
    done = subprocess.run([*command, "--quiet"], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == cli.NONE_GOOD, done.stderr
    (target,) = session(tmp_path).rows("SELECT status, error FROM targets")
    assert target["status"] == "over_budget"
    assert "needs more than 100 reads; stopped after " in target["error"]


def test_the_budget_is_exact_where_the_audit_ends_before_it_is_checked() -> None:
    reads = run("deb510-n1", 1_000_000)["columns"]["reads"]
    assert run("deb510-n1", reads - 20)["attempt"]["status"] == "over_budget"


def test_asking_what_was_used_is_not_counted() -> None:
    """A busy machine asks more often, every 0.1 s of the audit; its count stays the same."""
    used = budget.reads()
    assert {budget.reads() for _ in range(100)} == {used}


def test_a_generous_budget_changes_nothing() -> None:
    limited, unlimited = run("deb510-n2", 1_000_000), run("deb510-n2")
    assert limited["attempt"]["status"] == "ok"
    for result in (limited, unlimited):
        for column in COSTS:
            assert result["columns"].pop(column) > 0
    assert (limited["columns"], limited["tables"]) == (unlimited["columns"], unlimited["tables"])


def test_a_runaway_ends_within_a_second_whatever_it_catches() -> None:
    """It reads for ever, in a callback of drgn's, and handles every Exception."""
    code = """
    import os, sys, time
    import drgn
    from pipeline.collector import budget, status

    fd = os.open("/dev/zero", os.O_RDONLY)
    prog = drgn.Program(drgn.host_platform)
    prog.add_memory_segment(0, 1 << 32, lambda address, count, offset, physical: os.pread(fd, count, offset))

    def runaway():
        while True:
            try:
                prog.read(0x1000, 64)
            except Exception:
                pass

    start = time.monotonic()
    try:
        budget.within(5000, runaway)
    except status.CollectError as e:
        print(e.status, e)
    assert time.monotonic() - start < 1
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.stderr == ""
    assert done.stdout.startswith("over_budget needs more than 5000 reads; stopped after ")


def test_reads_that_the_kernel_leaves_out_are_limited_as_well() -> None:
    code = """
    from pipeline.collector import budget, status

    def audit():
        for _ in range(5000):
            budget.count(1 << 20)

    try:
        budget.within(5000, audit)
    except status.CollectError as e:
        print(e.status, e)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.stderr == ""
    said = re.match(r"over_budget needs more than 5000 reads; stopped after (\d+) reads of (\d+) bytes", done.stdout)
    assert int(said[1]) > 5000
    assert int(said[2]) > 5000 << 20


@pytest.mark.parametrize("mebibytes", [8, 10, 12, 14, 16, 20, 24, 32, 40, 48])
def test_memory_over_the_budget_is_never_a_bad_core_or_a_crash(mebibytes: int) -> None:
    """Wherever it runs out: in the loader, in libkdumpfile, in drgn, in Python."""
    attempt = run("deb510-n2", memory_bytes=mebibytes << 20)["attempt"]
    assert attempt["status"] == "over_budget", attempt
    assert f"needs more than {mebibytes} MiB of memory" in attempt["error"]


@pytest.mark.parametrize("mebibytes", [20, 40])
def test_running_out_of_memory_says_what_was_used(mebibytes: int) -> None:
    error = run("deb510-n2", memory_bytes=mebibytes << 20)["attempt"]["error"]
    assert re.search(r"; stopped after \d+ reads of \d+ bytes, with at most \d+ MiB resident", error)


def test_a_kernel_that_does_not_count_reads_cannot_limit_them() -> None:
    if os.geteuid():
        pytest.skip("needs root to hide /proc/self/io")
    core = VMCORES / "deb510-n1/vmcore"
    collector = f"{sys.executable} -m pipeline.collector --max-reads 1000000 {core}"
    command = ["unshare", "-m", "sh", "-c", f"mount -t tmpfs none /proc && exec {collector}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("no mount namespaces here")
    assert '"over_budget"' in done.stdout, done
    assert "reads cannot be limited" in done.stdout
