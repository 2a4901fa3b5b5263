"""Runs on a Ray cluster of three nodes without a checkout, the loss of a node, and clusters that cannot be used yet."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli
from tests.cli.test_resume import VMCORES, Warehouse, wait_until
from tests.cluster import HEAD, NETWORK, Cluster, cluster

ROOT = Path(__file__).resolve().parents[2]
WORKER, VICTIM = f"{NETWORK}.3", f"{NETWORK}.4"


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Cluster]:
    with cluster(3) as running_cluster:
        yield running_cluster


@pytest.fixture
def fragile_cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster for a test that kills nodes of it; its parameter is the number of nodes."""
    with cluster(request.param) as running_cluster:
        yield running_cluster


@pytest.fixture
def collector(tmp_path: Path) -> Path:
    """A stand-in for the collector that reports its node and the directory that the package is imported from.

    It hangs on the node whose word is in the file `hang`, and appends its source to the file `hung`.
    """
    script = tmp_path / "collector"
    script.write_text(
        f"#!{sys.executable}\n"
        "import json, os, pathlib, sys, time\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "if (folder / 'hang').exists() and (folder / 'hang').read_text() == os.environ['TEST_WORD']:\n"
        "    with (folder / 'hung').open('a') as hung: hung.write(sys.argv[-1] + '\\n')\n"
        "    time.sleep(300)\n"
        "time.sleep(0.5)\n"
        'print("list-lru-audit snapshot 1")\n'
        'names = ["host", "notes", "kernel_release", "arch"]\n'
        'row = [os.environ["TEST_WORD"], os.environ["PYTHONPATH"], sys.argv[-1], os.environ.get("OF_JOB")]\n'
        'print(json.dumps({"table": "targets", "columns": names, "rows": [row]}))\n'
        'print(\'{"end": {"targets": 1}}\')\n'
    )
    script.chmod(0o755)
    return script


def fan_out(
    folder: Path, targets: list[dict[str, Any]], env: dict[str, str], parallel: int = 3, node_wait_s: float = 300
) -> subprocess.Popen[str]:
    """Start a driver in a process of its own that prints each outcome as a line of JSON."""
    (folder / "targets.json").write_text(json.dumps(targets))
    script = folder / "driver.py"
    script.write_text(
        f"import json, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from pipeline.fanout import cluster, driver\n"
        "from pipeline.inventory import Target, plan\n"
        f"driver._NODE_WAIT_S = {node_wait_s}\n"
        "targets = [Target(**target) for target in json.load(open('targets.json'))]\n"
        "try:\n"
        "    with cluster.connection(3):\n"
        f"        fleet_plan = plan.make_plan(targets, {parallel}, cluster.nodes())\n"
        "        on_outcome = lambda outcome: print(json.dumps(outcome), flush=True)\n"
        "        driver.run(fleet_plan, on_outcome=on_outcome, grows=True)\n"
        "except cluster.ClusterError as error:\n"
        "    print(error, file=sys.stderr)\n"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, script], cwd=folder, env={**clean, **env}, stdout=pipe, stderr=pipe, text=True
    )


def until_hung(process: subprocess.Popen[str], folder: Path, sources: set[str]) -> None:
    deadline = time.monotonic() + 60
    hung = folder / "hung"
    while not (hung.exists() and sources <= set(hung.read_text().splitlines())):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def outcomes(process: subprocess.Popen[str]) -> dict[str, dict[str, Any]]:
    stdout, stderr = process.communicate(timeout=250)
    # The warning appears when a loaded machine is slow to start workers.
    assert stderr in ("", "no worker has started after 10 s: does Ray have a free CPU?\n")
    return {outcome["target"]: outcome for outcome in map(json.loads, stdout.splitlines())}


def statuses(outcome: dict[str, Any]) -> list[str]:
    return [row["status"] for row in outcome["attempts"]]


@pytest.mark.parametrize("token", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}])
def test_nobody_joins_a_cluster_without_its_token(ray_cluster: Cluster, tmp_path: Path, token: dict[str, str]) -> None:
    process = fan_out(tmp_path, [], {"RAY_ADDRESS": ray_cluster.address, **token})
    stdout, stderr = process.communicate(timeout=60)
    assert stdout == ""
    message = stderr.splitlines()[-1]  # after a line of Ray's own
    assert message.startswith(f"cannot join the Ray cluster at {ray_cluster.address}: it requires another token")
    assert "Traceback" not in stderr


