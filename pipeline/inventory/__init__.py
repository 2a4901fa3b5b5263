"""Targets from TARGET arguments and inventory files, or every error in them.

All errors are reported before a run starts, so that a typo in line 90,000 does not cost a night's run. A file that is
missing or is not a core is not an error here: it becomes the status of its target.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.common.errors import UsageError
from pipeline.common.text import printable_names, quote
from pipeline.inventory import ansible, cores, files
from pipeline.inventory.entry import Entries, Entry
from pipeline.inventory.selection import Selection
from pipeline.inventory.target import FORMS, Target, parse

__all__ = ["FORMS", "InventoryError", "Target", "Targets", "load", "sha256"]

NO_TARGET = """no target given; for example:
  lru-audit run /var/crash
  lru-audit run ssh:root@host1 live:
  lru-audit run -i fleet.yaml"""


class Targets(list[Target]):
    """Targets of a run in the order given.

    :ivar other_file_count: number of files in searched directories that are not cores.
    :ivar unsearched_count: number of archives there that are damaged, or larger than what is searched.
    :ivar notes: what was noticed in the inventory, one line each.
    :ivar warnings: likewise, where hosts may be reached in another way than the inventory asks for.
    """

    other_file_count = 0
    unsearched_count = 0
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()


class InventoryError(UsageError):
    """All errors of the arguments and the inventory, one line each, as `errors` and as the message."""

    def __init__(self, errors: Sequence[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = list(errors)


def load(
    targets: Sequence[str],
    inventory: Path | str | None = None,
    *,
    limit_patterns: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> Targets:
    """Return the targets of the arguments, then those of the inventory.

    :param targets: TARGET arguments; relative paths start at the current directory.
    :param inventory: a .yaml, .yml, .json or .csv file, whose relative paths start at its directory; ``-`` for one
        target a line on stdin; ``ansible:FILE`` to run ansible-inventory, whose JSON may also be the .json file.
    :param limit_patterns: patterns of --limit, see `Selection`; default all targets.
    :param labels: variables of Ansible's hosts that become labels.
    :raises InventoryError: with every error of the arguments and the inventory.
    """
    errors: list[str] = []
    cwd = os.getcwd()
    selection = Selection(limit_patterns)
    listed = Entries()
    entries = [Entry(f"argument {n}", {"target": text}, {}, cwd) for n, text in enumerate(targets, 1)]
    if inventory is not None:
        listed = files.read(str(inventory), labels, selection, errors)
        entries += listed
    elif labels:
        errors.append(ansible.LABELS_NEED_ANSIBLE)
    result = Targets()
    result.notes = listed.notes
    result.warnings = listed.warnings
    name_locations: list[str] = []
    roots: list[str] = []
    for entry in entries:
        for target, root in _targets(entry, result, errors):
            result.append(target)
            name_locations.append(entry.key_location("name"))
            roots.append(root)
    if not result and not errors and not listed.left_out_count:
        errors.append(NO_TARGET)
    _set_default_names(result, roots)
    _check_names(result, name_locations, errors)
    count = len(result) + listed.left_out_count
    result[:] = filter(selection.matches, result)
    if not result and not errors:
        errors.append(f"--limit {selection} selects none of {count} targets")
    if errors:
        file = "" if inventory is None else files.display_name(str(inventory))
        raise InventoryError(sorted(errors, key=functools.partial(_line_number, file)))
    return result


def _line_number(file: str, error: str) -> int:
    """Return the line of the file that an error names; 0 for an error of an argument or of the whole file."""
    line = error.removeprefix(f"{file}:").partition(":")[0]
    return int(line) if line.isdecimal() else 0


def sha256(targets: Sequence[Target]) -> str:
    """Return the hex SHA-256 of the published targets, regardless of their order and of the inventory's format."""
    digest = hashlib.sha256()  # of one JSON list, hashed in parts: the text for 100,000 targets takes 80 MB
    separator = "["
    for target in sorted(targets, key=lambda target: target.name):
        digest.update(f"{separator}{json.dumps(vars(target.published()), sort_keys=True)}".encode())
        separator = ", "
    digest.update(b"]")
    return digest.hexdigest()


def _targets(entry: Entry, targets: Targets, errors: list[str]) -> list[tuple[Target, str]]:
    """Return the targets of one entry, each with the directory that its default name is relative to.

    :param targets: counts other and unsearched files.
    """
    target = parse(entry, errors)
    if target is None:
        return []
    source = target.source
    if target.kind != "vmcore" or target.via or not os.path.isdir(source):
        return [(target, os.path.dirname(source))]
    paths, other_count, unsearched_count = cores.search(source)
    targets.other_file_count += other_count
    targets.unsearched_count += unsearched_count
    if not paths:
        others = f"{other_count} other files"
        if unsearched_count:
            others += f" and {unsearched_count} archives that could not be searched to their end"
        errors.append(f"{entry.key_location('target')}: no core in {quote(source)}, only {others}")
    if target.name and len(paths) > 1:
        errors.append(f"{entry.key_location('name')}: one name for all {len(paths)} cores in {quote(source)}")
        return []
    return [(replace(target, source=path), source) for path in paths]


def _set_default_names(targets: Targets, roots: list[str]) -> None:
    """Give cores and QEMU guests of this machine unique names."""
    for kind, default_names in (("vmcore", cores.names), ("qmp", _guest_names)):
        indexes = [n for n, target in enumerate(targets) if target.kind == kind and not target.name]
        names = default_names([targets[n].source for n in indexes], [roots[n] for n in indexes])
        for index, name in zip(indexes, names, strict=True):
            targets[index] = replace(targets[index], name=name)


def _guest_names(sockets: Sequence[str], roots: Sequence[str]) -> list[str]:
    """Return the stem of each socket's path, or the path if the stem is not unique (libvirt's monitor.sock)."""
    stems = [Path(path).stem for path in sockets]
    count = Counter(stems)
    return printable_names([path if count[stem] > 1 else stem for path, stem in zip(sockets, stems, strict=True)])


def _check_names(targets: Targets, locations: list[str], errors: list[str]) -> None:
    owners: dict[str, str] = {}
    for target, location in zip(targets, locations, strict=True):
        if target.name in owners:
            errors.append(f"{location}: the name {quote(target.name)} is already taken by {owners[target.name]}")
        owners.setdefault(target.name, f"{quote(target.source)} ({location})")
