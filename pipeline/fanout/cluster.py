"""Connection to Ray: a running cluster, or an embedded one with its own token, directory and processes.

Only this module imports Ray. Signals never interrupt Ray's start and shutdown, and an embedded Ray leaves nothing
behind: the next driver removes the leftovers of one that was killed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

from pipeline.common import scratch
from pipeline.common.errors import AuditError
from pipeline.fanout import runner
from pipeline.inventory.plan import Node

_CONNECT_TIMEOUT_S = 10.0
# Ignore a signal that follows another within this time, as a repetition.
_REPEATED_SIGNAL_S = 2.0
# Wait this long for killed processes to exit: one in uninterruptible sleep may never do so.
_KILL_TIMEOUT_S = 5.0

_DIRECTORY_PREFIX = "lru-ray."
# Environment variable that identifies the processes of an embedded Ray; its value is their directory.
_DIRECTORY_VARIABLE = "RAY_LRU_AUDIT_DIRECTORY"
# Snapshots are a few MB and are fetched immediately; Ray accepts no less than 75 MB.
_OBJECT_STORE_BYTES = 128 << 20
# Ray keeps the first token that a process uses, so all clusters of this process share one.
_TOKEN = secrets.token_hex(32)
_QUIET_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # suppresses a FutureWarning
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # suppresses a stack trace of bare addresses on SIGTERM
    # Ray prints details of dead workers on stdout, which is for results; the attempts record them anyway.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
}


class ClusterError(AuditError):
    """Ray cannot be started or joined, or was lost; the message is one line."""


def cpus() -> int:
    """Return the number of CPUs of the connected cluster, at least 1."""
    ray: Any = importlib.import_module("ray")
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def nodes() -> list[Node]:
    """Return the nodes of the connected cluster that are alive."""
    ray: Any = importlib.import_module("ray")
    return [
        Node(node["NodeID"], node["NodeManagerHostname"], node["NodeManagerAddress"])
        for node in ray.nodes()
        if node["Alive"]
    ]


@contextlib.contextmanager
def connection(parallel: int | None = None, address: str | None = None) -> Iterator[Any]:
    """Connect to Ray while the block lasts, and yield the module `ray`.

    An embedded Ray has a random token, because it listens on all addresses, and keeps its files in a directory that
    only this user may enter. Its processes and the directory are removed at the end. SIGINT and SIGTERM raise
    KeyboardInterrupt, but never during Ray's start or shutdown. A nested call yields the existing connection.

    :param parallel: the number of CPUs of an embedded Ray, default this machine's.
    :param address: the cluster to join, default RAY_ADDRESS; without either, or with "local", an embedded Ray.
    :raises ClusterError: Ray cannot be started or joined.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield sys.modules["ray"]
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address == "local":
        address = None
    with _SignalHandlers() as signal_handlers, contextlib.ExitStack() as stack:
        stack.enter_context(_environment(_QUIET_SETTINGS))
        options = _join_options(stack, address) if address else _embedded_options(stack, parallel)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray = _import_ray()
            stack.callback(ray.shutdown)
            try:
                _init(ray, address or "local", options)
            except Exception as error:
                reason = str(error).strip().partition("\n")[0]
                if "InvalidAuthToken" in f"{error} {error.__cause__}":
                    reason = "it requires another token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
                action = f"join the Ray cluster at {address}" if address else "start Ray"
                raise ClusterError(f"cannot {action}: {runner.error_line(reason)}") from error
        stack.callback(signal_handlers.defer)
        signal_handlers.deliver()
        yield ray


def raise_if_interrupted() -> None:
    """Raise KeyboardInterrupt if a signal has arrived since the last call.

    Python discards the exception of a signal handler that runs during a destructor or a callback of Ray's C++ code.
    """
    if _SignalHandlers.active and _SignalHandlers.active.has_interrupt:
        _SignalHandlers.active.has_interrupt = False
        raise KeyboardInterrupt


