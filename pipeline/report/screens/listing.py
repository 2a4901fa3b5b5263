"""The runs of a warehouse for people and as JSON, and what was removed from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TextIO

from pipeline.common.text import human_bytes, printable

_HEAD = ("run", "audit", "state", "started (UTC)", "took", "targets", "good", "complete", "size", "revises")
_RIGHT = ("took", "targets", "good", "size")


def text(runs: Sequence[Mapping[str, Any]], file: TextIO) -> None:
    """Write a line a run, as `warehouse.overview` gives them."""
    rows = [_HEAD, *map(_cells, runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(_HEAD, row, widths, strict=True)
        line = "  ".join(cell.rjust(width) if name in _RIGHT else cell.ljust(width) for name, cell, width in cells)
        file.write(line.rstrip() + "\n")


def json_(runs: Sequence[Mapping[str, Any]], file: TextIO) -> None:
    """Write them as one array; ASCII, so that no name can hide in it."""
    json.dump([{**run, "started_at": _iso(run["started_at"])} for run in runs], file, indent=2)
    file.write("\n")


FORMATS = {"text": text, "json": json_}


def removal(path: str, why: str, size_bytes: int | None) -> str:
    """Return the line that says what is removed."""
    size = "" if size_bytes is None else f", {human_bytes(size_bytes)}"
    return printable(f"remove {path}: {why}{size}")


def _cells(run: Mapping[str, Any]) -> tuple[str, ...]:
    published = run["state"] == "published"
    return (
        run["run_id"],
        printable(run["audit"]),
        run["state"],
        f"{run['started_at']:%Y-%m-%d %H:%M:%S}",
        str(timedelta(seconds=run["duration_ms"] // 1000)) if published else "",
        str(run["targets"]) if published else f"{run['collected']} of {run['targets']}",
        str(run["good"]) if published else "",
        ("yes" if run["complete"] else "no") if published else "",
        human_bytes(run["size_bytes"]) if published else "",
        run["revision_of"] or "",
    )


def _iso(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")
