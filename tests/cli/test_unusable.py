"""Hosts of an inventory that cannot be used, through the whole run: rows with a reason, and all others audited."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import cli
from tests.program import ROOT
from tests.program import run as audit

CORE = ROOT / "tests" / "vmcores" / "deb510-n1" / "vmcore"


def test_a_host_that_cannot_be_used_is_a_row_and_all_others_are_audited(
    embedded_ray: dict[str, str], tmp_path: Path
) -> None:
    hosts: dict[str, dict[str, object]] = {
        "broken": {"ansible_host": "{{ groups.web[0] }}", "rack": "r1"},
        "windows": {"ansible_connection": "winrm"},
        "absent": {"ansible_host": "192.0.2.1", "ansible_user": "a b"},
    }
    fleet = tmp_path / "fleet.json"
    fleet.write_text(json.dumps({"_meta": {"hostvars": hosts}}))
    arguments = (CORE, "-i", fleet, "--label", "rack", "-w", tmp_path / "w")
    process = audit("run", *arguments)
    assert process.returncode == cli.SOME_NOT_GOOD
    reason = "ansible_host is a template, '{{ groups.web[0] }}': only Ansible can fill it in; use -i ansible:FILE"
    assert f"{fleet}: {reason}: broken\n" in process.stderr
    assert f"{fleet}: 1 host is not reached by ssh (winrm 1)\n" in process.stderr
    query = "SELECT target, kind, status, error_type, error, labels FROM targets ORDER BY kind DESC"
    core, *failures = json.loads(audit("sql", "-w", tmp_path / "w", "--format", "json", query).stdout)
    assert (core["kind"], core["status"]) == ("vmcore", "ok")
    rows = {row["target"]: row for row in failures}
    assert rows.keys() == hosts.keys()
    assert {(row["kind"], row["status"], row["error_type"]) for row in rows.values()} == {
        ("ssh", "unreachable", "InventoryValue")
    }
    assert rows["broken"]["error"] == reason
    assert rows["broken"]["labels"] == {"rack": "r1"}
    assert rows["windows"]["error"] == "ansible_connection is winrm: not reached by ssh"


@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
def test_plan_shows_the_reason_and_the_arguments_for_ssh(tmp_path: Path, quiet: tuple[str, ...]) -> None:
    hosts = {"a": {"ansible_port": "none"}, "b": {"ansible_ssh_common_args": "-J 'audit@bastion'"}}
    fleet = tmp_path / "fleet.json"
    fleet.write_text(json.dumps({"_meta": {"hostvars": hosts}}))
    process = audit("plan", "-i", fleet, *quiet)
    assert process.returncode == cli.OK
    lines = process.stdout.splitlines()
    assert lines[0].split()[:4] == ["target", "kind", "source", "ssh"]
    assert any(line.startswith("b ") and "-J audit@bastion" in line for line in lines)
    assert any(line.startswith("a ") and "unreachable: ansible_port: invalid port 'none'" in line for line in lines)
    assert bool(process.stderr) != bool(quiet)
