"""Being connected to Ray: a cluster that is there, or an embedded one with its token, directory and processes.

Ray is imported here only. Its start and its end are never interrupted, and nothing of an embedded one stays: what a
driver that was killed has left, the next one clears up.
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

_CONNECT_S = 10.0
# Signals so soon after one that was answered are the same wish.
_SAME_WISH_S = 2.0
# What is killed is gone within; a process in uninterruptible sleep is not, and nobody waits for it.
_KILLED_S = 5.0

_PREFIX = "lru-ray."
# In the environment of each process of an embedded Ray: the directory, by which its processes are known.
_MARK = "RAY_LRU_AUDIT_DIRECTORY"
# Snapshots are a few MB and are fetched at once; 75 MB is the least that Ray takes.
_OBJECT_STORE_BYTES = 128 << 20
# Ray keeps the first token that a process used, so one does for all clusters of this process.
_TOKEN = secrets.token_hex(32)
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a FutureWarning otherwise
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # a stack of addresses on SIGTERM otherwise
    # Ray prints what it knows of dead workers on stdout, where data goes; the attempts say it better.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
}


class ClusterError(AuditError):
    """Ray cannot be started or joined, or is there no longer; one line."""


def cpus() -> int:
    """Return how many CPUs the cluster has that this process is connected to, at least 1."""
    ray: Any = importlib.import_module("ray")
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def nodes() -> list[Node]:
    """Return the living nodes of the cluster that this process is connected to."""
    ray: Any = importlib.import_module("ray")
    return [
        Node(node["NodeID"], node["NodeManagerHostname"], node["NodeManagerAddress"])
        for node in ray.nodes()
        if node["Alive"]
    ]


@contextlib.contextmanager
def connected(parallel: int | None = None, address: str | None = None) -> Iterator[Any]:
    """Be connected to Ray: to the given cluster, RAY_ADDRESS's, or else an embedded one of `parallel` CPUs.

    Without `parallel` the embedded one has this machine's. What is given is the module `ray`.

    The embedded Ray (address "local" is one, too) has its own random token, as its ports bind every address, and its
    files in a directory that only this user may enter; in the end its processes and the directory are gone. SIGINT
    and SIGTERM are KeyboardInterrupt, never in the middle of Ray's start or end. Inside another `connected` this does
    nothing.

    :raises ClusterError:
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield sys.modules["ray"]
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address == "local":
        address = None
    with _Signals() as signals, contextlib.ExitStack() as stack:
        stack.enter_context(_environment(_QUIET))
        options = _joined(stack, address) if address else _embedded(stack, parallel)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray = _import_ray()
            stack.callback(ray.shutdown)
            try:
                _init(ray, address or "local", options)
            except Exception as error:
                reason = str(error).strip().partition("\n")[0]
                if "InvalidAuthToken" in f"{error} {error.__cause__}":
                    reason = "it wants another token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
                what = f"join the Ray cluster at {address}" if address else "start Ray"
                raise ClusterError(f"cannot {what}: {runner.bounded(reason)}") from error
        stack.callback(signals.hold)
        signals.release()
        yield ray


def raise_if_interrupted() -> None:
    """Raise the KeyboardInterrupt of a signal that came.

    Python drops what its handler raises while a destructor runs, or a callback of Ray's C++.
    """
    if _Signals.now and _Signals.now.came:
        _Signals.now.came = False
        raise KeyboardInterrupt


class _Signals:
    """SIGINT and SIGTERM as KeyboardInterrupt, but held while Ray starts or ends.

    A start that is interrupted crashes when the program exits, an end that is interrupted leaves processes and
    files. A signal that the caller ignores stays ignored.
    """

    now: ClassVar[_Signals | None] = None

    def __init__(self) -> None:
        self.came = False
        self._before: dict[int, Any] = {}
        self._held = True
        self._waiting = False
        self._raised_at = -_SAME_WISH_S

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._handle)
        _Signals.now = self
        return self

    def _handle(self, number: int, frame: Any) -> None:
        if self._held:
            self._waiting = True
        elif time.monotonic() - self._raised_at >= _SAME_WISH_S:
            self._raised_at = time.monotonic()
            self.came = True
            raise KeyboardInterrupt

    def hold(self) -> None:
        self._held = True

    def release(self) -> None:
        """Raise what came meanwhile, and from now on what comes."""
        self._held = False
        if self._waiting:
            self._waiting = False
            self._handle(0, None)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        _Signals.now = None
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._waiting and kind is not KeyboardInterrupt:
            raise KeyboardInterrupt


