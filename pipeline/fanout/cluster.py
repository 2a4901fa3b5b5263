"""Connection to Ray: a running cluster, or an embedded one with its own token, directory and processes.

Only this module imports Ray. Ray starts and shuts down in a thread, so that neither delays a signal or takes for ever.
An embedded Ray leaves nothing behind: the next embedded Ray removes the leftovers of a killed driver.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

from pipeline.common import limits, scratch
from pipeline.common.errors import AuditError, UsageError
from pipeline.common.text import joined_lines, quote
from pipeline.fanout import interrupts, needs, runner
from pipeline.fanout.workers import OUT_OF_MEMORY, PREEMPTED, WorkerLost, collect_batch
from pipeline.inventory.plan import LOCAL_NODE, Batch, Node, this_machine

_CONNECT_TIMEOUT_S = 10.0
# Time for a head to restart. Ray ends this process and each node a minute after the head's end.
_HEAD_RESTART_S = 10.0
# Give a start up after this long: it takes 1 to 3 s, and on a machine with 20 runnable processes for each CPU 15 s.
_START_TIMEOUT_S = 60.0
# Wait this long for a start that is given up to stop; it may be in a call that takes longer.
_STOP_TIMEOUT_S = 3.0
# Ask a raylet again after this long.
_ANSWER_TIMEOUT_S = 1.0
# Kill Ray's processes if their shutdown, of 1 s, takes longer than this.
_END_TIMEOUT_S = 5.0
# Wait this long for killed processes to exit: one in uninterruptible sleep may never do so.
_KILL_TIMEOUT_S = 5.0

_DIRECTORY_PREFIX = "lru-ray."
# Environment variable that identifies the processes of an embedded Ray; its value is their directory.
_DIRECTORY_VARIABLE = "RAY_LRU_AUDIT_DIRECTORY"
# Snapshots are a few MB and are fetched immediately; Ray accepts no less than 75 MB.
_OBJECT_STORE_BYTES = 128 << 20
# Ray keeps the first token that a process uses, so all clusters of this process share one.
_TOKEN = secrets.token_hex(32)
# Settings of an embedded Ray, which is a guest: Ray's own suit a machine of its own. The account's take precedence.
_GUEST_SETTINGS = {
    "RAY_memory_monitor_refresh_ms": "0",  # else Ray kills its workers for the memory that others use
    "RAY_prestart_worker_first_driver": "0",  # else the start waits for workers, and for ever if one cannot start
    "RAY_worker_niceness": "0",  # default 15, which would add to the niceness of a child
    # Threads by the number of CPUs otherwise: on 192 of these 550 instead of 150, and 990 MiB instead of 290.
    "RAY_gcs_server_rpc_client_thread_num": "1",
    "RAY_gcs_server_rpc_server_thread_num": "1",
    "RAY_num_grpc_internal_threads": "1",
    "RAY_num_server_call_thread": "1",
    "RAY_worker_num_grpc_internal_threads": "1",
}
_QUIET_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # suppresses a FutureWarning
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # suppresses a stack trace of bare addresses on SIGTERM
    # Ray prints details of dead workers on stdout, which is for results; the attempts record them anyway.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
}

# Methods of Ray's node that nothing here needs. The first three start processes, which take 1 s to start and 1 s to
# end: the server of the dashboard, the autoscaler, and the one that copies the workers' output to the driver. The last
# makes the exit of this process wait 1 s for those of a start that was given up, which are already killed or stopped.
_UNUSED_METHODS = ("start_api_server", "start_monitor", "start_log_monitor", "_register_shutdown_hooks")

# Schemes of addresses that Ray knows and that are not those of a GCS.
_JOB_SERVER = "a job server's address"
_OTHER_ADDRESSES = {"ray": "a Ray Client address", "http": _JOB_SERVER, "https": _JOB_SERVER}

_T = TypeVar("_T")

# What Ray's exceptions for a lost batch mean; Ray's own words follow.
_LOSSES = {
    "LocalRayletDiedError": "the raylet of the worker's node died",
    "NodeDiedError": "the worker's node died or cannot be reached",
    "ObjectFetchTimedOutError": "the results cannot be fetched from the worker's node",
    "ObjectLostError": "the results were lost with the worker's node",
    "OutOfDiskError": "the disk of the worker's node is full",
    "OwnerDiedError": "the results were lost with the worker",
    "RuntimeEnvSetupError": "the node cannot set up the package that lru-audit sends",
    "TaskCancelledError": "the task was cancelled by another program",
    "TaskUnschedulableError": "the node has left the cluster",
    "WorkerCrashedError": "the worker process died",
}
# Ray's NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED.
_PREEMPTED_DEATH = 3


class ClusterError(AuditError):
    """Ray cannot be started or joined, or was lost; the message is one line."""


def address_to_join(address: str | None = None) -> str | None:
    """Return the address of the cluster to join, default RAY_ADDRESS; None for an embedded Ray, or for "local".

    :raises UsageError: the address has another form than HOST:PORT, "auto" or "local".
    """
    source = "--address" if address else "RAY_ADDRESS"
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address in ("auto", "local") or _is_host_and_port(address):
        return None if address == "local" else address
    kind = _OTHER_ADDRESSES.get(address.partition("://")[0].lower())
    mistake = f"is {kind}, which cannot run an audit" if kind and "://" in address else "is not HOST:PORT"
    raise UsageError(
        f"{source}: {quote(address)} {mistake}; give HOST:PORT of the head's GCS, whose port is 6379 by default, or "
        "submit the audit as a job (docs/deploy.md)"
    )


def _is_host_and_port(address: str) -> bool:
    host, _, port = address.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    return bool(host) and "/" not in host and (is_bracketed or ":" not in host) and _is_port(port)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text) < 1 << 16


def _as_cluster_error(call: Callable[..., _T]) -> Callable[..., _T]:
    """Return a call of Ray that raises ClusterError for whatever Ray raises."""

    @functools.wraps(call)
    def checked_call(*args: Any) -> _T:
        try:
            return call(*args)
        except (AuditError, WorkerLost, StopIteration):
            raise
        except Exception as error:
            raise ClusterError(f"Ray failed: {type(error).__name__}: {joined_lines(str(error))}") from error

    return checked_call


def is_connected() -> bool:
    """Whether this process is connected to Ray."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


