"""The report as metrics for node_exporter's textfile collector: a fleet's bytes, and each host's up to a number."""

from __future__ import annotations

from typing import TextIO

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from pipeline.common.text import printable
from pipeline.report import rows
from pipeline.report.model import Report

MAX_SERIES = 10_000
"""Hosts up to which each has series of its own."""


def prometheus(report: Report, file: TextIO, max_series: int = MAX_SERIES) -> None:
    """Write metrics in Prometheus' text format: no mount, cgroup or error in a label.

    :param max_series: with more hosts than that only the totals are written, and
        `list_lru_audit_targets_without_series` says of how many.
    """
    registry = CollectorRegistry()

    def gauge(name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(f"list_lru_audit_{name}", meaning, ("audit", *labels), registry=registry)

    run = rows.records(report.run)[0]
    audit = printable(run["audit"])
    hosts = rows.records(report.host_waste)
    gauge("run_timestamp_seconds", "When the newest run started, in seconds since 1970").labels(audit).set(
        report.run["started_at"][0].as_py().timestamp()
    )
    targets = gauge("targets", "Targets of the newest run by how they ended", "status")
    for name, count in run.items():
        if name.startswith("status_"):
            targets.labels(audit, name.removeprefix("status_")).set(count)
    figures = {
        "list_lru_bytes": "Bytes that all list_lrus hold now",
        "wasted_bytes": "Bytes that a kernel with lazy list_lrus would save; negative where it would cost more",
        "lazy_bytes": "Bytes that list_lrus would hold on a kernel with lazy allocation",
        "memory_bytes": "Memory that the kernel has, in bytes",
    }
    for name, meaning in figures.items():
        gauge(f"total_{name}", f"{meaning}, all hosts").labels(audit).set(report.totals[name])
    shown = hosts if len(hosts) <= max_series else []
    gauge("targets_without_series", "Hosts that only the totals have, as there are too many").labels(audit).set(
        len(hosts) - len(shown)
    )
    by_target = {name: gauge(name, meaning, "target") for name, meaning in figures.items()}
    info = gauge("target_info", "1 for each host", "target", "host", "kernel_release", "layout")
    for row in shown:
        target = printable(row["target"])
        measured = row | {"memory_bytes": report.memory_bytes[row["target"]]}
        for name, metric in by_target.items():
            metric.labels(audit, target).set(measured[name])
        known = (printable(row[name] or "") for name in ("host", "kernel_release", "layout"))
        info.labels(audit, target, *known).set(1)
    file.write(generate_latest(registry).decode())
