"""What ssh targets promise, against real OpenSSH servers on loopback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import runner
from pipeline.inventory import Target
from tests.transports.sshd import SSHD, USER, Client, Server

pytestmark = pytest.mark.skipif(SSHD is None, reason="no sshd: apt-get install openssh-server")

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "tests/vmcores/deb510-n1/vmcore"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(tmp_path_factory.mktemp("client") / "ssh")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, client: Client) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server") / "sshd") as server:
        client.trust(server)
        yield server


@pytest.fixture
def target(client: Client, server: Server) -> Target:
    return core_via(server, client)


def core_via(server: Server, client: Client, **fields: object) -> Target:
    via = f"ssh:{USER}@127.0.0.1:{server.port}"
    made = {"name": "t", "kind": "vmcore", "source": str(CORE), "via": via, "python": sys.executable}
    return Target(**{**made, "ssh_config": str(client.config), **fields})


def run(target: Target, **limits: float) -> dict:
    return runner.run(target, 1, runner.Limits(**{"timeout_s": 60, **limits}))


def ending(target: Target, **limits: float) -> tuple:
    attempt = run(target, **limits)["attempt"]
    return tuple(attempt[key] for key in ("status", "error_type", "error"))


def test_a_core_on_the_host_is_audited_there_with_the_same_rows(target):
    here = run(Target("t", "vmcore", str(CORE)))
    there = run(target)
    assert there["attempt"]["error"] is None
    assert there["attempt"]["status"] == "ok"
    assert there["tables"] == here["tables"]
