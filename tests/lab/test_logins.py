"""Logins and jump hosts with the OpenSSH, sudo, sudo-rs and doas of Debian 12 and 13."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.fanout import runner
from pipeline.inventory import Target
from tests.cli.test_resume import Warehouse
from tests.fanout.transports.sshd import Server
from tests.fanout.transports.test_ssh import CORE
from tests.lab.logins import Host, running_host

pytestmark = pytest.mark.lab

PYTHONS = ("3.11", "3.13")  # of Debian 12 and 13
PYTHON = "/usr/bin/python3"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("wheels")
    fetch = [sys.executable, "-m", "pipeline", "fetch-drgn", "--python", *PYTHONS, "--arch", "x86_64"]
    subprocess.run([*fetch, "--drgn-wheels", folder], check=True)
    return str(folder)


# Becoming root


@pytest.fixture(scope="module", params=["bookworm sudo", "logins sudo", "logins sudo-rs", "logins doas"])
def disk_and_sudo(request: pytest.FixtureRequest) -> tuple[str, str]:
    disk, sudo = request.param.split()
    return disk, sudo


@pytest.fixture(scope="module")
def attempts(disk_and_sudo: tuple[str, str], wheels: str) -> dict[str, dict[str, Any]]:
    """Audit a core that only root can read, as each user of a host; return the attempts by user."""
    disk, sudo = disk_and_sudo
    users = ["allowed", "stranger", "password", "expired"] + ["term", "noterm"] * (sudo == "sudo")
    with running_host(disk, sudo) as host:
        return {user: attempt(host, user, wheels) for user in users}


def attempt(host: Host, user: str, wheels: str | None) -> dict[str, Any]:
    target = Target(
        user,
        "vmcore",
        "/lab/vmcore",
        via=f"ssh:{user}@127.0.0.1:{host.port}",
        become=True,
        ssh_config=str(host.client.config),
        drgn_wheels=wheels,
    )
    attempt: dict[str, Any] = runner.run(target, 1, runner.Limits(timeout_s=120))["attempt"]
    return attempt


def test_who_may_become_root_is_audited_and_who_may_not_is_denied(attempts: dict[str, dict[str, Any]]) -> None:
    expected: dict[str, tuple[str, str | None]] = dict.fromkeys(attempts, ("denied", "Sudo"))
    expected |= dict.fromkeys({"allowed", "noterm"} & attempts.keys(), ("ok", None))
    assert {user: (row["status"], row["error_type"]) for user, row in attempts.items()} == expected


def test_the_remedy_is_the_one_that_is_missing(
    attempts: dict[str, dict[str, Any]], disk_and_sudo: tuple[str, str]
) -> None:
    _, sudo = disk_and_sudo
    assert "NOPASSWD" not in attempts["expired"]["error"]
    if sudo != "doas":
        for user in ("stranger", "password"):
            assert f"{user} ALL=(root) NOPASSWD: {PYTHON}" in attempts[user]["error"]
    if sudo == "sudo":
        assert "Defaults:term !requiretty" in attempts["term"]["error"]
        assert "NOPASSWD" not in attempts["term"]["error"]


def test_a_login_that_sshd_closes_may_be_of_an_expired_account() -> None:
    with running_host("logins", "sudo") as host:
        row = attempt(host, "gone", None)
    assert "the account may be expired or locked there" in row["error"]


# Jump hosts and shared connections


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """The sshd behind the jump hosts."""
    with Server(tmp_path / "server") as server:
        yield server


@pytest.fixture
def shared() -> Iterator[str]:
    """Lines of ssh_config with which ssh shares its connections to a host, as user root."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as sockets:  # the path of a socket is limited to 107 bytes
        yield f"User root\nControlMaster auto\nControlPath {sockets}/%C\n"


