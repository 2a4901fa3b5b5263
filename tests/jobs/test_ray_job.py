"""`ray job submit` with a script of jobs/deploy/, on a cluster whose nodes have only Ray; the job sends the wheel."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.cluster import Cluster, cluster

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "jobs" / "deploy"


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a virtualenv with `ray[default]` and the packages of this virtualenv, without the project."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "rest.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check"]
    process = subprocess.run([*install, f"ray[default]=={version('ray')}"], capture_output=True, text=True)
    if process.returncode:
        pytest.skip("needs network")
    ray = folder / "bin/ray"
    ray.write_text(f"#!{folder}/bin/python\nfrom ray.scripts.scripts import main\nmain()\n")
    ray.chmod(0o755)
    return ray.parent


@pytest.fixture(scope="module")
def ray_cluster(bin_folder: Path) -> Iterator[Cluster]:
    with cluster(2, bin_folder / "ray", dashboard=True) as running_cluster:
        yield running_cluster


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that submit.sh needs: nightly.sh, a wheel with a version that is not installed, and an inventory."""
    folder = tmp_path_factory.mktemp("job")
    source = tmp_path_factory.mktemp("source")
    for name in ("pipeline", "jobs", "sql", "schemas"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    init = source / "pipeline" / "__init__.py"
    init.write_text(re.sub(r'(__version__ = ".*)"', r'\1+job"', init.read_text()))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source]
    subprocess.run(build, check=True)
    shutil.copy(DEPLOY / "nightly.sh", folder)
    targets = [ROOT / "tests/vmcores/deb510-n1/vmcore", ROOT / "tests/vmcores/deb61-n2/vmcore", "/nowhere/vmcore"]
    (folder / "fleet.yaml").write_text(json.dumps([{"target": str(target)} for target in targets]))
    return folder


def submit(ray_cluster: Cluster, bin_folder: Path, folder: Path, data: Path) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    env |= {"PATH": f"{bin_folder}:{os.environ['PATH']}", "RAY_API_SERVER_ADDRESS": f"http://{ray_cluster.jobs}"}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": ray_cluster.token, "LRU_AUDIT_DATA": str(data)}
    command = ["sh", DEPLOY / "ray" / "submit.sh", "-i", "fleet.yaml"]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=900)


def test_a_job_audits_publishes_and_reports(
    ray_cluster: Cluster, bin_folder: Path, folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    process = submit(ray_cluster, bin_folder, folder, data)
    assert process.returncode == 0, process.stdout[-4000:] + process.stderr[-4000:]
    assert "2 of 3 targets good" in process.stdout
    sql = "SELECT target, status, tool_version LIKE '%+job' AS by_the_wheel FROM targets JOIN runs USING (run_id)"
    query = [sys.executable, "-m", "pipeline", "sql", "--format", "jsonl", "-w", data / "warehouse", sql]
    output = subprocess.run(query, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    rows = [json.loads(line) for line in output.splitlines()]
    assert sorted(row["status"] for row in rows) == ["ok", "ok", "unreachable"]
    assert all(row["by_the_wheel"] for row in rows)
    assert 'status="ok"} 2.0' in (data / "lru-audit.prom").read_text()
    assert (data / "waste.html").stat().st_size > 10_000
