"""What publishing needs is tried first: on other file systems, and with the errors that file systems give."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import cli, warehouse
from tests.warehouse.outcomes import ok, publish, run, session, skip_checks

ROOT = Path(__file__).parents[2]


def paths(root: Path) -> set[Path]:
    return set(root.rglob("*"))


@pytest.fixture(params=["new", "used"])
def root(request, tmp_path):
    """A warehouse that does not exist yet, and one with a run."""
    root = tmp_path / "w"
    if request.param == "used":
        publish(root, ok("a"))
    return root


def fail(number: int):
    def function(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return function


def test_a_probe_leaves_nothing(root):
    paths_before = paths(root.parent)
    warehouse.probe(root)
    assert paths(root.parent) == paths_before


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EXDEV, "on another file system than {root}/staging, but a run is published by renaming it"),
        (errno.ENOSYS, "this file system cannot rename a directory (Function not implemented)"),
        (errno.EMFILE, "this file system cannot rename a directory (Too many open files)"),
        (errno.EACCES, "Permission denied"),
        (errno.EPERM, "Operation not permitted"),
        (errno.EIO, "Input/output error"),
        (errno.EROFS, "Read-only file system"),
        (errno.EDQUOT, "Disk quota exceeded"),
    ],
)
def test_a_directory_that_cannot_be_renamed_is_one_line(root, monkeypatch, number, words):
    paths_before = paths(root.parent)
    monkeypatch.setattr(Path, "rename", fail(number))
    with pytest.raises(warehouse.WarehouseError) as refusal:
        warehouse.probe(root)
    assert str(refusal.value).startswith(f"{root}/runs: {words.format(root=root)}")
    assert str(refusal.value).endswith("; nothing was audited")
    assert paths(root.parent) == paths_before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_file_that_cannot_be_written_is_one_line(root, monkeypatch, number):
    """Some file systems give the error of write(2) at fsync(2)."""
    paths_before = paths(root.parent)
    monkeypatch.setattr(os, "fsync", fail(number))
    with pytest.raises(warehouse.WarehouseError, match=f"{os.strerror(number)}; nothing was audited$"):
        warehouse.probe(root)
    assert paths(root.parent) == paths_before


def test_a_directory_that_cannot_be_synced_holds_runs(tmp_path, monkeypatch):
    fsync = os.fsync

    def sync_files_only(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            fail(errno.EINVAL)()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sync_files_only)
    warehouse.probe(tmp_path)
    publish(tmp_path, ok("a"))
    assert session(tmp_path).rows("SELECT status FROM targets") == [{"status": "ok"}]


def test_a_file_system_without_locks_is_a_warning(root, monkeypatch, caplog):
    monkeypatch.setattr(fcntl, "flock", fail(errno.ENOLCK))
    warehouse.probe(root)
    (record,) = caplog.records
    assert "this file system has no locks" in record.getMessage()


def test_what_a_killed_probe_left_is_no_run_and_a_later_one_removes_it(tmp_path):
    root = tmp_path / "warehouse"
    publish(root, ok("a"))
    remains = [root / name / ".lru-audit-probe.killed" for name in ("..", "", "staging", "runs")]
    running = root / "staging" / ".lru-audit-probe.running"
    for path in (*remains, running):
        path.mkdir()
        (path / "file").write_bytes(b"")
    for path in remains:
        os.utime(path, (0, 0))
    assert len(warehouse.published_runs(root)) == 1
    assert warehouse.staged_runs(root) == {}
    assert list(warehouse.removals(root, warehouse.RetentionRules(), 0)) == []
    warehouse.probe(root)
    assert [path.exists() for path in remains] == [False] * 4
    assert running.exists(), "it may be at work"


def test_the_last_step_has_the_remedy_as_well(tmp_path, monkeypatch):
    """The file system may have been mounted while the targets were collected."""
    staged_run = warehouse.Staging.create(tmp_path, run())
    staged_run.append(ok("a"))
    rename = Path.rename

    def rename_within_staging(path: Path, target: Path) -> Path:
        if target.parent.name == "runs":
            fail(errno.EXDEV)()
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_within_staging)
    with pytest.raises(warehouse.WarehouseError) as refusal:
        staged_run.publish(skip_checks)
    message = str(refusal.value)
    assert "on another file system than" in message
    assert f"resume it with: lru-audit resume {staged_run.directory.name}" in message


@pytest.mark.parametrize("command", ["run", "plan"])
def test_where_runs_is_on_another_file_system_no_target_is_contacted(tmp_path, command, capsys):
    """The target is a port that would see the connection."""
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs another file system at /dev/shm")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        (tmp_path / "runs").symlink_to(other)
        target = f"ssh:127.0.0.1:{server.getsockname()[1]}"
        assert cli.main([command, target, "-w", str(tmp_path)]) == cli.FAILED
        line = f"lru-audit: {tmp_path}/runs: on another file system than {tmp_path}/staging, but a run is published by "
        assert capsys.readouterr().err == f"{line}renaming it: keep the whole warehouse on one; nothing was audited\n"
        with pytest.raises(BlockingIOError):
            server.accept()
    assert not list(other.glob(".lru-audit-probe.*"))
    assert {path.name for path in tmp_path.iterdir()} <= {"runs", "staging.locks"}


@pytest.mark.parametrize(
    ("options", "words"), [("ro", "Read-only file system"), ("size=32k", "No space left on device")], ids=["ro", "full"]
)
def test_a_file_system_that_is_read_only_or_full_is_one_line(tmp_path, options, words):
    """A tmpfs in a mount namespace of its own."""
    command = f"mount -t tmpfs -o {options} none w && exec {sys.executable} -m pipeline plan live: -w w"
    process = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", command],
        cwd=(tmp_path / "w").mkdir() or tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare: " in process.stderr or "mount: " in process.stderr:
        pytest.skip("needs user namespaces")
    assert (process.returncode, process.stdout, process.stderr) == (
        cli.FAILED,
        "",
        f"lru-audit: w: {words}; nothing was audited\n",
    )
