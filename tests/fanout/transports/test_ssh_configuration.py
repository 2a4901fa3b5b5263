"""What counts of the account's configuration of ssh, and what never reaches a supervised ssh."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.fanout import transports
from pipeline.fanout.transports import session, ssh
from pipeline.inventory import Target
from tests import processes
from tests.fanout.transports.sshd import SSHD, USER, Client, Server
from tests.fanout.transports.test_ssh import core_via, run, status_and_error, wait_until

pytestmark = pytest.mark.skipif(SSHD is None, reason="needs sshd")


@pytest.fixture(scope="module")
def jump(tmp_path_factory: pytest.TempPathFactory, client: Client) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("jump") / "sshd", "MaxStartups 100") as jump:
        client.trust(jump)
        yield jump


@pytest.fixture
def sockets() -> Iterator[str]:
    """A directory whose path is short enough for that of a socket."""
    with tempfile.TemporaryDirectory() as directory:
        yield directory


@pytest.fixture
def config(tmp_path: Path, client: Client) -> Path:
    return tmp_path / "ssh_config"


def write(config: Path, client: Client, server: Server, *lines: str) -> str:
    """Write a configuration with these lines for host "behind", which is the server; return its path."""
    text = "\n".join(["Host behind*", "HostName 127.0.0.1", f"Port {server.port}", f"User {USER}", *lines])
    config.write_text(f"{text}\nMatch all\n{client.config.read_text()}")
    return str(config)


def result(config: Path, client: Client, server: Server, *lines: str, **fields: object) -> tuple:
    path = write(config, client, server, *lines)
    return status_and_error(run(core_via(server, client, via="ssh:behind", ssh_config=path, **fields)))


# Options and the commands that they configure


def settings(tmp_path: Path, *lines: str, options: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the options with which ssh connects, as ssh itself tells them."""
    config = tmp_path / "fleet config"
    config.write_text("\n".join(lines) + "\n")
    client = session.Client("behind", list(options), str(config))
    argv = client.argv("true", share=True)
    output = subprocess.run([argv[0], "-G", *argv[1:]], check=True, capture_output=True, text=True).stdout
    return dict(line.split(" ", 1) for line in output.splitlines() if " " in line)


def test_what_the_account_configures_counts(tmp_path):
    mine = settings(tmp_path, "Host behind", "ConnectTimeout 60", "ServerAliveInterval 7", "ServerAliveCountMax 9")
    assert (mine["connecttimeout"], mine["serveraliveinterval"], mine["serveralivecountmax"]) == ("60", "7", "9")
    final = settings(tmp_path, "Match final host behind", "ConnectTimeout 61")
    assert final["connecttimeout"] == "61"
    given = settings(tmp_path, options=("-oConnectTimeout=62",))
    assert given["connecttimeout"] == "62"


def test_defaults_are_for_what_is_not_configured(tmp_path):
    direct = settings(tmp_path)
    assert (direct["connecttimeout"], direct["serveraliveinterval"], direct["serveralivecountmax"]) == ("10", "15", "3")
    assert settings(tmp_path, "ProxyCommand nc %h %p")["connecttimeout"] == "30"
    assert settings(tmp_path, options=("-Jbastion",))["connecttimeout"] == "30"
    assert settings(tmp_path, "ServerAliveInterval 0")["serveraliveinterval"] == "0"


TERMINAL_OPTIONS = (
    "ControlMaster auto", "ControlPersist 60", "PermitLocalCommand yes", "Tunnel yes", "RequestTTY force",
    "RemoteCommand tmux", "StdinNull yes", "ForkAfterAuthentication yes", "SessionType none", "ForwardAgent yes",
    "ForwardX11 yes", "BatchMode no", "LogLevel DEBUG",
)  # fmt: skip


@pytest.mark.parametrize("in_file", [True, False])
def test_what_is_for_people_at_a_terminal_does_not_count(tmp_path, in_file):
    options = () if in_file else tuple("-o" + option.replace(" ", "=", 1) for option in TERMINAL_OPTIONS)
    there = settings(tmp_path, *(TERMINAL_OPTIONS if in_file else ()), options=options)
    expected = {
        "controlmaster": "false",
        "permitlocalcommand": "no",
        "tunnel": "false",
        "requesttty": "false",
        "stdinnull": "no",
        "forkafterauthentication": "no",
        "sessiontype": "default",
        "forwardagent": "no",
        "forwardx11": "no",
        "batchmode": "yes",
        "loglevel": "ERROR",
    }
    assert {name: there[name] for name in expected} == expected
    assert "remotecommand" not in there


def test_terminal_options_reach_neither_the_host_nor_its_jump_host(tmp_path, sockets, config, client, server, jump):
    lines = [
        f"ProxyJump {USER}@127.0.0.1:{jump.port}",
        "Host *",
        *TERMINAL_OPTIONS,
        f"LocalCommand touch {tmp_path}/ran",
    ]
    lines.append(f"ControlPath {sockets}/%C")
    assert result(config, client, server, *lines) == ("ok", None)
    assert [path.name for path in tmp_path.iterdir()] == ["ssh_config"]
    assert os.listdir(sockets) == []


