"""Inventory files to entries: YAML, JSON, CSV, lines and Ansible's, each entry with the line it was written in."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.common.text import printable, quote
from pipeline.inventory import ansible
from pipeline.inventory.entry import KEYS, TOO_LONG, Entry, InventorySyntaxError

_NO_INVENTORY = (
    "not a .yaml, .yml, .json or .csv file (Ansible's inventory is -i ansible:FILE, one target a line -i - on stdin)"
)


def read(inventory: str, labels: Sequence[str], errors: list[str]) -> list[Entry]:
    """Return the entries of an inventory: a file, ``-`` for stdin or ``ansible:FILE``.

    :param labels: which variables of Ansible's hosts become labels.
    :param errors: what is wrong is added to it.
    """
    stdin = inventory == "-"
    shown = called(inventory)
    folder = os.getcwd() if stdin else os.path.dirname(os.path.abspath(inventory))
    try:
        if inventory.startswith("ansible:"):
            text = ansible.output(inventory.removeprefix("ansible:"))
            return list(ansible.entries(text, shown, folder, labels, errors))
        reader = _lines if stdin else _READERS.get(Path(inventory).suffix.lower())
        if reader is None:
            errors.append(f"{shown}: {_NO_INVENTORY}")
            return []
        text = (sys.stdin.buffer.read() if stdin else Path(inventory).read_bytes()).decode("utf-8-sig")
        # What ansible-inventory prints is one object, our own JSON a list.
        if reader in (_lines, _json) and text.lstrip().startswith("{"):
            return list(ansible.entries(text, shown, folder, labels, errors))
        if labels:
            errors.append(f"{shown}: {ansible.LABELS_ARE_ANSIBLES}")
        return list(reader(text, shown, folder, errors))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        errors.append(f"{shown}:{line}: not UTF-8 text")
    except OSError as error:
        errors.append(f"{shown}: {error.strerror}")
    except InventorySyntaxError as error:
        place = shown if error.line is None else f"{shown}:{error.line}"
        errors.append(f"{place}: {printable(error.problem)}")
    return []


def called(inventory: str) -> str:
    """Return what errors call an inventory."""
    return "<stdin>" if inventory == "-" else printable(inventory)


def _lines(text: str, shown: str, folder: str, errors: list[str]) -> Iterator[Entry]:
    """One target a line; empty lines and lines that start with # are skipped."""
    for number, line in enumerate(text.split("\n"), 1):
        target = line.strip()
        if target and not target.startswith("#"):
            yield Entry(f"{shown}:{number}", {"target": target}, {}, folder)


def _csv(text: str, shown: str, folder: str, errors: list[str]) -> Iterator[Entry]:
    """A header of KEYS, each label in a column `labels.KEY`; an empty cell is no value."""
    known = [key for key in KEYS if key != "labels"]
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    try:
        header = next(reader, [])
        wrong = [
            f"unknown column {quote(column)}; known are {', '.join(known)}, labels.KEY"
            for column in header
            if column not in known and not column.startswith("labels.")
        ]
        wrong += [f"column {quote(column)} twice" for column in set(header) if header.count(column) > 1]
        wrong += [] if "target" in header else ["no column target"]
        errors += [f"{shown}:1: {problem}" for problem in wrong]
        for row in reader if not wrong else ():
            where = f"{shown}:{reader.line_num}"
            if row and len(row) != len(header):
                errors.append(f"{where}: {len(row)} cells where the header has {len(header)}")
            elif row:
                cells: dict[str, Any] = {c: cell for c, cell in zip(header, row, strict=True) if cell}
                labels = {c.removeprefix("labels."): cells.pop(c) for c in header if c in cells and "." in c}
                yield Entry(where, {**cells, "labels": labels}, {}, folder)
    except csv.Error as error:
        raise InventorySyntaxError(reader.line_num, str(error)) from None


def _json(text: str, shown: str, folder: str, errors: list[str]) -> Iterator[Entry]:
    """A list of objects, decoded one by one so that each knows its line."""
    position, line = 0, 1

    def token() -> str:
        """Skip white space and return the character there."""
        nonlocal position, line
        while text[position : position + 1] in tuple(" \t\r\n"):
            line += text[position] == "\n"
            position += 1
        return text[position : position + 1]

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            errors.append(f"{shown}:{line}: a key twice among {', '.join(quote(key) for key, _ in pairs)}")
        return dict(pairs)

    decode = json.JSONDecoder(object_pairs_hook=once).raw_decode
    if token() != "[":
        raise InventorySyntaxError(line, "an inventory is a list of targets")
    position += 1
    more = token() != "]"
    while more:
        token()
        start = position
        try:
            value, position = decode(text, start)
        except json.JSONDecodeError as error:
            raise InventorySyntaxError(error.lineno, error.msg) from None
        except ValueError:
            raise InventorySyntaxError(line, TOO_LONG) from None
        except RecursionError:
            raise InventorySyntaxError(line, "nested too deep") from None
        yield from _entry(value, f"{shown}:{line}", {}, folder, errors)
        line += text.count("\n", start, position)
        separator = token()
        if separator not in (",", "]"):
            raise InventorySyntaxError(line, "expected , or ]")
        more = separator == ","
        position += more
    position += 1
    if token():
        raise InventorySyntaxError(line, "text after the list")


