"""The runs of a warehouse, as text and as JSON, and the removal of runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TextIO

from pipeline.common.text import human_bytes, printable

_HEADER = ("run", "audit", "state", "started (UTC)", "took", "targets", "good", "complete", "size", "revises")
_RIGHT_ALIGNED = ("took", "targets", "good", "size")


def text(runs: Sequence[Mapping[str, Any]], file: TextIO) -> None:
    """Write one line per run.

    :param runs: from `warehouse.overview`.
    """
    rows = [_HEADER, *map(_cells, runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(_HEADER, row, widths, strict=True)
        line = "  ".join(
            cell.rjust(width) if name in _RIGHT_ALIGNED else cell.ljust(width) for name, cell, width in cells
        )
        file.write(line.rstrip() + "\n")


def json_(runs: Sequence[Mapping[str, Any]], file: TextIO) -> None:
    """Write the runs as one array in ASCII, which shows invisible characters in names as escapes."""
    json.dump([{**run, "started_at": _iso(run["started_at"])} for run in runs], file, indent=2)
    file.write("\n")


FORMATS = {"text": text, "json": json_}


def removal(path: str, reason: str, size_bytes: int | None) -> str:
    """Return the line about the removal of a path."""
    size = "" if size_bytes is None else f", {human_bytes(size_bytes)}"
    return printable(f"remove {path}: {reason}{size}")


def _cells(run: Mapping[str, Any]) -> tuple[str, ...]:
    is_published = run["state"] == "published"
    return (
        run["run_id"],
        printable(run["audit"]),
        run["state"],
        f"{run['started_at']:%Y-%m-%d %H:%M:%S}",
        "" if run["duration_ms"] is None else str(timedelta(seconds=run["duration_ms"] // 1000)),
        str(run["targets"]) if is_published else f"{run['collected']} of {run['targets']}",
        str(run["good"]) if is_published else "",
        ("yes" if run["complete"] else "no") if is_published else "",
        human_bytes(run["size_bytes"]) if is_published else "",
        run["revision_of"] or "",
    )


def _iso(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")
