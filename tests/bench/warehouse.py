"""The warehouse of a generated fleet: what publishing costs, bytes a row, and each view against DuckDB's own scan.

The scan is of the columns of list_lrus that a ranking sums, in the files that the view reads, summed and nothing else.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import query, warehouse
from pipeline.common.data import path
from pipeline.warehouse.outcome import HOST_TABLES
from pipeline.warehouse.records import records
from tests.bench.fleet import Fleet, write
from tests.bench.measure import Row, call, interleaved

_MIB = 2**20
_MEMORY_LIMIT = "512MiB"
_SUMMED = (
    "list_lru_one_bytes",
    "pointer_array_bytes",
    "node_array_bytes",
    "xa_node_bytes",
    "lazy_low_bytes",
    "lazy_bytes",
    "lazy_high_bytes",
)
NEWEST = "FROM host_waste"
# Every host of every run by its waste, from the sums kept with each target.
EVERY = "SELECT *, list_lru_bytes - lazy_bytes AS wasted_bytes FROM snapshots ORDER BY wasted_bytes DESC"
# The same from the rows, which runs of schema version 2 and older need.
WHOLE = """
    SELECT run_id, target, sum(list_lru_bytes) AS list_lru_bytes, sum(lazy_low_bytes) AS lazy_low_bytes,
        sum(lazy_bytes) AS lazy_bytes, sum(lazy_high_bytes) AS lazy_high_bytes, sum(wasted_bytes) AS wasted_bytes
    FROM sized_list_lrus
    GROUP BY run_id, target
    ORDER BY wasted_bytes DESC
