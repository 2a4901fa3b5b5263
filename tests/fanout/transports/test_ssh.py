"""Audits over ssh, with real OpenSSH servers on loopback."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import math
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.collector import remote
from pipeline.fanout import runner, transports
from pipeline.fanout.transports import payload, ssh
from pipeline.inventory import Target
from tests import processes
from tests.fanout.transports.sshd import SSHD, USER, Client, Server, free_port, make_key

pytestmark = pytest.mark.skipif(SSHD is None, reason="needs sshd")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
with_sudo = pytest.mark.skipif(shutil.which("sudo") is None, reason="needs sudo")

ROOT = Path(__file__).resolve().parents[3]
CORE = ROOT / "tests/vmcores/deb510-n1/vmcore"


@pytest.fixture
def target(client: Client, server: Server) -> Target:
    return core_via(server, client)


def core_via(server: Server, client: Client, **fields: object) -> Target:
    via = f"ssh:{USER}@127.0.0.1:{server.port}"
    defaults = {"name": "t", "kind": "vmcore", "source": str(CORE), "via": via, "python": sys.executable}
    return Target(**{**defaults, "ssh_config": str(client.config), **fields})


def run(target: Target, **limits: float) -> dict:
    return runner.run(target, 1, runner.Limits(**{"timeout_s": 60, **limits}))


def failure(target: Target, **limits: float) -> tuple:
    result = run(target, **limits)
    assert (result["columns"], result["tables"]) == ({}, {})
    assert "127.0.0.1" in result["attempt"]["error"] or "nowhere" in result["attempt"]["error"]
    return tuple(result["attempt"][key] for key in ("status", "error_type", "error"))


def instead_of_nice(expression: str, python: str = sys.executable) -> str:
    """Return the script of an interpreter that evaluates an expression where the collector calls os.nice first."""
    patch = f"import ctypes, os, sys, time\nos.nice = lambda n: {expression}\nexec(sys.argv[1])"
    return f'exec {python} -c {shlex.quote(patch)} "$2"'


HANGS = instead_of_nice("time.sleep(600)")


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# Good targets


def test_a_core_on_the_host_is_audited_there_with_the_same_rows(target):
    local_result = run(Target("t", "vmcore", str(CORE)))
    result = run(target)
    assert result["attempt"]["error"] is None
    assert result["attempt"]["status"] == "ok"
    assert result["tables"] == local_result["tables"]


def test_a_guest_on_the_host_is_reached_through_its_monitor_there(target, tmp_path):
    """tests/lab/test_qmp.py audits real guests this way."""
    guest = dataclasses.replace(target, kind="qmp", source=str(tmp_path / "monitor"))
    status, _, error = failure(guest)
    assert status == "unreachable"
    assert f"qmp:{tmp_path}/monitor: no such socket; start QEMU with -qmp" in error
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.bind(guest.source)
        monitor.listen()
        thread = threading.Thread(target=lambda: monitor.accept()[0].close())
        thread.start()
        status, _, error = failure(guest)
        thread.join()
    assert status == "unreachable"
    assert "closed without a greeting; is QEMU exiting?" in error


def test_through_a_jump_host(tmp_path, client, server):
    with Server(tmp_path / "jump") as jump:
        client.trust(jump)
        config = tmp_path / "ssh_config"
        client_config = client.config.read_text()
        config.write_text(
            f"Host behind\nHostName 127.0.0.1\nPort {server.port}\nProxyJump {USER}@127.0.0.1:{jump.port}\n"
            f"Match all\n{client_config}"
        )
        # ssh starts another ssh for the jump, with the same file.
        result = run(core_via(server, client, via="ssh:behind", ssh_config=str(config)))
        assert result["attempt"]["status"] == "ok", result["attempt"]
        assert jump.log.read_text().count("Accepted publickey") == 1


@pytest.mark.parametrize(
    "noise",
    [
        "echo Welcome",
        "head -c 1000000 /dev/zero | tr '\\0' x",
        "head -c 300000 /dev/urandom; echo; echo list-lru-audit host x; head -c 300000 /dev/urandom >&2",
    ],
)
def test_a_login_that_prints_does_not_matter(tmp_path, client, noise):
    # To ssh, a forced command looks like a wrapper or a noisy profile.
    forced_command = tmp_path / "forced_command"
    forced_command.write_text(f'#!/bin/sh\n{noise}\nexec sh -c "$SSH_ORIGINAL_COMMAND"\n')
    forced_command.chmod(0o755)
    with Server(tmp_path / "sshd", f"ForceCommand {forced_command}", f"Banner {CORE}") as server:
        client.trust(server)
        assert status_and_error(run(core_via(server, client))) == ("ok", None)


def status_and_error(result: dict) -> tuple:
    return result["attempt"]["status"], result["attempt"]["error"]


@pytest.mark.parametrize("shell", ["dash", "bash", "fish", "tcsh", "zsh", "busybox sh"])
def test_whatever_the_login_shell_is(tmp_path, client, shell):
    if shutil.which(shell.split()[0]) is None:
        pytest.skip(f"needs {shell}")
    forced_command = tmp_path / "forced_command"
    forced_command.write_text(f'#!/bin/sh\nexec {shell} -c "$SSH_ORIGINAL_COMMAND"\n')
    forced_command.chmod(0o755)
    with Server(tmp_path / "sshd", f"ForceCommand {forced_command}") as server:
        client.trust(server)
        assert status_and_error(run(core_via(server, client))) == ("ok", None)


def test_the_collector_is_niced_and_limited_and_has_no_input(target, script, tmp_path):
    limits_file = tmp_path / "limits"
    python = script(
        f"""exec {sys.executable} -c '
