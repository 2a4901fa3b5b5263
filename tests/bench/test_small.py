"""Tests of the benchmarks: the harness measures correctly, and outcomes do not stay in the driver's memory."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from pipeline.warehouse import schema
from tests.bench import __main__ as harness
from tests.bench import collector, fanout, simulated
from tests.bench.measure import ROOT, Cost, Row, call, run_command, run_in_turn

pytestmark = pytest.mark.faults

MIB = 2**20


def test_outcomes_do_not_stay_in_the_drivers_memory(tmp_path: Path) -> None:
    simulated.write_snapshot(tmp_path / "snapshot.json")
    outcome_bytes = (tmp_path / "snapshot.json").stat().st_size
    peaks = []
    for size in (100, 2_500):
        simulated.write_inventory(tmp_path / f"{size}.csv", size)
        peaks.append(call(fanout.gather, size, str(tmp_path)).peak_rss_bytes)
    assert 2_500 * outcome_bytes > 65 * MIB
    assert peaks[1] - peaks[0] < 40 * MIB


def test_a_whole_run_of_simulated_targets_is_published_in_a_file_a_table(tmp_path: Path) -> None:
    simulated.write_snapshot(tmp_path / "snapshot.json")
    simulated.write_inventory(tmp_path / "40.csv", 40)
    measurement = call(fanout.audit, 40, str(tmp_path)).value
    assert measurement["files"] == measurement["tables"] == len(schema.tables())
    assert measurement["rows"] > 40 * 100
    assert measurement["gather_s"] + measurement["publish_s"] < measurement["total_s"]


def test_a_cost_has_the_cpu_time_of_orphans() -> None:
    script = "import time\nwhile time.process_time() < 0.5: pass"
    cost = call(os.system, f"{sys.executable} -c '{script}' &")
    assert cost.value == 0
    assert cost.cpu_s >= 0.5


def test_a_cost_has_the_memory_of_the_function_and_no_others() -> None:
    small, large = (call(eval, f"len({mib} * {MIB} * b'1')") for mib in (1, 100))
    assert (small.value, large.value) == (MIB, 100 * MIB)
    assert 90 * MIB < large.peak_rss_bytes - small.peak_rss_bytes < 110 * MIB
    child = call(os.system, f"{sys.executable} -c '100 * {MIB} * b\"1\"'")
    assert child.peak_rss_bytes < 2 * small.peak_rss_bytes


def test_a_command_gives_its_output_or_fails() -> None:
    assert run_command([sys.executable, "-c", "print(1_000_000 * 'x')"]).value == 1_000_000 * "x" + "\n"
    echo = [sys.executable, "-c", "import sys; sys.stdout.write(sys.stdin.read()); sys.exit(3)"]
    assert run_command(echo, stdin="x", ok=(3,)).value == "x"
    with pytest.raises(RuntimeError, match="failed with 1"):
        run_command(echo, stdin="x")


def test_what_is_compared_runs_in_turn_and_gives_its_median() -> None:
    order = []

    def job(name: str, wall_times_s: list[float]) -> Cost:
        order.append(name)
        return Cost(wall_times_s.pop(0), 0, 0, name)

    costs = run_in_turn(3, a=partial(job, "a", [9, 1, 5]), b=partial(job, "b", [2, 3, 1]))
    assert "".join(order) == "abbaab"
    assert {name: (cost.value, cost.wall_s) for name, cost in costs.items()} == {"a": ("a", 5), "b": ("b", 2)}


@pytest.mark.parametrize(
    ("row", "ratio", "holds"),
    [
        (Row("r", 3, "s"), None, None),
        (Row("r", 3, "s", budget="<= 2"), None, False),
        (Row("r", 3, "s", budget=">= 3"), None, True),
        (Row("r", 3, "s", "another", 2, "<= 2"), 1.5, True),
        (Row("r", 3, "s", "another", 6, ">= 0.8"), 0.5, False),
        (Row("r", 3, "s", "another", 6), 0.5, None),
    ],
)
def test_a_budget_is_of_the_ratio_else_of_the_figure(row: Row, ratio: float | None, holds: bool | None) -> None:
    assert (row.ratio, row.holds) == (ratio, holds)


def test_a_row_has_the_figure_of_the_same_benchmark_in_another_tree(tmp_path: Path) -> None:
    package = tmp_path / "tests" / "bench"
    package.mkdir(parents=True)
    for name in ("__init__", "__main__", "measure"):
        shutil.copy(ROOT / "tests" / "bench" / f"{name}.py", package)
    rows = 'Row("opening", 4, "s"), Row("opening", 4, "s", "drgn", 3, "<= 1"), Row("closing", 1, "s")'
    (package / "startup.py").write_text(
        f"from tests.bench.measure import Row\ndef run(full):\n    yield from ({rows})\n"
    )
    before = harness._figures_in(tmp_path, "startup", "small")
    assert before == {("opening", None): 4, ("opening", "drgn"): 4, ("closing", None): 1}
    (package / "startup.py").write_text("raise OSError")
    (tmp_path / "startup.json").unlink()
    with pytest.raises(SystemExit, match="startup of the other revision failed"):
        harness._figures_in(tmp_path, "startup", "small")


def test_a_table_shows_the_change(tmp_path: Path) -> None:
    row = {"benchmark": "startup", **harness._as_dict(Row("opening", 2, "s", "drgn", 4, "<= 1")), "before": 8}
    results = {"machine": harness.machine(), "size": "small", "rows": [row, {**row, "before": None}]}
    *_, changed, new = harness.table(results)
    assert changed == "| startup | opening | 8 s | 2 s | 0.25 | drgn | 4 s | 0.50 | <= 1 | yes |"
    assert new == "| startup | opening |  | 2 s |  | drgn | 4 s | 0.50 | <= 1 | yes |"


def test_every_benchmark_of_the_registry_is_there_and_others_are_refused() -> None:
    for name in harness.BENCHMARKS:
        assert callable(importlib.import_module(f"tests.bench.{name}").run)
    process = subprocess.run([sys.executable, "-m", "tests.bench", "nosuch"], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 2
    assert "no benchmark nosuch; there are " in process.stderr


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind")
def test_an_audit_takes_few_times_the_instructions_of_opening_its_core() -> None:
    """3.3 times when this was written; the load of the machine does not matter."""
    audit_count, open_count = collector.instructions(ROOT / "tests/vmcores/deb510-n2/vmcore")
    assert audit_count < 4.5 * open_count
