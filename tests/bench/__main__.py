"""Command line of the benchmarks.

    python -m tests.bench [NAME...] [--before REVISION] [--json FILE] [--small|--full]

Run the named benchmarks, by default all, print a table of their figures and save it as JSON. A figure depends on the
machine and its load. A ratio depends on them much less, because both programs run in turn. With --before each benchmark
also runs as it is in another revision of the repository, right before this one's. Exit 1 if a budget does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.bench.measure import ROOT, Row

BENCHMARKS = ("startup", "collector", "children", "fanout", "ssh", "warehouse", "report")
"""Names of modules of this package with a function `run(full) -> Iterator[Row]`."""

_PACKAGES = ("ray", "duckdb", "pyarrow", "drgn")


def main() -> int:
    args = _arguments()
    machine_properties = machine()
    rows: list[dict[str, Any]] = []
    size = "full" if args.full else "small"
    with _checkout(args.before) as tree:
        for name in args.names or BENCHMARKS:
            # A revision from before this benchmark has no figures of it.
            before = _figures_in(tree, name, size) if tree and (tree / f"tests/bench/{name}.py").exists() else {}
            for row in _measure(name, args.full):
                rows.append({"benchmark": name, **_as_dict(row), "before": before.get((row.name, row.compared_with))})
                print(_line(rows[-1]), file=sys.stderr, flush=True)
    results = {"machine": machine_properties, "size": size, "rows": rows}
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for line in table(results):
        print(line)
    return int(any(row["holds"] is False for row in rows))


def machine() -> dict[str, Any]:
    """Return the hardware, the versions and the load average, on which the figures depend."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    models = {line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")}
    properties = {
        "cpu": ", ".join(sorted(models)) or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            properties[package] = importlib.metadata.version(package)
    return properties


def table(results: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the results as a Markdown table, as docs/benchmarks.md has it."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", *_PACKAGES) if name in machine)
    memory_gib = machine["memory_bytes"] / 2**30
    yield f"{machine['cores']} cores of {machine['cpu']}, {memory_gib:.0f} GiB, Linux {machine['kernel']};"
    yield f"{versions}; load average {machine['load_average']:.1f} at the start; size {results['size']}."
    yield ""
    yield "| benchmark | measurement | before | figure | change | compared with | its figure | ratio | budget | holds |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    yield from map(_line, results["rows"])


def _measure(name: str, full: bool) -> Iterable[Row]:
    rows: Iterable[Row] = importlib.import_module(f"tests.bench.{name}").run(full)
    return rows


@contextlib.contextmanager
def _checkout(revision: str | None) -> Iterator[Path | None]:
    """Yield a temporary directory with the files of a revision and the lab's kernels; None without a revision."""
    if revision is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as tree:
        archive = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, stdout=subprocess.PIPE)
        subprocess.run(["tar", "--extract", "--directory", tree], input=archive.stdout, check=True)
        (Path(tree) / ".cache").symlink_to(ROOT / ".cache")
        yield Path(tree)


def _figures_in(tree: Path, name: str, size: str) -> dict[tuple[str, str | None], float]:
    """Run a benchmark of another tree; return its figures by the row's name and the program it is compared with."""
    results = tree / f"{name}.json"
    argv = [sys.executable, "-m", "tests.bench", name, f"--{size}", "--json", str(results)]
    subprocess.run(argv, cwd=tree, stdout=subprocess.DEVNULL)  # exits with 1 if a budget does not hold
    if not results.exists():
        raise SystemExit(f"the benchmark {name} of the other revision failed")
    rows = json.loads(results.read_text(encoding="utf-8"))["rows"]
    return {(row["name"], row["compared_with"]): row["figure"] for row in rows}


def _as_dict(row: Row) -> dict[str, Any]:
    return {**vars(row), "ratio": row.ratio, "holds": row.holds}


def _line(row: dict[str, Any]) -> str:
    compared_figure = "" if row["compared_figure"] is None else f"{_number(row['compared_figure'])} {row['unit']}"
    before = row["before"]
    cells = (
        row["benchmark"],
        row["name"],
        "" if before is None else f"{_number(before)} {row['unit']}",
        f"{_number(row['figure'])} {row['unit']}",
        f"{row['figure'] / before:.2f}" if before else "",
        row["compared_with"] or "",
        compared_figure,
        "" if row["ratio"] is None else f"{row['ratio']:.2f}",
        row["budget"] or "",
        {True: "yes", False: "**no**", None: ""}[row["holds"]],
    )
    return f"| {' | '.join(cells)} |"


def _number(value: float) -> str:
    """Format with three significant digits, or as an integer of three digits or more."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure the cost of each part.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default all: {', '.join(BENCHMARKS)}")
    parser.add_argument("--before", metavar="REVISION", help="also measure this revision of the repository")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the table to this file")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", dest="full", action="store_false", help="small sizes, a minute each (default)")
    size.add_argument("--full", action="store_true", help="the sizes that the budgets apply to, an hour or two")
    parser.set_defaults(full=False)
    args = parser.parse_args()
    if unknown := set(args.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    return args


if __name__ == "__main__":
    sys.exit(main())
