"""The report as one HTML file without external resources: for mail, print, and reading without a network.

Jinja escapes every name, and the script inserts names as text only. The page's Content-Security-Policy allows the one
script and the one style in the page and no requests.
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

from pipeline.common.text import human_bytes, human_error, printable
from pipeline.report import charts, machines, rows, waste
from pipeline.report.advice import steps
from pipeline.report.charts import Bar, Point, StackedBar
from pipeline.report.model import Report

MAX_HOSTS = 10_000
"""Hosts in the ranking of the page, so that a browser can sort them quickly. CSV and Parquet have all hosts."""
# Hosts in the table without the script; PAGE in report.js is the same.
_PAGE_HOSTS = 100
_MAX_BARS = 12
_MAX_LABELS = 12
_MAX_NOT_OK = 200
_RANKING_COLUMNS = (
    "rank", "target", "host", "kernel_release", "memcg_nr_cache_ids", "nr_node_ids", "superblocks", "online_memcgs",
    "list_lru_bytes", "lazy_bytes", "lazy_error_bytes", "wasted_bytes", "wasted_pct_of_memory", "lower_bound",
)  # fmt: skip
_PAGE = Path(__file__).parent / "page"


def html(report: Report, file: TextIO) -> None:
    """Write the page."""
    environment = Environment(
        loader=FileSystemLoader(_PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        bytes=_bytes,
        error=human_error,
        waste=_waste,
        printable=lambda text: printable(str(text)),
        number=_number,
    )
    environment.tests["known"] = lambda row: waste.is_known(row["wasted_bytes"], row["lower_bound"])
    script, style = ((_PAGE / name).read_text(encoding="utf-8") for name in ("report.js", "report.css"))
    page = environment.get_template("report.html").stream(
        report=report,
        run=rows.records(report.run)[0],
        coverage=rows.records(report.coverage),
        not_ok=rows.records(report.not_ok.slice(0, _MAX_NOT_OK)),
        more_not_ok=max(0, len(report.not_ok) - _MAX_NOT_OK),
        steps=steps(report),
        machine_notes=machines.notes(report),
        charts=_charts(report),
        labels=_label_charts(report),
        trend=rows.records(report.trend),
        upgrades=rows.records(report.upgrades),
        doublings=rows.records(report.doublings),
        memcg_costs=rows.records(report.memcg_costs),
        nets=_nets(report),
        no_known_waste=waste.NO_KNOWN_WASTE,
        ranking=_ranking(report),
        ranking_hosts=min(len(report.host_waste), MAX_HOSTS),
        first_hosts=rows.records(report.host_waste.slice(0, _PAGE_HOSTS)),
        script=Markup(script),
        style=Markup(style),
        script_hash=_hash(script),
        style_hash=_hash(style),
    )
    file.writelines(page)


def _charts(report: Report) -> dict[str, Markup]:
    section_charts = {
        "kernels": charts.bars(
            "Bytes that each kernel wastes",
            _waste_bars(report.kernels.to_pylist(), "kernel_release", "(no release)"),
        ),
        "fstypes": charts.bars(
            "Bytes wasted by filesystem type",
            _waste_bars(report.fstypes.to_pylist(), "fstype", "(no superblock)"),
        ),
        "distribution": charts.bars("Hosts by wasted bytes", _distribution_bars(report.distribution.to_pylist())),
    }
    if len(report.memcg_costs) > 1:
        section_charts["memcg_memory"] = charts.stacked_bars(
            "Bytes that memory cgroups cost on each host", *_memcg_bars(report)
        )
    trend = report.trend.to_pylist()
    if len(trend) > 1:
        section_charts["trend"] = charts.line(
            "Bytes wasted in each run",
            [Point(row["started_at"].timestamp(), row["wasted_bytes"], _waste_text(row)) for row in trend],
            x_label=_day,
            y_label=lambda value: human_bytes(round(value)),
        )
    return section_charts


def _memcg_bars(report: Report) -> tuple[list[str], list[StackedBar]]:
    """Return the names of the parts, the largest first, and a bar for each of the hosts that hold most."""
    parts_by_target: dict[str, dict[str, int]] = {}
    for row in report.top_memcg_parts.to_pylist():
        parts_by_target.setdefault(row["target"], {})[row["part"]] = row["held_bytes"]
    legend = [name for name in report.memcg_costs["part"].to_pylist() if name != "dying_page_cache"]
    return legend, [
        StackedBar(
            _unambiguous(target),
            {legend.index(name): count for name, count in parts.items()},
            human_bytes(sum(parts.values())),
        )
        for target, parts in parts_by_target.items()
    ]


def _nets(report: Report) -> list[dict[str, Any]]:
    """Return the largest nets of an upgrade; that of the fleet is the first."""
    if not report.fleet_net:
        return []
    hosts = rows.records(report.upgrade_net.slice(0, _MAX_BARS))
    return [{"target": f"(all, {report.fleet_net['hosts']:,})", **report.fleet_net}, *hosts]


def _label_charts(report: Report) -> dict[str, Markup]:
    """Return a chart for each label with more than one value."""
    rows_by_label: dict[str, list[dict[str, Any]]] = {}
    for row in report.labels.to_pylist():
        rows_by_label.setdefault(row["label"], []).append(row)
    labels = sorted(label for label, label_rows in rows_by_label.items() if len(label_rows) > 1)
    return {
        _unambiguous(label): charts.bars(
            f"Bytes wasted by {_unambiguous(label)}", _waste_bars(rows_by_label[label], "value", "(without it)")
        )
        for label in labels[:_MAX_LABELS]
    }


def _waste_bars(waste_rows: list[dict[str, Any]], name_column: str, null_name: str) -> list[Bar]:
    """Return bars of the rows with the largest waste, and a last bar for the sum of all others."""
    bars = [
        Bar(
            null_name if row[name_column] is None else _unambiguous(row[name_column]),
            row["wasted_bytes"],
            _waste_text(row),
        )
        for row in waste_rows[:_MAX_BARS]
    ]
    if others := waste_rows[_MAX_BARS:]:
        others_sum = {
            "wasted_bytes": sum(row["wasted_bytes"] for row in others),
            "lower_bound": any(row["lower_bound"] for row in others),
        }
        bars.append(Bar(f"({len(others)} others)", others_sum["wasted_bytes"], _waste_text(others_sum)))
    return bars


def _unambiguous(name: str) -> str:
    """Return a name that differs from every other shown name.

    A name is quoted if it is empty, has characters that are not printable, or begins with a quote or with the bracket
    that begins the page's own names.
    """
    return name if name.isprintable() and name[:1] not in ("", '"', "(") else rows.dumps(name)


def _distribution_bars(distribution: list[dict[str, Any]]) -> list[Bar]:
    bars = []
    from_bytes = 0
    for row in distribution:
        name = f"{human_bytes(from_bytes)} to {human_bytes(row['below_bytes'])}" if from_bytes else "below 1 MiB"
        bars.append(Bar(name, row["hosts"], f"{row['hosts']:,}"))
        from_bytes = row["below_bytes"]
    return bars


def _day(timestamp_s: float) -> str:
    return datetime.fromtimestamp(timestamp_s, UTC).strftime("%Y-%m-%d")


def _ranking(report: Report) -> Mapping[str, Any]:
    """Return the ranking for the script: columns, and rows of cells with the labels as one text."""
    ranking = report.host_waste.slice(0, MAX_HOSTS).select(_RANKING_COLUMNS)
    labels_by_target = report.labels_by_target
    return {
        "columns": [*_RANKING_COLUMNS, "labels"],
        "rows": [
            [
                rank,
                printable(report.ranking_name(target)),
                *(printable(cell) if isinstance(cell, str) else cell for cell in others),
                _labels(labels_by_target.get(target, {})),
            ]
            for rank, target, *others in rows.values(ranking)
        ],
    }


def _labels(labels: Mapping[str, str]) -> str:
    return printable(" ".join(f"{name}={value}" for name, value in sorted(labels.items())))


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _bytes(count: int | None) -> Markup:
    """Return bytes rounded for reading, with the exact number as tooltip and for programs."""
    if count is None:
        return Markup("")
    return Markup('<data value="{}" title="{:,} bytes">{}</data>').format(count, count, human_bytes(count))


def _waste(row: Mapping[str, Any], column: str = "wasted_bytes") -> Markup:
    """Return bytes that may be a lower bound, with its mark, for reading."""
    count = row[column]
    if count is None or not row["lower_bound"]:
        return _bytes(count)
    if not waste.is_known(count, lower_bound=True):
        return Markup(waste.NO_KNOWN_WASTE)
    return Markup('<span role="img" aria-label="at least">≥</span> {}').format(_bytes(count))


def _waste_text(row: Mapping[str, Any]) -> str:
    return waste.text(row["wasted_bytes"], row["lower_bound"], "≥ ")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}"
