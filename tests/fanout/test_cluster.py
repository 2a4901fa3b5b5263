"""The fan-out on a Ray cluster of three nodes that run without a checkout, and what a dying node costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli
from tests.cli.test_resume import VMCORES, Warehouse, until
from tests.cluster import HEAD, Cluster, cluster

ROOT = Path(__file__).resolve().parents[2]
OTHER, DYING = "127.0.0.3", "127.0.0.4"


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Cluster]:
    with cluster(3) as made:
        yield made


@pytest.fixture
def collector(tmp_path: Path) -> Path:
    """In place of a collector: says on which node it runs and where it would import the package from.

    It hangs on the node whose word is in the file `hang`, and says so in `hung`.
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


def fan_out(folder: Path, targets: list[dict[str, Any]], env: dict[str, str]) -> subprocess.Popen[str]:
    """Start a driver of its own that prints each outcome as a line of JSON."""
    (folder / "targets.json").write_text(json.dumps(targets))
    script = folder / "driver.py"
    script.write_text(
        f"import json, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from pipeline.fanout import cluster, driver\n"
        "from pipeline.inventory import Target, plan\n"
        "targets = [Target(**target) for target in json.load(open('targets.json'))]\n"
        "try:\n"
        "    with cluster.connected(3):\n"
        "        made = plan.make(targets, 3, cluster.nodes())\n"
        "        driver.run(made, on_outcome=lambda outcome: print(json.dumps(outcome), flush=True))\n"
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
    stdout, stderr = process.communicate(timeout=150)
    # A line where a loaded machine is slow to start workers.
    assert stderr in ("", "no worker has begun after 10 s: has Ray no free CPU?\n")
    return {outcome["target"]: outcome for outcome in map(json.loads, stdout.splitlines())}


def statuses(outcome: dict[str, Any]) -> list[str]:
    return [row["status"] for row in outcome["attempts"]]


@pytest.mark.parametrize("token", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}])
def test_nobody_joins_a_cluster_without_its_token(ray_cluster: Cluster, tmp_path: Path, token: dict[str, str]) -> None:
    process = fan_out(tmp_path, [], {"RAY_ADDRESS": ray_cluster.address, **token})
    stdout, stderr = process.communicate(timeout=60)
    assert stdout == ""
    said = stderr.splitlines()[-1]  # before it a line of Ray's own
    assert said.startswith(f"cannot join the Ray cluster at {ray_cluster.address}: it wants another token")
    assert "Traceback" not in stderr


def test_nodes_audit_their_own_kernels_with_the_package_that_the_driver_sent(
    ray_cluster: Cluster, tmp_path: Path, collector: Path
) -> None:
    (tmp_path / "core").touch()
    python = {"python": str(collector)}
    targets = [
        {"name": "every", "kind": "ray", "source": "ray:*", **python},
        {"name": "via", "kind": "vmcore", "source": f"{tmp_path}/core", "via": f"ray:{OTHER}", **python},
        {"name": "absent", "kind": "ray", "source": "ray:db-7", **python},
    ]
    # As `ray job submit` hands a driver the runtime environment of its job.
    job = {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"env_vars": {"OF_JOB": "yes"}}})}
    found = outcomes(fan_out(tmp_path, targets, ray_cluster.env | job))
    words = ray_cluster.words
    hosts = {name: outcome["row"].get("host") for name, outcome in found.items()}
    assert hosts == {HEAD: words[HEAD], OTHER: words[OTHER], DYING: words[DYING], "via": words[OTHER], "absent": None}
    assert found[OTHER]["row"]["kernel_release"] == "live:", "what the collector is told to open"
    assert found[OTHER]["row"]["arch"] == "yes", "the job's own runtime environment stays"
    assert (found[OTHER]["row"]["kind"], found[OTHER]["row"]["source"]) == ("ray", f"ray:{OTHER}")
    absent = found["absent"]["row"]
    assert (absent["status"], absent["duration_ms"]) == ("unreachable", 0)
    assert "db-7 is not in the Ray cluster" in absent["error"]
    for name in (HEAD, OTHER, DYING):
        package = Path(found[name]["row"]["notes"].split(os.pathsep)[0])
        assert package.is_relative_to(ray_cluster.folder / name[-1]), "each node has its own copy"


