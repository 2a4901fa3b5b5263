"""Reports of a generated fleet: time, size and memory of the HTML page, and the time of each other format."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.bench.fleet import Fleet, write
from tests.bench.measure import Cost, Row, run_command, run_in_turn

_OTHER_FORMATS = ("text", "markdown", "csv", "json", "parquet", "prometheus")


def run(full: bool) -> Iterator[Row]:
    """Yield the rows for 10,000 hosts in each of five runs, or for 500 in two."""
    with tempfile.TemporaryDirectory() as folder:
        hosts = 10_000 if full else 500
        write(Path(folder) / "fleet", Fleet(hosts=hosts, lists=100, runs=5 if full else 2))
        jobs = {format_: partial(_report, Path(folder), format_) for format_ in ("html", *_OTHER_FORMATS)}
        costs = run_in_turn(3 if full else 1, **jobs)
        html = costs["html"]
        yield Row(f"HTML report of {hosts:,} hosts", html.wall_s, "s", budget="<= 10")
        yield Row(f"HTML report of {hosts:,} hosts: file size", (Path(folder) / "html").stat().st_size / 2**20, "MiB")
        yield Row(f"HTML report of {hosts:,} hosts: peak memory", html.peak_rss_bytes / 2**20, "MiB")
        for format_ in _OTHER_FORMATS:
            yield Row(f"{format_} report of {hosts:,} hosts", costs[format_].wall_s, "s", "HTML", html.wall_s)


def _report(folder: Path, format_: str) -> Cost:
    report = [sys.executable, "-m", "pipeline", "report", "-w", folder / "fleet", "--format", format_]
    return run_command([*report, "-o", folder / format_])
