"""Print as JSON which sockets of another process are reached without a restriction, under Landlock and under seccomp.

usage: python3 -c "$(cat reach.py)" "$(cat landlock.py)"     also runs in a guest, with Python 3.9 and nothing else
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import tempfile
from collections.abc import Callable

LANDLOCK_REFUSES_SINCE = {"tcp": 4, "abstract unix": 6, "unix stream": 9, "unix datagram": 9, "udp": 10}
"""The version of Landlock's ABI that can refuse each kind of socket."""


def listeners(folder: str) -> dict[str, socket.socket]:
    """A listening socket of each kind."""
    addresses = {
        "tcp": (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
        "udp": (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
        "unix stream": (socket.AF_UNIX, socket.SOCK_STREAM, f"{folder}/stream"),
        "unix datagram": (socket.AF_UNIX, socket.SOCK_DGRAM, f"{folder}/datagram"),
        "abstract unix": (socket.AF_UNIX, socket.SOCK_STREAM, f"\0{folder}"),
    }
    sockets = {}
    for kind, (family, socket_type, address) in addresses.items():
        sockets[kind] = socket.socket(family, socket_type)
        sockets[kind].bind(address)
        if socket_type == socket.SOCK_STREAM:
            sockets[kind].listen()
    return sockets


def reach(listener: socket.socket) -> str:
    """Connect or send to a listener from a new socket; return the error's name, or "reached"."""
    try:
        with socket.socket(listener.family, listener.type) as client:
            if listener.type == socket.SOCK_STREAM:
                client.connect(listener.getsockname())
            else:
                client.sendto(b"x", listener.getsockname())
    except PermissionError as error:
        return type(error).__name__
    return "reached"


def reach_all(restrict: Callable[[], object]) -> dict[str, list[str]]:
    """Restrict a child process, let it reach for every listener, and return for each what child and listener saw."""
    with tempfile.TemporaryDirectory() as folder:
        sockets = listeners(folder)
        output_fd, input_fd = os.pipe()
        if os.fork() == 0:
            restrict()
            answers = {kind: reach(listener) for kind, listener in sockets.items()}
            os.write(input_fd, json.dumps(answers).encode())
            os._exit(0)
        os.close(input_fd)
        with os.fdopen(output_fd) as output:
            answers = json.load(output)
        os.wait()
        readable, _, _ = select.select(sockets.values(), [], [], 0)
        return {kind: [answers[kind], "called" if sockets[kind] in readable else "silent"] for kind in sockets}


def expected(abi: int) -> dict[str, dict[str, list[str]]]:
    """What main() prints of a kernel with this version of Landlock's ABI."""
    reached, refused = ["reached", "called"], ["PermissionError", "silent"]
    by_landlock = {kind: refused if abi >= version else reached for kind, version in LANDLOCK_REFUSES_SINCE.items()}
    kinds = list(LANDLOCK_REFUSES_SINCE)
    return {
        "nothing": dict.fromkeys(kinds, reached),
        "seccomp": dict.fromkeys(kinds, refused),
        **({"landlock": by_landlock} if abi else {}),
    }


def main() -> None:
    functions: dict[str, Callable[..., int]] = {"__name__": "landlock"}  # type: ignore[dict-item]
    exec(sys.argv[1], functions)
    abi = functions["abi"]()
    restrictions = {"nothing": lambda: None, "seccomp": functions["deny_sockets"]}
    if abi:
        restrictions["landlock"] = lambda: functions["restrict"]([], [])
    print(json.dumps({"abi": abi, **{name: reach_all(restrict) for name, restrict in restrictions.items()}}))


if __name__ == "__main__":
    main()
