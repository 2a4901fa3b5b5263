"""Two machines that call themselves by one name, as real cores with another node name."""

from __future__ import annotations

from pathlib import Path

from pipeline.fanout import runner
from pipeline.inventory import Target
from pipeline.report import machines
from pipeline.report.model import build_report
from tests import dumps
from tests.warehouse.outcomes import publish, session

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