def test_nodes_audit_their_own_kernels_with_the_package_that_the_driver_sent(
    ray_cluster: Cluster, tmp_path: Path, collector: Path
) -> None:
    (tmp_path / "core").touch()
    python = {"python": str(collector)}
    targets = [
        {"name": "every", "kind": "ray", "source": "ray:*", **python},
        {"name": "via", "kind": "vmcore", "source": f"{tmp_path}/core", "via": f"ray:{WORKER}", **python},
        {"name": "absent", "kind": "ray", "source": "ray:db-7", **python},
    ]
    # `ray job submit` passes the runtime environment of a job to its driver in this variable.
    job = {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"env_vars": {"OF_JOB": "yes"}}})}
    results = outcomes(fan_out(tmp_path, targets, ray_cluster.env | job))
    words = ray_cluster.words
    hosts = {name: outcome["row"].get("host") for name, outcome in results.items()}
    assert hosts == {
        HEAD: words[HEAD],
        WORKER: words[WORKER],
        VICTIM: words[VICTIM],
        "via": words[WORKER],
        "absent": None,
    }
    assert results[WORKER]["row"]["kernel_release"] == "live:", "what the collector is told to open"
    assert results[WORKER]["row"]["arch"] == "yes", "the job's own runtime environment stays"
    assert (results[WORKER]["row"]["kind"], results[WORKER]["row"]["source"]) == (
        "ray",
        f"ray:{WORKER}",
    )
    absent = results["absent"]["row"]
    assert (absent["status"], absent["duration_ms"]) == ("unreachable", 0)
    assert "db-7 is not in the Ray cluster" in absent["error"]
    for name in (HEAD, WORKER, VICTIM):
        package = Path(results[name]["row"]["notes"].split(os.pathsep)[0])
        assert package.is_relative_to(ray_cluster.folder / name[-1]), "each node has its own copy"


@pytest.mark.faults
@pytest.mark.parametrize("fragile_cluster", [3], indirect=True)
def test_a_node_that_dies_costs_its_own_targets_and_nobody_elses(
    fragile_cluster: Cluster, tmp_path: Path, collector: Path
) -> None:
    (tmp_path / "core").touch()
    (tmp_path / "hang").write_text(fragile_cluster.words[VICTIM])
    common = {"python": str(collector)}
    targets = [{"name": "there", "kind": "ray", "source": f"ray:{VICTIM}", **common}]
    targets += [{"name": f"core{n}", "kind": "vmcore", "source": f"{tmp_path}/core", **common} for n in range(8)]
    process = fan_out(tmp_path, targets, fragile_cluster.env)
    until_hung(process, tmp_path, {"live:", f"{tmp_path}/core"})
    fragile_cluster.kill_raylet(VICTIM)
    results = outcomes(process)
    # The collector may be killed before its worker; then the first attempt has crashed.
    first, last = statuses(results.pop("there"))
    assert (first in ("lost", "crashed"), last) == (True, "lost")
    assert len(results) == 8
    attempts = {tuple(statuses(outcome)) for outcome in results.values()}
    assert ("ok",) in attempts
    assert attempts - {("ok",)} in ({("lost", "ok")}, {("crashed", "ok")})
    assert {outcome["row"]["host"] for outcome in results.values()} == {fragile_cluster.words[WORKER]}


@pytest.mark.faults
@pytest.mark.parametrize("fragile_cluster", [2], indirect=True)
def test_when_the_last_node_with_a_cpu_is_dead_a_run_does_not_wait_for_ever(
    fragile_cluster: Cluster, tmp_path: Path, collector: Path
) -> None:
    (tmp_path / "core").touch()
    (tmp_path / "hang").write_text(fragile_cluster.words[WORKER])
    some = {"kind": "vmcore", "source": f"{tmp_path}/core", "python": str(collector)}
    process = fan_out(tmp_path, [{"name": f"core{n}", **some} for n in range(3)], fragile_cluster.env, node_wait_s=2)
    until_hung(process, tmp_path, {f"{tmp_path}/core"})
    fragile_cluster.kill_raylet(WORKER)
    stdout, stderr = process.communicate(timeout=120)
    assert stdout == ""
    assert stderr.splitlines()[-2:] == [
        "waiting for a node with a CPU: the cluster has none any more",
        "no node with a CPU is left in the Ray cluster",
    ]
    assert "Traceback" not in stderr


@pytest.mark.faults
@pytest.mark.parametrize("fragile_cluster", [1], indirect=True)
def test_a_run_waits_for_the_first_node_with_a_cpu_and_uses_the_second(
    fragile_cluster: Cluster, tmp_path: Path, collector: Path
) -> None:
    """As with an autoscaler that starts from no worker."""
    (tmp_path / "core").touch()
    common = {"kind": "vmcore", "source": f"{tmp_path}/core", "python": str(collector)}
    targets = [{"name": f"core{number}", **common} for number in range(100)]
    process = fan_out(tmp_path, targets, fragile_cluster.env, parallel=1)
    assert process.stderr.readline() == "waiting for a node with a CPU: the cluster has none yet\n"
    fragile_cluster.add(WORKER)
    fragile_cluster.add(VICTIM)
    results = outcomes(process)
    assert {tuple(statuses(outcome)) for outcome in results.values()} == {("ok",)}
    hosts = {outcome["row"]["host"] for outcome in results.values()}
    assert hosts == {fragile_cluster.words[WORKER], fragile_cluster.words[VICTIM]}


