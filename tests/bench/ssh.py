"""Hosts over ssh: names of one sshd on loopback, a fifth of them faulty, from the inventory to the ranking."""

from __future__ import annotations

import resource
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline import cli
from tests.bench.measure import Cost, Row, run_command
from tests.fanout.ssh_fleet import Fleet

_MIB = 1 << 20


@dataclass(frozen=True)
class _Run:
    """One run, and what its hosts saw of it."""

    hosts: int
    cost: Cost
    hosts_cpu_s: float
    connections: int
    dropped: int


def run(full: bool) -> Iterator[Row]:
    """Yield the rows: for 500 hosts if `full`, else for 200."""
    small, large = _audit(1), _audit(5 if full else 2)
    name = f"{large.hosts} hosts over ssh, a fifth faulty"
    yield Row(name, large.cost.wall_s, "s")
    yield Row(f"{name}: driver's CPU time a host", 1000 * large.cost.cpu_s / large.hosts, "ms")
    yield Row(f"{name}: CPU time on a host", 1000 * large.hosts_cpu_s / large.hosts, "ms")
    peaks_mib = [run.cost.peak_rss_bytes / _MIB for run in (large, small)]
    yield Row(f"{name}: driver's peak", peaks_mib[0], "MiB", f"{small.hosts} hosts", peaks_mib[1], "<= 2")
    yield Row(f"{name}: connections", large.connections, "connections")
    yield Row(f"{name}: closed by MaxStartups 10:30:100, tried again", large.dropped, "connections")


def _audit(per_fault: int) -> _Run:
    cpu_s = _children_cpu_s()
    with tempfile.TemporaryDirectory() as folder:
        with Fleet(Path(folder)) as fleet:
            hosts = fleet.expected(per_fault)
            command = [sys.executable, "-m", "pipeline", *fleet.command(hosts), "-w", f"{folder}/w", "--quiet"]
            cost = run_command(command, ok=(cli.SOME_NOT_GOOD,))
            fleet.wait_until_idle()
        hosts_cpu_s = _children_cpu_s() - cpu_s - cost.cpu_s
        return _Run(len(hosts), cost, hosts_cpu_s, fleet.connection_count(), fleet.dropped_count())


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
