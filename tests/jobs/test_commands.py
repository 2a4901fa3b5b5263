"""The commands of jobs/deploy/: the program accepts each, and schedulers get the right exit codes."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline import cli

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "jobs" / "deploy"
COMMANDS = ("audit", "report", "expire")


def commands_of_the_service() -> list[list[str]]:
    unit = (DEPLOY / "systemd" / "lru-audit.service").read_text().replace("\\\n", "")
    return [shlex.split(line) for line in re.findall(r"^Exec\w+=(.*)$", unit, re.MULTILINE)]


@pytest.fixture
def run_nightly(tmp_path: Path):
    """Run nightly.sh with a python that records its arguments and exits with the code in the variable of that job."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys\n"
        "with open(os.environ['CALLS'], 'a') as file:\n"
        "    file.write(json.dumps([os.environ['LRU_AUDIT_WAREHOUSE'], *sys.argv[1:]]) + '\\n')\n"
        "sys.exit(int(os.environ.get(sys.argv[2].rpartition('.')[2], 0)))\n"
    )
    python.chmod(0o755)

    def run(*arguments: str, **variables: int | str) -> tuple[int, list[list[str]]]:
        call_file = tmp_path / "calls"
        call_file.unlink(missing_ok=True)
        env = {"PATH": f"{python.parent}:{os.defpath}", "CALLS": str(call_file), "LRU_AUDIT_DATA": "/data"}
        env |= {name: str(value) for name, value in variables.items()}
        process = subprocess.run(["sh", DEPLOY / "nightly.sh", *arguments], env=env, check=False)
        return process.returncode, [json.loads(line) for line in call_file.read_text().splitlines()]

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_a_job_passes_its_arguments_to_the_command_of_its_name(command: str, tmp_path: Path) -> None:
    cli_command = {"audit": "run"}.get(command, command)
    processes = [
        subprocess.run([sys.executable, "-m", *start, "--help"], **capture_options(tmp_path))
        for start in ([f"pipeline.jobs.{command}"], ["pipeline", cli_command])
    ]
    assert "usage: lru-audit" in processes[1].stdout + processes[1].stderr
    assert (processes[0].stdout, processes[0].stderr) == (processes[1].stdout, processes[1].stderr)


def capture_options(cwd: Path) -> dict:
    return {"cwd": cwd, "env": {"PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True, "check": False}


def assert_accepted(command: list[str]) -> None:
    """Assert that the command line accepts the arguments of a `python -m pipeline.jobs.X ...`."""
    _, dash_m, module, *arguments = command
    assert dash_m == "-m"
    package, _, job = module.rpartition(".")
    assert package == "pipeline.jobs"
    assert (ROOT / "jobs" / f"{job}.py").is_file()
    cli.parser().parse_args([{"audit": "run"}.get(job, job), *arguments])


@pytest.mark.parametrize("command", commands_of_the_service(), ids=lambda command: command[2])
def test_the_service_runs_commands_that_there_are(command: list[str]) -> None:
    assert_accepted(command)


@pytest.mark.parametrize("number", range(4), ids=["audit", "metrics", "report", "expire"])
def test_the_script_runs_the_same_commands_as_the_service(run_nightly, number: int) -> None:
    code, calls = run_nightly("-i", "/etc/lru-audit/fleet.yaml")
    assert code == 0
    assert len(calls) == 4
    warehouse, *command = calls[number]
    assert warehouse == "/data/warehouse"
    assert_accepted(["python", *command])
    service_command = commands_of_the_service()[number][1:]
    paths = re.compile(r"\S*/")
    assert sorted(paths.sub("", word) for word in command) == sorted(paths.sub("", word) for word in service_command)


@pytest.mark.parametrize(
    ("job_codes", "exit_code"),
    [
        ({}, 0),
        ({"audit": 3}, 0),  # some targets are not good: published, and the metrics say so
        ({"audit": 4}, 4),
        ({"audit": 5}, 5),
        ({"audit": 1, "report": 1}, 1),
        ({"audit": 2}, 2),
        ({"report": 1}, 1),
        ({"audit": 3, "expire": 1}, 1),
        ({"audit": 4, "report": 1}, 4),
    ],
)
def test_the_script_fails_where_somebody_has_to_look(run_nightly, job_codes: dict[str, int], exit_code: int) -> None:
    code, calls = run_nightly("-i", "fleet.yaml", **job_codes)
    assert code == exit_code
    assert [command[2] for command in calls][:2] == ["pipeline.jobs.audit", "pipeline.jobs.report"]


def test_the_warehouse_may_be_on_an_object_store(run_nightly) -> None:
    _, calls = run_nightly("-i", "fleet.yaml", LRU_AUDIT_WAREHOUSE="s3://bucket/prefix")
    assert {warehouse for warehouse, *_ in calls} == {"s3://bucket/prefix"}


def test_an_argument_with_a_space_stays_one(run_nightly) -> None:
    _, calls = run_nightly("-i", "my fleet.yaml", "ray:*")
    assert calls[0][-3:] == ["-i", "my fleet.yaml", "ray:*"]


def test_the_line_of_cron_is_one_that_cron_takes(run_nightly) -> None:
    """Debian's crond: assignments, then five fields, a user and a command, which a % would end."""
    lines = [
        line for line in (DEPLOY / "cron" / "lru-audit").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[A-Z_]+=\S+", line) for line in lines[:-1])
    fields = lines[-1].split(None, 6)
    assert all(re.fullmatch(r"[\d*/,-]+", field) for field in fields[:5])
    assert fields[5] == "root"
    assert "%" not in fields[6]
    nice, shell, script, *arguments = shlex.split(fields[6])
    assert (nice, shell, Path(script).name) == ("nice", "sh", "nightly.sh")
    _, calls = run_nightly(*arguments)
    assert_accepted(["python", *calls[0][1:]])


@pytest.mark.parametrize("script", ["nightly.sh", "ray/submit.sh"])
def test_the_scripts_are_plain_shell(script: str) -> None:
    subprocess.run(["sh", "-n", DEPLOY / script], check=True)
    assert os.access(DEPLOY / script, os.X_OK)


def test_the_document_says_of_every_file_what_it_is_for() -> None:
    text = (ROOT / "docs" / "deploy.md").read_text()
    alerts = yaml.safe_load((DEPLOY / "prometheus" / "list-lru-audit.rules.yml").read_text())["groups"][0]["rules"]
    names = {file.name for file in DEPLOY.rglob("*") if file.is_file()} - {"lru-audit.timer"}
    for name in names | {rule["alert"] for rule in alerts if "alert" in rule} | {"`.timer`"}:
        assert name in text
