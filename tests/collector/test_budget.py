"""An audit that needs more than its budget ends as over_budget, with an error that gives its usage."""

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
from tests import program
from tests.warehouse.outcomes import session

VMCORES = Path(__file__).parents[1] / "vmcores"
ROOT = Path(__file__).parents[2]
COSTS = ("reads", "read_bytes", "peak_rss_bytes")


def run(core: str, max_reads: int | None = None, **limits: int) -> dict:
    target = Target("t", "vmcore", str(VMCORES / core / "vmcore"), max_reads=max_reads)
    return runner.run(target, 1, runner.Limits(**limits))


@pytest.mark.parametrize("core", ["bytedance", "deb510-n2", "deb7-n2"])
def test_reads_over_the_budget_end_an_audit_of_a_real_core(core: str) -> None:
    total_reads = run(core)["columns"]["reads"]
    max_reads = total_reads // 2
    attempt = run(core, max_reads)["attempt"]
    assert (attempt["status"], attempt["error_type"]) == ("over_budget", "OverBudget")
    match = re.search(r"needs more than (\d+) reads; stopped after (\d+) reads of (\d+) bytes", attempt["error"])
    assert int(match[1]) == max_reads
    assert max_reads < int(match[2]) <= total_reads + 50
    assert int(match[3]) > 10_000
    assert re.search(r"with at most \d+ MiB resident$", attempt["error"])


@pytest.mark.usefixtures("embedded_ray")
def test_the_command_line_sets_the_budget_of_a_run(tmp_path: Path) -> None:
    process = program.run("run", VMCORES / "deb510-n1", "-w", tmp_path, "--max-reads", "4", "--quiet")
    assert process.returncode == cli.NONE_GOOD, process.stderr
    (target,) = session(tmp_path).rows("SELECT status, error FROM targets")
    assert target["status"] == "over_budget"
    assert "needs more than 4 reads; stopped after " in target["error"]


def test_the_budget_is_exact_where_the_audit_ends_before_it_is_checked() -> None:
    reads = run("deb510-n1", 1_000_000)["columns"]["reads"]
    assert run("deb510-n1", reads - 1)["attempt"]["status"] == "over_budget"


def test_asking_what_was_used_is_not_counted() -> None:
    """The usage is read every 0.1 s of an audit, so more often on a busy machine; these reads do not count."""
    reads = budget.reads()
    assert {budget.reads() for _ in range(100)} == {reads}


def test_a_generous_budget_changes_nothing() -> None:
    limited_result, free_result = run("deb510-n2", 1_000_000), run("deb510-n2")
    assert limited_result["attempt"]["status"] == "ok"
    for result in (limited_result, free_result):
        for column in COSTS:
            assert result["columns"].pop(column) > 0
    assert (limited_result["columns"], limited_result["tables"]) == (free_result["columns"], free_result["tables"])


def test_a_runaway_ends_within_a_second_whatever_it_catches() -> None:
    """The runaway reads in an endless loop, through a callback of drgn, and catches every Exception."""
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
        budget.run_within_budget(runaway, 5000)
    except status.CollectError as e:
        print(e.status, e)
    assert time.monotonic() - start < 1
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert process.stderr == ""
    assert process.stdout.startswith("over_budget needs more than 5000 reads; stopped after ")


def test_reads_that_the_kernel_leaves_out_are_limited_as_well() -> None:
    code = """
    from pipeline.collector import budget, status

    def audit():
        for _ in range(5000):
            budget.count_read(1 << 20)

    try:
        budget.run_within_budget(audit, 5000)
    except status.CollectError as e:
        print(e.status, e)
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert process.stderr == ""
    match = re.match(
        r"over_budget needs more than 5000 reads; stopped after (\d+) reads of (\d+) bytes", process.stdout
    )
    assert int(match[1]) > 5000
    assert int(match[2]) > 5000 << 20


@pytest.mark.parametrize("mebibytes", [8, 10, 12, 14, 16, 20, 24, 28, 32, 36])
def test_memory_over_the_budget_is_never_a_bad_core_or_a_crash(mebibytes: int) -> None:
    """The memory can run out in the loader, in libkdumpfile, in drgn or in Python."""
    attempt = run("deb510-n2", memory_bytes=mebibytes << 20)["attempt"]
    assert attempt["status"] == "over_budget", attempt
    assert f"needs more than {mebibytes} MiB of memory" in attempt["error"]


@pytest.mark.parametrize("mebibytes", [20, 32])
def test_running_out_of_memory_says_what_was_used(mebibytes: int) -> None:
    error = run("deb510-n2", memory_bytes=mebibytes << 20)["attempt"]["error"]
    assert re.search(r"; stopped after \d+ reads of \d+ bytes, with at most \d+ MiB resident", error)


def test_a_kernel_that_does_not_count_reads_cannot_limit_them() -> None:
    if os.geteuid():
        pytest.skip("needs root")
    core = VMCORES / "deb510-n1/vmcore"
    collector = f"{sys.executable} -m pipeline.collector --max-reads 1000000 {core}"
    command = ["unshare", "-m", "sh", "-c", f"mount -t tmpfs none /proc && exec {collector}"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    if "unshare" in process.stderr or "mount" in process.stderr:
        pytest.skip("needs mount namespaces")
    assert '"over_budget"' in process.stdout, process
    assert "reads cannot be limited" in process.stdout