class Fleet:
    """Names for cores on one server, most of them behind a jump host."""

    def __init__(self, folder: Path, server: Server, jump: Host) -> None:
        jump.client.trust(server)
        self.folder = folder
        self.config = folder / "ssh_config"
        self._ports = f"Host jump*\nPort {jump.port}\nHost *\nHostName 127.0.0.1\nPort {server.port}"
        self._rest = jump.client.config.read_text()

    def configure(self, *blocks: str) -> None:
        self.config.write_text("\n".join([*blocks, self._ports, self._rest]))

    def ends(self, hosts: list[str], *options: str, seconds: int = 0) -> dict[str, tuple[str, str | None, str | None]]:
        """Audit a core through each host and return status, error_type and error by host.

        :param seconds: by how much the audits that begin together differ in length.
        """
        inventory, warehouse = self.folder / "fleet.json", Warehouse(self.folder / "w", self.folder)
        entries = []
        for number, host in enumerate(hosts):
            python = self.folder / f"python{number}"
            python.write_text(f'#!/bin/sh\nsleep {number % (seconds + 1)}\nexec {sys.executable} "$@"\n')
            python.chmod(0o755)
            entries.append({"target": str(CORE), "name": host, "via": f"ssh:{host}", "python": str(python)})
        inventory.write_text(json.dumps(entries))
        warehouse.run("run", "-i", inventory, "--ssh-config", self.config, *options)
        rows = warehouse.rows("SELECT target, status, error_type, error FROM targets")
        return {row["target"]: (row["status"], row["error_type"], row["error"]) for row in rows}


OK = ("ok", None, None)
BAD_AND_GOOD = """\
Host jump-good
User root
Host jump-bad
User absent
Host bad*
ProxyJump jump-bad
Host good*
ProxyJump jump-good
"""


def test_a_shared_connection_to_a_jump_host_ends_no_other_audit(
    tmp_path: Path, server: Server, shared: str, embedded_ray: dict[str, str]
) -> None:
    """Without ControlPersist ssh's master is the jump of the first audit, and ends with it."""
    with running_host("logins", "sudo") as jump:
        fleet = Fleet(tmp_path, server, jump)
        fleet.configure(f"Host jump\n{shared}", "Host h*\nProxyJump jump")
        hosts = [f"h{number}" for number in range(24)]
        ends = fleet.ends(hosts, "--retries", "0", "--ssh-parallel", "8", seconds=3)
    assert ends == dict.fromkeys(hosts, OK)


@pytest.mark.parametrize("max_sessions", [1, 2])
def test_a_persistent_connection_with_fewer_sessions_than_audits_refuses_none(
    tmp_path: Path, server: Server, shared: str, embedded_ray: dict[str, str], max_sessions: int
) -> None:
    with running_host("logins", "sudo", f"MaxSessions={max_sessions}") as jump:
        fleet = Fleet(tmp_path, server, jump)
        fleet.configure(f"Host jump\n{shared}ControlPersist 300\n", "Host h*\nProxyJump jump")
        hosts = [f"h{number}" for number in range(8)]
        ends = fleet.ends(hosts, "--retries", "0", "--ssh-parallel", "8", seconds=2)
    assert ends == dict.fromkeys(hosts, OK)


def test_failed_logins_at_a_jump_host_cost_no_good_host_its_row(
    tmp_path: Path, server: Server, embedded_ray: dict[str, str]
) -> None:
    """OpenSSH 9.8 and newer lock a source out for some time after failed logins (PerSourcePenalties)."""
    with running_host("logins", "sudo") as jump:
        fleet = Fleet(tmp_path, server, jump)
        fleet.configure(BAD_AND_GOOD)
        bad, good = [f"bad{number}" for number in range(40)], [f"good{number}" for number in range(24)]
        ends = fleet.ends(bad + good)
    assert {host: ends[host] for host in good} == dict.fromkeys(good, OK)
    assert {ends[host][:2] for host in bad} == {("denied", "AuthenticationFailed")}


def test_hosts_behind_a_jump_host_wait_for_the_end_of_a_lock_out(
    tmp_path: Path, server: Server, embedded_ray: dict[str, str]
) -> None:
    with running_host("logins", "sudo") as jump:
        fleet = Fleet(tmp_path, server, jump)
        fleet.configure(BAD_AND_GOOD)
        deadline = time.monotonic() + 60
        while "penalty" not in jump.log.read_text():
            assert time.monotonic() < deadline
            ssh = ["ssh", "-F", fleet.config, "-oBatchMode=yes", "jump-bad"]
            assert subprocess.run(ssh, stderr=subprocess.DEVNULL, check=False).returncode == 255
        good = [f"good{number}" for number in range(4)]
        ends = fleet.ends(good)
    assert ends == dict.fromkeys(good, OK)
