"""A user's SQL in its child process: its permissions, its results and its end.

The tests run under Landlock and without it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from pyarrow import fs

from pipeline import query, warehouse
from pipeline.query import landlock
from pipeline.query.answer import EXIT_QUERY_ERROR
from pipeline.warehouse import schema
from tests.cgroups import memory_cgroup
from tests.query import reach
from tests.warehouse.outcomes import STARTED_AT, failure, ok, publish, session

ROOT = Path(__file__).parents[2]
LIMITS = query.Limits(timeout_s=240, memory_bytes=256 << 20, result_bytes=4 << 20)
NEEDS_LANDLOCK = pytest.mark.skipif(landlock.abi() == 0, reason="needs Landlock")


def ask(root: Path, statement: str, limits: query.Limits = LIMITS, **params: str) -> pa.Table | str:
    """Return the result or the error of a statement."""
    try:
        return query.run_confined(warehouse.tables(root), statement, params, limits)
    except query.QueryError as error:
        return str(error)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("warehouse")
    first = "20250101T000000Z-00000001"
    publish(root, ok("a"), ok("né\x1b|c", mounts=3), failure("b"), run_id=first, audit="prod", started_at=STARTED_AT)
    publish(root, ok("a", mounts=4, nodes=2, cache_ids=94), audit="prod", started_at=STARTED_AT + 86_400_000_000)
    return root


@pytest.fixture(params=[pytest.param("landlock", marks=NEEDS_LANDLOCK), "arrow"])
def mode(request, monkeypatch):
    if request.param == "arrow":
        monkeypatch.setattr(landlock, "abi", lambda: 0)
    return request.param


READ_STATEMENTS = {
    "FROM targets": 4,
    "FROM host_waste": 1,
    "WITH t AS (SELECT * FROM targets) SELECT target, row_number() OVER (ORDER BY run_id, target) FROM t": 4,
    "(SELECT 1) UNION ALL SELECT 2": 2,
    "VALUES (1)": 1,
    "EXPLAIN FROM host_waste": 1,
    "EXPLAIN ANALYZE FROM host_waste": 1,
    "DESCRIBE host_waste": 21,
    "SUMMARIZE runs": len(schema.tables()["runs"].arrow),
    "FROM host_waste_at('20250101T000000Z-00000001')": 2,
    "-- a comment\nSELECT 1;": 1,
}


@pytest.mark.parametrize("statement", READ_STATEMENTS)
def test_a_reading_statement_is_answered(root, mode, statement):
    answer = ask(root, statement)
    assert isinstance(answer, pa.Table), answer
    assert answer.num_rows == READ_STATEMENTS[statement]


def test_every_view_answers_as_the_projects_own_session_does(root, mode):
    direct_session = session(root)
    names = direct_session.rows("SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY ALL")
    views = [row["view_name"] for row in names]
    statement = " UNION ALL ".join(
        f"SELECT '{view}' AS view, CAST({view} AS VARCHAR) AS row FROM {view}" for view in views
    )
    answer = ask(root, f"FROM ({statement}) ORDER BY ALL", dataclasses.replace(LIMITS, memory_bytes=1 << 30))
    assert isinstance(answer, pa.Table), answer
    assert {"host_waste", "targets", "memcgs"} <= set(answer["view"].to_pylist())
    assert answer.equals(direct_session.sql(f"FROM ({statement}) ORDER BY ALL"))


def test_duckdb_reads_the_files_itself_where_landlock_keeps_it_from_others(root, mode):
    answer = ask(root, "EXPLAIN SELECT sum(css_id) FROM memcgs")
    assert ("PARQUET" in answer["explain_value"][0].as_py()) == (mode == "landlock")


def remote_tables(root: Path) -> dict[str, ds.UnionDataset]:
    """The tables of a warehouse as if they were in an object store."""
    remote_filesystem = fs.SubTreeFileSystem("/", fs.LocalFileSystem())

    def remote_part(part: ds.FileSystemDataset) -> ds.FileSystemDataset:
        files = [path.lstrip("/") for path in part.files]
        return ds.FileSystemDataset.from_paths(
            files, schema=part.schema, format=part.format, filesystem=remote_filesystem
        )

    return {
        name: ds.UnionDataset(table.schema, [remote_part(part) for part in table.children])
        for name, table in warehouse.tables(root).items()
    }


def test_tables_that_are_not_on_a_local_filesystem_are_read_through_arrow(root):
    tables = remote_tables(root)
    plan = query.run_confined(tables, "EXPLAIN SELECT sum(css_id) FROM memcgs", {}, LIMITS)
    assert "PARQUET" not in plan["explain_value"][0].as_py()
    ranking = query.run_confined(tables, "SELECT target, wasted_bytes FROM host_waste", {}, LIMITS)
    assert ranking.equals(ask(root, "SELECT target, wasted_bytes FROM host_waste"))
    with pytest.raises(query.QueryError, match="a warehouse in a local directory"):
        query.init_script(tables)


def test_parameters_are_values(root, mode):
    hostile_text = "' OR true --"
    answer = ask(
        root, "SELECT $a AS a, count(*) AS n FROM targets WHERE target = $a AND attempts > $n", a=hostile_text, n="0"
    )
    assert answer.to_pylist() == [{"a": hostile_text, "n": 0}]
    assert "'; DROP" in ask(root, "SELECT $n::BIGINT", n="'; DROP")
    assert "parameter" in ask(root, "SELECT $missing")


def test_an_enormous_result_is_refused_and_a_large_one_takes_no_memory_here(root, mode):
    def anonymous_kb() -> int:
        return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    assert "larger than 4.00 MiB" in ask(root, "FROM range(1000000000)")
    kb_before = anonymous_kb()
    answer = ask(root, "FROM range(20000000)", dataclasses.replace(LIMITS, result_bytes=1 << 30))
    assert answer.nbytes >= 160_000_000
    assert anonymous_kb() - kb_before < 50_000


def test_the_remedy_of_each_limit_is_named(root, mode):
    timeout_error = ask(root, "SELECT sleep_ms(1000000000)", dataclasses.replace(LIMITS, timeout_s=1))
    assert timeout_error == "no result after 1 s; give it longer with --timeout"
    memory_error = ask(root, "SELECT length(list(range)::VARCHAR) FROM range(200000000)")
    assert memory_error.endswith("its memory limit is 256 MiB, raise it with --memory")


def sql_with_200_mib(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a container with 200 MiB of memory."""
    with memory_cgroup(200 << 20) as cgroup:
        return subprocess.run(
            [sys.executable, "-m", "pipeline", "sql", "-w", root, *arguments],
            cwd=ROOT,
            preexec_fn=lambda: (cgroup / "cgroup.procs").write_text("0"),
            capture_output=True,
            text=True,
        )