def test_a_node_that_dies_costs_its_own_targets_and_nobody_elses(
    ray_cluster: Cluster, tmp_path: Path, collector: Path
) -> None:
    (tmp_path / "core").touch()
    (tmp_path / "hang").write_text(ray_cluster.words[DYING])
    common = {"python": str(collector)}
    targets = [{"name": "there", "kind": "ray", "source": f"ray:{DYING}", **common}]
    targets += [{"name": f"core{n}", "kind": "vmcore", "source": f"{tmp_path}/core", **common} for n in range(8)]
    process = fan_out(tmp_path, targets, ray_cluster.env)
    until_hung(process, tmp_path, {"live:", f"{tmp_path}/core"})
    ray_cluster.kill_raylet(DYING)
    found = outcomes(process)
    # Now and then the collector is killed before its worker; then the first attempt has crashed.
    first, last = statuses(found.pop("there"))
    assert (first in ("lost", "crashed"), last) == (True, "lost")
    assert len(found) == 8
    tried = {tuple(statuses(outcome)) for outcome in found.values()}
    assert ("ok",) in tried
    assert tried - {("ok",)} in ({("lost", "ok")}, {("crashed", "ok")})
    assert {outcome["row"]["host"] for outcome in found.values()} == {ray_cluster.words[OTHER]}


def test_when_the_last_node_with_a_cpu_is_dead_a_run_does_not_wait_for_ever(
    ray_cluster: Cluster, tmp_path: Path, collector: Path
) -> None:
    (tmp_path / "core").touch()
    (tmp_path / "hang").write_text(ray_cluster.words[OTHER])
    some = {"kind": "vmcore", "source": f"{tmp_path}/core", "python": str(collector)}
    process = fan_out(tmp_path, [{"name": f"core{n}", **some} for n in range(3)], ray_cluster.env)
    until_hung(process, tmp_path, {f"{tmp_path}/core"})
    ray_cluster.kill_raylet(OTHER)
    stdout, stderr = process.communicate(timeout=120)
    assert stdout == ""
    assert stderr.splitlines()[-1] == "no node of the Ray cluster is left that has a CPU"
    assert "Traceback" not in stderr


def test_when_the_head_is_dead_a_run_ends_and_is_gone_on_with_elsewhere(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\ntouch {tmp_path}/hung\nsleep 300\n")
    python.chmod(0o755)
    fleet = tmp_path / "fleet.yaml"
    core = VMCORES / "deb510-n1/vmcore"
    fleet.write_text(f"- {{target: '{core}', name: ready}}\n- {{target: '{core}', name: hung, python: '{python}'}}\n")
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as temporary, cluster(2) as ray_cluster:
        joined = Warehouse(tmp_path / "w", Path(temporary), **ray_cluster.env)
        process = joined.start("run", "-i", fleet)
        until(process, lambda: (tmp_path / "hung").exists() and len(joined.spool()) == 1)
        ray_cluster.kill(HEAD)
        stdout, stderr = process.communicate(timeout=120)
        assert (process.returncode, stdout) == (cli.FAILED, "")
        staged = joined.staged()
        *_, kept, remedy, said = stderr.splitlines()
        assert kept == f"1 of 2 targets were collected and are kept in {staged}"
        assert remedy == f"go on with: lru-audit resume {staged.name}"
        assert said.startswith(f"lru-audit: the head of the Ray cluster at {ray_cluster.address} is gone: ")
        assert "Traceback" not in stderr
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        here = Warehouse(joined.path, Path(temporary))
        assert here.run("resume", "latest")[0] == cli.OK
        assert here.published() == [staged.name]
