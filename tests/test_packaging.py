"""The wheel contains every file that the program needs, and the program runs from it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the files that git has."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    for name in tracked_files():
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(copy)]
    subprocess.run(build, check=True)
    return next(folder.glob("*.whl"))


def tracked_files() -> list[str]:
    """Return the paths of the files that git has, without those of the tests."""
    output = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in output.split("\0") if name and not name.startswith("tests/")]


def test_the_wheel_has_every_file_that_git_has(wheel: Path) -> None:
    wheel_files = set(zipfile.ZipFile(wheel).namelist())
    for name in tracked_files():
        top_folder, _, path = name.partition("/")
        if top_folder == "pipeline":
            assert name in wheel_files
        elif top_folder in ("sql", "schemas", "jobs") and path:
            assert f"pipeline/{name}" in wheel_files


def test_site_packages_gets_one_name(wheel: Path) -> None:
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"pipeline"}


def test_the_jobs_run_from_a_checkout_and_an_editable_install(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.jobs.audit", "--help"]
    env = {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "--inventory" in process.stdout


@pytest.mark.parametrize(
    ("arguments", "output"),
    [(["pipeline", "sql", "FROM host_waste"], "wasted_bytes"), (["pipeline.jobs.audit", "--help"], "--inventory")],
)
def test_the_program_and_its_jobs_run_from_the_wheel(
    wheel: Path, tmp_path: Path, arguments: list[str], output: str
) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    command = [sys.executable, "-m", *arguments]
    env = {"PYTHONPATH": str(tmp_path / "site")}
    process = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert output in process.stdout
