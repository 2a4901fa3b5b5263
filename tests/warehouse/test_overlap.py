"""Two runs of one audit at once, in separate processes: the second is refused unless it may overlap."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline import warehouse
from tests.warehouse import s3

ROOT = Path(__file__).parents[2]
MESSAGE = re.compile(
    r"audit 'nightly' is already running: pid (\d+) on (\S+) since (.*) UTC; "
    "wait until it ends, or run both at once with --overlap"
)


@contextmanager
def running_audit(root: object, audit: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds the lock of an audit until its stdin closes."""
    code = """
        import sys
        from pipeline import warehouse
        with warehouse.exclusive_audit(sys.argv[1], sys.argv[2]):
            print("locked", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(root), audit]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout.readline() == "locked\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("form", ["a path", "a URI"])
def test_the_second_is_told_who_has_it(tmp_path: Path, form: str) -> None:
    start = datetime.now(UTC).replace(microsecond=0)
    with running_audit(f"file://{tmp_path}" if form == "a URI" else tmp_path, "nightly") as holder:
        with pytest.raises(warehouse.WarehouseError) as error, warehouse.exclusive_audit(tmp_path, "nightly"):
            pass
        assert error.value.exit_code == 1
        assert str(error.value).startswith(f"{tmp_path}: ")
        pid, host, lock_time = MESSAGE.fullmatch(str(error.value).removeprefix(f"{tmp_path}: ")).groups()
        assert (int(pid), host) == (holder.pid, platform.node())
        assert start <= datetime.fromisoformat(f"{lock_time}+00:00") <= datetime.now(UTC)
    assert MESSAGE.search((ROOT / "docs" / "audit.md").read_text()), "as the docs show it"


def test_another_audit_another_warehouse_and_who_asks_for_it_go_on(tmp_path: Path) -> None:
    with running_audit(tmp_path / "w", "nightly"):
        with (
            warehouse.exclusive_audit(tmp_path / "w", "adhoc"),
            warehouse.exclusive_audit(tmp_path / "other", "nightly"),
        ):
            pass
        with warehouse.exclusive_audit(tmp_path / "w", "nightly", overlap=True):
            pass
        with pytest.raises(warehouse.WarehouseError), warehouse.exclusive_audit(tmp_path / "w", "nightly"):
            pass


def test_one_that_is_asked_to_go_on_keeps_others_out_as_well(tmp_path: Path) -> None:
    with warehouse.exclusive_audit(tmp_path, "nightly", overlap=True):
        code = "import sys; from pipeline import warehouse as w; w.exclusive_audit(sys.argv[1], 'nightly').__enter__()"
        child = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, stderr=subprocess.PIPE, check=False)
    assert child.returncode == 1
    assert b"is already running" in child.stderr


@pytest.mark.parametrize("end", ["its end", "SIGKILL"])
def test_whoever_has_ended_has_it_no_longer(tmp_path: Path, end: str) -> None:
    with running_audit(tmp_path, "nightly") as holder:
        if end == "SIGKILL":
            holder.kill()
        holder.stdin.close()
        holder.wait()
        with warehouse.exclusive_audit(tmp_path, "nightly"), running_audit(tmp_path, "adhoc"):
            pass


@pytest.mark.parametrize("audit", ["../../etc", "/etc/passwd", "a" * 5000, "ночь", "\udcff", ""])
def test_whatever_an_audit_is_called_its_lock_is_in_the_warehouse(tmp_path: Path, audit: str) -> None:
    with warehouse.exclusive_audit(tmp_path / "w", audit):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["w"]
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_what_a_stranger_wrote_there_is_one_short_line(tmp_path: Path) -> None:
    with running_audit(tmp_path, "nightly"):
        (lock,) = (path for path in tmp_path.rglob("*") if path.is_file())
        lock.write_bytes(b"\x1b]0;owned\x07\n" * 1000)
        with pytest.raises(warehouse.WarehouseError) as error, warehouse.exclusive_audit(tmp_path, "nightly"):
            pass
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 2000


def test_a_warehouse_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "w").write_text("")
    with (
        pytest.raises(warehouse.WarehouseError, match=r"/w.*: Not a directory; nothing was audited$"),
        warehouse.exclusive_audit(tmp_path / "w", "nightly"),
    ):
        pass


def test_of_an_object_store_the_runs_of_this_machine_are_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock needs no request to the store: its endpoint does not exist."""
    s3.use_endpoint(monkeypatch, "http://127.0.0.1:1", tmp_path / "state")
    with running_audit("s3://fleet/w", "nightly"):
        with warehouse.exclusive_audit("s3://fleet/other", "nightly"):
            pass
        with (
            pytest.raises(warehouse.WarehouseError, match=r"^s3://fleet/w: audit 'nightly' is already running: pid "),
            warehouse.exclusive_audit("s3://fleet/w", "nightly"),
        ):
            pass
