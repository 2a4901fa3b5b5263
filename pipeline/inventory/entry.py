"""One target as it was written, and where."""

from __future__ import annotations

from typing import Any, NamedTuple

KEYS = (
    *("target", "name", "labels", "via", "become", "python", "timeout_s"),
    *("vmlinux", "debug_dir", "vmcoreinfo"),
)

TOO_LONG = "a number of too many digits"


class Entry(NamedTuple):
    """One target as written: `where` it stands (file:line), its values, the place of each key where that is
    known, and the folder that its relative paths are below."""

    where: str
    fields: dict[str, Any]
    key_where: dict[str, str]
    folder: str

    def at(self, key: str) -> str:
        return self.key_where.get(key, self.where)


class InventorySyntaxError(Exception):
    """Nothing more can be read of an inventory; line: where, None for all of it."""

    def __init__(self, line: int | None, problem: str) -> None:
        self.line = line
        self.problem = problem