import os, sys, resource
def exit(code):
    with open("{limits_file}", "w") as file:
        print(os.nice(0), resource.getrlimit(resource.RLIMIT_DATA)[1], os.readlink("/proc/self/fd/0"), file=file)
    real(code)
real, os._exit = os._exit, exit
exec(sys.argv[1])' "$2" """
    )
    result = run(dataclasses.replace(target, python=python), memory_bytes=1 << 30)
    assert status_and_error(result) == ("ok", None)
    assert limits_file.read_text().split() == [str(min(19, os.nice(0) + 10)), str(1 << 30), "/dev/null"]


# Sending drgn


def interpreters() -> dict[str, str]:
    """Return the other Pythons of this machine by version: the oldest supported versions, and the system's."""
    paths = [*Path("/usr/bin").glob("python3.*"), *(Path.home() / ".pyenv/versions").glob("3.[678].*/bin/python3.*")]
    return {path.name[6:]: str(path) for path in paths if re.fullmatch(r"python3\.\d+", path.name)}


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    fetch = [sys.executable, "-m", "pipeline", "fetch-drgn", "--drgn-wheels", str(folder)]
    fetch += ["--python", *interpreters(), "--arch", os.uname().machine]
    if subprocess.run(fetch, cwd=ROOT, check=False, capture_output=True).returncode:
        pytest.skip("needs network")
    return folder


# The bundled x86 cores lack the page tables that drgn 0.0.31 reads.
ARM64 = CORE.parents[1] / "deb510-arm64/vmcore"


@pytest.fixture
def tmp_server(client: Client, tmp_path: Path) -> Iterator[Server]:
    """A host whose directory for temporary files is tmp_path/host."""
    (tmp_path / "host").mkdir()
    with Server(tmp_path / "sshd", f"SetEnv TMPDIR={tmp_path / 'host'}") as server:
        client.trust(server)
        yield server


@pytest.mark.parametrize("version", ["3.6", "3.7", "3.8", "3.11"])
def test_drgn_is_sent_to_a_python_without_it_and_is_gone_afterwards(tmp_server, client, wheels, tmp_path, version):
    if version not in interpreters():
        pytest.skip(f"needs Python {version}")
    python = interpreters()[version]
    folder = tmp_path / "cöre\udcff"
    folder.symlink_to(ARM64.parent)
    result = run(core_via(tmp_server, client, source=str(folder / "vmcore"), python=python, drgn_wheels=str(wheels)))
    assert status_and_error(result) == ("ok", None)
    assert result["tables"] == run(Target("t", "vmcore", str(ARM64)))["tables"]
    assert os.listdir(tmp_path / "host") == []


def test_a_host_with_drgn_gets_none(target, tmp_path):
    assert status_and_error(run(dataclasses.replace(target, drgn_wheels=str(tmp_path)))) == ("ok", None)


