"""Drives a run: batches to Ray's workers, outcomes back one by one, lost work planned again.

Ray has no deadline for a task, and a task that it retries itself leaves no trace. So a batch is a generator task
that is never retried; what it did not deliver the driver plans again, and each try is an attempt that is kept.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import Any, Protocol

from pipeline.collector.status import GOOD
from pipeline.fanout import cluster, runner
from pipeline.fanout.cluster import ClusterError
from pipeline.inventory import Target
from pipeline.inventory.plan import HERE, Batch, Plan

Collect = Callable[[Target, int, runner.Limits], dict[str, Any]]

# Another try may end differently: the worker died, the live kernel changed under every read.
_RETRIED = {"lost", "inconsistent"}
# Not by us, whose limits have statuses of their own: a node that dies may end a collector before its worker, and the
# kernel ends whom it likes when there is no memory.
_KILLED = "signal:SIGKILL"

# A worker takes 100 MB and what goes over ssh only waits: a worker waits for so many hosts at a time.
_SSH_AT_ONCE = 8

# After so long without a first sign of life somebody should know why.
_FIRST_SIGN_S = 10.0
# Without news for so long, is there a node left that can work? And is the head still there, also with news?
_LOOK_S = 20.0
# So long a head may take to start again. A minute after its end Ray ends this process, and each node.
_HEAD_S = 10.0

_log = logging.getLogger(__name__)


class Progress(Protocol):
    """Who is told how far a run is."""

    def update(self, done: int, failed: Mapping[str, int]) -> None:
        """done: targets with an outcome; failed: of these, how many ended with each status that is not good."""


def run(
    plan: Plan,
    *,
    on_outcome: Callable[[dict[str, Any]], None],
    progress: Progress | None = None,
    limits: runner.Limits | None = None,
    retries: int = 1,
    address: str | None = None,
    collect: Collect = runner.run,
) -> None:
    """Collect every target of the plan; hand each outcome to `on_outcome`, in this thread, as it arrives.

    It is as `runner.outcome` makes it, but the tables of a target that was collected are JSON text.

    :param limits: of one collection; a target's own timeout_s comes first.
    :param retries: how often a target is tried again after an end that may change: lost, inconsistent, or crashed by a
        SIGKILL. One that was lost together with others is tried again in any case, alone.
    :param address: a Ray cluster to join, default RAY_ADDRESS; without both a Ray of its own, for this call.
    :param collect: what a worker does for one target; for targets over ssh, in several threads.
    :raises ClusterError: there is no Ray, or no node is left to collect on.
    """
    with cluster.connected(plan.parallel, address) as ray:
        _Run(ray, plan, on_outcome, progress, limits or runner.Limits(), retries, collect).drive()


def _collect_batch(
    todo: Sequence[tuple[Target, int]], limits: runner.Limits, collect: Collect, at_once: int
) -> Iterator[Any]:
    """The task: yield the name of the node, then the name of each target with the attempt at it."""
    yield socket.gethostname()
    if at_once == 1:
        for target, attempt in todo:
            yield target.name, _packed(collect(target, attempt, limits))
        return
    with ThreadPoolExecutor(at_once) as threads:
        names = {threads.submit(collect, target, attempt, limits): target.name for target, attempt in todo}
        for done in as_completed(names):
            yield names[done], _packed(done.result())


def _packed(attempt: dict[str, Any]) -> dict[str, Any]:
    """Return an attempt with its tables as JSON text. Workers are many; the one driver only hands them on."""
    return {**attempt, "tables": json.dumps(attempt["tables"], separators=(",", ":"))}


class _Stream:
    """A batch under way: the generator, and which of its targets have not come back."""

    def __init__(self, batch: Batch, at_once: int, generator: Any) -> None:
        self.batch = batch
        self.waiting = {target.name: target for target in batch.targets}
        self.at_once = at_once
        self.generator = generator
        self.node: str | None = None
        self.tick()

    def tick(self) -> None:
        """Note when the target that is now first began: when the one before it came back."""
        self.started_at = time.time_ns() // 1000
        self.start = time.monotonic()


class _Run:
    """One run as the driver sees it: what waits, what is under way, what has been tried."""

    def __init__(
        self,
        ray: Any,
        plan: Plan,
        on_outcome: Callable[[dict[str, Any]], None],
        progress: Progress | None,
        limits: runner.Limits,
        retries: int,
        collect: Collect,
    ) -> None:
        self.ray = ray
        self.on_outcome = on_outcome
        self.progress = progress
        self.retries = retries
        self.unreachable = plan.unreachable
        # Both by whether it goes over ssh.
        self.most = {False: plan.parallel, True: plan.ssh_parallel}
        self.waiting = {over_ssh: deque(b for b in plan.batches if b.over_ssh == over_ssh) for over_ssh in self.most}
        self.streams: dict[Any, _Stream] = {}
        self.tried: dict[str, list[dict[str, Any]]] = {}
        self.done = 0
        self.failed: Counter[str] = Counter()
        self.wait_s = _FIRST_SIGN_S
        self.head: str = self.ray.get_runtime_context().gcs_address
        self.head_at = time.monotonic()
        task = self.ray.remote(num_cpus=1, max_retries=0, num_returns="streaming")(_collect_batch)
        self.submit: Callable[..., Any] = lambda todo, at_once, **options: task.options(**options).remote(
            todo, limits, collect, at_once
        )

    def drive(self) -> None:
        """Keep as many targets under way as may be until nothing waits."""
        for target, reason in self.unreachable:
            now = time.time_ns() // 1000
            self._settle(target, [runner.result(1, None, now, 0, "unreachable", "NoSuchNode", reason)])
        try:
            while any(self.waiting.values()) or self.streams:
                for over_ssh, waiting in self.waiting.items():
                    free = self.most[over_ssh] - self._under_way(over_ssh)
                    while waiting and free > 0:
                        free -= self._start(self._next(over_ssh), free)
                ready = self._ready()
                cluster.raise_if_interrupted()
                if time.monotonic() - self.head_at >= _LOOK_S:
                    self._await_head()
                if not ready:
                    self._look()
                self.wait_s = _LOOK_S
                for generator in ready:
                    self._receive(self.streams[generator])
        finally:
            for generator in self.streams:
                self.ray.cancel(generator, force=True)

    def _ready(self) -> list[Any]:
        """Wait for news and return the batches that have some: all, as to ask costs 4 us for each under way."""
        streams = list(self.streams)
        ready, _ = self.ray.wait(streams, num_returns=len(streams), timeout=0)
        if not ready:
            ready, _ = self.ray.wait(streams, num_returns=1, timeout=self.wait_s)
        return ready

    def _await_head(self) -> None:
        """See that the cluster's head is there, while this process may still say what is kept.

        :raises ClusterError: it is gone.
        """
        until = time.monotonic() + _HEAD_S
        while True:
            try:
                cluster.reach(self.head)
                self.head_at = time.monotonic()
                return
            except OSError as error:
                if time.monotonic() > until:
                    raise ClusterError(f"the head of the Ray cluster at {self.head} is gone: {error}") from error
            time.sleep(1)

    def _look(self) -> None:
        """After a time without news say what may be missing.

        :raises ClusterError: what is under way waits for a CPU, and no node that lives has one.
        """
        if any(stream.node for stream in self.streams.values()):
            return
        waits_for_cpu = any(not stream.batch.over_ssh and stream.batch.node is None for stream in self.streams.values())
        if waits_for_cpu and not self.ray.cluster_resources().get("CPU"):
            raise ClusterError("no node of the Ray cluster is left that has a CPU")
        if self.wait_s == _FIRST_SIGN_S:
            _log.warning("no worker has begun after %g s: has Ray no free CPU?", self.wait_s)

    def _under_way(self, over_ssh: bool) -> int:
        """Return how many targets are being collected."""
        streams = [stream for stream in self.streams.values() if stream.batch.over_ssh == over_ssh]
        return sum(min(stream.at_once, len(stream.waiting)) for stream in streams)

    def _next(self, over_ssh: bool) -> Batch:
        """Take a batch; over ssh as many as keep a worker busy, but a target that was tried before is alone."""
        waiting = self.waiting[over_ssh]
        batch = waiting.popleft()
        while over_ssh and waiting and len(batch.targets) + len(waiting[0].targets) <= _SSH_AT_ONCE:
            if waiting[0].node != batch.node or not self.tried.keys().isdisjoint(
                target.name for target in (*batch.targets, *waiting[0].targets)
            ):
                break
            batch = replace(batch, targets=batch.targets + waiting.popleft().targets)
        return batch

    def _start(self, batch: Batch, free: int) -> int:
        """Start a batch and return how many of its targets are collected at a time."""
        todo = [(target, len(self.tried.get(target.name, ())) + 1) for target in batch.targets]
        at_once = min(len(todo), _SSH_AT_ONCE, free) if batch.over_ssh else 1
        options: dict[str, Any] = {}
        if batch.over_ssh:
            options = {"scheduling_strategy": "SPREAD", "num_cpus": 0}
        if batch.node is not None:
            node = self.ray.get_runtime_context().get_node_id() if batch.node == HERE else batch.node
            affinity = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
            # No CPU is asked for: a cluster's head may have none to give, and then a task waits for ever.
            options = {"scheduling_strategy": affinity(node, soft=False), "num_cpus": 0}
        generator = self.submit(todo, at_once, **options)
        self.streams[generator] = _Stream(batch, at_once, generator)
        return at_once

    def _receive(self, stream: _Stream) -> None:
        """Take the next thing a batch delivered: its node, an attempt, or its end, good or bad."""
        try:
            item = self.ray.get(next(stream.generator))
        except StopIteration:
            del self.streams[stream.generator]
            return
        except self.ray.exceptions.RayError as error:
            del self.streams[stream.generator]
            self._lose(stream, error)
            return
        if stream.node is None:
            stream.node = item
        else:
            name, attempt = item
            self._finish(stream.waiting.pop(name), stream.batch, attempt)
        stream.tick()

    def _lose(self, stream: _Stream, error: Exception) -> None:
        """Plan again what a dead batch left: what it died at one by one, the rest as they were, not blamed.

        Of several that it may have died at only one is to blame, and alone they show which.

        An outcome that was on its way when the worker died was lost too: its target is then what it died at.
        """
        left = tuple(stream.waiting.values())
        suspects, rest = left[: stream.at_once], left[stream.at_once :]
        duration_ms = round((time.monotonic() - stream.start) * 1000)
        if isinstance(error, self.ray.exceptions.RayTaskError):
            error = error.cause  # what was raised in the worker
        ending = "lost", type(error).__name__, str(error).strip().partition("\n")[0]
        if rest:
            self.waiting[stream.batch.over_ssh].appendleft(replace(stream.batch, targets=rest))
        for suspect in suspects:
            attempt = len(self.tried.get(suspect.name, ())) + 1
            lost = runner.result(attempt, stream.node, stream.started_at, duration_ms, *ending)
            self._finish(suspect, stream.batch, lost, shared=len(suspects) > 1)

    def _finish(self, target: Target, batch: Batch, attempt: dict[str, Any], shared: bool = False) -> None:
        """Settle a target of a batch after an attempt, or try it again; shared: it was lost together with others."""
        attempts = [*self.tried.pop(target.name, ()), attempt]
        row = attempt["attempt"]
        may_change = row["status"] in _RETRIED or row["error_type"] == _KILLED
        if may_change and len(attempts) <= max(self.retries, shared):
            self.tried[target.name] = attempts
            self.waiting[batch.over_ssh].appendleft(replace(batch, targets=(target,)))
            return
        self._settle(target, attempts)

    def _settle(self, target: Target, attempts: list[dict[str, Any]]) -> None:
        """Hand out an outcome."""
        self.on_outcome(runner.outcome(target, attempts))
        self.done += 1
        status = attempts[-1]["attempt"]["status"]
        self.failed[status] += status not in GOOD
        if self.progress:
            self.progress.update(self.done, +self.failed)
