"""The report as metrics for node_exporter's textfile collector: totals of the fleet, and series of each host."""

from __future__ import annotations

from typing import TextIO

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from pipeline.common.text import printable
from pipeline.report import rows
from pipeline.report.model import Report

MAX_SERIES = 10_000
"""Number of hosts above which only the totals are written."""


def prometheus(report: Report, file: TextIO, max_series: int = MAX_SERIES) -> None:
    """Write metrics in Prometheus' text format. No mount, cgroup or error becomes a label.

    :param max_series: with more hosts than this, write only totals, and the number of hosts as
        `list_lru_audit_targets_without_series`.
    """
    registry = CollectorRegistry()

    def gauge(name: str, description: str, *labels: str) -> Gauge:
        return Gauge(f"list_lru_audit_{name}", description, ("audit", *labels), registry=registry)

    run = rows.records(report.run)[0]
    audit = printable(run["audit"])
    hosts = rows.records(report.host_waste)
    gauge("run_timestamp_seconds", "Start of the newest run, in seconds since 1970").labels(audit).set(
        report.run["started_at"][0].as_py().timestamp()
    )
    gauge("runs_in_future", "Published runs that are dated in the future, by a clock that was wrong").labels(audit).set(
        len(report.future_runs)
    )
    targets = gauge("targets", "Targets of the newest run by status", "status")
    for name, count in run.items():
        if name.startswith("status_"):
            targets.labels(audit, name.removeprefix("status_")).set(count)
    figures = {
        "list_lru_bytes": "Bytes that all list_lrus hold now",
        "wasted_bytes": "Bytes that a kernel with lazy list_lrus would save; negative if it would need more, or if "
        "nothing is known to be wasted because charged objects were not read",
        "lazy_bytes": "Bytes that list_lrus would hold on a kernel with lazy allocation",
        "memory_bytes": "Memory that the kernel manages, in bytes",
    }
    for name, description in figures.items():
        gauge(f"total_{name}", f"{description}, each machine once").labels(audit).set(report.totals[f"machines_{name}"])
    total_held = gauge(
        "total_memcg_memory_bytes", "Bytes that a part of what memory cgroups cost holds, each machine once", "part"
    )
    total_upgraded = gauge(
        "total_memcg_memory_upgraded_bytes",
        "Bytes that it would hold after kernel upgrades; machines without a prediction count with what they hold now; "
        "of list_lru at most this, if charged objects were not read somewhere",
        "part",
    )
    for row in rows.records(report.memcg_costs):
        total_held.labels(audit, row["part"]).set(row["held_bytes"])
        if row["upgraded_bytes"] is not None:
            total_upgraded.labels(audit, row["part"]).set(row["upgraded_bytes"])
    series_hosts = hosts if len(hosts) <= max_series else []
    gauge("targets_without_series", "Hosts that only the totals include, because there are too many").labels(audit).set(
        len(hosts) - len(series_hosts)
    )
    host_gauges = {name: gauge(name, description, "target") for name, description in figures.items()}
    error = gauge(
        "lazy_error_bytes",
        "Half of the 95 % interval of lazy_bytes from a sample; wasted_bytes and upgrade_net_bytes have it, too",
        "target",
    )
    info = gauge("target_info", "1 for each host", "target", "host", "kernel_release", "layout", "lazy_basis")
    for row in series_hosts:
        target = printable(row["target"])
        host_figures = row | {"memory_bytes": report.memory_bytes_by_target[row["target"]]}
        for name, metric in host_gauges.items():
            metric.labels(audit, target).set(host_figures[name])
        if row["lazy_error_bytes"] is not None:
            error.labels(audit, target).set(row["lazy_error_bytes"])
        names = (printable(row[name] or "") for name in ("host", "kernel_release", "layout", "lazy_basis"))
        info.labels(audit, target, *names).set(1)
    held = gauge("memcg_memory_bytes", "Bytes that a part of what memory cgroups cost holds", "target", "part")
    upgraded = gauge(
        "memcg_memory_upgraded_bytes",
        "Bytes that it would hold after the kernel upgrade; of list_lru at most this, where lazy_basis of target_info "
        "is online",
        "target",
        "part",
    )
    for row in rows.records(report.memcg_memory) if series_hosts else []:
        target = printable(row["target"])
        held.labels(audit, target, row["part"]).set(row["held_bytes"])
        if row["upgraded_bytes"] is not None:
            upgraded.labels(audit, target, row["part"]).set(row["upgraded_bytes"])
    net_description = (
        "Bytes that the kernel upgrade frees of all that memory cgroups cost, less those that it takes; at least this, "
        "if charged objects were not read"
    )
    net = gauge("upgrade_net_bytes", net_description, "target")
    for row in rows.records(report.upgrade_net) if series_hosts else []:
        net.labels(audit, printable(row["target"])).set(row["net_bytes"])
    if report.fleet_net:
        gauge("total_upgrade_net_bytes", f"{net_description}; each machine once").labels(audit).set(
            report.fleet_net["net_bytes"]
        )
    file.write(generate_latest(registry).decode())
