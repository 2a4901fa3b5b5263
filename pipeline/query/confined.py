"""SQL that a user typed, in a child process that cannot hurt: no file but the warehouse's, no writing, no network.

Each answer has a deadline, and bounds of memory and size. Two ways to read the tables, by what the kernel offers:
under Landlock DuckDB reads the published Parquet files itself; without it, and from an object store, DuckDB has no
file access at all and reads registered Arrow datasets.
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
from pipeline.common.text import human_bytes, printable
from pipeline.query import landlock
from pipeline.query.answer import EXPLAINED, Request
from pipeline.query.session import QueryError, files_of, half_of_memory_bytes, is_local

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = [Path(str(package.__file__)).resolve().parents[1] for package in (duckdb, pa)]
# What is not DuckDB's to count: the interpreter, libraries, a stack and an arena for each thread.
_OVERHEAD_BYTES = 1 << 30
_OVERHEAD_BYTES_PER_CPU = 16 << 20
_REAP_S = 5.0
_ERROR_CHARACTERS = 2_000


@dataclass(frozen=True)
class Limits:
    """What one query may use. memory_bytes: of DuckDB; result_bytes: of the result as an Arrow stream."""

    timeout_s: float = 300.0
    memory_bytes: int = half_of_memory_bytes()
    result_bytes: int = 1 << 30


def ask(tables: Mapping[str, ds.UnionDataset], query: str, params: Mapping[str, str], limits: Limits) -> pa.Table:
    """Run one reading statement of a user and return its result, which is backed by a file, not by memory.

    :param tables: the dataset of each table, as `warehouse.tables` gives them.
    :param params: values of the `$name` parameters in the query; text, cast where a number or a time is compared.

    Raises QueryError with one line for a user.
    """
    local = is_local(tables)
    landlocked = local and landlock.abi() > 0
    request = Request(dict(tables), query, params, limits.memory_bytes, limits.result_bytes, landlocked)
    files = [file for dataset in tables.values() for file in files_of(dataset)]
    confinement = {
        "landlock": landlocked,
        "readable": [*files, *_runtime_files()] if landlocked else [],
        "listable": [str(_ROOT)],
        "data_bytes": limits.memory_bytes + _OVERHEAD_BYTES + _OVERHEAD_BYTES_PER_CPU * (os.cpu_count() or 1),
        "result_bytes": limits.result_bytes,
    }
    with ExitStack() as stack:
        stdin = stack.enter_context(os.fdopen(os.memfd_create("request"), "w+b"))
        stdin.write(json.dumps(confinement).encode() + b"\n" + pickle.dumps(request))
        stdin.seek(0)
        result, stderr = (stack.enter_context(tempfile.TemporaryFile(prefix="lru-audit-")) for _ in range(2))
        code = _run(stdin, result, stderr, None if local else os.environ, limits)
        if code == 0:
            return _table(result)
        raise QueryError(_reason(code, result, stderr, limits))


def _run(stdin: IO[bytes], result: IO[bytes], stderr: IO[bytes], env: Mapping[str, str] | None, limits: Limits) -> int:
    """Return the exit code of a child; it is killed when it takes too long and when this process ends."""
    child = subprocess.Popen(
        [sys.executable, "-S", "-P", landlock.__file__, str(os.getpid()), str(result.fileno())],
        stdin=stdin,
        stdout=subprocess.DEVNULL,  # where DuckDB's own logging may print
        stderr=stderr,
        pass_fds=[result.fileno()],
        cwd="/",
        env={
            **(env or {}),
            "PYTHONPATH": os.pathsep.join(map(str, dict.fromkeys((_ROOT, *_PACKAGES)))),
            "PYTHONDONTWRITEBYTECODE": "1",
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


def _table(result: IO[bytes]) -> pa.Table:
    mapped = mmap.mmap(result.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        table = pa.ipc.open_stream(pa.py_buffer(mapped)).read_all()
        table.validate()
    except pa.ArrowException as error:
        raise QueryError(f"no result that can be read: {printable(str(error).splitlines()[0])}") from error
    return table


def _reason(code: int, result: IO[bytes], stderr: IO[bytes], limits: Limits) -> str:
    memory = f"; it may use {human_bytes(limits.memory_bytes)}, more with --memory"
    if code == EXPLAINED:
        result.seek(0)
        reason = _printable(result.read(_ERROR_CHARACTERS))
        return reason + memory if "Out of Memory" in reason else reason
    stderr.seek(0)
    said = _printable(stderr.read().strip().rpartition(b"\n")[2])
    if any(sign in said for sign in ("MemoryError", "bad_alloc", "Out of Memory")):
        return f"the query needs more memory than there is for it{memory}"
    if code < 0:
        return f"the query's process was ended by {_signal_name(-code)}{memory}"
    return f"the query's process ended without a result: {said or f'exit code {code}'}"


def _printable(text: bytes) -> str:
    return printable(text.decode(errors="backslashreplace")[:_ERROR_CHARACTERS])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _runtime_files() -> list[str]:
    """Return what the child's interpreter and libraries read, of which this process has the same."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        mapped = {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if "/" in line}
    candidates = [
        *(file for file in mapped if ".so" in file),
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib")),
        *map(str, _PACKAGES),
        str(_ROOT / "pipeline"),
        *(str(data.path(folder)) for folder in ("sql", "schemas")),
        "/etc/ld.so.cache",
        "/proc/self/cgroup",  # DuckDB asks what the container has
        "/sys/fs/cgroup",
    ]
    return [path for path in candidates if os.path.exists(path)]
