"""The alerts, tested with promtool; alerts and dashboard query only metrics that the report has."""

from __future__ import annotations

import io
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from pipeline.report.model import build_report
from pipeline.report.prometheus import prometheus
from tests.warehouse.outcomes import failure, ok, publish, session

DEPLOY = Path(__file__).resolve().parents[2] / "jobs" / "deploy"
RULES = DEPLOY / "prometheus" / "list-lru-audit.rules.yml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "list-lru-audit.json").read_text())
NAME = re.compile(r"\b(?:audit:)?list_lru_audit_\w+(?::\w+)*")


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return list(group["rules"])


def expressions() -> Iterator[str]:
    """The expressions of every panel, with their variables replaced as by Grafana."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace("$audit", "nightly")


@pytest.fixture(scope="module")
def metrics(tmp_path_factory) -> dict[str, set[str]]:
    """The labels of each metric of a report."""
    root = tmp_path_factory.mktemp("warehouse")
    publish(root, ok("web-1"), failure("db-1"), audit="nightly")
    file = io.StringIO()
    prometheus(build_report(session(root)), file)
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(file.getvalue()):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


@pytest.fixture
def promtool(tmp_path: Path):
    """Run promtool in a folder with the rules."""
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("needs promtool")
    shutil.copy(RULES, tmp_path)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([tool, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


def test_the_rules_are_rules(promtool) -> None:
    process = promtool("check", "rules", RULES.name)
    assert process.returncode == 0, process.stdout + process.stderr
    assert f"{len(rules())} rules found" in process.stdout


def test_the_alerts_fire_when_they_should_and_only_then(promtool, tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("alerts.yml"), tmp_path)
    process = promtool("test", "rules", "alerts.yml")
    assert process.returncode == 0, process.stdout + process.stderr


def test_the_expressions_of_the_dashboard_are_promql(promtool, tmp_path: Path) -> None:
    panel_rules = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(expressions())]
    (tmp_path / "panels.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": panel_rules}]}))
    process = promtool("check", "rules", "panels.yml")
    assert process.returncode == 0, process.stdout + process.stderr


def test_the_metrics_pass_promtools_own_lint(promtool, tmp_path: Path) -> None:
    root = tmp_path / "warehouse"
    publish(root, ok("web-1"), audit="nightly")
    with (tmp_path / "metrics").open("w+") as file:
        prometheus(build_report(session(root)), file)
        file.seek(0)
        process = subprocess.run([shutil.which("promtool") or "", "check", "metrics"], stdin=file, capture_output=True)
    assert (process.returncode, process.stdout, process.stderr) == (0, b"", b"")


def test_every_alert_was_played_both_ways() -> None:
    tests = yaml.safe_load(Path(__file__).with_name("alerts.yml").read_text())["tests"]
    alert_tests = [alert_test for test in tests for alert_test in test["alert_rule_test"]]
    for alert in (rule["alert"] for rule in rules() if "alert" in rule):
        outcomes = {bool(test.get("exp_alerts")) for test in alert_tests if test["alertname"] == alert}
        assert outcomes == {True, False}


@pytest.mark.parametrize("expr", [*(rule["expr"] for rule in rules()), *expressions()])
def test_an_expression_asks_for_what_the_report_has(metrics: dict[str, set[str]], expr: str) -> None:
    recording_rules = {rule["record"] for rule in rules() if "record" in rule}
    names = set(NAME.findall(expr))
    assert names
    assert names <= metrics.keys() | recording_rules
    groups = re.findall(r"(?:by|on|group_left) ?\(([\w, ]*)\)", expr)
    labels = {label.strip() for group in groups for label in group.split(",")}
    labels |= set(re.findall(r"[{,] ?(\w+)=~?\"", expr))
    assert labels <= set().union(*(metrics.get(name, {"audit"}) for name in names))


@pytest.mark.parametrize("rule", [rule for rule in rules() if "alert" in rule], ids=lambda rule: rule["alert"])
def test_an_alert_says_what_and_where(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "info")
    assert "$labels." in rule["annotations"]["summary"]
    assert rule["annotations"]["description"]


def test_the_dashboard_has_what_grafana_requires() -> None:
    """The required fields of Grafana's kind `dashboard` (kinds/dashboard/dashboard_kind.cue)."""
    assert DASHBOARD["title"]
    assert re.fullmatch(r"[\w-]{1,40}", DASHBOARD["uid"])
    assert isinstance(DASHBOARD["schemaVersion"], int)
    assert "id" not in DASHBOARD  # an id belongs to the database; a dashboard to import has no id
    for variable in DASHBOARD["templating"]["list"]:
        assert variable["name"]
        assert variable["type"] in ("datasource", "query")
    for panel in DASHBOARD["panels"]:
        assert panel["type"] in ("stat", "timeseries", "bargauge", "table")
        assert panel["title"]
        assert {"defaults", "overrides"} <= panel["fieldConfig"].keys()
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
        for query in (panel, *panel["targets"]):
            assert query["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identifiers)) == len(identifiers)


def test_no_panel_hides_another() -> None:
    """A dashboard is 24 columns wide."""
    positions = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(0 <= position["x"] < position["x"] + position["w"] <= 24 for position in positions)
    for a, b in itertools.combinations(positions, 2):
        is_beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        is_below = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert is_beside or is_below, (a, b)