def test_no_wheel_that_fits_names_what_to_fetch(tmp_server, client, tmp_path):
    empty = tmp_path / "wheels"
    empty.mkdir()
    for name in (
        "drgn-0.3.0-cp311-cp311-manylinux_2_99_x86_64.whl",
        "drgn-0.0.30-cp311-cp311-manylinux2014_x86_64.whl",
    ):
        (empty / name).touch()
    status, kind, error = failure(core_via(tmp_server, client, python="/usr/bin/python3", drgn_wheels=str(empty)))
    assert (status, kind) == ("no_drgn", "NoWheel")
    assert re.search(r"fetch-drgn --python 3\.\d+ --arch \w+", error)
    wait_until(lambda: os.listdir(tmp_path / "host") == [])


def test_a_host_of_another_architecture_is_named_rather_than_its_wheel(tmp_server, client, script, tmp_path):
    python = script('exec setarch i686 /usr/bin/python3 "$@"')
    source = f"{USER}@127.0.0.1:{tmp_server.port}"
    host = core_via(tmp_server, client, kind="ssh", source=source, via=None, python=python, drgn_wheels=str(tmp_path))
    status, kind, error = failure(host)
    assert (status, kind) == ("bad_core", "UnsupportedArchitecture")
    assert "this architecture is not supported: i686; supported are" in error


def test_what_was_sent_is_gone_where_the_connection_is_cut(tmp_server, client, wheels, script, tmp_path):
    python = script(instead_of_nice("time.sleep(600)", "/usr/bin/python3"))
    host = tmp_path / "host"
    target = core_via(tmp_server, client, python=python, drgn_wheels=str(wheels))
    thread = threading.Thread(target=run, args=(dataclasses.replace(target, timeout_s=8),))
    thread.start()
    wait_until(lambda: list(host.rglob("_drgn*.so")))
    thread.join()
    wait_until(lambda: os.listdir(host) == [])


# Errors of ssh


def test_refused(client, server):
    status, kind, error = failure(core_via(server, client, via=f"ssh:127.0.0.1:{free_port()}"))
    assert (status, kind) == ("unreachable", "ConnectionRefused")
    assert "Connection refused" in error


def test_a_name_that_is_nobodys(client, server):
    status, kind, error = failure(core_via(server, client, via="ssh:nowhere.invalid"))
    assert (status, kind) == ("unreachable", "NameNotResolved")
    assert "nowhere.invalid" in error


def test_no_key_that_is_accepted(tmp_path, client, server):
    stranger = Client(tmp_path / "stranger")
    stranger.know(server.port, server.host_key)
    status, kind, error = failure(core_via(server, stranger))
    assert (status, kind) == ("denied", "AuthenticationFailed")
    assert "Permission denied (publickey)" in error


def test_a_host_key_that_nobody_knows(tmp_path, client, server):
    stranger = Client(tmp_path / "stranger")
    status, kind, error = failure(core_via(server, stranger))
    assert (status, kind) == ("denied", "HostKeyUnknown")
    assert "ssh-keyscan" in error
    assert "known_hosts" in error


def test_a_host_key_that_has_changed(tmp_path, client, server):
    stranger = Client(tmp_path / "stranger")
    stranger.know(server.port, make_key(tmp_path / "key"))
    status, kind, error = failure(core_via(server, stranger))
    assert (status, kind) == ("denied", "HostKeyChanged")
    assert "known_hosts" in error


def test_a_configuration_that_ssh_does_not_take(tmp_path, client, server):
    config = tmp_path / "ssh_config"
    config.write_text("Nonsense yes\n")
    status, kind, error = failure(core_via(server, client, ssh_config=str(config)))
    assert (status, kind) == ("unreachable", "ConfigError")
    assert "nonsense" in error


def test_no_ssh_on_this_node(client, server, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    status, kind, error = failure(core_via(server, client))
    assert (status, kind) == ("denied", "NoSsh")
    assert error.startswith(f"cannot run ssh on {os.uname().nodename} to reach 127.0.0.1")


class Listener:
    """A server that is not sshd; calls `answer` with each connection and its number."""

    def __init__(self, answer: Callable[[socket.socket, int], None]) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.connections = 0
        self.answer = answer
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self.answer, args=(connection, self.connections), daemon=True).start()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