def _init(ray: Any, address: str, options: Mapping[str, Any]) -> None:
    """Start or join Ray, without its handler of SIGTERM, which ends the process wherever it is.

    Its processes are in groups of their own, as `timeout` sends SIGTERM to the group, and a driver that finds its
    Ray dead while it starts ends without an exception.
    """
    with contextlib.ExitStack() as stack:
        # Private names of Ray: where a release lacks one, an interrupt of the start is answered later.
        utils, services = ray._private.utils, ray._private.services
        if hasattr(utils, "set_sigterm_handler"):
            stack.enter_context(mock.patch.object(utils, "set_sigterm_handler"))
        if hasattr(services, "ConsolePopen"):
            popen = functools.partial(services.ConsolePopen, process_group=0)
            stack.enter_context(mock.patch.object(services, "ConsolePopen", popen))
        ray.init(address, log_to_driver=False, logging_level="ERROR", **options)


def _joined(stack: contextlib.ExitStack, address: str) -> dict[str, Any]:
    """Return the options of joining a cluster, once somebody listens there: Ray itself would try for 13 minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        try:
            reach(address)
        except (OSError, OverflowError) as error:
            raise ClusterError(f"cannot join the Ray cluster at {address}: {error}") from error
    stack.enter_context(_environment({"RAY_gcs_server_port_wait_time_s": "3"}))
    # Ray sends this very package to the nodes, which need no checkout, and not the same release.
    return {"runtime_env": {"py_modules": [str(Path(__file__).absolute().parents[1])]}}


def reach(address: str) -> None:
    """See that somebody listens at HOST:PORT.

    :raises OSError:
    """
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()


def _embedded(stack: contextlib.ExitStack, parallel: int | None) -> dict[str, Any]:
    """Return the options of an embedded Ray; its environment, directory and processes last as long as the stack."""
    # Ray makes its own directory 0777. A socket's path may have 107 bytes, of which Ray needs 83.
    folder = tempfile.gettempdir()
    private = stack.enter_context(scratch.directory(_PREFIX, folder if len(folder) <= 24 else "/tmp", _remove))
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN, "PYTHONPATH": runner.python_path(), _MARK: private}
    variables["RAY_worker_niceness"] = "0"  # 15 otherwise, on top of what the runner gives a child
    variables["SPT_NOENV"] = "1"  # Ray writes the titles of its agents over their environment otherwise
    stack.enter_context(_environment(variables))
    return {
        "num_cpus": parallel,
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE_BYTES,
        "_temp_dir": os.path.join(private, "r"),
    }


def _remove(private: str) -> None:
    """Kill what is left of an embedded Ray, then remove its directory, which Ray's agents would make again."""
    until = time.monotonic() + _KILLED_S
    while _kill(private) and time.monotonic() < until:
        time.sleep(0.02)
    shutil.rmtree(private, ignore_errors=True)


def _kill(private: str) -> int:
    """Kill the processes of an embedded Ray, orphans as well, and return how many there were."""
    mark = os.fsencode(f"\0{_MARK}={private}\0")
    killed = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # gone, or another user's
            if mark in b"\0" + Path(f"/proc/{pid}/environ").read_bytes() and int(pid) != os.getpid():
                os.kill(int(pid), signal.SIGKILL)
                killed += 1
    return killed


def _import_ray() -> Any:
    """Import Ray, which takes its settings from the environment when it is imported."""
    imported = "ray" in sys.modules
    ray: Any = importlib.import_module("ray")
    if imported and not ray.is_initialized():
        ray._raylet.Config.initialize("")  # read RAY_AUTH_MODE again
    return ray


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