@pytest.mark.faults
@pytest.mark.parametrize("fragile_cluster", [1], indirect=True)
def test_a_cluster_that_never_has_a_cpu_is_not_waited_for_for_ever(fragile_cluster: Cluster, tmp_path: Path) -> None:
    targets = [{"name": "core", "kind": "vmcore", "source": "/"}]
    process = fan_out(tmp_path, targets, fragile_cluster.env, node_wait_s=5)
    stdout, stderr = process.communicate(timeout=120)
    assert stdout == ""
    assert stderr.splitlines() == [
        "waiting for a node with a CPU: the cluster has none yet",
        "no node with a CPU joined the Ray cluster within 5 s",
    ]


@pytest.mark.faults
@pytest.mark.parametrize("fragile_cluster", [3], indirect=True)
def test_a_node_that_is_preempted_costs_its_targets_no_attempt(
    fragile_cluster: Cluster, tmp_path: Path, collector: Path
) -> None:
    (tmp_path / "core").touch()
    (tmp_path / "hang").write_text(fragile_cluster.words[VICTIM])
    common = {"kind": "vmcore", "source": f"{tmp_path}/core", "python": str(collector)}
    process = fan_out(tmp_path, [{"name": f"core{n}", **common} for n in range(8)], fragile_cluster.env)
    until_hung(process, tmp_path, {f"{tmp_path}/core"})
    fragile_cluster.preempt(VICTIM)
    results = outcomes(process)
    assert {outcome["row"]["status"] for outcome in results.values()} == {"ok"}
    lost = [row for outcome in results.values() for row in outcome["attempts"] if row["status"] != "ok"]
    assert lost
    assert {(row["status"], row["error_type"]) for row in lost} <= {
        ("lost", "NodePreempted"),
        ("crashed", "signal:SIGKILL"),
    }


@pytest.mark.faults
def test_a_cluster_of_another_version_is_named_with_all_versions(tmp_path: Path) -> None:
    ray = tmp_path / "ray"
    ray.write_text(
        f"#!{sys.executable}\nimport ray\nray.__version__ = '9.9.9'\nfrom ray.scripts.scripts import main\nmain()\n"
    )
    ray.chmod(0o755)
    python, version = platform.python_version(), metadata.version("ray")
    with cluster(1, ray) as other_cluster:
        stdout, stderr = fan_out(tmp_path, [], other_cluster.env).communicate(timeout=100)
        assert stdout == ""
        assert stderr.splitlines()[-1].startswith(
            f"cannot join the Ray cluster at {other_cluster.address}: it has Ray 9.9.9 and Python {python}, "
            f"this is Ray {version} and Python {python}; run lru-audit with the versions of the cluster"
        )


@pytest.mark.faults
def test_a_worker_that_ray_ends_for_the_memory_of_its_node_is_over_budget(tmp_path: Path) -> None:
    """An account's own settings of the memory monitor hold for an embedded Ray, too."""
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nimport time\nx = bytearray(1 << 28)\ntime.sleep(30)\n")
    python.chmod(0o755)
    (tmp_path / "core").touch()
    targets = [
        {"name": f"core{n}", "kind": "vmcore", "source": f"{tmp_path}/core", "python": str(python)} for n in range(2)
    ]
    settings = {"RAY_memory_monitor_refresh_ms": "100", "RAY_memory_usage_threshold": "0.01"}
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as temporary:
        results = outcomes(fan_out(tmp_path, targets, settings | {"TMPDIR": temporary}))
    for outcome in results.values():
        row = outcome["row"]
        assert (row["status"], row["error_type"]) == ("over_budget", "OutOfMemoryError")
        assert re.search(r"its node \S+ used [\d.]+GB of [\d.]+GB of memory", row["error"])
        assert "RAY_memory_usage_threshold" in row["error"]


@pytest.mark.faults
@pytest.mark.usefixtures("embedded_ray")
def test_when_the_head_is_dead_a_run_ends_and_is_gone_on_with_elsewhere(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\ntouch {tmp_path}/hung\nsleep 300\n")
    python.chmod(0o755)
    fleet = tmp_path / "fleet.yaml"
    core = VMCORES / "deb510-n1/vmcore"
    fleet.write_text(f"- {{target: '{core}', name: ready}}\n- {{target: '{core}', name: hung, python: '{python}'}}\n")
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as temporary, cluster(2) as ray_cluster:
        warehouse = Warehouse(tmp_path / "w", Path(temporary), **ray_cluster.env)
        process = warehouse.start("run", "-i", fleet)
        wait_until(process, lambda: (tmp_path / "hung").exists() and len(warehouse.spool()) == 1)
        ray_cluster.kill(HEAD)
        stdout, stderr = process.communicate(timeout=120)
        assert (process.returncode, stdout) == (cli.FAILED, "")
        staging = warehouse.staging()
        *_, summary, remedy, message = stderr.splitlines()
        assert summary == f"1 of 2 targets were collected and are kept in {staging}"
        assert remedy == f"resume it with: lru-audit resume {staging.name}"
        assert message.startswith(f"lru-audit: the head of the Ray cluster at {ray_cluster.address} is gone: ")
        assert "Traceback" not in stderr
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        local_warehouse = Warehouse(warehouse.path, Path(temporary))
        assert local_warehouse.run("resume", "latest")[0] == cli.OK
        assert local_warehouse.run_ids() == [staging.name]