def test_a_file_that_others_own_and_any_name_are_taken(tmp_path, client, server, jump):
    """ssh takes any file for -F; for Include it checks owner and mode, and in ProxyJump it does not quote the path."""
    config = tmp_path / "the fleet's 100% config"
    path = write(config, client, server, f"ProxyJump {USER}@127.0.0.1:{jump.port}")
    config.chmod(0o666)
    assert status_and_error(run(core_via(server, client, via="ssh:behind", ssh_config=path))) == ("ok", None)


def test_the_file_and_the_options_of_the_target(tmp_path, config, client, server):
    key = tmp_path / "a key"
    key.write_bytes(client.key.read_bytes())
    key.chmod(0o600)
    config.write_text(f"Host behind\nHostName 127.0.0.1\nUserKnownHostsFile {client.known_hosts}\nIdentityAgent none\n")
    options = ("-i", str(key), f"-oPort={server.port}", "-o", f"User={USER}")
    target = core_via(server, client, via="ssh:behind", ssh_config=str(config), ssh_args=options)
    assert status_and_error(run(target)) == ("ok", None)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_accounts_own_file_and_that_of_the_system(tmp_path, config, client, server, jump):
    """With relative Include in both, each of its own directory, in a mount namespace with a home and an /etc/ssh."""
    home, system = tmp_path / "home", tmp_path / "etc"
    (home / ".ssh").mkdir(parents=True)
    (system / "more").mkdir(parents=True)
    write(home / ".ssh/mine", client, server, f"ProxyJump {USER}@127.0.0.1:{jump.port}")
    (home / ".ssh/config").write_text("Include mine\nHost other\nUser nobody\n")
    (system / "ssh_config").write_text('Host behind\n  Include "more/*.conf" missing # comment\nConnectTimeout 9\n')
    (system / "more/a.conf").write_text("ServerAliveInterval 33\n")
    passwd = tmp_path / "passwd"
    passwd.write_text(f"root:x:0:0:root:{home}:/bin/sh\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n")
    program = (
        "import subprocess; from pipeline.fanout.transports.session import Client;"
        "argv = Client('behind', [], None).argv('true', share=True);"
        "print(subprocess.run([argv[0], '-G', *argv[1:]], check=True, capture_output=True, text=True).stdout)"
    )
    mounts = f'mount --bind {passwd} /etc/passwd && mount --bind {system} /etc/ssh && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mounts, "sh", sys.executable, "-c", program]
    output = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "HOME": str(home)}
    ).stdout
    for line in (f"port {server.port}", "serveraliveinterval 33", "connecttimeout 9", "controlmaster false"):
        assert f"\n{line}\n" in output


def test_the_proxy_command_of_a_bastion_shares_no_connection(tmp_path, config, client, server, jump):
    """ssh -W in ProxyCommand, as inventories of Ansible have it, reads the account's files and not --ssh-config."""
    command = f"ssh -F {config} -W %h:%p -p {jump.port} {USER}@127.0.0.1"
    assert result(config, client, server, f"ProxyCommand {command}") == ("ok", None)
    ssh = session.Client("behind", ["-oProxyCommand=ssh -W %h:%p bastion", "-oControlMaster=auto"], "none")
    # Of an option that is given twice, ssh takes the first.
    proxy_command = next(word for word in ssh.argv("true", share=True) if word.startswith("-oProxyCommand"))
    file = proxy_command.split()[2]
    inner = subprocess.run(["ssh", "-F", file, "-G", "bastion"], check=True, capture_output=True, text=True).stdout
    assert proxy_command == f"-oProxyCommand=ssh -F {file} -W %h:%p bastion"
    assert "\ncontrolmaster false\n" in inner


# Connections that are shared


