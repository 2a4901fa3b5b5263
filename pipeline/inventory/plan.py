"""Targets to placed batches: which collections run together, and where."""

from __future__ import annotations

import hmac
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from pipeline.common.text import printable
from pipeline.inventory import Target

HERE = "here"
"""The node where the command was typed; fanout knows its id."""

# A batch saves the cost of a Ray task (1 ms) a target; more than this saves nothing that can be measured.
_MAX_BATCH = 16
# So many batches for each slot, that the last one to finish does not keep the others waiting long.
_BATCHES_PER_SLOT = 16
# Of a large cluster an error names so many nodes.
_NAMED_NODES = 5
_MACHINE_ID = Path("/etc/machine-id")


class Node(NamedTuple):
    """A living node of the Ray cluster; node_id may be HERE."""

    node_id: str
    host: str
    ip: str


class Unreachable(NamedTuple):
    """A target that no node can collect, and why."""

    target: Target
    reason: str


@dataclass(frozen=True)
class Batch:
    """Targets that one task collects one after another.

    node: the id of a node, HERE, or None for any. over_ssh: whether it only waits for another machine.
    """

    targets: tuple[Target, ...]
    node: str | None = None
    over_ssh: bool = False


@dataclass(frozen=True)
class Plan:
    """What a run does: every target in exactly one batch, or unreachable before anything starts.

    parallel, ssh_parallel: how many batches at a time, of those that do not go over ssh and of those that do.
    """

    batches: tuple[Batch, ...]
    parallel: int
    ssh_parallel: int = 32
    unreachable: tuple[Unreachable, ...] = ()

    @property
    def targets(self) -> int:
        return sum(len(batch.targets) for batch in self.batches) + len(self.unreachable)


def make(targets: Sequence[Target], parallel: int, nodes: Sequence[Node] = (), ssh_parallel: int = 32) -> Plan:
    """Place the targets.

    The live kernel of a node there, a core or a guest via a node there, `live:` and guests here, and what goes over
    ssh and cores on any node. `ray:*` becomes a target for each node that no other target names, and `live:` is this
    machine from now on: elsewhere what is left of the run finds it unreachable.

    :param parallel: how many targets are collected at the same time, at least 1.
    :param nodes: the living nodes of the cluster.
    :param ssh_parallel: how many more over ssh.
    """
    found = _Nodes(nodes)
    placed: dict[tuple[str | None, bool], list[Target]] = {}
    unreachable = []
    here = _machine()
    for target in _one_a_node(targets, found):
        if target.kind == "live" and target.machine is None:
            target = replace(target, machine=here)
        try:
            if target.machine not in (None, here):
                raise LookupError(
                    f"live: is {target.machine}, where the run began, and this is {here}: resume it there"
                )
            node = _place(target, found)
        except LookupError as why:
            unreachable.append(Unreachable(target, str(why)))
        else:
            placed.setdefault((node, target.over_ssh), []).append(target)
    batches = (
        Batch(batch, node, over_ssh)
        for (node, over_ssh), group in placed.items()
        for batch in _batches(group, ssh_parallel if over_ssh else parallel)
    )
    return Plan(tuple(batches), parallel, ssh_parallel, tuple(unreachable))


def this_machine() -> Node:
    """Return the one node of a Ray of its own, which need not run."""
    return Node(HERE, socket.gethostname(), "127.0.0.1")


def _machine() -> str:
    """Return what tells this machine from others: its host name, and a digest of its id, which is secret."""
    try:
        machine_id = _MACHINE_ID.read_bytes()
    except OSError:  # a container
        machine_id = b""
    return f"{socket.gethostname()} (id {hmac.digest(machine_id, b'list-lru-audit', 'sha256').hex()[:12]})"


