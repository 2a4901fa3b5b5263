"""Targets that share a way in: a jump host that denies, forwards nothing, or locks out the address of the run."""

from __future__ import annotations

import dataclasses
import re
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.inventory import Target
from tests.fanout.transports.sshd import SSHD, USER, Client, Server, free_port
from tests.fanout.transports.test_ssh import Listener, core_via, relay, run, status_and_error

pytestmark = pytest.mark.skipif(SSHD is None, reason="needs sshd")


@pytest.fixture
def through(tmp_path: Path, client: Client, server: Server) -> Callable[[str], Target]:
    """Return a function that makes a target from lines of the ssh_config of host "behind", which is the server."""

    def make(*lines: str) -> Target:
        text = "\n".join(["Host behind", "HostName 127.0.0.1", f"Port {server.port}", f"User {USER}", *lines])
        config = tmp_path / "ssh_config"
        config.write_text(f"{text}\nMatch all\n{client.config.read_text()}")
        return core_via(server, client, via="ssh:behind", ssh_config=str(config))

    return make


def denied(target: Target) -> str:
    """Run a target that no key lets in; return the error."""
    attempt = run(target)["attempt"]
    assert (attempt["status"], attempt["error_type"]) == ("denied", "AuthenticationFailed")
    return str(attempt["error"])


def test_a_jump_host_that_denies_is_named_and_after_three_targets_not_tried(tmp_path, client, through):
    with Server(tmp_path / "jump", "LogLevel VERBOSE") as jump:
        client.trust(jump)
        address = f"127.0.0.1:{jump.port}"
        for _ in range(3):
            error = denied(through(f"ProxyJump nobody@{address}"))
            assert error.startswith(f"behind: by the jump host nobody@{address}: no key of this account is accepted")
            assert "; stderr: nobody@127.0.0.1: Permission denied (publickey). / " in error
        log = jump.log.read_text()
        for lines in (
            [f"ProxyJump nobody@{address}"],
            ["ProxyJump jump", "Host jump", "HostName 127.0.0.1", f"Port {jump.port}", "User nobody"],
        ):
            error = denied(through(*lines))
            assert (
                f"not tried: no key of this account is accepted by the jump host nobody@{address}, as 3 other" in error
            )
        assert jump.log.read_text() == log
        assert status_and_error(run(through(f"ProxyJump {USER}@{address}"))) == ("ok", None)
        behind = through(f"ProxyJump {USER}@{address}")
        error = denied(dataclasses.replace(behind, ssh_args=("-l", "nobody")))
        assert "jump host" not in error


def disconnect(text: bytes) -> bytes:
    """Return SSH_MSG_DISCONNECT (RFC 4253, 11.1) before any key exchange."""
    payload = b"\x01" + struct.pack(">II", 2, len(text)) + text + struct.pack(">I", 0)
    padding = 4 + -(9 + len(payload)) % 8
    return struct.pack(">IB", 1 + len(payload) + padding, padding) + payload + bytes(padding)


# What ssh prints where a jump host denies it. ssh passes the newlines of a server on.
JUMP_HOST_DENIES = (
    b"no\r\nnobody@127.0.0.1: Permission denied (publickey).\r\n"
    b"kex_exchange_identification: Connection closed by remote host\r\n"
)


@pytest.mark.parametrize(
    "words", [JUMP_HOST_DENIES, b"SSH-2.0-x\r\n" + disconnect(JUMP_HOST_DENIES)], ids=["banner", "disconnect"]
)
def test_a_host_cannot_speak_for_its_jump_host_so_that_others_behind_it_are_not_tried(
    tmp_path, client, server, through, words
):
    def answer(connection: socket.socket, number: int) -> None:
        with connection:
            connection.sendall(words)
            if not words.startswith(b"SSH-"):
                connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass

    with Server(tmp_path / "jump") as jump, Listener(answer) as host:
        client.trust(jump)
        honest = through(f"ProxyJump {USER}@127.0.0.1:{jump.port}")
        hostile = dataclasses.replace(honest, ssh_args=(f"-oPort={host.port}",))
        for _ in range(3):
            assert "jump host" not in denied(hostile)
        assert host.connections == 3
        assert status_and_error(run(honest)) == ("ok", None)