def test_a_query_takes_half_of_the_containers_memory(root):
    process = sql_with_200_mib(root, "--format", "csv", "SELECT current_setting('memory_limit')")
    assert process.stdout.splitlines()[1:] == ["100.0 MiB"], process.stderr


def test_a_query_that_the_kernel_ends_for_want_of_memory_is_told_to_take_less(root):
    process = sql_with_200_mib(root, "--memory", "8GiB", "SELECT length(list(range)::VARCHAR) FROM range(200000000)")
    assert process.returncode == 1
    assert process.stderr == (
        "lru-audit: the query's process was ended by SIGKILL, probably by the kernel for want of memory: it may use "
        "8.00 GiB of the 200 MiB here; give it less with --memory, or give this container or machine more memory\n"
    )


def test_all_lines_of_an_error_are_kept_but_for_those_that_quote_the_query(root, mode):
    error = ask(root, "SELECT target,\n  nosuch FROM targets")
    assert re.fullmatch(r'Binder Error: .*"nosuch" not found in FROM clause! Candidate bindings: .*"', error)
    assert ask(root, "SELECT error('one\n\nLINE 1: two\nthree')") == "Invalid Input Error: one LINE 1: two three"


def test_a_run_that_is_removed_meanwhile_is_one_line_saying_to_run_it_again(tmp_path, mode):
    directory = publish(tmp_path, ok("a"))

    def ask_too_late():
        with warehouse.open_tables(tmp_path) as tables:
            directory.rename(tmp_path / "expired")
            query.run_confined(tables, "SELECT sum(css_id) FROM memcgs", {}, LIMITS)

    message = f"run {directory.name} was expired meanwhile: run the command again$"
    with pytest.raises(warehouse.WarehouseError, match=message):
        ask_too_late()