@_as_cluster_error
def cpus() -> int:
    """Return the number of CPUs of the connected cluster, else of those that workers here may use, at least 1."""
    if not is_connected():
        return limits.workers()
    return max(1, int(sys.modules["ray"].cluster_resources().get("CPU", 1)))


@_as_cluster_error
def nodes() -> list[Node]:
    """Return the nodes of the connected cluster that are alive, else this machine."""
    if not is_connected():
        return [this_machine()]
    return [
        Node(node["NodeID"], node["NodeManagerHostname"], node["NodeManagerAddress"])
        for node in sys.modules["ray"].nodes()
        if node["Alive"]
    ]


@contextlib.contextmanager
def connection(parallel: int | None = None, address: str | None = None, ssh_workers: int = 0) -> Iterator[RayWorkers]:
    """Connect to Ray while the block lasts, and yield its workers.

    An embedded Ray has a random token, because it listens on all addresses, and keeps its files in a directory that
    only this user may enter. Its processes and the directory are removed at the end. SIGINT, SIGTERM and SIGHUP raise
    KeyboardInterrupt, also during Ray's start; one during its shutdown does so afterwards. After a start that was
    interrupted or took too long, this process cannot use Ray again. A nested call uses the existing connection.

    :param parallel: the number of CPUs of an embedded Ray, which starts as many workers; default this machine's.
    :param address: the cluster to join, default RAY_ADDRESS; without either, or with "local", an embedded Ray.
    :param ssh_workers: the number of workers that an embedded Ray starts besides those, which use no CPU.
    :raises ClusterError: Ray cannot be started or joined.
    """
    if is_connected():
        yield RayWorkers(sys.modules["ray"])
        return
    address = address_to_join(address)
    with interrupts.Handlers() as handlers, contextlib.ExitStack() as stack:
        stack.enter_context(_environment(_QUIET_SETTINGS))
        session = _Session()
        if address:
            options = _join_options(stack, address)
        else:
            options = _embedded_options(stack, parallel or cpus(), ssh_workers, session)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stack.callback(session.end)
            stack.callback(handlers.defer)
            handlers.deliver()
            try:
                ray = session.begin(functools.partial(_init, address or "local", options, session.checkpoint))
            except Exception as error:
                if address:
                    raise ClusterError(f"cannot join the Ray cluster at {address}: {_reason(error)}") from error
                hint = f"is this machine too busy, or a limit too low? {needs.describe_limits(needs.ray_directory())}"
                raise ClusterError(f"cannot start Ray: {_reason(error)}; {hint}") from error
        yield RayWorkers(ray)


