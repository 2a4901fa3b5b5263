"""Command line of the benchmarks.

    python -m tests.bench [NAME...] [--json FILE] [--small|--full]

Runs the benchmarks by name, default all, prints one table of ratios and saves it as JSON. A figure depends on the
machine, a ratio much less: what is compared was measured in turn with it. Exit 1: a budget does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.bench.measure import Row

BENCHMARKS = ("startup", "collector", "children", "fanout", "warehouse", "report")
"""Modules of this package, each with `run(full) -> Iterator[Row]`."""

_PACKAGES = ("ray", "duckdb", "pyarrow", "drgn")


def main() -> int:
    args = _arguments()
    where = machine()
    rows: list[dict[str, Any]] = []
    size = "full" if args.full else "small"
    for name in args.names or BENCHMARKS:
        for row in _measured(name, args.full):
            rows.append({"benchmark": name, **_as_dict(row)})
            print(_line(rows[-1]), file=sys.stderr, flush=True)
    found = {"machine": where, "size": size, "rows": rows}
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for line in table(found):
        print(line)
    return int(any(row["holds"] is False for row in rows))


def machine() -> dict[str, Any]:
    """Return what the figures depend on, the load of the last minute included."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    models = {line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")}
    found = {
        "cpu": ", ".join(sorted(models)) or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def table(found: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of what was found, as Markdown, which is also what the docs show."""
    where = found["machine"]
    versions = ", ".join(f"{name} {where[name]}" for name in ("python", *_PACKAGES) if name in where)
    yield f"{where['cores']} cores of {where['cpu']}, {where['memory_bytes'] / 2**30:.0f} GiB, Linux {where['kernel']};"
    yield f"{versions}; load {where['load_average']:.1f} before; size {found['size']}."
    yield ""
    yield "| benchmark | what | figure | compared with | its figure | ratio | budget | holds |"
    yield "|---|---|---|---|---|---|---|---|"
    yield from map(_line, found["rows"])


def _measured(name: str, full: bool) -> Iterable[Row]:
    rows: Iterable[Row] = importlib.import_module(f"tests.bench.{name}").run(full)
    return rows


def _as_dict(row: Row) -> dict[str, Any]:
    return {**vars(row), "ratio": row.ratio, "holds": row.holds}


def _line(row: dict[str, Any]) -> str:
    other = "" if row["other"] is None else f"{_number(row['other'])} {row['unit']}"
    cells = (
        row["benchmark"],
        row["name"],
        f"{_number(row['figure'])} {row['unit']}",
        row["compared_with"] or "",
        other,
        "" if row["ratio"] is None else f"{row['ratio']:.2f}",
        row["budget"] or "",
        {True: "yes", False: "**no**", None: ""}[row["holds"]],
    )
    return f"| {' | '.join(cells)} |"


def _number(value: float) -> str:
    """Three digits that say something, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="How far each part is from its limit.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default all: {', '.join(BENCHMARKS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to save the table")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", dest="full", action="store_false", help="in a minute (default)")
    size.add_argument("--full", action="store_true", help="the sizes that the budgets speak of, an hour")
    parser.set_defaults(full=False)
    args = parser.parse_args()
    if unknown := set(args.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    return args


if __name__ == "__main__":
    sys.exit(main())