@NEEDS_LANDLOCK
@pytest.mark.parametrize(
    "attempt",
    [
        "open(other).read()",
        "open(other, 'w')",
        "open(readable, 'w')",
        "open(readable, 'a')",
        "open(os.path.join(folder, 'new'), 'w')",
        "os.mkdir(os.path.join(folder, 'new'))",
        "os.symlink(other, os.path.join(folder, 'new'))",
        "os.rename(readable, os.path.join(folder, 'new'))",
        "os.unlink(readable)",
        "os.listdir(folder)",
        "os.execv(sys.executable, [sys.executable, '-c', ''])",
        "duckdb.sql(f\"FROM read_text('{other}')\").fetchall()",
        "duckdb.sql(f\"COPY (SELECT 1) TO '{folder}/new'\")",
        pytest.param("os.truncate(readable, 0)", marks=pytest.mark.skipif(landlock.abi() < 3, reason="needs Landlock")),
        pytest.param(
            "socket.create_connection(('127.0.0.1', 9))",
            marks=pytest.mark.skipif(landlock.abi() < 4, reason="needs Landlock"),
        ),
        pytest.param("os.kill(os.getppid(), 0)", marks=pytest.mark.skipif(landlock.abi() < 6, reason="needs Landlock")),
    ],
)
def test_the_kernel_refuses_even_where_duckdbs_own_doors_are_open(tmp_path, attempt):
    """The refusal holds in threads that start later, as DuckDB's workers do."""
    for name in ("other", "readable"):
        (tmp_path / name).write_text("kept")
    program = f"""
import concurrent.futures, os, runpy, socket, sys
restrict = runpy.run_path({landlock.__file__!r})["restrict"]
folder = {str(tmp_path)!r}
other, readable = (os.path.join(folder, name) for name in ("other", "readable"))
runtime = [path for path in (*sys.path, sys.base_prefix, "/lib", "/lib64", "/usr/lib", "/etc/ld.so.cache") if path]
runtime += ["/proc/self/cgroup", "/sys/fs/cgroup"]
restrict([path for path in (readable, *runtime) if os.path.exists(path)], [])
import duckdb
assert open(readable).read() == "kept"

def attempt():
    try:
        {attempt}
    except (OSError, duckdb.Error) as error:
        return str(error)
    return "done"

with concurrent.futures.ThreadPoolExecutor(1) as other_thread:
    print(attempt(), other_thread.submit(attempt).result(), sep="\\n")
"""
    process = subprocess.run([sys.executable, "-c", program], cwd="/", capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    refusals = process.stdout.splitlines()
    assert len(refusals) == 2
    assert all(re.search("(?i)permission denied|operation not permitted", refusal) for refusal in refusals)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "readable"]


def test_the_kernel_refuses_sockets_of_other_processes():
    """Seccomp refuses all of them, Landlock what this kernel's can."""
    program, landlock_source = (Path(module.__file__).read_text() for module in (reach, landlock))
    output = subprocess.check_output([sys.executable, "-c", program, landlock_source], text=True)
    assert json.loads(output) == {"abi": landlock.abi(), **reach.expected(landlock.abi())}


