"""One target of an inventory before validation, and its location in the file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

KEYS = (
    *("target", "name", "labels", "via", "become", "python", "timeout_s"),
    *("vmlinux", "debug_dir", "vmcoreinfo", "target_kernel"),
)

# Error for a number that Python refuses to parse: it has more digits than sys.get_int_max_str_digits().
TOO_MANY_DIGITS = "a number with too many digits"


class Entry(NamedTuple):
    """One target as written in an inventory.

    - location: ``FILE:LINE`` of the target;
    - fields: keys and values;
    - key_locations: ``FILE:LINE`` of each key; empty for formats whose parser reports no lines of keys;
    - directory: base of its relative paths;
    - ssh_config, ssh_args, unusable: as in a target.
    """

    location: str
    fields: dict[str, Any]
    key_locations: dict[str, str]
    directory: str
    ssh_config: str | None = None
    ssh_args: tuple[str, ...] = ()
    unusable: str | None = None

    def key_location(self, key: str) -> str:
        return self.key_locations.get(key, self.location)


class Entries(list[Entry]):
    """Entries of an inventory.

    :ivar left_out_count: number of hosts that --limit leaves out, which have no entry.
    :ivar notes: what was noticed while reading it, one line each.
    :ivar warnings: likewise, where hosts may be reached in another way than the inventory asks for.
    """

    left_out_count = 0
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()


class InventorySyntaxError(Exception):
    """An inventory cannot be parsed.

    :ivar line: line of the error, None if the error concerns the whole file.
    """

    def __init__(self, line: int | None, problem: str) -> None:
        self.line = line
        self.problem = problem