def test_targets_that_begin_one_after_another_do_not_end_one_another(tmp_path, sockets, config, client, server, jump):
    """An ssh -W that became the master would take the connections of the later targets with it when it ends."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nsleep 0.$(($$ % 7))\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    lines = ["ProxyJump jump", "Host jump", "HostName 127.0.0.1", f"Port {jump.port}", f"User {USER}"]
    path = write(config, client, server, *lines, "ControlMaster auto", f"ControlPath {sockets}/%C")
    targets = [core_via(server, client, via=f"ssh:behind{i}", ssh_config=path, python=str(python)) for i in range(24)]
    with ThreadPoolExecutor(8) as threads:
        assert {status_and_error(result) for result in threads.map(run, targets)} == {("ok", None)}


@pytest.fixture
def master(sockets: str, config: Path, client: Client, server: Server) -> Iterator[int]:
    """A running master of connections to "behind"; yields its pid."""
    write(config, client, server, f"ControlPath {sockets}/%C")
    process = subprocess.Popen(["ssh", "-F", config, "-N", "-M", "behind"])
    wait_until(
        lambda: not subprocess.run(["ssh", "-F", config, "-O", "check", "behind"], capture_output=True).returncode
    )
    yield process.pid
    os.kill(process.pid, signal.SIGCONT)
    process.terminate()
    process.wait(10)


def test_a_master_that_runs_is_used(config, client, server, master):
    logins = server.log.read_text().count("Accepted")
    target = core_via(server, client, via="ssh:behind", ssh_config=str(config))
    assert status_and_error(run(target)) == ("ok", None)
    assert server.log.read_text().count("Accepted") == logins


@pytest.mark.faults
def test_a_master_that_hangs_is_left_aside(config, client, server, master):
    os.kill(master, signal.SIGSTOP)
    options = ("-oConnectTimeout=1",)
    target = core_via(server, client, via="ssh:behind", ssh_config=str(config), ssh_args=options)
    assert status_and_error(run(target)) == ("ok", None)


# Time


@pytest.mark.parametrize("timeout_s", [None, 2])
def test_a_timeout_says_how_long_and_where_it_is_set(config, client, server, timeout_s):
    lines = ["ProxyCommand sleep 60"] + ([f"ConnectTimeout {timeout_s}"] if timeout_s else [])
    path = write(config, client, server, *lines)
    ssh = session.Client("behind", [], path)
    assert ssh.connect_timeout_s == (timeout_s or 30)
    if timeout_s:
        attempt = run(core_via(server, client, via="ssh:behind", ssh_config=path))["attempt"]
        assert (attempt["status"], attempt["error_type"]) == ("unreachable", "ConnectTimeout")
        assert "no answer within 2 s (ConnectTimeout; set it in ssh's configuration for this host)" in attempt["error"]


def test_ssh_that_does_not_say_its_configuration(config, client, server, monkeypatch):
    monkeypatch.setattr(session.client, "_SETTINGS_TIMEOUT_S", 1)
    config.write_text('Match exec "sleep 600"\nUser x\n')
    with pytest.raises(session.SessionError, match=r"ssh -G behind takes more than 1 s .* Match exec"):
        session.settings("behind", [], str(config))


def test_a_file_that_hangs_ends_no_run_and_its_command_ends(tmp_path, config, monkeypatch):
    monkeypatch.setattr(session.client, "_SETTINGS_TIMEOUT_S", 1)
    mark = f"LRU_TEST={tmp_path}"
    config.write_text(f'Match exec "env {mark} sleep 600; true"\nUser x\n')
    transports.check_client([Target("t", "ssh", "ssh:behind", ssh_config=str(config))], str(config))
    processes.wait_for_exit(mark, 30)


def test_only_the_accounts_file_and_that_of_the_command_line_end_a_run(config, client, server):
    missing = core_via(server, client, ssh_config="/nonexistent")
    targets = [missing, core_via(server, client)]
    transports.check_client(targets)
    assert [run(target)["attempt"]["status"] for target in targets] == ["unreachable", "ok"]
    assert run(missing)["attempt"]["error_type"] == "ConfigError"
    with pytest.raises(ssh.ClientError, match="rejects its configuration"):
        transports.check_client(targets, missing.ssh_config)


# An account or a machine without ssh


@pytest.fixture
def without_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as an account without an entry in the password database."""

    def getpwuid(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(session.client.pwd, "getpwuid", getpwuid)


@pytest.mark.parametrize("command", [["run", "-w", "w"], ["inspect"], ["plan", "--check"]])
def test_an_account_that_ssh_does_not_take_is_one_error_before_the_first_host(
    monkeypatch, tmp_path, capfd, without_entry, command
):
    monkeypatch.chdir(tmp_path)
    hosts = ["ssh:127.0.0.1:1"] if command == ["inspect"] else ["ssh:127.0.0.1:1", "ssh:127.0.0.2:1"]
    assert main([*command[:1], *hosts, *command[1:]]) == 1
    error = capfd.readouterr().err
    assert f"uid {os.getuid()} has no entry in the password database of {os.uname().nodename}" in error
    assert not list(tmp_path.glob("w/staging/*/run"))


def test_a_configuration_that_ssh_rejects_is_one_error_before_the_first_host(tmp_path, capfd):
    config = tmp_path / "ssh_config"
    config.write_text("Nonsense yes\n")
    assert main(["run", "ssh:127.0.0.1:1", "--ssh-config", str(config), "-w", str(tmp_path / "w")]) == 1
    assert "rejects its configuration" in capfd.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_real_account_without_an_entry(tmp_path):
    """As a node of a cluster has it: the row names the node."""
    program = (
        "import os; from pipeline.fanout.transports import session; os.setuid(54321)\n"
        "try: session.settings('db1', [], None)\nexcept session.SessionError as error: print(error.status, error)"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert output.startswith(f"denied uid 54321 has no entry in the password database of {os.uname().nodename}")
    assert "to reach db1" in output
