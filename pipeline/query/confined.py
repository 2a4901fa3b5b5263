"""Users' SQL in a child process without write or network access, which can read no files but the warehouse's.

Each query has a time limit, a memory limit and a limit of its result's size. The child reads the tables in one of two
ways. Where the kernel has Landlock, DuckDB reads the published Parquet files itself. Without Landlock, and for an
object store, DuckDB has no file access and reads registered Arrow datasets.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.common import data
from pipeline.common.limits import cpus, memory_bytes
from pipeline.common.text import human_bytes, joined_lines, printable
from pipeline.query import landlock
from pipeline.query.answer import EXIT_QUERY_ERROR, Request
from pipeline.query.session import QueryError, dataset_files, half_of_memory_bytes, is_local

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = [Path(str(package.__file__)).resolve().parents[1] for package in (duckdb, pa)]
# Memory that DuckDB's limit does not count: the interpreter, libraries, and a stack and an arena for each thread.
_OVERHEAD_BYTES = 1 << 30
_OVERHEAD_BYTES_PER_THREAD = 16 << 20
# Wait this long for a killed child to be reaped.
_REAP_S = 5.0
_MAX_ERROR_CHARACTERS = 2_000


@dataclass(frozen=True)
class Limits:
    """The limits of one query. memory_bytes: of DuckDB; result_bytes: of the result as an Arrow stream."""

    timeout_s: float = 300.0
    memory_bytes: int = half_of_memory_bytes()
    result_bytes: int = 1 << 30


def run_confined(
    tables: Mapping[str, ds.UnionDataset], query: str, params: Mapping[str, str], limits: Limits
) -> pa.Table:
    """Run one read-only statement of a user and return its result, which is mapped from a file.

    :param tables: the dataset of each table, from `warehouse.tables`.
    :param params: values of the `$name` parameters in the query; text, which DuckDB casts where it is compared with a
        number or a time.
    :raises QueryError: with one line for the user.
    """
    threads = cpus()
    is_on_disk = is_local(tables)
    is_landlocked = is_on_disk and landlock.abi() > 0
    request = Request(dict(tables), query, params, limits.memory_bytes, limits.result_bytes, threads, is_landlocked)
    files = [path for dataset in tables.values() for path in dataset_files(dataset)]
    confinement = {
        "landlock": is_landlocked,
        "readable": [*files, *_runtime_files()] if is_landlocked else [],
        "listable": [str(_ROOT)],
        "sockets": not is_on_disk,  # an object store needs the network
        "data_bytes": limits.memory_bytes + _OVERHEAD_BYTES + _OVERHEAD_BYTES_PER_THREAD * threads,
        "result_bytes": limits.result_bytes,
    }
    with ExitStack() as stack:
        stdin = stack.enter_context(os.fdopen(os.memfd_create("request"), "w+b"))
        stdin.write(json.dumps(confinement).encode() + b"\n" + pickle.dumps(request))
        stdin.seek(0)
        result, stderr = (stack.enter_context(tempfile.TemporaryFile(prefix="lru-audit-")) for _ in range(2))
        # An object store's credentials and proxies are in the environment.
        exit_code = _run_child(stdin, result, stderr, None if is_on_disk else os.environ, threads, limits)
        if exit_code == 0:
            return _read_table(result)
        raise QueryError(_failure_reason(exit_code, result, stderr, limits))


def _run_child(
    stdin: IO[bytes],
    result: IO[bytes],
    stderr: IO[bytes],
    env: Mapping[str, str] | None,
    threads: int,
    limits: Limits,
) -> int:
    """Run the child and return its exit code. It is killed at the time limit and when this process ends."""
    child = subprocess.Popen(
        [sys.executable, "-S", "-P", landlock.__file__, str(os.getpid()), str(result.fileno())],
        stdin=stdin,
        stdout=subprocess.DEVNULL,  # DuckDB's own logging may print there
        stderr=stderr,
        pass_fds=[result.fileno()],
        cwd="/",
        env={
            **(env or {}),
            "PYTHONPATH": os.pathsep.join(map(str, dict.fromkeys((_ROOT, *_PACKAGES)))),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": str(threads),  # of Arrow
            "ARROW_DEFAULT_MEMORY_POOL": "system",  # mimalloc reserves 1 GiB, which counts as the child's data
            "TZ": "UTC",
        },
        start_new_session=True,
    )
    try:
        return child.wait(limits.timeout_s)
    except subprocess.TimeoutExpired as error:
        raise QueryError(f"no result after {limits.timeout_s:g} s; give it longer with --timeout") from error
    finally:
        child.kill()
        with suppress(subprocess.TimeoutExpired):
            child.wait(_REAP_S)


def _read_table(result: IO[bytes]) -> pa.Table:
    mapping = mmap.mmap(result.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        table = pa.ipc.open_stream(pa.py_buffer(mapping)).read_all()
        table.validate()
        # A child that a query has taken over may write any offsets. DuckDB's own numbers and times can be larger than
        # Arrow's: HUGEINT has 39 digits, and 24:00 is a time.
        for column in table.columns:
            if not (pa.types.is_primitive(column.type) or pa.types.is_decimal(column.type)):
                column.validate(full=True)
    except pa.ArrowException as error:
        raise QueryError(f"the result cannot be read: {joined_lines(str(error))}") from error
    return table


def _failure_reason(exit_code: int, result: IO[bytes], stderr: IO[bytes], limits: Limits) -> str:
    memory_limit = human_bytes(limits.memory_bytes)
    memory_hint = f"; its memory limit is {memory_limit}, raise it with --memory"
    if exit_code == EXIT_QUERY_ERROR:
        result.seek(0)
        reason = _printable(result.read(_MAX_ERROR_CHARACTERS))
        return reason + memory_hint if "Out of Memory" in reason else reason
    stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - _MAX_ERROR_CHARACTERS))
    last_line = _printable(stderr.read().strip().rpartition(b"\n")[2])
    if any(symptom in last_line for symptom in ("MemoryError", "bad_alloc", "Out of Memory")):
        return f"the query ran out of memory{memory_hint}"
    if exit_code == -signal.SIGKILL:
        return (
            "the query's process was ended by SIGKILL, probably by the kernel for want of memory: it may use "
            f"{memory_limit} of the {human_bytes(memory_bytes())} here; give it less with --memory, or give this "
            "container or machine more memory"
        )
    if exit_code < 0:
        return f"the query's process was killed by {_signal_name(-exit_code)}{memory_hint}"
    return f"the query's process ended without a result: {last_line or f'exit code {exit_code}'}"


def _printable(text: bytes) -> str:
    return printable(text.decode(errors="backslashreplace")[:_MAX_ERROR_CHARACTERS])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _runtime_files() -> list[str]:
    """Return the files and directories that the child's interpreter and libraries read.

    The libraries are those that are mapped into this process.
    """
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        mappings = {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if "/" in line}
    candidates = [
        *(path for path in mappings if ".so" in path),
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib")),
        *map(str, _PACKAGES),
        str(_ROOT / "pipeline"),
        *(str(data.path(name)) for name in ("sql", "schemas")),
        "/etc/ld.so.cache",
        "/proc/self/cgroup",  # DuckDB reads the container's CPU and memory limits, and fails if it may not
        "/sys/fs/cgroup",
    ]
    return [path for path in candidates if os.path.exists(path)]
