"""TARGET arguments and inventory files become one list of targets, or one list of everything wrong.

Everything is checked before anything starts, so a slip in line 90,000 does not cost a night's run. What a
target's file holds, and whether it is there at all, is not checked here: that is the target's own failure.
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
from pipeline.common.text import printable, quote
from pipeline.inventory import ansible, cores, files
from pipeline.inventory.entry import Entry
from pipeline.inventory.selection import Selection
from pipeline.inventory.target import FORMS, Target, parse

__all__ = ["FORMS", "InventoryError", "Target", "Targets", "load", "sha256"]

NO_TARGET = """no target given; for example:
  lru-audit run /var/crash
  lru-audit run ssh:root@host1 live:
  lru-audit run -i fleet.yaml"""


class Targets(list[Target]):
    """The targets of a run in the order given; `other_files` in the searched directories are no cores."""

    other_files = 0


class InventoryError(UsageError):
    """Everything wrong with the arguments and the inventory: `errors`, one line each; also the message."""

    def __init__(self, errors: Sequence[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = list(errors)


def load(
    targets: Sequence[str],
    inventory: Path | str | None = None,
    *,
    limits: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> Targets:
    """Return the targets of the arguments, then those of the inventory.

    :param targets: TARGET arguments; relative paths are below the current directory.
    :param inventory: a .yaml, .yml, .json or .csv file, relative paths in it are below its folder; ``-`` is
        one target a line on stdin; ``ansible:FILE`` is read through ansible-inventory, whose JSON may also be the file.
    :param limits: which of them, by name or label, as `Selection` reads it; default all.
    :param labels: which variables of Ansible's hosts become labels.
    :raises InventoryError: with every error of both.
    """
    errors: list[str] = []
    cwd = os.getcwd()
    entries = [Entry(f"argument {n}", {"target": text}, {}, cwd) for n, text in enumerate(targets, 1)]
    if inventory is not None:
        entries += files.read(str(inventory), labels, errors)
    elif labels:
        errors.append(ansible.LABELS_ARE_ANSIBLES)
    result = Targets()
    places: list[str] = []
    roots: list[str] = []
    for entry in entries:
        for target, root in _targets(entry, result, errors):
            result.append(target)
            places.append(entry.at("name"))
            roots.append(root)
    if not result and not errors:
        errors.append(NO_TARGET)
    _name_unnamed(result, roots)
    _check_names(result, places, errors)
    selection = Selection(limits)
    count = len(result)
    result[:] = filter(selection.has, result)
    if not result and not errors:
        errors.append(f"--limit {selection} selects none of {count} targets")
    if errors:
        file = "" if inventory is None else files.called(str(inventory))
        raise InventoryError(sorted(errors, key=functools.partial(_line, file)))
    return result


def _line(file: str, error: str) -> int:
    """Return the line of a file that an error is about; 0: it is about an argument, or all of the file."""
    line = error.removeprefix(f"{file}:").partition(":")[0]
    return int(line) if line.isdecimal() else 0


def sha256(targets: Sequence[Target]) -> str:
    """Return the hex SHA-256 of the targets, whatever the order and the format they were written in."""
    digest = hashlib.sha256()  # of one JSON list; the text of 100,000 would take 80 MB
    separator = "["
    for target in sorted(targets, key=lambda target: target.name):
        digest.update(f"{separator}{json.dumps(vars(target), sort_keys=True)}".encode())
        separator = ", "
    digest.update(b"]")
    return digest.hexdigest()


def _targets(entry: Entry, found: Targets, errors: list[str]) -> list[tuple[Target, str]]:
    """Return the targets of one entry, each with the directory that its default name is relative to."""
    target = parse(entry, errors)
    if target is None:
        return []
    before = len(errors)
    source = target.source
    if target.kind != "vmcore" or target.via or not os.path.isdir(source):
        return [(target, os.path.dirname(source))]
    paths, others = cores.search(source, errors)
    found.other_files += others
    if not paths and len(errors) == before:
        errors.append(f"{entry.at('target')}: no core in {quote(source)}, only {others} other files")
    if target.name and len(paths) > 1:
        errors.append(f"{entry.at('name')}: one name for the {len(paths)} cores in {quote(source)}")
        return []
    return [(replace(target, source=path), source) for path in paths]


def _name_unnamed(targets: Targets, roots: list[str]) -> None:
    """Give cores and QEMU guests of this machine the names that tell them apart."""
    for kind, naming in (("vmcore", cores.names), ("qmp", _guest_names)):
        unnamed = [n for n, target in enumerate(targets) if target.kind == kind and not target.name]
        names = naming([targets[n].source for n in unnamed], [roots[n] for n in unnamed])
        for number, name in zip(unnamed, names, strict=True):
            targets[number] = replace(targets[number], name=name)


def _guest_names(sockets: Sequence[str], roots: Sequence[str]) -> list[str]:
    """Return for each path of a socket its stem or, where another has the same (libvirt's monitor.sock), the path."""
    stems = [Path(path).stem for path in sockets]
    count = Counter(stems)
    return [printable(path if count[stem] > 1 else stem) for path, stem in zip(sockets, stems, strict=True)]


def _check_names(targets: Targets, places: list[str], errors: list[str]) -> None:
    first: dict[str, str] = {}
    for target, place in zip(targets, places, strict=True):
        if target.name in first:
            errors.append(f"{place}: the name {quote(target.name)} is already taken by {first[target.name]}")
        first.setdefault(target.name, f"{quote(target.source)} ({place})")
