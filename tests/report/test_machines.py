"""Machines that call themselves by one name: real cores with another node name, and running ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.fanout import runner
from pipeline.inventory import Target
from pipeline.report import machines
from pipeline.report.model import build_report
from tests import dumps
from tests.warehouse.outcomes import STARTED_AT, ok, publish, session

VMCORES = Path(__file__).parents[1] / "vmcores"


def test_cores_of_two_machines_with_one_node_name_are_both_advised(tmp_path):
    outcomes = []
    for name, core in (("dc1/vmcore", "deb510-n2"), ("dc2/vmcore", "deb510-n1")):
        path = dumps.rename_node(VMCORES / core / "vmcore", "web1", tmp_path / name)
        target = Target(name, "vmcore", str(path))
        outcomes.append(runner.outcome(target, [runner.run(target, 1, runner.Limits())]))
    assert [outcome["row"]["host"] for outcome in outcomes] == ["web1", "web1"]
    publish(tmp_path / "warehouse", *outcomes)
    report = build_report(session(tmp_path / "warehouse"))
    sentence = "2 cores call themselves web1 and differ in memory (224 MiB, 160 MiB) and possible nodes: "
    assert machines.notes(report) == [sentence + "counted as 2 machines."]
    assert report.advice["eager_hosts"] == 2


@pytest.mark.parametrize(
    ("columns", "difference"),
    [
        ({"machine_id": "m2"}, "differ in machine-id"),
        ({"machine_id": "m1", "booted_at": STARTED_AT - 2 * 3600 * 10**6}, "were up at the same time"),
        ({"machine_id": None}, "are different boots"),
    ],
)
def test_running_machines_of_one_name_are_told_apart(tmp_path, columns, difference):
    first, second = ok("web-1"), ok("web-2")
    times = {"booted_at": STARTED_AT - 3600 * 10**6, "captured_at": STARTED_AT - 1800 * 10**6}
    first["row"] |= {"kind": "ssh", "host": "web", "boot_id": "b1", "machine_id": "m1", **times}
    later_times = {"booted_at": STARTED_AT - 1700 * 10**6, "captured_at": STARTED_AT}
    second["row"] |= {"kind": "ssh", "host": "web", "boot_id": "b2", **later_times, **columns}
    publish(tmp_path, first, second)
    note = f"2 targets call themselves web and {difference}: counted as 2 machines."
    assert machines.notes(build_report(session(tmp_path))) == [note]
