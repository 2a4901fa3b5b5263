"""The report as one HTML file that needs nothing else: opened from a mail, printed, read without a network.

Jinja escapes every name; what the script shows it shows as text. The page's own policy lets nothing run but the one
script and style that are in it, and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.common.text import human_bytes, printable
from pipeline.report import charts, rows
from pipeline.report.advice import steps
from pipeline.report.charts import Bar
from pipeline.report.model import Report

MOST_HOSTS = 10_000
"""Hosts in the ranking of the page, for what a browser sorts at once; CSV and Parquet have all."""
_MOST_BARS = 12
_MOST_LABELS = 12
_MOST_NOT_OK = 200
_RANKED = (
    "rank", "target", "host", "kernel_release", "memcg_nr_cache_ids", "nr_node_ids", "superblocks", "online_memcgs",
    "list_lru_bytes", "lazy_bytes", "wasted_bytes", "wasted_pct_of_memory",
)  # fmt: skip
_PAGE = Path(__file__).parent / "page"


def html(report: Report, file: TextIO) -> None:
    """Write the page."""
    environment = Environment(
        loader=FileSystemLoader(_PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(bytes=_bytes, printable=lambda text: printable(str(text)), number=_number)
    script, style = ((_PAGE / name).read_text(encoding="utf-8") for name in ("report.js", "report.css"))
    page = environment.get_template("report.html").stream(
        report=report,
        run=rows.records(report.run)[0],
        coverage=rows.records(report.coverage),
        not_ok=rows.records(report.not_ok.slice(0, _MOST_NOT_OK)),
        more_not_ok=max(0, len(report.not_ok) - _MOST_NOT_OK),
        steps=steps(report),
        charts=_charts(report),
        labels=_labelled(report),
        trend=rows.records(report.trend),
        upgrades=rows.records(report.upgrades),
        doublings=rows.records(report.doublings),
        ranking=_ranking(report),
        shown=min(len(report.host_waste), MOST_HOSTS),
        first=rows.records(report.host_waste.slice(0, 100)),
        bases=report.lazy_bases,
        script=Markup(script),
        style=Markup(style),
        script_hash=_hash(script),
        style_hash=_hash(style),
    )
    file.writelines(page)


def _charts(report: Report) -> dict[str, Markup]:
    drawn = {
        "kernels": charts.bars(
            "Bytes that each kernel wastes", _largest(report.kernels.to_pylist(), "kernel_release", "(no release)")
        ),
        "fstypes": charts.bars(
            "Bytes wasted by filesystem type", _largest(report.fstypes.to_pylist(), "fstype", "(no superblock)")
        ),
        "distribution": charts.bars("Hosts by what they waste", _steps(report.distribution.to_pylist())),
    }
    trend = report.trend.to_pylist()
    if len(trend) > 1:
        drawn["trend"] = charts.line(
            "Bytes wasted in each run",
            [(row["started_at"].timestamp(), row["wasted_bytes"]) for row in trend],
            x=_day,
            y=lambda value: human_bytes(round(value)),
        )
    return drawn


def _labelled(report: Report) -> dict[str, Markup]:
    """Return a chart for each label that tells hosts apart."""
    of_label: dict[str, list[dict[str, Any]]] = {}
    for row in report.labels.to_pylist():
        of_label.setdefault(row["label"], []).append(row)
    return {
        _distinct(label): charts.bars(
            f"Bytes wasted by {_distinct(label)}", _largest(of_label[label], "value", "(without it)")
        )
        for label in sorted(label for label, values in of_label.items() if len(values) > 1)[:_MOST_LABELS]
    }


def _largest(found: list[dict[str, Any]], name: str, unnamed: str) -> list[Bar]:
    """Return the largest as bars, and what the others waste together as the last."""
    made = [
        Bar(
            unnamed if row[name] is None else _distinct(row[name]),
            row["wasted_bytes"],
            human_bytes(row["wasted_bytes"]),
        )
        for row in found
    ]
    rest = sum(bar.value for bar in made[_MOST_BARS:])
    others = [Bar(f"({len(made) - _MOST_BARS} others)", rest, human_bytes(round(rest)))] if made[_MOST_BARS:] else []
    return made[:_MOST_BARS] + others


def _distinct(name: str) -> str:
    """Return a name as no other is shown: quoted where it is empty or has what is not shown, or begins as that does.

    What begins with a bracket is the page's own.
    """
    return name if name.isprintable() and name[:1] not in ("", '"', "(") else rows.dumps(name)


def _steps(found: list[dict[str, Any]]) -> list[Bar]:
    made = []
    from_bytes = 0
    for row in found:
        name = f"{human_bytes(from_bytes)} to {human_bytes(row['below_bytes'])}" if from_bytes else "below 1 MiB"
        made.append(Bar(name, row["hosts"], f"{row['hosts']:,}"))
        from_bytes = row["below_bytes"]
    return made


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def _ranking(report: Report) -> Mapping[str, Any]:
    """Return what the script sorts, filters and marks: the columns' cells by row, and the labels as one text."""
    shown = report.host_waste.slice(0, MOST_HOSTS).select(_RANKED)
    labels = report.labels_of
    return {
        "columns": [*_RANKED, "labels", "bounded"],
        "rows": [
            [
                *(printable(cell) if isinstance(cell, str) else cell for cell in row),
                _labels(labels.get(row[1], {})),
                row[1] in report.bounded,
            ]
            for row in rows.values(shown)
        ],
    }


def _labels(labels: Mapping[str, str]) -> str:
    return printable(" ".join(f"{name}={value}" for name, value in sorted(labels.items())))


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _bytes(count: int | None) -> Markup:
    """Return bytes for people, exact when pointed at and for programs."""
    if count is None:
        return Markup("")
    return Markup('<data value="{}" title="{:,} bytes">{}</data>').format(count, count, human_bytes(count))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}"
