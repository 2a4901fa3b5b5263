"""The driver of a run: sends batches to Ray's workers, receives attempts one by one, and re-queues lost work.

Ray has no deadline for a task, and leaves no trace of a task that it retries itself. A batch is therefore a generator
task that Ray never retries. The driver re-queues the targets that a lost batch did not deliver, and records each try as
an attempt.
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
from typing import Any, Literal, Protocol

from pipeline.collector.status import GOOD
from pipeline.fanout import cluster, runner
from pipeline.fanout.cluster import ClusterError
from pipeline.inventory import Target
from pipeline.inventory.plan import LOCAL_NODE, Batch, Plan

Collect = Callable[[Target, int, runner.Limits], dict[str, Any]]

# Statuses that may change on a retry: the worker died, or the live kernel changed during every read.
_RETRY_STATUSES = {"lost", "inconsistent"}
# Retry after a SIGKILL that the runner did not send: a dying node may end a collector before its worker, and the
# kernel's OOM killer may choose any process. The runner's own limits have statuses of their own.
_SIGKILL_ERROR_TYPE = "signal:SIGKILL"

# Hosts that a worker waits for at a time. A worker takes 100 MB, and a collection over ssh uses no CPU here.
_MAX_SSH_PER_WORKER = 8

# Warn when no worker has started after this long.
_FIRST_WORKER_S = 10.0
# Check the head this often. Check for a node with a CPU after this long without a delivery.
_CHECK_INTERVAL_S = 20.0
# Time for a head to restart. Ray ends this process and each node a minute after the head's end.
_HEAD_RESTART_S = 10.0

# A batch occupies a CPU of a node, or waits for hosts over ssh; each has its own limit of concurrent targets.
_Transport = Literal["node", "ssh"]

_log = logging.getLogger(__name__)


class Progress(Protocol):
    """Receives the progress of a run."""

    def update(self, done_count: int, failure_counts: Mapping[str, int]) -> None:
        """Take the number of targets with an outcome and, of these, the number with each status that is not good."""


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
    """Collect every target of the plan; pass each outcome to `on_outcome`, in this thread, as it arrives.

    An outcome has the form of `runner.outcome`, except that the tables of a collected target are JSON text.

    :param limits: limits of one collection; a target's timeout_s takes precedence.
    :param retries: how often a target is retried after a result that may change: lost, inconsistent, or crashed by a
        SIGKILL. A target that was lost together with others is retried alone in any case.
    :param address: the Ray cluster to join, default RAY_ADDRESS; without either an embedded Ray for this call.
    :param collect: the function that a worker calls for each target, from several threads for targets over ssh.
    :raises ClusterError: Ray cannot be started or joined, or no node is left that can collect.
    """
    with cluster.connection(plan.parallel, address) as ray:
        _Run(ray, plan, on_outcome, progress, limits or runner.Limits(), retries, collect).drive()


def _collect_batch(
    targets: Sequence[tuple[Target, int]], limits: runner.Limits, collect: Collect, concurrency: int
) -> Iterator[Any]:
    """Collect a batch in a worker: yield the node's name, then the name of each target with its attempt.

    :param targets: each with the number of the attempt.
    """
    yield socket.gethostname()
    if concurrency == 1:
        for target, number in targets:
            yield target.name, _with_json_tables(collect(target, number, limits))
        return
    with ThreadPoolExecutor(concurrency) as threads:
        names = {threads.submit(collect, target, number, limits): target.name for target, number in targets}
        for future in as_completed(names):
            yield names[future], _with_json_tables(future.result())


def _with_json_tables(attempt: dict[str, Any]) -> dict[str, Any]:
    """Return an attempt with its tables as JSON text, so that the workers encode them and not the one driver."""
    return {**attempt, "tables": json.dumps(attempt["tables"], separators=(",", ":"))}


class _Stream:
    """A running batch: its generator, and the targets that it has not delivered.

    :param concurrency: how many targets the worker collects at a time.
    """

    def __init__(self, batch: Batch, concurrency: int, generator: Any) -> None:
        self.batch = batch
        self.targets_left = {target.name: target for target in batch.targets}
        self.concurrency = concurrency
        self.generator = generator
        self.node: str | None = None
        self.restart_clock()

    def restart_clock(self) -> None:
        """Record the start of the next target, which is when the worker delivered the one before it."""
        self.started_at = time.time_ns() // 1000
        self.start = time.monotonic()


class _Run:
    """The driver's state of one run: queued batches, running batches, and the attempts of targets to retry."""

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
        self.limits = limits
        self.collect = collect
        self.slots_by_transport: dict[_Transport, int] = {"node": plan.parallel, "ssh": plan.ssh_parallel}
        self.queue_by_transport: dict[_Transport, deque[Batch]] = {"node": deque(), "ssh": deque()}
        for batch in plan.batches:
            self.queue_by_transport[_transport(batch)].append(batch)
        self.streams: dict[Any, _Stream] = {}
        self.past_attempts: dict[str, list[dict[str, Any]]] = {}
        self.done_count = 0
        self.failure_counts: Counter[str] = Counter()
        self.wait_s = _FIRST_WORKER_S
        self.head: str = self.ray.get_runtime_context().gcs_address
        self.last_head_check = time.monotonic()
        self.task = self.ray.remote(num_cpus=1, max_retries=0, num_returns="streaming")(_collect_batch)

    def drive(self) -> None:
        """Start batches while slots are free and receive their attempts, until no batch is queued or running."""
        for target, reason in self.unreachable:
            started_at = time.time_ns() // 1000
            self._deliver(target, [runner.result(1, None, started_at, 0, "unreachable", "NoSuchNode", reason)])
        try:
            while any(self.queue_by_transport.values()) or self.streams:
                for transport, queue in self.queue_by_transport.items():
                    free_slots = self.slots_by_transport[transport] - self._running_targets(transport)
                    while queue and free_slots > 0:
                        free_slots -= self._start(self._next_batch(transport), free_slots)
                generators = self._wait()
                cluster.raise_if_interrupted()
                if time.monotonic() - self.last_head_check >= _CHECK_INTERVAL_S:
                    self._check_head()
                if not generators:
                    self._check_workers()
                self.wait_s = _CHECK_INTERVAL_S
                for generator in generators:
                    self._receive(self.streams[generator])
        finally:
            for generator in self.streams:
                self.ray.cancel(generator, force=True)

    def _wait(self) -> list[Any]:
        """Wait for a delivery; return all generators that have one, as a call of ray.wait costs 4 us per generator."""
        streams = list(self.streams)
        ready, _ = self.ray.wait(streams, num_returns=len(streams), timeout=0)
        if not ready:
            ready, _ = self.ray.wait(streams, num_returns=1, timeout=self.wait_s)
        return ready

    def _check_head(self) -> None:
        """Check that the cluster's head answers, in time for this process to report what it has kept.

        :raises ClusterError: the head has not answered for _HEAD_RESTART_S.
        """
        deadline = time.monotonic() + _HEAD_RESTART_S
        while True:
            try:
                cluster.check_listening(self.head)
                self.last_head_check = time.monotonic()
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ClusterError(f"the head of the Ray cluster at {self.head} is gone: {error}") from error
            time.sleep(1)

    def _check_workers(self) -> None:
        """Warn if no worker has started after the first wait.

        :raises ClusterError: a running batch waits for a CPU, and no node that is alive has one.
        """
        if any(stream.node for stream in self.streams.values()):
            return
        waits_for_cpu = any(not stream.batch.over_ssh and stream.batch.node is None for stream in self.streams.values())
        if waits_for_cpu and not self.ray.cluster_resources().get("CPU"):
            raise ClusterError("no node with a CPU is left in the Ray cluster")
        if self.wait_s == _FIRST_WORKER_S:
            _log.warning("no worker has started after %g s: does Ray have a free CPU?", self.wait_s)

    def _running_targets(self, transport: _Transport) -> int:
        """Return how many targets are being collected."""
        streams = [stream for stream in self.streams.values() if _transport(stream.batch) == transport]
        return sum(min(stream.concurrency, len(stream.targets_left)) for stream in streams)

    def _next_batch(self, transport: _Transport) -> Batch:
        """Dequeue a batch; over ssh merge batches up to what a worker takes, but never one with a target to retry."""
        queue = self.queue_by_transport[transport]
        batch = queue.popleft()
        while transport == "ssh" and queue and len(batch.targets) + len(queue[0].targets) <= _MAX_SSH_PER_WORKER:
            if queue[0].node != batch.node or not self.past_attempts.keys().isdisjoint(
                target.name for target in (*batch.targets, *queue[0].targets)
            ):
                break
            batch = replace(batch, targets=batch.targets + queue.popleft().targets)
        return batch

    def _start(self, batch: Batch, free_slots: int) -> int:
        """Start a batch and return how many of its targets are collected at a time."""
        targets = [(target, len(self.past_attempts.get(target.name, ())) + 1) for target in batch.targets]
        concurrency = min(len(targets), _MAX_SSH_PER_WORKER, free_slots) if batch.over_ssh else 1
        options: dict[str, Any] = {}
        if batch.over_ssh:
            options = {"scheduling_strategy": "SPREAD", "num_cpus": 0}
        if batch.node is not None:
            node = self.ray.get_runtime_context().get_node_id() if batch.node == LOCAL_NODE else batch.node
            affinity = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
            # Request no CPU: the head of a cluster may have none, and a task that requests one would wait for ever.
            options = {"scheduling_strategy": affinity(node, soft=False), "num_cpus": 0}
        generator = self.task.options(**options).remote(targets, self.limits, self.collect, concurrency)
        self.streams[generator] = _Stream(batch, concurrency, generator)
        return concurrency

    def _receive(self, stream: _Stream) -> None:
        """Take the next item of a batch: the name of its node, an attempt, or its end or loss."""
        try:
            item = self.ray.get(next(stream.generator))
        except StopIteration:
            del self.streams[stream.generator]
            return
        except self.ray.exceptions.RayError as error:
            del self.streams[stream.generator]
            self._requeue(stream, error)
            return
        if stream.node is None:
            stream.node = item
        else:
            name, attempt = item
            self._finish(stream.targets_left.pop(name), stream.batch, attempt)
        stream.restart_clock()

    def _requeue(self, stream: _Stream, error: Exception) -> None:
        """Re-queue the targets of a lost batch: each that may have been running alone, the others as one batch.

        One of the targets that were running may have killed the worker; each is retried alone to find out which.
        The others had not started, and the loss does not count as an attempt at them. If an attempt was in transit when
        the worker died, it was lost too, and its target counts as running.
        """
        targets = tuple(stream.targets_left.values())
        suspects, queued_targets = targets[: stream.concurrency], targets[stream.concurrency :]
        duration_ms = round((time.monotonic() - stream.start) * 1000)
        if isinstance(error, self.ray.exceptions.RayTaskError):
            error = error.cause  # the exception raised in the worker
        failure = "lost", type(error).__name__, str(error).strip().partition("\n")[0]
        queue = self.queue_by_transport[_transport(stream.batch)]
        if queued_targets:
            queue.appendleft(replace(stream.batch, targets=queued_targets))
        for suspect in suspects:
            number = len(self.past_attempts.get(suspect.name, ())) + 1
            attempt = runner.result(number, stream.node, stream.started_at, duration_ms, *failure)
            self._finish(suspect, stream.batch, attempt, is_shared_loss=len(suspects) > 1)

    def _finish(self, target: Target, batch: Batch, attempt: dict[str, Any], is_shared_loss: bool = False) -> None:
        """Deliver a target's outcome after an attempt, or re-queue the target for a retry.

        :param is_shared_loss: whether the target was lost together with others.
        """
        attempts = [*self.past_attempts.pop(target.name, ()), attempt]
        row = attempt["attempt"]
        may_change = row["status"] in _RETRY_STATUSES or row["error_type"] == _SIGKILL_ERROR_TYPE
        if may_change and len(attempts) <= max(self.retries, is_shared_loss):
            self.past_attempts[target.name] = attempts
            self.queue_by_transport[_transport(batch)].appendleft(replace(batch, targets=(target,)))
            return
        self._deliver(target, attempts)

    def _deliver(self, target: Target, attempts: list[dict[str, Any]]) -> None:
        """Pass a target's outcome to the caller and report the progress."""
        self.on_outcome(runner.outcome(target, attempts))
        self.done_count += 1
        status = attempts[-1]["attempt"]["status"]
        self.failure_counts[status] += status not in GOOD
        if self.progress:
            self.progress.update(self.done_count, +self.failure_counts)


def _transport(batch: Batch) -> _Transport:
    return "ssh" if batch.over_ssh else "node"
