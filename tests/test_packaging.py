"""The wheel contains every file that the program needs, and the program runs from it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests import dist

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the files that git has."""
    folder = tmp_path_factory.mktemp("wheel")
    return build_copy(folder / "source", folder / "dist", tracked_files())[0]


def build_copy(source: Path, folder: Path, names: list[str]) -> list[Path]:
    """Build the wheel and the sdist from a copy of files, copied in this order."""
    for name in names:
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    return dist.build(source, folder, epoch_s=1_700_000_001)


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


def test_another_machine_builds_the_same_bytes(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    monkeypatch.setenv("LC_ALL", "C")
    umask = os.umask(0o077)
    try:
        built = build_copy(tmp_path / "elsewhere/with a space", tmp_path / "dist", tracked_files()[::-1])
    finally:
        os.umask(umask)
    for path in built:
        assert path.read_bytes() == (wheel.parent / path.name).read_bytes(), path.name


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
