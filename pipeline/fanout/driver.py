"""The driver of a run: sends batches to workers, receives attempts one by one, and re-queues lost work.

A batch is never retried as such: the driver re-queues the targets that a lost batch did not deliver, and records each
try as an attempt.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, Protocol

from pipeline.collector.status import GOOD
from pipeline.common.text import joined_lines
from pipeline.fanout import cluster, interrupts, runner
from pipeline.fanout.cluster import ClusterError
from pipeline.fanout.workers import OUT_OF_MEMORY, PREEMPTED, Collect, LocalWorker, WorkerLost, Workers
from pipeline.inventory import Target
from pipeline.inventory.plan import Batch, Plan

# Statuses that may change on a retry: the worker died, or the live kernel changed during every read.
_RETRY_STATUSES = {"lost", "inconsistent"}
# Retry after a SIGKILL that the runner did not send: a dying node may end a collector before its worker, and the
# kernel's OOM killer may choose any process. The runner's own limits have statuses of their own. A collector can report
# any error type, but not this status.
_RETRY_CRASH = "crashed", "signal:SIGKILL"

# So many preemptions cost a target no retry. One that is preempted more often takes longer than these nodes live.
_MAX_PREEMPTIONS = 5

# Hosts that a worker waits for at a time. A worker takes 100 MB, and a collection over ssh uses no CPU here.
_MAX_SSH_PER_WORKER = 8

# Warn when no worker has started after this long.
_FIRST_WORKER_S = 10.0
# Check the head and the CPUs of the cluster this often.
_CHECK_INTERVAL_S = 20.0
# Wait this long for a node with a CPU: an autoscaler starts one in 1 to 3 minutes. Say so each minute.
_NODE_WAIT_S = 300.0
_NODE_NOTICE_S = 60.0

# A batch occupies a CPU of a node, or waits for hosts over ssh; each has its own limit of concurrent targets.
_Transport = Literal["node", "ssh"]

_log = logging.getLogger(__name__)


class Progress(Protocol):
    """Receives the progress of a run."""

    def update(self, done_count: int, counts: Mapping[str, int]) -> None:
        """Take the number of targets with an outcome, and how many of these have each bad status or are `unchanged`."""


def run(
    plan: Plan,
    *,
    on_outcome: Callable[[dict[str, Any]], None],
    progress: Progress | None = None,
    limits: runner.Limits | None = None,
    retries: int = 1,
    known_digests: Mapping[str, str] | None = None,
    collect: Collect = runner.run,
    workers: Workers | None = None,
    grows: bool = False,
) -> None:
    """Collect every target of the plan; pass each outcome to `on_outcome`, in this thread, as it arrives.

    An outcome has the form of `runner.outcome`, with `input_digest` in the row, and the tables of a collected target as
    JSON text by column. That of a core which is not read, since it has not changed, has no attempts, and `unchanged` is
    True.

    :param limits: limits of one collection; a target's timeout_s takes precedence.
    :param retries: how often a target is retried after a result that may change: lost, inconsistent, or crashed by a
        SIGKILL. A target that was lost together with others is retried alone in any case.
    :param known_digests: digests of cores in earlier runs by target; a core that still has its digest is not read. With
        None, no digests are made.
    :param collect: the function that a worker calls for each target, from several threads for targets over ssh.
    :param workers: default those of `connection`, for this call.
    :param grows: whether as many targets are collected at a time as a cluster that grows has CPUs.
    :raises ClusterError: Ray cannot be started or joined, or no node is left that can collect.
    """
    with contextlib.nullcontext(workers) if workers else connection(plan) as workers:
        limits = limits or runner.Limits()
        _Run(workers, plan, on_outcome, progress, limits, retries, known_digests, collect, grows).drive()


@contextlib.contextmanager
def connection(plan: Plan, address: str | None = None) -> Iterator[Workers]:
    """Connect to the workers for a plan while the block lasts: those of Ray, or this process.

    This process is enough for a plan that collects one target at a time, unless it belongs to a cluster: Ray's start
    and end take longer than the audit of a core. SIGINT and SIGTERM raise KeyboardInterrupt.

    :param address: as for `cluster.connection`.
    """
    node_slots, ssh_slots = (plan.concurrency(over_ssh) for over_ssh in (False, True))
    address = cluster.address_to_join(address)
    if address or cluster.is_connected() or node_slots + ssh_slots > 1:
        ssh_workers = -(-ssh_slots // _MAX_SSH_PER_WORKER)
        with cluster.connection(max(1, node_slots), address or "local", ssh_workers) as workers:
            yield workers
    else:
        with interrupts.Handlers() as handlers:
            handlers.deliver()
            yield LocalWorker()


class _Stream:
    """A running batch, and the targets that it has not delivered.

    :param concurrency: how many targets the worker collects at a time.
    """

    def __init__(self, batch: Batch, concurrency: int) -> None:
        self.batch = batch
        self.targets_left = {target.name: target for target in batch.targets}
        self.concurrency = concurrency
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
        workers: Workers,
        plan: Plan,
        on_outcome: Callable[[dict[str, Any]], None],
        progress: Progress | None,
        limits: runner.Limits,
        retries: int,
        known_digests: Mapping[str, str] | None,
        collect: Collect,
        grows: bool,
    ) -> None:
        self.workers = workers
        self.on_outcome = on_outcome
        self.progress = progress
        self.retries = retries
        self.known_digests = known_digests
        self.unreachable = plan.unreachable
        self.limits = limits
        self.collect = collect
        self.grows = grows
        self.slots_by_transport: dict[_Transport, int] = {"node": plan.parallel, "ssh": plan.ssh_parallel}
        self.queue_by_transport: dict[_Transport, deque[Batch]] = {"node": deque(), "ssh": deque()}
        for batch in plan.batches:
            self.queue_by_transport[_transport(batch)].append(batch)
        self.streams: dict[Any, _Stream] = {}
        self.past_attempts: dict[str, list[dict[str, Any]]] = {}
        self.done_count = 0
        self.counts: Counter[str] = Counter()
        self.next_check = 0.0
        self.has_had_cpu = False
        self.cpu_deadline: float | None = None
        self.next_notice = 0.0
        self.first_worker_deadline = time.monotonic() + _FIRST_WORKER_S

    def drive(self) -> None:
        """Start batches while slots are free and receive their attempts, until no batch is queued or running."""
        for target, reason, error_type in self.unreachable:
            started_at = time.time_ns() // 1000
            attempt = runner.result(1, None, started_at, 0, "unreachable", error_type, reason)
            self._deliver(runner.outcome(target, [attempt]), "unreachable")
        try:
            while self._has_batches():
                for transport, queue in self.queue_by_transport.items():
                    free_slots = self.slots_by_transport[transport] - self._running_targets(transport)
                    while queue and free_slots > 0:
                        free_slots -= self._start(self._next_batch(transport), free_slots)
                if time.monotonic() >= self.next_check:
                    self._check_cluster()
                keys = self.workers.wait(list(self.streams), max(0, self.next_check - time.monotonic()))
                interrupts.raise_if_interrupted()
                for key in keys:
                    self._receive(key)
        finally:
            for key in self.streams:
                self.workers.cancel(key)

    def _check_cluster(self) -> None:
        """Check that the head answers and that batches can get a CPU, and use those that the cluster has now.

        :raises ClusterError: the head is gone, or nothing can run for want of a CPU.
        """
        now = time.monotonic()
        self.next_check = min(now + _CHECK_INTERVAL_S, max(now, self.first_worker_deadline))
        self.workers.check_head()
        cpus = self.workers.cpus()
        self.has_had_cpu |= cpus > 0
        if self.grows:
            self.slots_by_transport["node"] = max(self.slots_by_transport["node"], cpus)
        waits_for_cpu = any(not stream.batch.over_ssh and stream.batch.node is None for stream in self.streams.values())
        if any(stream.node for stream in self.streams.values()):
            self.cpu_deadline, self.first_worker_deadline = None, math.inf
        elif waits_for_cpu and not cpus:
            self._wait_for_cpu(now)
        elif now >= self.first_worker_deadline:
            _log.warning("no worker has started after %g s: does Ray have a free CPU?", _FIRST_WORKER_S)
            self.first_worker_deadline = math.inf

    def _wait_for_cpu(self, now: float) -> None:
        """Say each minute that the cluster has no CPU: an autoscaler starts a node for a task that waits for one.

        :raises ClusterError: it has had none for _NODE_WAIT_S.
        """
        if self.cpu_deadline is None:
            self.cpu_deadline, self.next_notice = now + _NODE_WAIT_S, now
        if now >= self.cpu_deadline:
            if self.has_had_cpu:
                raise ClusterError("no node with a CPU is left in the Ray cluster")
            raise ClusterError(f"no node with a CPU joined the Ray cluster within {_NODE_WAIT_S:g} s")
        if now >= self.next_notice:
            missing = "none any more" if self.has_had_cpu else "none yet"
            _log.warning("waiting for a node with a CPU: the cluster has %s", missing)
            self.next_notice += _NODE_NOTICE_S

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
        arguments = targets, self.limits, self.collect, concurrency, self._known_digests_of(batch)
        key = self.workers.start(batch, *arguments)
        self.streams[key] = _Stream(batch, concurrency)
        return concurrency

    def _known_digests_of(self, batch: Batch) -> dict[str, str] | None:
        """Return the known digests of a batch; a target that is retried has none, since it has an attempt already."""
        if self.known_digests is None:
            return None
        names = {target.name for target in batch.targets} - self.past_attempts.keys()
        return {name: self.known_digests[name] for name in names & self.known_digests.keys()}

    def _receive(self, key: Any) -> None:
        """Take the next item of a batch: its node and unchanged cores, an attempt, or its end or loss."""
        stream = self.streams[key]
        try:
            item = self.workers.receive(key)
        except StopIteration:
            del self.streams[key]
            return
        except WorkerLost as error:
            del self.streams[key]
            self._requeue(stream, error)
            return
        if stream.node is None:
            stream.node, unchanged_names = item
            for name in unchanged_names:
                unchanged = runner.outcome(stream.targets_left.pop(name), [])
                self._deliver({**unchanged, "unchanged": True}, "unchanged")
        else:
            name, attempt = item
            self._finish(stream.targets_left.pop(name), stream.batch, attempt)
        stream.restart_clock()

    def _requeue(self, stream: _Stream, error: WorkerLost) -> None:
        """Re-queue the targets of a lost batch: each that may have been running alone, the others as one batch.

        One of the targets that were running may have killed the worker; each is retried alone to find out which.
        The others had not started, and the loss does not count as an attempt at them. If an attempt was in transit when
        the worker died, it was lost too, and its target counts as running.
        """
        targets = tuple(stream.targets_left.values())
        suspects, queued_targets = targets[: stream.concurrency], targets[stream.concurrency :]
        duration_ms = round((time.monotonic() - stream.start) * 1000)
        failure = error.status, error.error_type, joined_lines(str(error))
        queue = self.queue_by_transport[_transport(stream.batch)]
        if queued_targets:
            queue.appendleft(replace(stream.batch, targets=queued_targets))
        for suspect in suspects:
            number = len(self.past_attempts.get(suspect.name, ())) + 1
            attempt = runner.result(number, stream.node, stream.started_at, duration_ms, *failure)
            self._finish(suspect, stream.batch, attempt, error, is_shared_loss=len(suspects) > 1)

    def _finish(
        self,
        target: Target,
        batch: Batch,
        attempt: dict[str, Any],
        loss: WorkerLost | None = None,
        is_shared_loss: bool = False,
    ) -> None:
        """Deliver a target's outcome after an attempt, or re-queue the target for a retry.

        :param loss: the end of the worker that collected the target, if that ended the attempt.
        :param is_shared_loss: whether the target was lost together with others.
        """
        attempts = [*self.past_attempts.pop(target.name, ()), attempt]
        row = attempt["attempt"]
        # Ray's memory monitor ends a worker for what others use.
        is_out_of_memory = loss is not None and loss.error_type == OUT_OF_MEMORY
        may_change = row["status"] in _RETRY_STATUSES or _end(attempt) == _RETRY_CRASH or is_out_of_memory
        preempted_count = sum(_end(past) == ("lost", PREEMPTED) for past in attempts)
        counted_count = len(attempts) - min(preempted_count, _MAX_PREEMPTIONS)
        # Memory that was full a moment ago still is, unless others that run now end before.
        is_hopeless = is_out_of_memory and not is_shared_loss and not self._has_batches()
        if may_change and not is_hopeless and counted_count <= max(self.retries, is_shared_loss):
            self.past_attempts[target.name] = attempts
            queue = self.queue_by_transport[_transport(batch)]
            add = queue.append if is_out_of_memory else queue.appendleft
            add(replace(batch, targets=(target,)))
            return
        outcome = runner.outcome(target, attempts)
        outcome["row"]["input_digest"] = attempt.get("input_digest")
        self._deliver(outcome, row["status"])

    def _has_batches(self) -> bool:
        """Whether a batch is queued or running."""
        return bool(self.streams or any(self.queue_by_transport.values()))

    def _deliver(self, outcome: dict[str, Any], result: str) -> None:
        """Pass a target's outcome to the caller and report the progress."""
        self.on_outcome(outcome)
        self.done_count += 1
        self.counts[result] += result not in GOOD
        if self.progress:
            self.progress.update(self.done_count, +self.counts)


def _end(attempt: dict[str, Any]) -> tuple[str, str | None]:
    """Return the status and the error type of an attempt."""
    return attempt["attempt"]["status"], attempt["attempt"]["error_type"]


def _transport(batch: Batch) -> _Transport:
    return "ssh" if batch.over_ssh else "node"
