"""Hosts of an inventory that cannot be used, through the whole run: rows with a reason, and all others audited."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.cli.exits import USAGE
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


def test_passwords_in_arguments_for_ssh_are_staged_for_the_owner_and_never_published(
    embedded_ray: dict[str, str], tmp_path: Path
) -> None:
    command = tmp_path / "proxy"
    command.write_text(f'#!/bin/sh\ncp -pr {tmp_path}/w {tmp_path}/staged\necho "$2" >> {tmp_path}/dialled\n')
    command.chmod(0o755)
    hosts = {
        "a": {"ansible_ssh_common_args": f"-o 'ProxyCommand={command} -p hunter2'"},
        "b": {"ansible_ssh_common_args": "-o ConnectTimeout=1", "ansible_host": "127.0.0.1", "ansible_port": 1},
    }
    fleet = tmp_path / "fleet.json"
    fleet.write_text(json.dumps({"_meta": {"hostvars": hosts}}))
    process = audit("run", CORE, "-i", fleet, "--retries", 0, "-w", tmp_path / "w")
    assert process.returncode == cli.SOME_NOT_GOOD
    assert "hunter2" in (tmp_path / "dialled").read_text()
    staged = [path for path in (tmp_path / "staged").rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
    assert {(path.name, path.stat().st_mode & 0o777) for path in staged} == {("private.json", 0o600)}
    assert not [path for path in (tmp_path / "w").rglob("*") if path.is_file() and b"hunter2" in unpacked(path)]
    assert "hunter2" not in process.stdout + process.stderr
    (tmp_path / "dialled").unlink()
    assert audit("resume", "latest", "-w", tmp_path / "w").returncode == cli.SOME_NOT_GOOD
    query = "SELECT target, error FROM targets WHERE status <> 'ok' ORDER BY run_id"
    rows = json.loads(audit("sql", "-w", tmp_path / "w", "--format", "json", query).stdout)
    errors = {row["target"]: row["error"] for row in rows}  # of the revision, the later run
    assert errors["a"].endswith("may contain passwords and are not published: start a new run")
    assert "refused" in errors["b"]
    assert not (tmp_path / "dialled").exists()


def unpacked(file: Path) -> bytes:
    content = file.read_bytes()
    return gzip.decompress(content) if file.suffix == ".gz" else content


def test_only_hosts_that_will_be_dialled_need_ssh_here(
    embedded_ray: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = tmp_path / "fleet.json"
    fleet.write_text(json.dumps({"_meta": {"hostvars": {"windows": {"ansible_connection": "winrm"}}}}))
    monkeypatch.setenv("PATH", str(tmp_path))
    process = audit("run", CORE, "-i", fleet, "-w", tmp_path / "w")
    assert process.returncode == cli.SOME_NOT_GOOD, process.stderr


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


def test_settings_that_are_unknown_are_said_also_with_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ansible-inventory"
    program.write_text("#!/bin/sh\nexec /bin/cat hosts\n")
    program.chmod(0o755)
    (tmp_path / "hosts").write_text('{"_meta": {"hostvars": {"a": {"ansible_host": "{{ inventory_hostname }}.lan"}}}}')
    monkeypatch.setenv("PATH", str(tmp_path))
    process = audit("plan", "-i", "ansible:hosts", "--quiet", cwd=tmp_path)
    assert process.stderr == "ansible:hosts: ansible.cfg is not used: ansible-playbook is not on PATH\n"
    assert "ssh:a.lan" in process.stdout


def test_a_relative_python_says_what_is_expected() -> None:
    process = audit("inspect", "--python", "./py", CORE)
    assert process.returncode == USAGE
    assert "expected a name or an absolute path, not './py'" in process.stderr