"""
# Rows as they are, which a benchmark would only print.
_TABLES = ("stored_", "latest_", "sized_")


def run(full: bool) -> Iterator[Row]:
    """Yield the rows for 200 M list_lrus of 100,000 hosts in five runs, or for 400,000 of 200."""
    with tempfile.TemporaryDirectory() as folder:
        repeats = 3 if full else 1
        write(Path(folder) / "fleet", Fleet(hosts=20_000 if full else 40, lists=2_000, runs=5))
        write(Path(folder) / "daily", Fleet(hosts=1_000 if full else 10, lists=20, runs=365 if full else 20, days=1))
        yield from _size(Path(folder) / "fleet")
        yield from _publishing(folder, 500 if full else 40)
        yield from _rankings(f"{folder}/fleet", full, repeats)
        yield from _views(f"{folder}/fleet")
        daily = call(answer, f"{folder}/daily", NEWEST)
        runs = len(warehouse.runs(Path(folder) / "daily"))
        yield Row(f"session over {runs} runs", daily.value["session_s"], "s")
        yield Row(f"newest ranking among {runs} runs", daily.value["answer_s"], "s", budget="<= 0.3" if full else None)


def _size(root: Path) -> Iterator[Row]:
    files = [file for manifest in warehouse.runs(root) for file in manifest.files if file.table == "list_lrus"]
    rows = sum(file.rows for file in files)
    yield Row(f"{rows:,} list_lrus in Parquet", sum(file.bytes for file in files) / rows, "bytes/row", budget="<= 8")


def _publishing(folder: str, hosts: int) -> Iterator[Row]:
    write(Path(folder) / "published", Fleet(hosts=hosts, lists=2_000, runs=1))
    found = call(publish, f"{folder}/published").value
    what = f"{found['list_lrus']:,} list_lrus of {hosts} hosts"
    yield Row(f"{what} checked and spooled", found["list_lrus"] / found["spool_s"], "rows/s")
    yield Row(f"{what} written, checked by SQL and published", found["list_lrus"] / found["publish_s"], "rows/s")


def _rankings(root: str, full: bool, repeats: int) -> Iterator[Row]:
    rankings = (
        ("newest ranking", NEWEST, True, "<= 0.3"),
        ("whole ranking", EVERY, False, "<= 2"),
        ("whole ranking from the rows", WHOLE, False, None),
    )
    for what, statement, newest, budget in rankings:
        ran = interleaved(
            repeats, view=partial(call, answer, root, statement), scan=partial(call, scan, root, newest, True)
        )
        view, own = ran["view"].value["answer_s"], ran["scan"].value["answer_s"]
        rows = f"{ran['scan'].value['rows']:,} list_lrus"
        if budget and full:
            yield Row(f"{what} of {rows}", view, "s", budget=budget)
        yield Row(f"{what} of {rows}", view, "s", "DuckDB's scan", own, "<= 2" if full else None)
        peak = ran["view"].peak_rss_bytes / _MIB
        yield Row(f"{what}: peak memory", peak, "MiB", budget="<= 512" if full else None)


def _views(root: str) -> Iterator[Row]:
    own = call(scan, root, True, False).value["answer_s"]
    for file in sorted((path("sql") / "views").glob("*.sql")):
        if file.stem.startswith(_TABLES) or file.stem in ("list_lrus", "superblocks", "memcgs", "targets", "attempts"):
            continue
        cost = call(answer, root, f"FROM {file.stem}")
        yield Row(f"view {file.stem}", cost.value["answer_s"], "s", "DuckDB's scan of the newest run", own)
        yield Row(f"peak memory of {file.stem}", cost.peak_rss_bytes / _MIB, "MiB")


def answer(root: str, statement: str) -> dict[str, Any]:
    """Ask in a session of 512 MiB and return the seconds that opening it and the answer took."""
    start = time.perf_counter()
    session = query.Session(warehouse.tables(Path(root)))
    session.sql(f"SET memory_limit = '{_MEMORY_LIMIT}'")
    opened = time.perf_counter()
    rows = len(session.sql(statement))
    return {"session_s": opened - start, "answer_s": time.perf_counter() - opened, "rows": rows}


def scan(root: str, newest: bool, by_target: bool) -> dict[str, Any]:
    """Sum the same columns of the same files with nothing else, and return the seconds that took."""
    import duckdb

    manifests = warehouse.runs(Path(root))[-1 if newest else 0 :]
    files = [m.directory.file(file.path) for m in manifests for file in m.files if file.table == "list_lrus"]
    sums = ", ".join(f"sum({name})" for name in _SUMMED)
    statement = f"SELECT {sums} FROM read_parquet({files})" + (" GROUP BY run_id, target" if by_target else "")
    connection = duckdb.connect()
    connection.execute(f"SET memory_limit = '{_MEMORY_LIMIT}'")
    start = time.perf_counter()
    connection.execute(statement).fetchall()
    rows = sum(file.rows for m in manifests for file in m.files if file.table == "list_lrus")
    return {"answer_s": time.perf_counter() - start, "rows": rows}


def publish(root: str) -> dict[str, Any]:
    """Give the outcomes of a generated run to a new one and return how long spooling and publishing took."""
    (manifest,) = warehouse.runs(Path(root))
    outcomes = [json.loads(json.dumps(outcome(*record))) for record in records(manifest)]
    run_id = warehouse.new_run_id()
    known = {"run_id": run_id, "audit": "bench", "started_at": 0, "targets": len(outcomes), "tool_version": "0"}
    start = time.perf_counter()
    staging = warehouse.Staging.create(Path(root), known)
    for one in outcomes:
        staging.append(one)
    spooled = time.perf_counter()
    published = staging.publish(query.check)
    done = time.perf_counter()
    rows = {file.table: file.rows for file in published.files}
    return {"spool_s": spooled - start, "publish_s": done - spooled, **rows, "run_id": run_id}


def outcome(target: str, made: dict[str, dict[str, list[Any]]]) -> dict[str, Any]:
    """Return a record as the outcome that the runner would have made."""
    attempts = made["attempts"]
    return {
        "target": target,
        "row": {name: cells[0] for name, cells in made["targets"].items()},
        "attempts": [dict(zip(attempts, cells, strict=True)) for cells in zip(*attempts.values(), strict=True)],
        "tables": {
            name: {
                "columns": list(made[name]),
                "rows": [list(cells) for cells in zip(*made[name].values(), strict=True)],
            }
            for name in HOST_TABLES
            if name in made
        },
    }