def _reason(error: Exception) -> str:
    """Return what Ray says about a start or join that failed, on one line, with the remedy if one is known."""
    text = f"{error} {error.__cause__}"
    if "InvalidAuthToken" in text:
        return "it requires another token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
    versions = re.findall(r"^ +(?:Ray|Python): (\S+)$", text, re.MULTILINE)
    if "Version mismatch" in text and len(versions) == 4:
        theirs, ours = (f"Ray {ray} and Python {python}" for ray, python in (versions[:2], versions[2:]))
        remedy = "run lru-audit with the versions of the cluster, or submit the audit as a job (docs/deploy.md)"
        return f"it has {theirs}, this is {ours}; {remedy}"
    return joined_lines(str(error)).rstrip(".") or type(error).__name__


class _Session(threading.Thread):
    """A thread that starts Ray, lives as long as Ray, and shuts it down.

    Ray's start and shutdown wait in C++ for processes that may hang, without a deadline. The kernel kills an embedded
    Ray's raylet and GCS when the thread that started them ends.
    """

    def __init__(self) -> None:
        super().__init__(name="ray", daemon=True)
        self._has_begun = threading.Event()
        self._shall_end = threading.Event()
        self._is_parked = False
        self._error: Exception | None = None

    def begin(self, init: Callable[[], Any]) -> Any:
        """Start Ray with `init`, and return what it returns.

        :raises TimeoutError: it has not returned within _START_TIMEOUT_S.
        """
        self._init = init
        self.start()
        deadline = time.monotonic() + _START_TIMEOUT_S
        # A signal that one of Ray's threads receives is handled when this thread runs next.
        while not self._has_begun.wait(0.1):
            if time.monotonic() > deadline:
                raise TimeoutError(f"it has not answered within {_START_TIMEOUT_S:g} s")
        if self._error:
            raise self._error
        return self._ray

    def run(self) -> None:
        try:
            self._ray = self._init()
        except Exception as error:
            self._error = error
        finally:
            self._has_begun.set()
        self._shall_end.wait()
        with contextlib.suppress(Exception):  # `remove` kills what is left
            sys.modules["ray"].shutdown()

    def checkpoint(self) -> None:
        """Stop this thread for good if its start was given up, before it creates more processes and files.

        It does not raise an exception: that would destroy objects of Ray, whose destructors can wait for ever with the
        interpreter's lock held, and the raylet would die with the thread.
        """
        if self._shall_end.is_set():
            self._is_parked = True
            self._has_begun.set()
            threading.Event().wait()

    def end(self) -> None:
        """Shut Ray down within _END_TIMEOUT_S; what is left of it then, or of its start, is for `remove`."""
        self._shall_end.set()
        if self.is_alive():
            self._has_begun.wait(_STOP_TIMEOUT_S)
        self._join(_END_TIMEOUT_S)
        if self.is_alive() and (shutdown := getattr(sys.modules.get("ray"), "shutdown", None)):
            atexit.unregister(shutdown)  # which would wait for the same

    def _join(self, timeout_s: float) -> None:
        """Wait for the end of a shutdown, but not of a start."""
        if self.is_alive() and not self._is_given_up():
            self.join(timeout_s)

    def _is_given_up(self) -> bool:
        """Whether the start was given up, and the thread has stopped or is in a call that may never return."""
        return self.is_alive() and (self._is_parked or not self._has_begun.is_set())

    def remove(self, directory: str) -> None:
        """Kill the processes of an embedded Ray, then remove its directory, which Ray's agents would create again.

        The raylet of a start that was given up is stopped only, and dies with this process: Ray ends a process whose
        raylet dies during its start.
        """
        deadline = time.monotonic() + _KILL_TIMEOUT_S
        while _kill_processes(directory, spares_raylet=self._is_given_up()) and time.monotonic() < deadline:
            time.sleep(0.02)
        self._join(_KILL_TIMEOUT_S)  # a shutdown that waited for one of them
        shutil.rmtree(directory, ignore_errors=True)


