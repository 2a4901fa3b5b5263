"""The reports of a generated fleet: what the HTML page of 10,000 hosts takes, and each other form."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.bench.fleet import Fleet, write
from tests.bench.measure import Cost, Row, command, interleaved

_OTHERS = ("text", "markdown", "csv", "json", "parquet", "prometheus")


def run(full: bool) -> Iterator[Row]:
    """Yield the rows for 10,000 hosts in each of five runs, or for 500 in two."""
    with tempfile.TemporaryDirectory() as folder:
        hosts = 10_000 if full else 500
        write(Path(folder) / "fleet", Fleet(hosts=hosts, lists=100, runs=5 if full else 2))
        jobs = {form: partial(_report, Path(folder), form) for form in ("html", *_OTHERS)}
        ran = interleaved(3 if full else 1, **jobs)
        html = ran["html"]
        yield Row(f"HTML report of {hosts:,} hosts", html.wall_s, "s", budget="<= 10")
        yield Row(f"HTML report of {hosts:,} hosts: its file", (Path(folder) / "html").stat().st_size / 2**20, "MiB")
        yield Row(f"HTML report of {hosts:,} hosts: peak memory", html.peak_rss_bytes / 2**20, "MiB")
        for form in _OTHERS:
            yield Row(f"{form} report of {hosts:,} hosts", ran[form].wall_s, "s", "the HTML", html.wall_s)


def _report(folder: Path, form: str) -> Cost:
    report = [sys.executable, "-m", "pipeline", "report", "-w", folder / "fleet", "--format", form]
    return command([*report, "-o", folder / form])
