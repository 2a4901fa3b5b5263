"""The alerts as promtool plays them, and both alerts and dashboard ask for metrics that the report has."""

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
from tests.warehouse.outcomes import failed, ok, publish, session

DEPLOY = Path(__file__).resolve().parents[2] / "jobs" / "deploy"
RULES = DEPLOY / "prometheus" / "list-lru-audit.rules.yml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "list-lru-audit.json").read_text())
NAME = re.compile(r"\b(?:audit:)?list_lru_audit_\w+(?::\w+)*")


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return list(group["rules"])


def expressions() -> Iterator[str]:
    """Of every panel, with its variables as Grafana fills them in."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace("$audit", "nightly")


@pytest.fixture(scope="module")
def metrics(tmp_path_factory) -> dict[str, set[str]]:
    """The labels of each metric of a report."""
    root = tmp_path_factory.mktemp("warehouse")
    publish(root, ok("web-1"), failed("db-1"), audit="nightly")
    file = io.StringIO()
    prometheus(build_report(session(root)), file)
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(file.getvalue()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


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
    checked = promtool("check", "rules", RULES.name)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(rules())} rules found" in checked.stdout


def test_the_alerts_fire_when_they_should_and_only_then(promtool, tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("alerts.yml"), tmp_path)
    played = promtool("test", "rules", "alerts.yml")
    assert played.returncode == 0, played.stdout + played.stderr


def test_the_expressions_of_the_dashboard_are_promql(promtool, tmp_path: Path) -> None:
    made = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(expressions())]
    (tmp_path / "panels.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": made}]}))
    checked = promtool("check", "rules", "panels.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_metrics_pass_promtools_own_lint(promtool, tmp_path: Path) -> None:
    root = tmp_path / "warehouse"
    publish(root, ok("web-1"), audit="nightly")
    with (tmp_path / "metrics").open("w+") as file:
        prometheus(build_report(session(root)), file)
        file.seek(0)
        linted = subprocess.run([shutil.which("promtool") or "", "check", "metrics"], stdin=file, capture_output=True)
    assert (linted.returncode, linted.stdout, linted.stderr) == (0, b"", b"")


def test_every_alert_was_played_both_ways() -> None:
    played = yaml.safe_load(Path(__file__).with_name("alerts.yml").read_text())["tests"]
    told = [each for test in played for each in test["alert_rule_test"]]
    for alert in (rule["alert"] for rule in rules() if "alert" in rule):
        assert {bool(each.get("exp_alerts")) for each in told if each["alertname"] == alert} == {True, False}


@pytest.mark.parametrize("expr", [*(rule["expr"] for rule in rules()), *expressions()])
def test_an_expression_asks_for_what_the_report_has(metrics: dict[str, set[str]], expr: str) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    names = set(NAME.findall(expr))
    assert names
    assert names <= metrics.keys() | recorded
    grouped = re.findall(r"(?:by|on|group_left) ?\(([\w, ]*)\)", expr)
    labels = {label.strip() for group in grouped for label in group.split(",")}
    labels |= set(re.findall(r"[{,] ?(\w+)=~?\"", expr))
    assert labels <= set().union(*(metrics.get(name, {"audit"}) for name in names))


@pytest.mark.parametrize("rule", [rule for rule in rules() if "alert" in rule], ids=lambda rule: rule["alert"])
def test_an_alert_says_what_and_where(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "info")
    assert "$labels." in rule["annotations"]["summary"]
    assert rule["annotations"]["description"]


def test_the_dashboard_has_what_grafana_requires() -> None:
    """The fields that Grafana's kind `dashboard` (kinds/dashboard/dashboard_kind.cue) does not make optional."""
    assert DASHBOARD["title"]
    assert re.fullmatch(r"[\w-]{1,40}", DASHBOARD["uid"])
    assert isinstance(DASHBOARD["schemaVersion"], int)
    assert "id" not in DASHBOARD  # the database's; an imported one has none
    for variable in DASHBOARD["templating"]["list"]:
        assert variable["name"]
        assert variable["type"] in ("datasource", "query")
    for panel in DASHBOARD["panels"]:
        assert panel["type"] in ("stat", "timeseries", "bargauge", "table")
        assert panel["title"]
        assert {"defaults", "overrides"} <= panel["fieldConfig"].keys()
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
        for asked in (panel, *panel["targets"]):
            assert asked["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identifiers)) == len(identifiers)


def test_no_panel_hides_another() -> None:
    """A dashboard is 24 columns wide."""
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(0 <= place["x"] < place["x"] + place["w"] <= 24 for place in places)
    for one, other in itertools.combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)