def _memory_reason(reason: str) -> str:
    """Return why Ray's memory monitor ended a worker, with the figures of Ray's reason, and what to do."""
    figures = re.search(r"\(IP: ([^,]+),.*? was (\S+) used / (\S+) limit", reason, re.DOTALL)
    node, used, limit = figures.groups() if figures else ("", "", "")
    memory = f"node {node} used {used} of {limit} of memory" if figures else f"node ran out of memory ({reason})"
    return (
        f"Ray ended the worker because its {memory}, which may be that of other processes; there raise "
        "RAY_memory_usage_threshold (default 0.95) or set RAY_memory_monitor_refresh_ms=0, or collect fewer at a time"
    )


class RayWorkers:
    """The workers of the connected Ray.

    Ray has no deadline for a task, and leaves no trace of a task that it retries itself. A batch is therefore a
    generator task that Ray never retries.
    """

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._head: str = ray.get_runtime_context().gcs_address
        self._task = ray.remote(num_cpus=1, max_retries=0, num_returns="streaming")(collect_batch)

    @_as_cluster_error
    def start(self, batch: Batch, *args: Any) -> Any:
        options: dict[str, Any] = {}
        if batch.over_ssh:
            options = {"scheduling_strategy": "SPREAD", "num_cpus": 0}
        if batch.node is not None:
            node = self._ray.get_runtime_context().get_node_id() if batch.node == LOCAL_NODE else batch.node
            affinity = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
            # Request no CPU: the head of a cluster may have none, and a task that requests one would wait for ever.
            options = {"scheduling_strategy": affinity(node, soft=False), "num_cpus": 0}
        return self._task.options(**options).remote(*args)

    @_as_cluster_error
    def wait(self, streams: Sequence[Any], timeout_s: float) -> Sequence[Any]:
        """Return all streams that have a delivery, as a call of ray.wait costs 4 us per stream."""
        ready, _ = self._ray.wait(streams, num_returns=len(streams), timeout=0)
        if not ready:
            ready, _ = self._ray.wait(streams, num_returns=1, timeout=timeout_s)
        return list(ready)

    @_as_cluster_error
    def receive(self, stream: Any) -> Any:
        try:
            return self._ray.get(next(stream))
        except self._ray.exceptions.RayTaskError as error:  # an exception raised in the worker
            raise WorkerLost(type(error.cause).__name__, str(error.cause)) from error
        except self._ray.exceptions.OutOfMemoryError as error:
            raise WorkerLost(OUT_OF_MEMORY, _memory_reason(str(error)), "over_budget") from error
        except self._ray.exceptions.RayError as error:
            if self._is_preempted(str(error)):
                raise WorkerLost(PREEMPTED, f"its node was preempted; {error}") from error
            name = type(error).__name__
            raise WorkerLost(name, f"{_LOSSES[name]}: {error}" if name in _LOSSES else str(error)) from error

    def _is_preempted(self, reason: str) -> bool:
        """Whether Ray's reason for a loss names a node that was preempted, or is to be: Ray notes deaths late.

        Ray does not say why a node is drained, but drains one with a running task only to preempt it.
        """
        state = self._ray._private.state.state
        draining_ids = state.get_draining_nodes() if hasattr(state, "get_draining_nodes") else {}
        dead_ids = {node["NodeID"] for node in self._ray.nodes() if node.get("DeathReason") == _PREEMPTED_DEATH}
        return any(node_id in reason for node_id in {*draining_ids, *dead_ids})

    def cancel(self, stream: Any) -> None:
        with contextlib.suppress(Exception):  # the cluster is gone, and the batch with it
            self._ray.cancel(stream, force=True)

    def check_head(self) -> None:
        """Check that the cluster's head answers, in time for this process to report what it has kept.

        :raises ClusterError: the head has not answered for _HEAD_RESTART_S.
        """
        deadline = time.monotonic() + _HEAD_RESTART_S
        while True:
            try:
                check_listening(self._head)
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ClusterError(f"the head of the Ray cluster at {self._head} is gone: {error}") from error
            time.sleep(1)

    @_as_cluster_error
    def cpus(self) -> int:
        return int(self._ray.cluster_resources().get("CPU", 0))


