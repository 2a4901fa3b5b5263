"""Readers of inventory files: YAML, JSON, CSV, lines and Ansible's. Each yields entries with their line numbers.

Parameters of every reader:

:param text: content of the file.
:param display_name: name of the file in errors.
:param directory: base of relative paths.
:param errors: receives the errors.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.common.text import printable, quote
from pipeline.inventory import ansible
from pipeline.inventory.entry import KEYS, TOO_MANY_DIGITS, Entries, Entry, InventorySyntaxError
from pipeline.inventory.selection import Selection

_UNKNOWN_SUFFIX = (
    "not a .yaml, .yml, .json or .csv file (-i ansible:FILE reads Ansible's inventory, -i - one target a line on stdin)"
)


def read(inventory: str, labels: Sequence[str], selection: Selection, errors: list[str]) -> Entries:
    """Return the entries of an inventory: a file, ``-`` for stdin or ``ansible:FILE``.

    :param labels: variables of Ansible's hosts that become labels.
    :param selection: leaves out hosts of Ansible's; the entries of other inventories are complete.
    :param errors: receives the errors.
    """
    is_stdin = inventory == "-"
    name = display_name(inventory)
    directory = os.getcwd() if is_stdin else os.path.dirname(os.path.abspath(inventory))
    try:
        if inventory.startswith("ansible:"):
            file = inventory.removeprefix("ansible:")
            text = ansible.run_ansible_inventory(file)
            return ansible.entries(text, name, directory, labels, selection, errors, file)
        reader = _read_lines if is_stdin else _READERS.get(Path(inventory).suffix.lower())
        if reader is None:
            errors.append(f"{name}: {_UNKNOWN_SUFFIX}")
            return Entries()
        text = (sys.stdin.buffer.read() if is_stdin else Path(inventory).read_bytes()).decode("utf-8-sig")
        # ansible-inventory prints an object; our own JSON is a list.
        if reader in (_read_lines, _read_json) and text.lstrip().startswith("{"):
            return ansible.entries(text, name, directory, labels, selection, errors)
        if labels:
            errors.append(f"{name}: {ansible.LABELS_NEED_ANSIBLE}")
        return Entries(reader(text, name, directory, errors))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        errors.append(f"{name}:{line}: not UTF-8 text")
    except OSError as error:
        errors.append(f"{name}: {error.strerror}")
    except InventorySyntaxError as error:
        location = name if error.line is None else f"{name}:{error.line}"
        errors.append(f"{location}: {printable(error.problem)}")
    return Entries()


def display_name(inventory: str) -> str:
    """Return the name of an inventory for errors."""
    return "<stdin>" if inventory == "-" else printable(inventory)


def _read_lines(text: str, display_name: str, directory: str, errors: list[str]) -> Iterator[Entry]:
    """Read one target a line; skip empty lines and lines that start with #."""
    for number, line in enumerate(text.split("\n"), 1):
        target = line.strip()
        if target and not target.startswith("#"):
            yield Entry(f"{display_name}:{number}", {"target": target}, {}, directory)


def _read_csv(text: str, display_name: str, directory: str, errors: list[str]) -> Iterator[Entry]:
    """Read CSV with a header of KEYS; each label has a column `labels.KEY`, and an empty cell means no value."""
    columns = [key for key in KEYS if key != "labels"]
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        problems = [
            f"unknown column {quote(column)}; known columns: {', '.join(columns)}, labels.KEY"
            for column in header
            if column not in columns and not column.startswith("labels.")
        ]
        problems += [f"column {quote(column)} appears twice" for column in set(header) if header.count(column) > 1]
        problems += [] if "target" in header else ["no column target"]
        errors += [f"{display_name}:1: {problem}" for problem in problems]
        for row in reader if not problems else ():
            location = f"{display_name}:{reader.line_num}"
            if row and len(row) != len(header):
                errors.append(f"{location}: {len(row)} cells, but the header has {len(header)}")
            elif row:
                cells: dict[str, Any] = {column: cell for column, cell in zip(header, row, strict=True) if cell}
                labels = {c.removeprefix("labels."): cells.pop(c) for c in header if c in cells and "." in c}
                yield Entry(location, {**cells, "labels": labels}, {}, directory)
    except csv.Error as error:
        raise InventorySyntaxError(reader.line_num, str(error)) from None


def _read_json(text: str, display_name: str, directory: str, errors: list[str]) -> Iterator[Entry]:
    """Read a list of objects, decoded one by one so that the line of each is known."""
    position, line = 0, 1

    def next_character() -> str:
        """Skip white space and return the next character without consuming it."""
        nonlocal position, line
        while text[position : position + 1] in tuple(" \t\r\n"):
            line += text[position] == "\n"
            position += 1
        return text[position : position + 1]

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            keys = ", ".join(quote(key) for key, _ in pairs)
            errors.append(f"{display_name}:{line}: a key appears twice among {keys}")
        return dict(pairs)

    decode = json.JSONDecoder(object_pairs_hook=unique_keys).raw_decode
    if next_character() != "[":
        raise InventorySyntaxError(line, "an inventory is a list of targets")
    position += 1
    has_more = next_character() != "]"
    while has_more:
        next_character()
        start = position
        try:
            value, position = decode(text, start)
        except json.JSONDecodeError as error:
            raise InventorySyntaxError(error.lineno, error.msg) from None
        except ValueError:
            raise InventorySyntaxError(line, TOO_MANY_DIGITS) from None
        except RecursionError:
            raise InventorySyntaxError(line, "nested too deep") from None
        yield from _entry(value, f"{display_name}:{line}", {}, directory, errors)
        line += text.count("\n", start, position)
        separator = next_character()
        if separator not in (",", "]"):
            raise InventorySyntaxError(line, "expected , or ]")
        has_more = separator == ","
        position += has_more
    position += 1
    if next_character():
        raise InventorySyntaxError(line, "text after the list")


