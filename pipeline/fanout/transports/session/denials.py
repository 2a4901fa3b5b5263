"""Memory of the denials of jump hosts, which the sessions of a worker share."""

import json
from typing import NamedTuple


class Jump(NamedTuple):
    """What a host is reached through, for comparison with others.

    - address: of the jump host, which may lock out this machine;
    - login: user, address and keys, or a ProxyCommand.
    """

    address: str
    login: str


class Denials:
    """Denials of jump hosts that the targets of this worker have met: lines of a file that its sessions share."""

    def __init__(self, path: str | None) -> None:
        self._path = path

    def add(self, jump: Jump) -> None:
        if self._path is not None:
            with open(self._path, "ab", buffering=0) as file:
                file.write(json.dumps(jump).encode() + b"\n")

    def count(self, jump: Jump) -> int:
        """Return the number of denials of this login."""
        return self._jumps().count(jump)

    def are_at(self, jump: Jump) -> bool:
        """Whether a jump host has denied any login: it may lock out this address."""
        return jump.address in {other.address for other in self._jumps()}

    def _jumps(self) -> list[Jump]:
        if self._path is None:
            return []
        try:
            with open(self._path, "rb") as file:
                return [Jump(*json.loads(line)) for line in file]
        except OSError:
            return []