def _init(address: str, options: Mapping[str, Any], checkpoint: Callable[[], None]) -> Any:
    """Import Ray, and start or join it without its SIGTERM handler, which would end the process at any point.

    Ray's processes get process groups of their own: `timeout` sends SIGTERM to the whole group, and a driver whose Ray
    dies during the start exits without an exception. An embedded Ray has only the processes that it needs.

    :param checkpoint: called before each process is started and while one is waited for.
    """
    ray = _import_ray()
    with contextlib.ExitStack() as stack:
        # Private names of Ray. With a release that lacks one, an interrupt during the start takes effect later, and
        # Ray's start and end take longer.
        utils, services, node = ray._private.utils, ray._private.services, ray._private.node.Node
        if hasattr(utils, "set_sigterm_handler"):
            stack.enter_context(mock.patch.object(utils, "set_sigterm_handler"))
        for name in filter(functools.partial(hasattr, node), _UNUSED_METHODS):
            stack.enter_context(mock.patch.object(node, name))
        for module, name, replacement in (
            (services, "ConsolePopen", _start_process),
            (ray._private.node, "wait_for_persisted_port", _wait_for_persisted_port),
            (ray._private.worker, "connect", _connect_to_answering_raylet),
        ):
            if call := getattr(module, name, None):
                stack.enter_context(mock.patch.object(module, name, functools.partial(replacement, checkpoint, call)))
        ray.init(address, log_to_driver=False, logging_level="ERROR", **options)
    return ray