class _SignalHandlers:
    """Handlers that turn SIGINT and SIGTERM into KeyboardInterrupt, deferred while Ray starts or shuts down.

    An interrupted start crashes when the program exits, and an interrupted shutdown leaves processes and files behind.
    A signal that the caller ignores stays ignored.

    :cvar active: the instance whose handlers are installed.
    :ivar has_interrupt: whether KeyboardInterrupt was raised since `raise_if_interrupted` last cleared this.
    """

    active: ClassVar[_SignalHandlers | None] = None

    def __init__(self) -> None:
        self.has_interrupt = False
        self._previous_handlers: dict[int, Any] = {}
        self._is_deferring = True
        self._has_deferred_signal = False
        self._last_interrupt = -_REPEATED_SIGNAL_S

    def __enter__(self) -> _SignalHandlers:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous_handlers[number] = signal.signal(number, self._handle)
        _SignalHandlers.active = self
        return self

    def _handle(self, number: int, frame: Any) -> None:
        if self._is_deferring:
            self._has_deferred_signal = True
        elif time.monotonic() - self._last_interrupt >= _REPEATED_SIGNAL_S:
            self._last_interrupt = time.monotonic()
            self.has_interrupt = True
            raise KeyboardInterrupt

    def defer(self) -> None:
        """Defer signals from now on."""
        self._is_deferring = True

    def deliver(self) -> None:
        """Raise KeyboardInterrupt for a deferred signal, and stop deferring."""
        self._is_deferring = False
        if self._has_deferred_signal:
            self._has_deferred_signal = False
            self._handle(0, None)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        _SignalHandlers.active = None
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        if self._has_deferred_signal and kind is not KeyboardInterrupt:
            raise KeyboardInterrupt


def _init(ray: Any, address: str, options: Mapping[str, Any]) -> None:
    """Start or join Ray without its SIGTERM handler, which would end the process at any point.

    Ray's processes get process groups of their own: `timeout` sends SIGTERM to the whole group, and a driver whose Ray
    dies during the start exits without an exception.
    """
    with contextlib.ExitStack() as stack:
        # Private names of Ray. With a release that lacks one, an interrupt during the start takes effect later.
        utils, services = ray._private.utils, ray._private.services
        if hasattr(utils, "set_sigterm_handler"):
            stack.enter_context(mock.patch.object(utils, "set_sigterm_handler"))
        if hasattr(services, "ConsolePopen"):
            popen = functools.partial(services.ConsolePopen, process_group=0)
            stack.enter_context(mock.patch.object(services, "ConsolePopen", popen))
        ray.init(address, log_to_driver=False, logging_level="ERROR", **options)


def _join_options(stack: contextlib.ExitStack, address: str) -> dict[str, Any]:
    """Return the options for joining a cluster, after a check of its address: Ray itself would retry for 13 minutes.

    :raises ClusterError: the address does not accept connections.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        try:
            check_listening(address)
        except (OSError, OverflowError) as error:
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


def _embedded_options(stack: contextlib.ExitStack, parallel: int | None) -> dict[str, Any]:
    """Return the options of an embedded Ray; the stack removes its environment, directory and processes."""
    # Ray creates its own directory with mode 0777. A socket's path may have 107 bytes, of which Ray needs 83.
    parent = tempfile.gettempdir()
    parent = parent if len(parent) <= 24 else "/tmp"
    directory = stack.enter_context(scratch.directory(_DIRECTORY_PREFIX, parent, _kill_and_remove))
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN, "PYTHONPATH": runner.python_path()}
    variables[_DIRECTORY_VARIABLE] = directory
    variables["RAY_worker_niceness"] = "0"  # default 15, which would add to the niceness of a child
    variables["SPT_NOENV"] = "1"  # keeps Ray from overwriting the environment of its agents with their titles
    stack.enter_context(_environment(variables))
    return {
        "num_cpus": parallel,
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE_BYTES,
        "_temp_dir": os.path.join(directory, "r"),
    }


def _kill_and_remove(directory: str) -> None:
    """Kill the processes of an embedded Ray, then remove its directory, which Ray's agents would create again."""
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while _kill_processes(directory) and time.monotonic() < deadline:
        time.sleep(0.02)
    shutil.rmtree(directory, ignore_errors=True)


def _kill_processes(directory: str) -> int:
    """Kill the processes of an embedded Ray, including orphans, and return their number."""
    variable = os.fsencode(f"\0{_DIRECTORY_VARIABLE}={directory}\0")
    count = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # exited, or of another user
            if variable in b"\0" + Path(f"/proc/{pid}/environ").read_bytes() and int(pid) != os.getpid():
                os.kill(int(pid), signal.SIGKILL)
                count += 1
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
