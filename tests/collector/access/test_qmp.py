"""An error of a monitor's socket is one line with the remedy; tests/lab/test_qmp.py audits real guests."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.collector.access import qmp
from pipeline.collector.status import CollectError
from pipeline.fanout.runner import frame

GREETING = (
    b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}\r\n'
)
Monitor = Callable[[bytes, float], Path]


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Monitor]:
    """Function that makes a socket: it accepts one client, sends `says`, and hangs up after `stays_s` seconds."""
    path = tmp_path / "monitor"
    server = socket.socket(socket.AF_UNIX)
    test_end = threading.Event()

    def make(says: bytes, stays_s: float) -> Path:
        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.sendall(says)
                test_end.wait(stays_s)

        server.bind(str(path))
        server.listen(1)
        threading.Thread(target=serve, daemon=True).start()
        return path

    yield make
    test_end.set()
    server.close()


def audit(path: Path | str, *options: str, prefix: tuple[str, ...] = ()) -> frame.Failure:
    command = [*prefix, sys.executable, "-m", "pipeline.collector", f"qmp:{path}", *options]
    process = subprocess.run(command, capture_output=True, timeout=30)
    assert process.stderr == b""
    failure = frame.parse(process.stdout)
    assert isinstance(failure, frame.Failure)
    assert failure.error.startswith(f"qmp:{path}: ")
    return failure


def test_a_monitor_that_does_not_greet_is_in_use(monitor: Monitor) -> None:
    start = time.monotonic()
    failure = audit(monitor(b"", 60))
    assert failure.status == "unreachable"
    assert "monitor in use (libvirt?)" in failure.error
    for remedy in ("second -qmp", "virsh dump --memory-only", "ssh"):
        assert remedy in failure.error
    assert 5 < time.monotonic() - start < 8


def test_a_monitor_for_which_others_wait_already_is_in_use(tmp_path: Path) -> None:
    path = tmp_path / "monitor"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(0)
        with socket.socket(socket.AF_UNIX) as other_client:
            other_client.connect(str(path))
            assert "monitor in use" in audit(path).error


@pytest.mark.parametrize(
    "says", [b"QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) ", b"\x00\xff" * 100, b"\r\nlogin: "]
)
def test_what_is_no_qmp_monitor_is_named(monitor: Monitor, says: bytes) -> None:
    failure = audit(monitor(says, 60))
    assert failure.status == "unreachable"
    assert "not a QMP monitor" in failure.error


def test_a_greeting_that_does_not_end_is_given_up(monitor: Monitor) -> None:
    failure = audit(monitor(b'{"hello": ', 60))
    assert failure.status == "unreachable"
    assert "not a QMP monitor" in failure.error


def test_a_monitor_that_hangs_up_is_unreachable(monitor: Monitor) -> None:
    failure = audit(monitor(b"", 0))
    assert failure.status == "unreachable"
    assert "closed without a greeting" in failure.error


def test_a_monitor_that_hangs_up_after_its_greeting_is_unreachable(monitor: Monitor) -> None:
    failure = audit(monitor(GREETING, 0.2))
    assert failure.status == "unreachable"
    assert re.search("closed|reset", failure.error)


def test_a_monitor_that_answers_nonsense_is_unreachable(monitor: Monitor) -> None:
    assert audit(monitor(GREETING + b"]]]\r\n" * 10, 2)).status == "unreachable"


def test_a_guest_of_another_architecture_is_named(monitor: Monitor) -> None:
    """The answers to qmp_capabilities, to query-target, and to drgn's question for ranges of memory."""
    answers = b'{"return": {}}\r\n{"return": {"arch": "riscv64"}}\r\n{"return": ""}\r\n'
    failure = audit(monitor(GREETING + answers, 60))
    assert (failure.status, failure.error_type) == ("bad_core", "UnsupportedArchitecture")
    assert "not supported: riscv64; supported are x86_64, aarch64, ppc64le, s390x" in failure.error


def test_a_socket_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    failure = audit(tmp_path / "none")
    assert (failure.status, failure.error_type) == ("unreachable", "FileNotFoundError")
    assert "-qmp unix:PATH" in failure.error


def test_a_socket_that_nobody_listens_at_is_unreachable(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "monitor"))
    failure = audit(tmp_path / "monitor")
    assert (failure.status, failure.error_type) == ("unreachable", "ConnectionRefusedError")
    assert "is QEMU running?" in failure.error


def test_a_path_too_long_for_a_socket_says_so(tmp_path: Path) -> None:
    failure = audit(tmp_path / ("x" * 120))
    assert failure.status == "unreachable"
    assert "too long" in failure.error


def test_a_socket_that_may_not_be_used_is_denied(monitor: Monitor) -> None:
    path = monitor(GREETING, 60)
    path.chmod(0)
    # Root may use the socket unless it drops two capabilities.
    prefix = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
    failure = audit(path, prefix=prefix)
    assert failure.status == "denied"
    assert "run as root" in failure.error


@pytest.mark.parametrize(("data", "reason"), [(None, "No such file"), (b"hello", "no VMCOREINFO")])
def test_a_file_that_is_no_vmcoreinfo_is_named(monitor: Monitor, tmp_path: Path, data: bytes, reason: str) -> None:
    file = tmp_path / "note"
    if data is not None:
        file.write_bytes(data)
    failure = audit(monitor(GREETING, 60), "--vmcoreinfo", str(file))
    assert failure.status == "no_types"
    assert f"{file}: {reason}" in failure.error


def test_an_older_drgn_is_told_which_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "drgn", SimpleNamespace(Program=object, __version__="0.1.0"))
    with pytest.raises(CollectError, match=r"needs drgn 0\.2\.0 or newer, this is 0\.1\.0") as error_info:
        qmp.attach("qmp:/monitor")
    assert error_info.value.status == "no_drgn"