def test_denials_of_one_key_are_not_those_of_another(tmp_path, client, server):
    with Server(tmp_path / "jump") as jump:
        client.trust(jump)
        stranger = Client(tmp_path / "stranger")
        text = client.config.read_text()
        stranger.config.write_text(text.replace(str(client.key), str(stranger.key)))
        options = (f"-J{USER}@127.0.0.1:{jump.port}",)
        wrong = core_via(server, client, ssh_config=str(stranger.config), ssh_args=options)
        for _ in range(3):
            assert "by the jump host" in denied(wrong)
        assert "not tried" in denied(wrong)
        assert status_and_error(run(core_via(server, client, ssh_args=options))) == ("ok", None)


def test_the_bastion_of_a_proxy_command_is_one_way_in_unless_each_host_has_its_own(tmp_path, client, through):
    with Server(tmp_path / "jump") as jump:
        client.trust(jump)
        command = f"ssh -F {tmp_path}/ssh_config -W %h:%p -p {jump.port} nobody@127.0.0.1"
        for _ in range(3):
            assert "by its ProxyCommand: no key" in denied(through(f"ProxyCommand {command}"))
        assert "not tried" in denied(through(f"ProxyCommand {command}"))
        for _ in range(4):
            assert "not tried" not in denied(through(f"ProxyCommand {command.replace('@127.0.0.1', '@%h')}"))


def test_a_jump_host_that_forwards_nothing(tmp_path, client, through):
    with Server(tmp_path / "jump", "AllowTcpForwarding no") as jump:
        client.trust(jump)
        status, kind, error = failure_of(through(f"ProxyJump {USER}@127.0.0.1:{jump.port}"))
    assert (status, kind) == ("denied", "ForwardingRefused")
    assert "AllowTcpForwarding" in error


@pytest.mark.parametrize(("name", "kind"), [("nowhere.invalid", "NameNotResolved"), ("127.0.0.1", "ConnectionRefused")])
def test_a_host_that_its_jump_host_does_not_reach(tmp_path, client, through, name, kind):
    with Server(tmp_path / "jump") as jump:
        client.trust(jump)
        target = through(f"ProxyJump {USER}@127.0.0.1:{jump.port}")
        options = (f"-oHostName={name}", f"-oPort={free_port()}")
        status, error_type, error = failure_of(dataclasses.replace(target, ssh_args=options))
    assert (status, error_type) == ("unreachable", kind)
    assert "jump host" not in error


def failure_of(target: Target) -> tuple[str, str, str]:
    attempt = run(target)["attempt"]
    return attempt["status"], attempt["error_type"], attempt["error"]


# Lock-outs. sshd says the same words for MaxStartups and PerSourcePenalties since OpenSSH 9.8, and other ones before.


@pytest.mark.parametrize(
    ("words", "kind", "causes"),
    [
        (b"Exceeded MaxStartups\r\n", "ConnectionClosed", {"MaxStartups"}),
        (b"Not allowed at this time\r\n", "ConnectionRejected", {"MaxStartups", "PerSourcePenalties"}),
        (b"", "ConnectionClosed", {"MaxStartups", "PerSourcePenalties"}),
    ],
)
def test_why_a_connection_is_closed_before_the_login(server, client, words, kind, causes):
    with Listener(lambda connection, _: (connection.sendall(words), connection.close())) as listener:
        options = ("-oConnectTimeout=1",)
        via = f"ssh:127.0.0.1:{listener.port}"
        target = core_via(server, client, via=via, timeout_s=12, ssh_args=options)
        status, error_type, error = failure_of(target)
    assert (status, error_type) == ("unreachable", kind)
    assert {cause for cause in ("MaxStartups", "PerSourcePenalties") if cause in error.partition("stderr")[0]} == causes
    assert words.decode().strip() in error
    assert "closed in each of 4 tries" in error  # the next would be after 15 s