def text(plan: Plan, nodes: Sequence[Node], timeout_s: float) -> Iterator[str]:
    """Yield the lines of a table of all targets: what, by which means and from where; then what they are in sum.

    :param nodes: those that the plan was made for.
    :param timeout_s: of a target that has none of its own.
    """
    places = {node.node_id: f"node {node.host}" for node in nodes}
    places[HERE] = "here"
    anywhere = "here" if [node.node_id for node in nodes] == [HERE] else "any node"
    placed = [(t, places.get(b.node or "", anywhere)) for b in plan.batches for t in b.targets]
    placed += [(target, f"unreachable: {reason}") for target, reason in plan.unreachable]
    rows = [("target", "kind", "source", "via", "python", "timeout", "labels", "from")]
    for target, place in placed:
        python = target.python or ("python3" if target.over_ssh else "")
        python = f"sudo -n {python}" if target.become else python
        timeout = f"{target.timeout_s or timeout_s:g} s"
        labels = str(len(target.labels) or "")
        rows.append((target.name, target.kind, target.source, target.via or "", python, timeout, labels, place))
    yield from table(rows)
    kinds = Counter(target.kind for target, _ in placed)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    slots = f"{plan.parallel} at a time and {plan.ssh_parallel} over ssh"
    unreachable = f"; {len(plan.unreachable)} unreachable" if plan.unreachable else ""
    yield ""
    yield f"{plan.targets} targets: {counts}; {slots}{unreachable}"


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table whose first row is its head; a column with nothing below that is left out."""
    columns = [[printable(cell) for cell in column] for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    for row in zip(*columns, strict=True):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def sample(plan: Plan, nodes: Sequence[Node]) -> Plan:
    """Return the plan of trying one target of each kind from each node, as far as there are targets.

    Nobody wants its numbers: the scan of charged objects is left out.

    :param nodes: those that the plan was made for.
    """
    tried: dict[tuple[str, str, bool], Batch] = {}
    for batch in plan.batches:
        for target in batch.targets:
            for node in [batch.node] if batch.node else [node.node_id for node in nodes]:
                kind = node, target.kind, target.over_ssh
                if kind not in tried:
                    tried[kind] = replace(batch, targets=(replace(target, charged=False),), node=node)
                    break
    return replace(plan, batches=tuple(tried.values()), unreachable=())


def _batches(targets: Sequence[Target], slots: int) -> Iterator[tuple[Target, ...]]:
    size = max(1, min(_MAX_BATCH, len(targets) // (slots * _BATCHES_PER_SLOT)))
    for start in range(0, len(targets), size):
        yield tuple(targets[start : start + size])


def _place(target: Target, nodes: _Nodes) -> str | None:
    """Return the id of the node where a target is collected, HERE, or None for any.

    :raises LookupError: with the reason, where the node is not in the cluster.
    """
    if target.kind == "ray":
        return nodes.find(target.source).node_id
    if target.via and target.via.startswith("ray:"):
        return nodes.find(target.via).node_id
    return HERE if target.kind in ("live", "qmp") and not target.via else None


class _Nodes:
    """The nodes of a cluster by all that they are called."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.all = nodes
        self._called: dict[str, list[Node]] = {}
        for node in nodes:
            for name in {*node}:
                self._called.setdefault(name, []).append(node)

    def find(self, source: str) -> Node:
        """Return the node of a `ray:NODE`."""
        name = source.removeprefix("ray:")
        called = self._called.get(name, [])
        if len(called) == 1:
            return called[0]
        if called:
            others = _listed(node.node_id for node in called)
            raise LookupError(f"{len(called)} nodes of the Ray cluster are {name}: give the id of one: {others}")
        if not self.all:
            raise LookupError(f"there is no Ray cluster to have the node {name}: give --address")
        raise LookupError(f"{name} is not in the Ray cluster, which has {_listed(node.host for node in self.all)}")

    def names(self) -> dict[Node, str]:
        """Return what each is best called: its host name, its ip or its id, the first that no other has."""
        return {
            node: next((name for name in (node.host, node.ip) if len(self._called[name]) == 1), node.node_id)
            for node in self.all
        }


def _listed(names: Iterable[str]) -> str:
    listed = sorted(map(printable, names))
    more = len(listed) - _NAMED_NODES
    return ", ".join(listed[:_NAMED_NODES]) + (f" and {more} more" if more > 0 else "")


def _one_a_node(targets: Sequence[Target], nodes: _Nodes) -> Iterator[Target]:
    """Replace `ray:*` by the nodes that no other target names, called as no other target is."""
    named = set()
    for target in targets:
        if target.kind == "ray" and target.source != "ray:*":
            try:
                named.add(nodes.find(target.source))
            except LookupError:
                continue
    taken = {target.name for target in targets}
    for target in targets:
        if target.source != "ray:*" or not nodes.all:
            yield target
            continue
        for node, called in nodes.names().items():
            if node not in named:
                name = next(name for name in (called, f"ray:{called}", node.node_id) if name not in taken)
                yield replace(target, name=name, source=f"ray:{called}")
