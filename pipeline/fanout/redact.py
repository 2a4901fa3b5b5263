"""Replacement of the names of mounts, devices and cgroups by pseudonyms, for a warehouse that outsiders may read.

The replacement happens where a target is collected, so the names reach no disk, not even the spool. A pseudonym is
keyed with a secret of the run, which is deleted when the run is published: after that no guessed name can be tested
against it. Paths are replaced component by component, so the hierarchy of cgroups and directories stays.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable
from typing import Any

from pipeline.fanout import runner
from pipeline.inventory import Target

_PSEUDONYM_DIGITS = 12
# Before v5.9 the name of a memcg's slab cache contains that of its cgroup: `dentry(1234:NAME)`.
_MEMCG_CACHE = re.compile(r"(\(\d+:)(.*)(\))", re.DOTALL)
# An owner that is a user namespace instead of a cgroup, with its inode number.
_USER_NAMESPACE = re.compile(r"user:\[\d+\]")


def run(key: bytes, target: Target, attempt: int, limits: runner.Limits) -> dict[str, Any]:
    """Collect one target as `runner.run` does and return the attempt with pseudonyms."""
    return replace_names(key, runner.run(target, attempt, limits))


def replace_names(key: bytes, attempt: dict[str, Any]) -> dict[str, Any]:
    """Return an attempt with pseudonyms: 12 hex digits of HMAC-SHA256 for each component of a name.

    This replaces `mountpoint`, `owner` and `s_id` of superblocks (except an `s_id` of a kernel-internal superblock that
    equals its filesystem type), `path` of memcgs and of the files that keep dying ones, the cgroup in the
    name of a slab cache, and every word of free text that is one of these names. Columns `*_raw` and the stderr that an
    error quotes are removed. Names of hosts and targets, labels, filesystem types, device and inode numbers stay.
    """
    pseudonyms = _Pseudonyms(key)
    tables = {name: _columns(table) for name, table in attempt["tables"].items()}
    superblocks, memcgs, list_lrus = (tables.get(name, {}) for name in ("superblocks", "memcgs", "list_lrus"))
    kinds = zip(superblocks.get("kernel_internal", ()), superblocks.get("fstype", ()), strict=False)
    internal_fstypes = {index: fstype for index, (is_internal, fstype) in enumerate(kinds) if is_internal is True}
    replacements: tuple[tuple[dict[str, list[Any]], str, Callable[[Any], str | None]], ...] = (
        (superblocks, "mountpoint", pseudonyms.path),
        (superblocks, "owner", pseudonyms.owner),
        (memcgs, "path", pseudonyms.path),
        (tables.get("dying_memcg_pages", {}), "path", pseudonyms.path),
        (list_lrus, "name", pseudonyms.slab_cache),
    )
    for columns, name, replace in replacements:
        if name in columns:
            columns[name] = [replace(cell) for cell in columns[name]]
    if "s_id" in superblocks:
        s_ids = enumerate(superblocks["s_id"])
        superblocks["s_id"] = [
            s_id if internal_fstypes.get(index) == s_id else pseudonyms.path(s_id) for index, s_id in s_ids
        ]
    for columns in tables.values():
        for name in columns:
            if name.endswith("_raw"):
                columns[name] = [None] * len(columns[name])
    target_columns = {**attempt["columns"]}
    for name, replace in {"slab_cache": pseudonyms.slab_cache, "notes": pseudonyms.text}.items():
        if name in target_columns:
            target_columns[name] = replace(target_columns[name])
    row = {**attempt["attempt"]}
    row["error"] = pseudonyms.text(row["error"] and runner.without_quoted_stderr(row["error"]))
    return {
        "attempt": row,
        "columns": target_columns,
        "tables": {name: _table(columns) for name, columns in tables.items()},
    }


class _Pseudonyms:
    """The pseudonyms of one snapshot. A value that is not text becomes None, so that it cannot disclose a name."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._pseudonyms: dict[str, str] = {"": ""}

    def path(self, path: Any) -> str | None:
        return "/".join(map(self._component, path.split("/"))) if isinstance(path, str) else None

    def owner(self, owner: Any) -> str | None:
        return owner if isinstance(owner, str) and _USER_NAMESPACE.fullmatch(owner) else self.path(owner)

    def slab_cache(self, name: Any) -> str | None:
        if not isinstance(name, str):
            return None
        return _MEMCG_CACHE.sub(lambda match: match[1] + self._component(match[2]) + match[3], name)

    def text(self, text: Any) -> str | None:
        """Replace the words of free text that are names."""
        if not isinstance(text, str):
            return None
        return re.sub(r"[^\s/:;,()'\"]+", lambda match: self._pseudonyms.get(match[0], match[0]), text)

    def _component(self, name: str) -> str:
        if name not in self._pseudonyms:
            self._pseudonyms[name] = hmac.digest(self._key, name.encode(), "sha256").hex()[:_PSEUDONYM_DIGITS]
        return self._pseudonyms[name]


def _columns(table: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: [row[index] for row in table["rows"]] for index, name in enumerate(table["columns"])}


def _table(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {"columns": [*columns], "rows": [list(row) for row in zip(*columns.values(), strict=True)]}