def relay(port: int, max_bytes: int | None = None) -> Callable[[socket.socket], None]:
    """Return a function that connects a client to a server, until the client has sent so many bytes."""

    def copy(source: socket.socket, sink: socket.socket, left: float = math.inf) -> None:
        with contextlib.suppress(OSError):
            while left > 0 and (data := source.recv(65536)):
                sink.sendall(data)
                left -= len(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def answer(connection: socket.socket) -> None:
        upstream = socket.create_connection(("127.0.0.1", port))
        threading.Thread(target=copy, args=(upstream, connection), daemon=True).start()
        copy(connection, upstream, math.inf if max_bytes is None else max_bytes)

    return answer


def test_a_server_that_accepts_and_says_nothing(client, server):
    with Listener(lambda connection, _: time.sleep(60)) as listener:
        status, kind, error = failure(core_via(server, client, via=f"ssh:127.0.0.1:{listener.port}"))
        assert (status, kind) == ("unreachable", "ConnectTimeout")
        assert "timed out" in error
        status, _, _ = failure(core_via(server, client, via=f"ssh:127.0.0.1:{listener.port}"), timeout_s=1)
        assert status == "timeout"


@pytest.mark.parametrize("banner", [b"", b"SSH-2.0-OpenSSH_9.2\r\n"])
def test_a_connection_closed_before_the_login_is_tried_again(client, server, banner):
    """MaxStartups closes connections this way: before the banner, or during the key exchange."""

    def answer(connection: socket.socket, number: int) -> None:
        if number <= 2:
            connection.sendall(banner)
            connection.close()
        else:
            relay(server.port)(connection)

    with Listener(answer) as listener:
        client.know(listener.port, server.host_key)
        result = run(core_via(server, client, via=f"ssh:{USER}@127.0.0.1:{listener.port}"))
        assert status_and_error(result) == ("ok", None)
        assert listener.connections == 3


def test_a_server_with_as_many_logins_as_it_takes_is_tried_again(tmp_path, client):
    with Server(tmp_path / "sshd", "MaxStartups 2") as server:
        client.trust(server)
        connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2)]
        results: list = []
        thread = threading.Thread(target=lambda: results.append(run(core_via(server, client))))
        thread.start()
        wait_until(lambda: "MaxStartups" in server.log.read_text())
        for connection in connections:
            connection.close()
        thread.join()
    assert status_and_error(results[0]) == ("ok", None)


def test_one_that_is_always_closed_is_unreachable_and_says_why(client, server):
    with Listener(lambda connection, _: connection.close()) as listener:
        status, kind, error = failure(core_via(server, client, via=f"ssh:127.0.0.1:{listener.port}"))
        assert (status, kind) == ("unreachable", "ConnectionClosed")
        assert "in each of 4 tries" in error
        assert "MaxStartups" in error
        assert listener.connections == 4


@pytest.mark.parametrize("absent", ["jump", "behind"])
def test_a_jump_host_that_is_down_or_cannot_get_further(tmp_path, client, server, absent):
    ports = {"jump": server.port, "behind": server.port, absent: free_port()}
    config = tmp_path / "ssh_config"
    config.write_text(
        f"Host behind\nHostName 127.0.0.1\nPort {ports['behind']}\nProxyJump {USER}@127.0.0.1:{ports['jump']}\n"
        f"Match all\n{client.config.read_text()}"
    )
    attempt = run(core_via(server, client, via="ssh:behind", ssh_config=str(config)))["attempt"]
    assert (attempt["status"], attempt["error_type"]) == ("unreachable", "ConnectionRefused")


# Errors on the host


@pytest.mark.parametrize(("command", "code"), [("/usr/sbin/nologin", 1), ("echo This account is restricted", 0)])
def test_an_account_that_may_not_run_commands(tmp_path, client, command, code):
    with Server(tmp_path / "sshd", f"ForceCommand {command}") as server:
        client.trust(server)
        status, kind, error = failure(core_via(server, client))
    assert (status, kind) == ("denied", "NoShell")
    assert f"exit code {code}" in error


def test_no_python(target):
    status, kind, error = failure(dataclasses.replace(target, python="/opt/python"))
    assert (status, kind) == ("no_drgn", "NoInterpreter")
    assert "/opt/python" in error