def _read_yaml(text: str, display_name: str, directory: str, errors: list[str]) -> Iterator[Entry]:
    """Read a list of mappings. Scalars stay text as written (the name 007 is 007); `<<` merges work."""
    import yaml

    try:
        events = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        opening_events = [next(events, None) for _ in range(3)]
        if not isinstance(opening_events[-1], yaml.SequenceStartEvent):
            raise InventorySyntaxError(1, "an inventory is a list of targets (Ansible's is -i ansible:FILE)")
        compose = _Composer(events)
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            location = f"{display_name}:{event.start_mark.line + 1}"
            item = compose(event)
            pairs = item if isinstance(item, _Pairs) else _Pairs()
            if (key := pairs.duplicate_key()) is not None:
                errors.append(f"{location}: key {quote(key)} appears twice")
            key_locations = {str(key): f"{display_name}:{line}" for line, key, _ in pairs}
            fields = pairs.as_dict() if pairs else None
            yield from _entry(fields, location, key_locations, directory, errors)
        next(events)
        if not isinstance(event := next(events), yaml.StreamEndEvent):
            raise InventorySyntaxError(event.start_mark.line + 1, "unexpected second document")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = str(error.problem)
        if problem.startswith("mapping values are not allowed"):
            problem += "; quote a value with a colon at its end, as in target: 'live:'"
        raise InventorySyntaxError(mark.line + 1 if mark else 1, problem) from None
    except yaml.YAMLError as error:  # a character that YAML forbids; the error has no line
        raise InventorySyntaxError(1, " ".join(str(error).split())) from None


class _Pairs(list[tuple[int, Any, Any]]):
    """A YAML mapping as written: line, key and value of each pair."""

    def duplicate_key(self) -> str | None:
        keys = [str(key) for _, key, _ in self]
        return next((key for key in keys if keys.count(key) > 1), None)

    def as_dict(self) -> dict[str, Any]:
        """Return a dict in which each `<<` is replaced by the mappings that it refers to."""
        result: dict[str, Any] = {}
        for _, key, value in self:
            if key == "<<":
                for base in value if type(value) is list else [value]:
                    result = (base.as_dict() if isinstance(base, _Pairs) else {}) | result
        own = {str(k): v.as_dict() if isinstance(v, _Pairs) else v for _, k, v in self if k != "<<"}
        return result | own


class _Composer:
    """Composes values from YAML events: text, None, lists and _Pairs.

    PyYAML's own composer takes 15 s for 100,000 targets, this one 2 s, and it crashes on deep nesting. A value counts
    each time that an alias repeats it, because a few lines of aliases of aliases expand to billions of values.
    """

    _MAX_DEPTH = 10
    _MAX_VALUES = 10_000

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._count = 0

    def __call__(self, event: Any, depth: int = 0) -> Any:
        """Return the value that starts with this event."""
        line = event.start_mark.line + 1
        if depth > self._MAX_DEPTH:
            raise InventorySyntaxError(line, "nested too deep")
        kind = type(event).__name__
        previous_count = self._count = self._count if depth else 0
        value: Any
        if kind == "AliasEvent":
            if event.anchor not in self._anchors:
                raise InventorySyntaxError(line, f"undefined alias *{event.anchor}")
            value, size = self._anchors[event.anchor]
            self._add(size, line)
            return value
        self._add(1, line)
        if kind == "ScalarEvent":
            is_null = event.implicit[0] and event.value in ("", "~", "null", "Null", "NULL")
            value = None if is_null else event.value
        elif kind == "SequenceStartEvent":
            value = [self(item, depth + 1) for item in self._events_until("SequenceEndEvent")]
        else:
            value = _Pairs()
            for key in self._events_until("MappingEndEvent"):
                key_line = key.start_mark.line + 1
                value.append((key_line, self(key, depth + 1), self(next(self._events), depth + 1)))
        if event.anchor:
            self._anchors[event.anchor] = value, self._count - previous_count
        return value

    def _add(self, count: int, line: int) -> None:
        self._count += count
        if self._count > self._MAX_VALUES:
            raise InventorySyntaxError(line, f"more than {self._MAX_VALUES} values in one target")

    def _events_until(self, end: str) -> Iterator[Any]:
        while type(event := next(self._events)).__name__ != end:
            yield event


def _entry(
    value: Any, location: str, key_locations: dict[str, str], directory: str, errors: list[str]
) -> Iterator[Entry]:
    if isinstance(value, dict):
        yield Entry(location, value, key_locations, directory)
    else:
        errors.append(f"{location}: a target must be a mapping with the key target")


_READERS = {".yaml": _read_yaml, ".yml": _read_yaml, ".json": _read_json, ".csv": _read_csv}