def test_a_try_that_the_deadline_would_cut_short_is_not_made(server, client):
    """Before the deadline is time to wait, but not for an answer as well (ConnectTimeout 10 s)."""
    with Listener(lambda connection, _: connection.close()) as listener:
        target = core_via(server, client, via=f"ssh:127.0.0.1:{listener.port}", timeout_s=9)
        status, kind, _ = failure_of(target)
        assert (status, kind, listener.connections) == ("unreachable", "ConnectionClosed", 1)


def test_the_note_on_a_further_try_leaves_room_for_what_ssh_says(server, client):
    """The second try ends neither in time nor by ConnectTimeout, which counts until the server's banner."""
    end = threading.Event()

    def answer(connection: socket.socket, number: int) -> None:
        if number == 2:
            connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            end.wait()
        connection.close()

    with Listener(answer) as listener:
        via = f"ssh:127.0.0.1:{listener.port}"
        target = core_via(server, client, via=via, timeout_s=5, ssh_args=("-oConnectTimeout=1",))
        status, _, error = failure_of(target)
        end.set()
    assert status == "timeout"
    ssh_words = r"kex_exchange_identification: (read: )?Connection (closed by remote host|reset by peer)"
    assert re.search(rf"; stderr: {ssh_words} ConnectionClosed; tried again in \d s$", error)


@pytest.mark.parametrize("program", ["nosuchprog %h %p", "echo no session for %h >&2; exit 3"])
def test_a_proxy_command_that_fails_is_named_and_not_tried_again(tmp_path, through, program):
    tries = tmp_path / "tries"
    target = through(f"ProxyCommand sh -c 'echo >> {tries}; {program}'")
    status, kind, error = failure_of(target)
    assert (status, kind) == ("unreachable", "ProxyFailed")
    assert error.startswith("behind: its ProxyCommand ended before the login; stderr: ")
    assert "MaxStartups" not in error
    assert tries.read_text() == "\n"


def test_a_proxy_command_whose_ssh_is_closed_is_tried_again(tmp_path, client, through):
    with Server(tmp_path / "jump") as jump:

        def answer(connection: socket.socket, number: int) -> None:
            if number == 1:
                connection.close()
            else:
                relay(jump.port)(connection)

        client.trust(jump)
        with Listener(answer) as listener:
            client.know(listener.port, jump.host_key)
            command = f"ssh -F {tmp_path}/ssh_config -W %h:%p -p {listener.port} {USER}@127.0.0.1"
            assert status_and_error(run(through(f"ProxyCommand sh -c 'echo hello >&2; exec {command}'"))) == (
                "ok",
                None,
            )
            assert listener.connections == 2


def test_after_denials_of_a_jump_host_a_closed_connection_is_a_lock_out_to_wait_for(tmp_path, server, client, through):
    with Server(tmp_path / "jump") as jump:
        locked_out = []

        def answer(connection: socket.socket, number: int) -> None:
            if locked_out:
                connection.close()
            else:
                relay(jump.port)(connection)

        client.trust(jump)
        with Listener(answer) as listener:
            client.know(listener.port, jump.host_key)
            assert "by the jump host" in denied(through(f"ProxyJump nobody@127.0.0.1:{listener.port}"))
            locked_out.append(True)
            target = dataclasses.replace(through(f"ProxyJump {USER}@127.0.0.1:{listener.port}"), timeout_s=5)
            status, _, error = failure_of(target)
            assert status == "unreachable"
            assert "closed in each of 1 tries; at the jump host" in error
            assert listener.connections == 2


@pytest.mark.faults
def test_a_lock_out_that_ends_costs_time_but_no_row(server, client):
    def answer(connection: socket.socket, number: int) -> None:
        if number <= 4:
            connection.sendall(b"Not allowed at this time\r\n")
            connection.close()
        else:
            relay(server.port)(connection)

    with Listener(answer) as listener:
        client.know(listener.port, server.host_key)
        target = core_via(server, client, via=f"ssh:{USER}@127.0.0.1:{listener.port}")
        assert status_and_error(run(target)) == ("ok", None)
        assert listener.connections == 5