def test_a_command_of_several_words_starts_python(target, tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "wrapper").write_text('#!/bin/sh\nset -e\ntest "$1" = "it\'s \\$HOME"\nshift\nexec "$@"\n')
    (folder / "wrapper").chmod(0o755)
    command = shlex.join([str(folder / "wrapper"), "it's $HOME", sys.executable])
    assert status_and_error(run(dataclasses.replace(target, python=command))) == ("ok", None)


@pytest.mark.parametrize("command", ["env --chdir=/nowhere python3", "nice /opt/python"])
def test_a_command_that_does_not_start_python(target, command):
    status, kind, error = failure(dataclasses.replace(target, python=command))
    assert (status, kind) == ("no_drgn", "NoInterpreter")
    assert f"{command} did not start Python on the host" in error
    assert "No such file or directory" in error


def test_a_command_whose_program_is_not_there(target):
    status, kind, error = failure(dataclasses.replace(target, python="podman-of-the-host run -i image python3"))
    assert (status, kind) == ("no_drgn", "NoInterpreter")
    assert "no podman-of-the-host on the host" in error


def test_a_python_without_drgn(target):
    status, _, error = failure(dataclasses.replace(target, python="/usr/bin/python3"))
    assert status == "no_drgn"
    assert "/usr/bin/python3" in error
    assert "install drgn" in error


def test_a_python_in_part_as_python3_minimal_is(target, script):
    python = script(instead_of_nice("sys.modules.update(json=None)"))
    status, _, error = failure(dataclasses.replace(target, python=python))
    assert status == "no_drgn"
    assert "json" in error


def test_a_python_without_ctypes_audits(target, script):
    code = "import os, sys; os.nice = lambda n: sys.modules.update(ctypes=None)\nexec(sys.argv[1])"
    python = script(f'exec {sys.executable} -c {shlex.quote(code)} "$2"')
    assert status_and_error(run(dataclasses.replace(target, python=python))) == ("ok", None)


@pytest.mark.parametrize(
    ("script_end", "status"),
    [
        ("exit 255", "lost"),
        ("exit 1", "bad_output"),
        (instead_of_nice("(_ for _ in ()).throw(MemoryError)"), "over_budget"),
        (instead_of_nice("os._exit(76)"), "bad_output"),
    ],
)
def test_only_the_collectors_own_words_tell_of_its_memory(target, script, script_end, status):
    words = "" if status == "over_budget" else "echo '-bash: fork: Cannot allocate memory' >&2\n"
    assert failure(dataclasses.replace(target, python=script(words + script_end)))[0] == status


def test_a_python_that_is_too_old(target, script):
    python = script(f"exec {sys.executable} -c 'import sys; sys.version_info = (3, 5)\nexec(sys.argv[1])' \"$2\"")
    status, _, error = failure(dataclasses.replace(target, python=python))
    assert status == "no_drgn"
    assert "3.5" in error


def test_garbage_instead_of_a_frame(target, script):
    status, _, error = failure(dataclasses.replace(target, python=script("head -c 200000 /dev/urandom")))
    assert status == "bad_output"
    assert "no frame" in error


def test_a_crash_on_the_host_is_a_crash(target, script):
    python = script(instead_of_nice("ctypes.string_at(0)"))
    status, kind, _ = failure(dataclasses.replace(target, python=python))
    assert (status, kind) == ("crashed", "signal:SIGSEGV")


def test_an_exit_code_is_taken_for_a_lost_connection_only_where_it_is_that_of_ssh(target, script):
    for code in (transports.CONNECTION_LOST_EXIT_CODE, 255):
        status, _, _ = failure(dataclasses.replace(target, python=script(f"exit {code}")))
        assert status == ("lost" if code == 255 else "bad_output")  # ssh exits with 255 when the connection is lost


def test_a_host_that_hangs_is_a_timeout_and_its_collector_ends(target, script, tmp_path):
    mark = f"LRU_TEST={tmp_path}"
    python = script(f"export {mark}\n{HANGS}")
    results: list = []
    thread = threading.Thread(
        target=lambda: results.append(failure(dataclasses.replace(target, python=python, timeout_s=8)))
    )
    thread.start()
    wait_until(lambda: len(processes.find(mark)) == 2)  # the supervisor and the collector
    thread.join()
    assert results[0][0] == "timeout"
    processes.wait_for_exit(mark, 30)


