"""Workers, which collect batches: the interface that the driver uses, and the driver's own process as a worker.

The other implementation, on Ray, is in `cluster`.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Protocol

from pipeline.fanout import runner
from pipeline.inventory import Target
from pipeline.inventory.plan import Batch

# Error types of lost batches that the driver treats in their own way.
PREEMPTED = "NodePreempted"
OUT_OF_MEMORY = "OutOfMemoryError"

Collect = Callable[[Target, int, runner.Limits], dict[str, Any]]


class WorkerLost(Exception):
    """A batch ended before it delivered all targets.

    :param error_type: class of the cause, or PREEMPTED: the node was taken away, which costs no retry at first.
    :param status: status of the targets that it was collecting.
    """

    def __init__(self, error_type: str, message: str, status: str = "lost") -> None:
        super().__init__(message)
        self.error_type = error_type
        self.status = status


class Workers(Protocol):
    """Collect batches. A started batch is a hashable stream of the items that `collect_batch` yields."""

    def start(self, batch: Batch, *args: Any) -> Any:
        """Start `collect_batch` with these arguments where the batch belongs, and return its stream."""

    def wait(self, streams: Sequence[Any], timeout_s: float) -> Sequence[Any]:
        """Wait until an item, an end or a loss can be received; return the streams that have one."""

    def receive(self, stream: Any) -> Any:
        """Return the next item of a stream.

        :raises StopIteration: the batch is complete.
        :raises WorkerLost: it will never be.
        """

    def cancel(self, stream: Any) -> None:
        """Kill what a batch has started."""

    def check_head(self) -> None:
        """Check that the head of the cluster answers; a worker without a cluster has none.

        :raises ClusterError: it does not.
        """

    def cpus(self) -> int:
        """Return the number of CPUs of the nodes that are alive."""


class LocalWorker:
    """Collects in the process of the driver, one batch after another, for runs that would wait longer for Ray.

    Each target has a child process in any case. An interrupt of the driver ends the child.
    """

    def start(self, batch: Batch, *args: Any) -> Iterator[Any]:
        return collect_batch(*args)

    def wait(self, streams: Sequence[Any], timeout_s: float) -> Sequence[Any]:
        return streams[:1]

    def receive(self, stream: Iterator[Any]) -> Any:
        try:
            return next(stream)
        except StopIteration:
            raise
        except Exception as error:
            raise WorkerLost(type(error).__name__, str(error)) from error

    def cancel(self, stream: Any) -> None:
        stream.close()

    def check_head(self) -> None:
        pass

    def cpus(self) -> int:
        return 1


def collect_batch(
    targets: Sequence[tuple[Target, int]],
    limits: runner.Limits,
    collect: Collect,
    concurrency: int,
    known_digests: Mapping[str, str] | None,
) -> Iterator[Any]:
    """Collect a batch in a worker: yield its node with the names of unchanged cores, then each other name and attempt.

    :param targets: each with the number of the attempt.
    :param known_digests: as for `driver.run`.
    """
    digester = runner.Digester()
    digests = {} if known_digests is None else digester.digests([target for target, _ in targets])
    unchanged_names = {name for name, digest in digests.items() if known_digests and digest == known_digests.get(name)}
    yield socket.gethostname(), unchanged_names
    targets = [(target, number) for target, number in targets if target.name not in unchanged_names]
    if concurrency == 1:
        for target, number in targets:
            attempt = _collect_as_json(collect, target, number, limits)
            # None if a file was exchanged meanwhile, even if it is put back later.
            digest = digests.get(target.name)
            is_current = digest is not None and digester.digests([target]).get(target.name) == digest
            yield target.name, {**attempt, "input_digest": digest if is_current else None}
        return
    with ThreadPoolExecutor(concurrency) as threads:
        names = {
            threads.submit(_collect_as_json, collect, target, number, limits): target.name for target, number in targets
        }
        for future in as_completed(names):
            yield names.pop(future), future.result()  # what is delivered is not kept


def _collect_as_json(collect: Collect, target: Target, number: int, limits: runner.Limits) -> dict[str, Any]:
    return _with_json_tables(collect(target, number, limits))


def _with_json_tables(attempt: dict[str, Any]) -> dict[str, Any]:
    """Return an attempt with its tables as JSON text, so that the workers encode them and not the one driver."""
    tables = {name: _columns(table) for name, table in attempt["tables"].items()}
    return {**attempt, "tables": json.dumps(tables, separators=(",", ":"))}


def _columns(table: dict[str, list[Any]]) -> dict[str, Sequence[Any]]:
    """Return the cells of a table by column: Arrow's JSON reader parses columns, not rows."""
    cells = zip(*table["rows"], strict=True) if table["rows"] else [()] * len(table["columns"])
    return dict(zip(table["columns"], cells, strict=True))
