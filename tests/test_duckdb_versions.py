"""The SQL passes its tests also on the oldest DuckDB that setup.cfg allows; the suite itself runs on the newest."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from tests import campaign
from tests.query.test_older_runs import VERSIONS

ROOT = Path(__file__).parents[1]
SQL = ("tests/sql", "-k", "parquet")
# Of the runs that older versions wrote, one version's.
QUERY = ("tests/query", "-k", " or ".join(["not test_older_runs", *(v.name for v in campaign.sample(VERSIONS, 1))]))

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a Python that imports the oldest DuckDB."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    (oldest,) = re.findall(r"^duckdb>=([\d.]+),<", config["options"]["install_requires"], re.MULTILINE)
    assert not duckdb.__version__.startswith(oldest)
    target = tmp_path_factory.mktemp("oldest")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*install, "--target", str(target), f"duckdb=={oldest}"], check=True, timeout=300)

    environment = {**os.environ, "PYTHONPATH": f"{target}{os.pathsep}{ROOT}"}
    print_version = [sys.executable, "-c", "import duckdb; print(duckdb.__version__)"]
    version = subprocess.run(print_version, env=environment, check=True, capture_output=True, text=True).stdout
    assert version.strip() == oldest
    return environment


@pytest.mark.parametrize("arguments", [SQL, QUERY], ids=lambda args: args[0])
def test_sql_on_the_oldest_duckdb(environment: dict[str, str], arguments: tuple[str, ...]) -> None:
    suite = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    if not campaign.IS_FULL:
        suite += ["-m", "not faults"]
    process = subprocess.run(suite, cwd=ROOT, env=environment, check=False, capture_output=True, text=True, timeout=900)
    assert process.returncode == 0, process.stdout + process.stderr
