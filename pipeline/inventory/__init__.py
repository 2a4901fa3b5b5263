"""TARGET arguments and inventory files become one list of targets, or one list of everything wrong.

Everything is checked before anything starts, so a slip in line 90,000 does not cost a night's run. What a
target's file holds, and whether it is there at all, is not checked here: that is the target's own failure.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.inventory import cores, files
from pipeline.inventory.text import quote
from pipeline.text import printable

__all__ = ["InventoryError", "Target", "Targets", "load", "sha256"]

FORMS = "PATH or vmcore:PATH (a core, or a directory searched for cores) and live: (this machine)"
NO_TARGET = """no target given; for example:
  lru-audit run /var/crash
  lru-audit run live:
  lru-audit run -i fleet.yaml"""


@dataclass(frozen=True)
class Target:
    """One kernel to audit.

    - name: unique in the run, printable;
    - kind: ``vmcore``, ``live``, ``ssh``, ``qmp`` or ``ray``;
    - source: the absolute path of the core or of QEMU's monitor socket, ``live:``, ``ssh:[USER@]HOST[:PORT]`` or
      ``ray:NODE``;
    - via: where the collector of a core or a guest has to run, ``ssh:[USER@]HOST[:PORT]`` or ``ray:NODE``;
    - become: whether the collector runs through ``sudo -n`` on the host that ssh reaches;
    - ssh_config: absolute path of a configuration file for ssh, default the account's own;
    - drgn_wheels: absolute path of a directory of drgn's wheels to send one of over ssh, or None;
    - vmcoreinfo: absolute path of a file with a QEMU guest's VMCOREINFO, or None;
    - vmlinux, debug_dir, btf_dir: absolute paths, where the kernel's types are;
    - python: the collector's interpreter, default the one that runs this program;
    - timeout_s: seconds, default the run's;
    - charged: whether to read what memcgs are charged for; default the collector's, for cores yes, for ``live:`` no;
    - target_layout: the lazy kernel to estimate, ``5.18`` or ``6.13``, default the collector's, ``5.18``;
    - verify: whether to look at every pointer array of an eager kernel rather than at a sample.
    """

    name: str
    kind: str
    source: str
    via: str | None = None
    become: bool = False
    ssh_config: str | None = None
    drgn_wheels: str | None = None
    vmcoreinfo: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    vmlinux: str | None = None
    debug_dir: str | None = None
    btf_dir: str | None = None
    python: str | None = None
    timeout_s: float | None = None
    charged: bool | None = None
    target_layout: str | None = None
    verify: bool = False


class Targets(list[Target]):
    """The targets of a run in the order given; `other_files` in the searched directories are no cores."""

    other_files = 0


class InventoryError(ValueError):
    """Everything wrong with the arguments and the inventory: `errors`, one line each; also the message."""

    exit_code = 2

    def __init__(self, errors: Sequence[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = list(errors)


def load(targets: Sequence[str], inventory: Path | None = None) -> Targets:
    """Return the targets of the arguments, then those of the inventory.

    :param targets: TARGET arguments; relative paths are below the current directory.
    :param inventory: a .yaml, .yml, .json or .csv file, relative paths in it are below its folder; ``-`` is
        one target a line on stdin.
    :raises InventoryError: with every error of both.
    """
    errors: list[str] = []
    cwd = os.getcwd()
    entries = [files.Entry(f"argument {n}", {"target": text}, {}, cwd) for n, text in enumerate(targets, 1)]
    if inventory is not None:
        entries += files.read(inventory, errors)
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
    _name_cores(result, roots)
    _check_names(result, places, errors)
    if errors:
        raise InventoryError(errors)
    return result


def sha256(targets: Sequence[Target]) -> str:
    """Return the hex SHA-256 of the targets, whatever the order and the format they were written in."""
    rows = [vars(target) for target in sorted(targets, key=lambda target: target.name)]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _targets(entry: files.Entry, found: Targets, errors: list[str]) -> list[tuple[Target, str]]:
    """Return the targets of one entry, each with the directory that its default name is relative to."""
    before = len(errors)
    for key in entry.fields:
        if key == "via":
            errors.append(f"{entry.at(key)}: via is not in this release; any node may read any core")
        elif key not in files.KEYS:
            errors.append(f"{entry.at(key)}: unknown key {quote(key)}; known are {', '.join(files.KEYS)}")
    text = {key: _text(entry, key, errors) for key in ("target", "name", "vmlinux", "debug_dir", "python")}
    labels = _labels(entry, errors)
    timeout_s = _timeout_s(entry, errors)
    if entry.fields.get("target") is None:
        errors.append(f"{entry.where}: no target; there are {FORMS}")
    kind, source = _source(entry, text["target"], errors)
    if len(errors) > before:
        return []

    python = text["python"]
    target = Target(
        name=text["name"] or "",
        kind=kind,
        source=source,
        labels=labels,
        vmlinux=_absolute(entry, text["vmlinux"]),
        debug_dir=_absolute(entry, text["debug_dir"]),
        # A bare name is looked up in the PATH of the node that runs it.
        python=_absolute(entry, python) if python and "/" in python else python,
        timeout_s=timeout_s,
    )
    if kind == "live":
        return [(replace(target, name=target.name or printable(socket.gethostname())), "")]
    if not os.path.isdir(source):
        return [(target, os.path.dirname(source))]
    paths, others = cores.search(source, errors)
    found.other_files += others
    if not paths and len(errors) == before:
        errors.append(f"{entry.at('target')}: no core in {quote(source)}, only {others} other files")
    if target.name and len(paths) > 1:
        errors.append(f"{entry.at('name')}: one name for the {len(paths)} cores in {quote(source)}")
        return []
    return [(replace(target, source=path), source) for path in paths]


def _text(entry: files.Entry, key: str, errors: list[str]) -> str | None:
    value = entry.fields.get(key)
    if value is None:
        return None
    if isinstance(value, str) and value and value.isprintable():
        return value
    if isinstance(value, str) and value:
        errors.append(f"{entry.at(key)}: {key} has unprintable characters: {quote(value)}")
    else:
        errors.append(f"{entry.at(key)}: {key} must be text, not {quote(value)}")
    return None


def _source(entry: files.Entry, text: str | None, errors: list[str]) -> tuple[str, str]:
    """Return the kind and the source of a TARGET; what has no `word:` in front is a path."""
    if text is None:
        return "", ""
    form = re.match(r"([A-Za-z]+):", text)
    scheme, rest = (form[1], text[form.end() :]) if form else ("vmcore", text)
    if scheme == "vmcore" and rest:
        return "vmcore", str(_absolute(entry, rest))
    if scheme == "live" and not rest:
        return "live", "live:"
    if scheme == "vmcore":
        problem = "no path after"
    elif scheme == "live":
        problem = "nothing may follow live: in"
    elif scheme in ("ssh", "qmp", "ray"):
        problem = f"{scheme}: is not in this release:"
    else:
        problem = "unknown form (a path with a colon needs vmcore: in front)"
    errors.append(f"{entry.at('target')}: {problem} {quote(text)}; there are {FORMS}")
    return "", ""


def _labels(entry: files.Entry, errors: list[str]) -> dict[str, str]:
    labels = entry.fields.get("labels")
    if labels is None:
        return {}
    where = entry.at("labels")
    if not isinstance(labels, dict):
        errors.append(f"{where}: labels must be a mapping of text to text, not {quote(labels)}")
        return {}
    for key, label in labels.items():
        if not (key and isinstance(label, str)):
            errors.append(f"{where}: label {quote(key)} must be text, not {quote(label)}")
        elif not (key + label).isprintable():
            errors.append(f"{where}: label {quote(key)} has unprintable characters: {quote(label)}")
    return labels


def _timeout_s(entry: files.Entry, errors: list[str]) -> float | None:
    value: Any = entry.fields.get("timeout_s")
    if value is None:
        return None
    try:
        timeout_s = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        timeout_s = math.nan
    if not 0 < timeout_s < math.inf:
        errors.append(f"{entry.at('timeout_s')}: timeout_s must be seconds above 0, not {quote(value)}")
    return timeout_s


def _absolute(entry: files.Entry, path: str | None) -> str | None:
    # pathlib leaves .. in: what it means after a symbolic link is for the kernel to say.
    return None if path is None else str(Path(entry.folder) / path)


def _name_cores(targets: Targets, roots: list[str]) -> None:
    unnamed = [number for number, target in enumerate(targets) if not target.name]
    names = cores.names([targets[n].source for n in unnamed], [roots[n] for n in unnamed])
    for number, name in zip(unnamed, names, strict=True):
        targets[number] = replace(targets[number], name=name)


def _check_names(targets: Targets, places: list[str], errors: list[str]) -> None:
    first: dict[str, str] = {}
    for target, place in zip(targets, places, strict=True):
        if target.name in first:
            errors.append(f"{place}: the name {quote(target.name)} is already taken by {first[target.name]}")
        first.setdefault(target.name, f"{quote(target.source)} ({place})")