CONFINED = f"""
import os, runpy, sys
runpy.run_path({landlock.__file__!r})["confine"](int(sys.argv[1]))
result_fd = int(sys.argv[2])
"""
CREATE_SOCKET = f"""
import socket
try:
    answer = socket.socket(socket.AF_UNIX).family.name
except OSError as error:
    answer = error.strerror
os.write(result_fd, answer.encode())
os._exit({EXIT_QUERY_ERROR})
"""
WRITE_WILD_OFFSETS = """
import struct
import pyarrow as pa
offsets = pa.py_buffer(struct.pack("=iii", 0, 1 << 30, 1))
column = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"x")])
batch = pa.record_batch([column], ["text"])
with os.fdopen(result_fd, "wb") as result, pa.ipc.new_stream(result, batch.schema) as stream:
    stream.write_batch(batch)
"""
FLOOD_STDERR = """
os.write(2, b"x" * (3 << 20))
os._exit(1)
"""


@pytest.fixture
def replace_child(monkeypatch, tmp_path):
    """A function that makes the child run a program in the query's place, as a child under a query's control would."""

    def replace(program: str) -> None:
        (tmp_path / "child.py").write_text(CONFINED + program)
        monkeypatch.setattr(landlock, "__file__", str(tmp_path / "child.py"))

    return replace


def test_a_result_with_offsets_outside_of_it_is_not_read(root, replace_child):
    replace_child(WRITE_WILD_OFFSETS)
    assert ask(root, "").startswith("the result cannot be read: ")


def test_numbers_and_times_beyond_those_of_arrow_are_read(root):
    answer = ask(root, "SELECT 170141183460469231731687303715884105727 AS n, CAST(TIME '24:00:00' AS VARCHAR) AS t")
    assert [str(column[0]) for column in answer.columns] == ["170141183460469231731687303715884105727", "24:00:00"]
    assert ask(root, "SELECT TIME '24:00:00'").num_rows == 1


def test_an_endless_message_is_cut(root, replace_child):
    replace_child(FLOOD_STDERR)
    assert re.fullmatch(r"the query's process ended without a result: x{100,2000}", ask(root, ""))


def test_a_query_of_a_local_warehouse_can_create_no_socket(root, mode, replace_child):
    """One of an object store can: it reads the tables over the network."""
    replace_child(CREATE_SOCKET)
    assert ask(root, "") == "Permission denied"
    with pytest.raises(query.QueryError, match=r"^AF_UNIX$"):
        query.run_confined(remote_tables(root), "", {}, LIMITS)


@NEEDS_LANDLOCK
@pytest.mark.faults
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_file_of_procfs_can_be_read_after_the_kernel_has_dropped_its_caches():
    """DuckDB reads it during a query. The kernel drops its caches as it does when it is short of memory."""
    code = """
import sys
from pipeline.query import landlock
landlock.restrict(["/proc/self/cgroup"], [])
print(flush=True)
sys.stdin.readline()
open("/proc/self/cgroup").close()
"""
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    child.stdout.readline()
    Path("/proc/sys/vm/drop_caches").write_text("2")
    _, stderr = child.communicate("\n", timeout=60)
    assert child.returncode == 0, stderr


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_query_ends_with_the_command_that_asked(root, signal_number):
    command = [sys.executable, "-m", "pipeline", "sql", "-w", str(root), "SELECT sleep_ms(1000000000)"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    command_process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    child = wait_for(
        lambda: Path(f"/proc/{command_process.pid}/task/{command_process.pid}/children").read_text().split()
    )[0]
    start_time = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[19]
    command_process.send_signal(signal_number)
    _, stderr_text = command_process.communicate(timeout=120)
    assert command_process.returncode == (130 if signal_number != signal.SIGKILL else -signal.SIGKILL)
    assert stderr_text == ("interrupted\n" if signal_number != signal.SIGKILL else "")
    wait_for(lambda: has_ended(child, start_time))


def has_ended(pid: str, start_time: str) -> bool:
    """Whether a process has ended; another process may have its pid by now."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return True
    return state[0] == "Z" or state[19] != start_time


def wait_for(condition):
    """Return the first true result of a function, within two minutes."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.05)
    raise AssertionError("not within two minutes")
