"""Plans of a run: batches of targets, and the node that collects each batch."""

from __future__ import annotations

import hmac
import shlex
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from pipeline.common.text import printable
from pipeline.inventory import Target, ssh_arguments

LOCAL_NODE = "here"
"""Stands for the id of the node where the command runs, which fanout looks up."""

# Batching saves the cost of a Ray task (1 ms) per target; larger batches save nothing measurable.
_MAX_BATCH = 16
# Enough batches per slot that the other slots do not wait long for the last batch.
_BATCHES_PER_SLOT = 16
# Limits the length of an error that lists the nodes of a large cluster.
_MAX_LISTED_NODES = 5
_MACHINE_ID = Path("/etc/machine-id")


class Node(NamedTuple):
    """A node of the Ray cluster that is alive; node_id may be LOCAL_NODE."""

    node_id: str
    host: str
    ip: str


class Unreachable(NamedTuple):
    """A target that is not collected, with the reason and its error_type."""

    target: Target
    reason: str
    error_type: str = "NoSuchNode"


@dataclass(frozen=True)
class Batch:
    """Targets of one Ray task.

    - node: id of a node, LOCAL_NODE, or None for any node;
    - over_ssh: whether the collectors run on hosts that ssh reaches, so that the task only waits.
    """

    targets: tuple[Target, ...]
    node: str | None = None
    over_ssh: bool = False


@dataclass(frozen=True)
class Plan:
    """Plan of a run: each target is in exactly one batch or unreachable.

    - parallel: number of targets collected at a time, other than over ssh;
    - ssh_parallel: number of targets collected at a time over ssh, besides those.
    """

    batches: tuple[Batch, ...]
    parallel: int
    ssh_parallel: int = 32
    unreachable: tuple[Unreachable, ...] = ()

    @property
    def target_count(self) -> int:
        return sum(len(batch.targets) for batch in self.batches) + len(self.unreachable)

    def concurrency(self, over_ssh: bool) -> int:
        """Return how many targets are collected at a time over ssh, or other than over ssh."""
        target_count = sum(len(batch.targets) for batch in self.batches if batch.over_ssh == over_ssh)
        return min(target_count, self.ssh_parallel if over_ssh else self.parallel)


def make_plan(targets: Sequence[Target], parallel: int, nodes: Sequence[Node] = (), ssh_parallel: int = 32) -> Plan:
    """Assign targets to nodes and group them into batches.

    - `ray:NODE` and a core or a guest via `ray:NODE` are collected on that node;
    - `live:` and other guests are collected on the local node;
    - targets over ssh and other cores are collected on any node;
    - targets that cannot be reached as the inventory says are unreachable.

    `ray:*` becomes a target for each node that no other target names. `live:` is bound to this machine: if the run is
    resumed on another machine, it is unreachable.

    :param parallel: number of targets to collect at a time, at least 1.
    :param nodes: nodes of the cluster that are alive.
    :param ssh_parallel: number of targets to collect at a time over ssh, besides those.
    """
    node_index = _NodeIndex(nodes)
    groups: dict[tuple[str | None, bool], list[Target]] = {}
    unreachable = []
    machine = _machine()
    for target in _expand_all_nodes(targets, node_index):
        if target.kind == "live" and target.machine is None:
            target = replace(target, machine=machine)
        if target.unusable is not None:
            unreachable.append(Unreachable(target, target.unusable, "InventoryValue"))
            continue
        try:
            if target.machine not in (None, machine):
                raise LookupError(
                    f"live: is {target.machine}, where the run began, but this is {machine}; resume the run there"
                )
            node = _place(target, node_index)
        except LookupError as error:
            unreachable.append(Unreachable(target, str(error)))
        else:
            groups.setdefault((node, target.over_ssh), []).append(target)
    batches = (
        Batch(batch, node, over_ssh)
        for (node, over_ssh), group in groups.items()
        for batch in _batches(group, ssh_parallel if over_ssh else parallel)
    )
    return Plan(tuple(batches), parallel, ssh_parallel, tuple(unreachable))


def this_machine() -> Node:
    """Return the only node of an embedded Ray, whether it runs or not."""
    return Node(LOCAL_NODE, socket.gethostname(), "127.0.0.1")


def _machine() -> str:
    """Return a text that identifies this machine: its host name and a digest of its machine-id, which is secret."""
    try:
        machine_id = _MACHINE_ID.read_bytes()
    except OSError:  # missing in containers
        machine_id = b""
    return f"{socket.gethostname()} (id {hmac.digest(machine_id, b'list-lru-audit', 'sha256').hex()[:12]})"


