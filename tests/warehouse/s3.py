"""moto's S3 server in a separate process on loopback, and the environment of its clients."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def server() -> Iterator[str]:
    """Run a server and yield its endpoint."""
    pytest.importorskip("moto", reason="needs moto")
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()
        process.wait(60)


def use_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str, state_home: Any) -> None:
    """Make this process and its children use an endpoint, and stage runs below `state_home`."""
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "XDG_STATE_HOME": str(state_home),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def client(endpoint: str) -> Any:
    import boto3  # an extra of `make test-faults`

    return boto3.client("s3", endpoint_url=endpoint)