def test_a_session_that_dies_before_the_interpreter_is_named_is_lost_and_not_refused(tmp_path, client):
    with Server(tmp_path / "sshd", "ForceCommand kill -9 $PPID") as server:
        client.trust(server)
        status, kind, error = failure(core_via(server, client))
    assert (status, kind) == ("lost", "ConnectionLost")
    assert "Connection to 127.0.0.1 closed by remote host" in error


@pytest.mark.parametrize("become", [False, pytest.param(True, marks=[as_root, with_sudo])])
def test_a_connection_that_is_cut_midway_is_lost_and_the_collector_ends(client, server, script, tmp_path, become):
    mark = f"LRU_TEST={tmp_path}"
    python = script(f"export {mark}\n{HANGS}")
    connections: list[socket.socket] = []

    def answer(connection: socket.socket, number: int) -> None:
        connections.append(connection)
        relay(server.port)(connection)

    with Listener(answer) as wire:
        client.know(wire.port, server.host_key)
        results: list = []
        via = f"ssh:{USER}@127.0.0.1:{wire.port}"
        target = core_via(server, client, via=via, python=python, become=become)
        thread = threading.Thread(target=lambda: results.append(failure(target)))
        thread.start()
        wait_until(lambda: len(processes.find(mark)) == 2)
        for connection in connections:
            connection.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert results[0][:2] == ("lost", "ConnectionLost")
    processes.wait_for_exit(mark, 30)


def test_a_collector_to_which_nobody_speaks_ends(target, script, tmp_path):
    """The network is down and neither end is notified; 90 s of silence are half a second here."""
    mark = f"LRU_TEST={tmp_path}"
    fast_select = "setattr(select, 'select', lambda r, w, x, s, real=select.select: real(r, w, x, s / 180))"
    patch = f"import os, select, sys, time\n{fast_select}\nos.nice = lambda n: time.sleep(600)\nexec(sys.argv[1])"
    python = script(f'export {mark}\nexec {sys.executable} -c {shlex.quote(patch)} "$2"')
    _, _, error = failure(dataclasses.replace(target, python=python))
    assert "the connection was lost" in error
    processes.wait_for_exit(mark, 30)


# The command line


def test_the_arguments_of_ssh():
    target = Target("t", "ssh", "ssh:root@db1:2222", ssh_config="/etc/fleet", ssh_args=("-J", "j", "-oTag=x", "-4"))
    assert ssh.client_arguments(target) == (
        "db1",
        ["-p", "2222", "-l", "root", "-J", "j", "-oTag=x", "-4"],
        "/etc/fleet",
    )


@pytest.mark.parametrize(
    "text",
    [
        "ssh:", "ssh:-oProxyCommand=x", "ssh:-l@db1", "ssh:db1:0", "ssh:db1:65536", "ssh:db1:x", "ssh:a b", "ssh:`id`",
        "ssh:$(id)", "ssh:x;id", "ssh:'x'@db1", "ssh:db1\n", "ssh:[::1", "ssh:::1", "ssh:@db1", "ssh:/x",
    ],
)  # fmt: skip
def test_what_is_no_destination_never_reaches_ssh(text):
    with pytest.raises(transports.TargetError):
        transports.command(Target("t", "ssh", text))
    attempt = run(Target("t", "ssh", text))["attempt"]
    assert (attempt["status"], attempt["error_type"]) == ("unreachable", "TargetError")


def test_what_both_ends_write_and_measure_is_the_same():
    assert payload.ANNOUNCEMENT == remote._ANNOUNCEMENT
    assert payload.DRGN_BYTES == remote._DRGN_BYTES


def test_the_payload_is_the_collector_without_comments():
    """With the same line numbers, so that a traceback names lines of the sources."""
    sent = ast.literal_eval(zlib.decompress(payload.sources()).decode())
    for path, source in sent.items():
        if path != "pipeline/__init__.py":
            original = ast.parse((ROOT / path).read_text())
            assert ast.dump(ast.parse(source), include_attributes=True) == ast.dump(original, include_attributes=True)


def test_the_payload_is_small_and_always_the_same():
    assert len(payload.bootstrap() + payload.sources()) < 128_000
    code = "import sys; from pipeline.fanout.transports import payload; sys.stdout.buffer.write(payload.sources())"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT) == payload.sources()