def _start_process(checkpoint: Callable[[], None], popen: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
    checkpoint()
    return popen(*args, process_group=0, **kwargs)


def _wait_for_persisted_port(
    checkpoint: Callable[[], None], wait: Callable[..., int], *args: Any, timeout_ms: int = 30_000
) -> int:
    """Call Ray's `wait` until it returns the port of a process.

    Ray itself waits with the interpreter's lock held, which delays signals.
    """
    deadline = time.monotonic() + timeout_ms / 1000
    while True:
        try:
            return wait(*args, timeout_ms=0)
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
        checkpoint()
        time.sleep(0.01)


def _connect_to_answering_raylet(
    checkpoint: Callable[[], None], connect: Callable[..., Any], node: Any, *args: Any, **kwargs: Any
) -> Any:
    """Call Ray's `connect` once the node's raylet answers.

    Ray itself waits with the interpreter's lock held, which delays signals, and after 30 s ends this process.

    :raises OSError: the raylet does not accept connections.
    """
    host, port = node.node_ip_address, node.node_manager_port
    try:
        while not _is_answering(host, port):
            checkpoint()
    except OSError as error:
        raise OSError(f"the raylet at {host}:{port} does not accept connections: {error}") from error
    checkpoint()
    return connect(node, *args, **kwargs)


def _is_answering(host: str, port: int) -> bool:
    """Whether a server of HTTP/2 begins with its preface (RFC 9113, 3.4) within _ANSWER_TIMEOUT_S.

    True as well for one that closes the connection and goes on to accept others, as it does if it expects TLS.

    :raises OSError: it does not accept connections.
    """
    try:
        with socket.create_connection((host, port), timeout=_ANSWER_TIMEOUT_S) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
            if connection.recv(1):
                return True
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    time.sleep(0.1)  # a server that is killed closes its connections first
    check_listening(f"{host}:{port}")
    return True


def _join_options(stack: contextlib.ExitStack, address: str) -> dict[str, Any]:
    """Return the options for joining a cluster, after a check of its address: Ray itself would retry for 13 minutes.

    :raises ClusterError: the address does not accept connections.
    """
    if address != "auto":
        try:
            check_listening(address)
        except OSError as error:
            raise ClusterError(f"cannot join the Ray cluster at {address}: {error}") from error
    stack.enter_context(_environment({"RAY_gcs_server_port_wait_time_s": "3"}))
    # Ray sends this package to the nodes, so these need neither a checkout nor the same release.
    return {"runtime_env": {"py_modules": [str(Path(__file__).absolute().parents[1])]}}


def check_listening(address: str) -> None:
    """Check that HOST:PORT accepts connections.

    :raises OSError: it does not.
    """
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()


def _embedded_options(
    stack: contextlib.ExitStack, parallel: int, ssh_workers: int, session: _Session
) -> dict[str, Any]:
    """Return the options of an embedded Ray; the stack removes its environment, directory and processes.

    :raises ClusterError: a limit of this machine or container is too low.
    """
    parent = needs.ray_directory()
    if shortage := needs.find_shortage(parallel + ssh_workers, parent, _OBJECT_STORE_BYTES):
        raise ClusterError(f"cannot start Ray: {shortage}")
    # Ray creates its own directory, in this one, with mode 0777.
    directory = stack.enter_context(scratch.directory(_DIRECTORY_PREFIX, parent, session.remove))
    variables = {name: os.environ.get(name, value) for name, value in _GUEST_SETTINGS.items()}
    variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN, "PYTHONPATH": runner.python_path()}
    variables[_DIRECTORY_VARIABLE] = directory
    # Else Ray takes the parent for the raylet, and ends this process as an orphan if the parent is process 1.
    variables["RAY_RAYLET_PID"] = str(os.getpid())
    variables["SPT_NOENV"] = "1"  # keeps Ray from overwriting the environment of its agents with their titles
    stack.enter_context(_environment(variables))
    return {
        "num_cpus": parallel,
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE_BYTES,
        "_temp_dir": os.path.join(directory, "r"),
    }


def _kill_processes(directory: str, spares_raylet: bool) -> int:
    """Kill the processes of an embedded Ray, including orphans, and return their number.

    :param spares_raylet: stop the raylet instead.
    """
    variable = os.fsencode(f"\0{_DIRECTORY_VARIABLE}={directory}\0")
    count = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # exited, or of another user
            if variable in b"\0" + Path(f"/proc/{pid}/environ").read_bytes() and int(pid) != os.getpid():
                is_spared = spares_raylet and Path(f"/proc/{pid}/comm").read_bytes() == b"raylet\n"
                os.kill(int(pid), signal.SIGSTOP if is_spared else signal.SIGKILL)
                count += not is_spared
    return count


def _import_ray() -> Any:
    """Import Ray, which reads its settings from the environment on import."""
    is_reimport = "ray" in sys.modules
    ray: Any = importlib.import_module("ray")
    if is_reimport and not ray.is_initialized():
        ray._raylet.Config.initialize("")  # read RAY_AUTH_MODE again
    return ray


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables while the block lasts."""
    previous = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