def _yaml(text: str, shown: str, folder: str, errors: list[str]) -> Iterator[Entry]:
    """A list of mappings. A scalar is the text that was written (the name 007 is 007); `<<` merges work."""
    import yaml

    try:
        events = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        begin = [next(events, None) for _ in range(3)]
        if not isinstance(begin[-1], yaml.SequenceStartEvent):
            raise InventorySyntaxError(1, "an inventory is a list of targets (Ansible's is -i ansible:FILE)")
        node = _Nodes(events)
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            where = f"{shown}:{event.start_mark.line + 1}"
            item = node(event)
            pairs = item if isinstance(item, _Pairs) else _Pairs()
            if (keys := pairs.repeated()) is not None:
                errors.append(f"{where}: key {quote(keys)} twice")
            key_where = {str(key): f"{shown}:{line}" for line, key, _ in pairs}
            fields = pairs.merged() if pairs else None
            yield from _entry(fields, where, key_where, folder, errors)
        next(events)
        if not isinstance(event := next(events), yaml.StreamEndEvent):
            raise InventorySyntaxError(event.start_mark.line + 1, "a second document")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = str(error.problem)
        if problem.startswith("mapping values are not allowed"):
            problem += "; quote a value with a colon at its end, as in target: 'live:'"
        raise InventorySyntaxError(mark.line + 1 if mark else 1, problem) from None
    except yaml.YAMLError as error:  # a character that YAML does not allow; it has no line
        raise InventorySyntaxError(1, " ".join(str(error).split())) from None


class _Pairs(list[tuple[int, Any, Any]]):
    """A YAML mapping as written: line, key and value of each pair."""

    def repeated(self) -> str | None:
        keys = [str(key) for _, key, _ in self]
        return next((key for key in keys if keys.count(key) > 1), None)

    def merged(self) -> dict[str, Any]:
        """Return it as a dict, `<<` replaced by what it refers to."""
        result: dict[str, Any] = {}
        for _, key, value in self:
            if key == "<<":
                for base in value if type(value) is list else [value]:
                    result = (base.merged() if isinstance(base, _Pairs) else {}) | result
        own = {str(k): v.merged() if isinstance(v, _Pairs) else v for _, k, v in self if k != "<<"}
        return result | own


class _Nodes:
    """YAML events to values: text, None, lists and _Pairs.

    PyYAML's own composer takes 15 s for 100,000 targets, this 2; and it crashes on what is nested too deep. Values are
    counted as often as aliases repeat them: a few lines of aliases of aliases are billions.
    """

    _DEEPEST = 10
    _MOST = 10_000

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._count = 0

    def __call__(self, event: Any, depth: int = 0) -> Any:
        """Return the value that begins with an event."""
        line = event.start_mark.line + 1
        if depth > self._DEEPEST:
            raise InventorySyntaxError(line, "nested too deep")
        kind = type(event).__name__
        before = self._count = self._count if depth else 0
        value: Any
        if kind == "AliasEvent":
            if event.anchor not in self._anchors:
                raise InventorySyntaxError(line, f"nothing is called &{event.anchor}")
            value, size = self._anchors[event.anchor]
            self._add(size, line)
            return value
        self._add(1, line)
        if kind == "ScalarEvent":
            null = event.implicit[0] and event.value in ("", "~", "null", "Null", "NULL")
            value = None if null else event.value
        elif kind == "SequenceStartEvent":
            value = [self(item, depth + 1) for item in self._until("SequenceEndEvent")]
        else:
            value = _Pairs()
            for key in self._until("MappingEndEvent"):
                key_line = key.start_mark.line + 1
                value.append((key_line, self(key, depth + 1), self(next(self._events), depth + 1)))
        if event.anchor:
            self._anchors[event.anchor] = value, self._count - before
        return value

    def _add(self, count: int, line: int) -> None:
        self._count += count
        if self._count > self._MOST:
            raise InventorySyntaxError(line, f"more than {self._MOST} values in one target")

    def _until(self, end: str) -> Iterator[Any]:
        while type(event := next(self._events)).__name__ != end:
            yield event


def _entry(value: Any, where: str, key_where: dict[str, str], folder: str, errors: list[str]) -> Iterator[Entry]:
    if isinstance(value, dict):
        yield Entry(where, value, key_where, folder)
    else:
        errors.append(f"{where}: a target is a mapping with the key target")


_READERS = {".yaml": _yaml, ".yml": _yaml, ".json": _json, ".csv": _csv}