def lines(plan: Plan, nodes: Sequence[Node], timeout_s: float) -> Iterator[str]:
    """Yield the lines of a table of all targets with their nodes and options, then a summary.

    :param nodes: nodes of the plan.
    :param timeout_s: timeout of a target without its own.
    """
    node_names = {node.node_id: f"node {node.host}" for node in nodes}
    node_names[LOCAL_NODE] = "here"
    any_node = "here" if [node.node_id for node in nodes] == [LOCAL_NODE] else "any node"
    places = [(t, node_names.get(b.node or "", any_node)) for b in plan.batches for t in b.targets]
    places += [(missing.target, f"unreachable: {missing.reason}") for missing in plan.unreachable]
    rows = [("target", "kind", "source", "via", "ssh", "python", "timeout", "labels", "from")]
    for target, place in places:
        python = target.python or ("python3" if target.over_ssh else "")
        python = f"sudo -n {python}" if target.become else python
        python += f", else {Path(target.ship_python).name}" if target.ship_python else ""
        timeout = f"{target.timeout_s or timeout_s:g} s"
        labels = str(len(target.labels) or "")
        config = f"-F {shlex.quote(target.ssh_config)} " if target.ssh_config else ""
        ssh = (config + ssh_arguments.shown(target.ssh_args)).strip()
        rows.append((target.name, target.kind, target.source, target.via or "", ssh, python, timeout, labels, place))
    yield from table(rows)
    kinds = Counter(target.kind for target, _ in places)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    slots = f"{plan.parallel} at a time and {plan.ssh_parallel} over ssh"
    unreachable = f"; {len(plan.unreachable)} unreachable" if plan.unreachable else ""
    yield ""
    yield f"{plan.target_count} targets: {counts}; {slots}{unreachable}"


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table whose first row is the header; columns that are otherwise empty are omitted."""
    columns = [[printable(cell) for cell in column] for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    for row in zip(*columns, strict=True):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def sample(plan: Plan, nodes: Sequence[Node]) -> Plan:
    """Return a plan that tries one target of each kind from each node, as far as the targets suffice.

    It skips the scan of charged objects, since only the statuses matter.

    :param nodes: nodes of the plan.
    """
    batches: dict[tuple[str, str, bool], Batch] = {}
    for batch in plan.batches:
        for target in batch.targets:
            for node in [batch.node] if batch.node else [node.node_id for node in nodes]:
                key = node, target.kind, target.over_ssh
                if key not in batches:
                    batches[key] = replace(batch, targets=(replace(target, charged=False),), node=node)
                    break
    return replace(plan, batches=tuple(batches.values()), unreachable=())


def _batches(targets: Sequence[Target], slots: int) -> Iterator[tuple[Target, ...]]:
    size = max(1, min(_MAX_BATCH, len(targets) // (slots * _BATCHES_PER_SLOT)))
    for start in range(0, len(targets), size):
        yield tuple(targets[start : start + size])


def _place(target: Target, nodes: _NodeIndex) -> str | None:
    """Return the id of the node that collects a target, LOCAL_NODE, or None for any node.

    :raises LookupError: the node is not in the cluster; with the reason.
    """
    if target.kind == "ray":
        return nodes.find(target.source).node_id
    if target.via and target.via.startswith("ray:"):
        return nodes.find(target.via).node_id
    return LOCAL_NODE if target.kind in ("live", "qmp") and not target.via else None


class _NodeIndex:
    """Nodes of a cluster by host name, ip and id."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self._nodes_by_name: dict[str, list[Node]] = {}
        for node in nodes:
            for name in {*node}:
                self._nodes_by_name.setdefault(name, []).append(node)

    def find(self, source: str) -> Node:
        """Return the node of a `ray:NODE`."""
        name = source.removeprefix("ray:")
        matches = self._nodes_by_name.get(name, [])
        if len(matches) == 1:
            return matches[0]
        if matches:
            ids = _join(node.node_id for node in matches)
            raise LookupError(f"{len(matches)} nodes of the Ray cluster are called {name}; use the id of one: {ids}")
        if not self.nodes:
            raise LookupError(f"no Ray cluster to look for the node {name} in; join one with --address")
        raise LookupError(f"{name} is not in the Ray cluster, which has {_join(node.host for node in self.nodes)}")

    def unique_names(self) -> dict[Node, str]:
        """Return for each node its host name, its ip or its id, whichever is unique first."""
        return {
            node: next((name for name in (node.host, node.ip) if len(self._nodes_by_name[name]) == 1), node.node_id)
            for node in self.nodes
        }


def _join(names: Iterable[str]) -> str:
    """Return the names as a list of at most _MAX_LISTED_NODES and the number of the rest."""
    printable_names = sorted(map(printable, names))
    excess = len(printable_names) - _MAX_LISTED_NODES
    return ", ".join(printable_names[:_MAX_LISTED_NODES]) + (f" and {excess} more" if excess > 0 else "")


def _expand_all_nodes(targets: Sequence[Target], index: _NodeIndex) -> Iterator[Target]:
    """Replace `ray:*` by a target with a unique name for each node that no other target names."""
    excluded_nodes = set()
    for target in targets:
        if target.kind == "ray" and target.source != "ray:*":
            try:
                excluded_nodes.add(index.find(target.source))
            except LookupError:
                continue
    target_names = {target.name for target in targets}
    for target in targets:
        if target.source != "ray:*" or not index.nodes:
            yield target
            continue
        for node, node_name in index.unique_names().items():
            if node not in excluded_nodes:
                candidates = (node_name, f"ray:{node_name}", node.node_id)
                name = next(name for name in candidates if name not in target_names)
                yield replace(target, name=name, source=f"ray:{node_name}")
