"""Fixtures of the tests over ssh."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fanout.transports.sshd import Client, Server


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(tmp_path_factory.mktemp("client") / "ssh")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, client: Client) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server") / "sshd") as server:
        client.trust(server)
        yield server


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    """Make an executable that replaces the interpreter on the host."""

    def make(text: str) -> str:
        path = tmp_path / "interpreter"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    return make
