"""Memory of the denials of jump hosts, which the sessions of a worker share."""

import json


class Denials:
    """Denials of jump hosts that the targets of this worker have met: lines of a file that its sessions share."""

    def __init__(self, path: str | None) -> None:
        self._path = path

    def add(self, jump: str) -> None:
        if self._path is not None:
            with open(self._path, "ab", buffering=0) as file:
                file.write(json.dumps(jump).encode() + b"\n")

    def count(self, jump: str) -> int:
        """Return the number of denials for this user of a jump host."""
        return self._jumps().count(jump)

    def are_at(self, jump: str) -> bool:
        """Whether a jump host has denied anything, to whatever user: it may lock out this address."""
        return jump.rpartition("@")[2] in {other.rpartition("@")[2] for other in self._jumps()}

    def _jumps(self) -> list[str]:
        if self._path is None:
            return []
        try:
            with open(self._path, "rb") as file:
                return [json.loads(line) for line in file]
        except OSError:
            return []
