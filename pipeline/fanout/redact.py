"""Names of mounts, devices and cgroups as pseudonyms, for a warehouse that strangers may see.

They are replaced where a target is collected: no disk ever has them, not the spool's either. A pseudonym is keyed with
a secret of the run that is gone once the run is published: nobody can try names against it then. Paths are replaced
component by component, so that what was below one cgroup or directory still is.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable
from typing import Any

from pipeline.fanout import runner
from pipeline.inventory import Target

_DIGITS = 12
# A slab cache of a memcg, before v5.9, has the name of its cgroup: `dentry(1234:NAME)`.
_MEMCG_CACHE = re.compile(r"(\(\d+:)(.*)(\))", re.DOTALL)
# In place of a cgroup's path: the number of a user namespace.
_USER_NAMESPACE = re.compile(r"user:\[\d+\]")


def run(key: bytes, target: Target, attempt: int, limits: runner.Limits) -> dict[str, Any]:
    """Collect one target as `runner.run` does, and return the attempt with pseudonyms."""
    return redacted(key, runner.run(target, attempt, limits))


def redacted(key: bytes, attempt: dict[str, Any]) -> dict[str, Any]:
    """Return an attempt with pseudonyms: 12 hex digits of HMAC-SHA256 for each component of a name.

    In superblocks that is `mountpoint`, `owner` and, but for the kernel's own that are called as their type, `s_id`; in
    memcgs `path`. A `*_raw` is left out, and so is what an error quotes. Words of free text that are one of these names
    are replaced as well. Names of hosts and targets, labels, filesystem types and device numbers stay.
    """
    names = _Names(key)
    tables = {name: _by_column(table) for name, table in attempt["tables"].items()}
    superblocks, memcgs, lists = (tables.get(name, {}) for name in ("superblocks", "memcgs", "list_lrus"))
    own = zip(superblocks.get("kernel_internal", ()), superblocks.get("fstype", ()), strict=False)
    called = {at: fstype for at, (internal, fstype) in enumerate(own) if internal is True}
    replaced: tuple[tuple[dict[str, list[Any]], str, Callable[[Any], str | None]], ...] = (
        (superblocks, "mountpoint", names.path),
        (superblocks, "owner", names.owner),
        (memcgs, "path", names.path),
        (lists, "name", names.slab_cache),
    )
    for columns, name, replace in replaced:
        if name in columns:
            columns[name] = [replace(cell) for cell in columns[name]]
    if "s_id" in superblocks:
        s_ids = enumerate(superblocks["s_id"])
        superblocks["s_id"] = [s_id if called.get(at) == s_id else names.path(s_id) for at, s_id in s_ids]
    for columns in tables.values():
        for name in columns:
            if name.endswith("_raw"):
                columns[name] = [None] * len(columns[name])
    of_target = {**attempt["columns"]}
    for name, replace in {"slab_cache": names.slab_cache, "notes": names.text}.items():
        if name in of_target:
            of_target[name] = replace(of_target[name])
    ended = {**attempt["attempt"]}
    ended["error"] = names.text(ended["error"] and runner.own_words(ended["error"]))
    return {
        "attempt": ended,
        "columns": of_target,
        "tables": {name: _by_row(columns) for name, columns in tables.items()},
    }


class _Names:
    """The pseudonyms of one snapshot; what is no text becomes None, which says nothing."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._known: dict[str, str] = {"": ""}

    def path(self, path: Any) -> str | None:
        return "/".join(map(self._component, path.split("/"))) if isinstance(path, str) else None

    def owner(self, owner: Any) -> str | None:
        return owner if isinstance(owner, str) and _USER_NAMESPACE.fullmatch(owner) else self.path(owner)

    def slab_cache(self, name: Any) -> str | None:
        if not isinstance(name, str):
            return None
        return _MEMCG_CACHE.sub(lambda found: found[1] + self._component(found[2]) + found[3], name)

    def text(self, text: Any) -> str | None:
        """Replace the words of a free text that are names."""
        if not isinstance(text, str):
            return None
        return re.sub(r"[^\s/:;,()'\"]+", lambda word: self._known.get(word[0], word[0]), text)

    def _component(self, name: str) -> str:
        if name not in self._known:
            self._known[name] = hmac.digest(self._key, name.encode(), "sha256").hex()[:_DIGITS]
        return self._known[name]


def _by_column(table: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: [row[at] for row in table["rows"]] for at, name in enumerate(table["columns"])}


def _by_row(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {"columns": [*columns], "rows": [list(row) for row in zip(*columns.values(), strict=True)]}
