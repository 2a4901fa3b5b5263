"""The warehouse of a generated fleet: the cost of publishing, bytes per row, and each view compared with DuckDB's scan.

The scan reads the files that the view reads, and only sums the columns of list_lrus that a ranking needs. The view
fstype_waste is compared with DuckDB's join of the same columns.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import query, warehouse
from pipeline.common.data import path
from pipeline.warehouse.outcome import HOST_TABLES
from pipeline.warehouse.records import records
from pipeline.warehouse.runs import File, Manifest
from tests.bench.fleet import Fleet, write
from tests.bench.measure import Row, call, run_in_turn

_MIB = 2**20
_MEMORY_LIMIT = "512MiB"
_SUM_COLUMNS = (
    "list_lru_one_bytes",
    "pointer_array_bytes",
    "node_array_bytes",
    "xa_node_bytes",
    "lazy_low_bytes",
    "lazy_bytes",
    "lazy_high_bytes",
)
NEWEST_RANKING = "FROM host_waste"
# The hosts of all runs by waste, from the sums that are stored with each target.
ALL_RUNS_RANKING = "SELECT *, list_lru_bytes - lazy_bytes AS wasted_bytes FROM _snapshots ORDER BY wasted_bytes DESC"
# The same from the rows of list_lrus, as runs of schema version 2 and older need it.
RANKING_FROM_ROWS = """
    SELECT run_id, target, sum(list_lru_bytes) AS list_lru_bytes, sum(lazy_low_bytes) AS lazy_low_bytes,
        sum(lazy_bytes) AS lazy_bytes, sum(lazy_high_bytes) AS lazy_high_bytes, sum(wasted_bytes) AS wasted_bytes
    FROM _sized_list_lrus
    GROUP BY run_id, target
    ORDER BY wasted_bytes DESC
"""
# Views that return the rows of a table, whose query would measure little more than the conversion of its result.
_ROW_VIEWS = ("list_lrus", "superblocks", "memcgs", "targets", "attempts")
_ROW_VIEW_PREFIXES = ("latest_", "_sized_")
# Seconds and MiB of the views with the most rows at full size.
_BUDGETS = {"superblock_waste": ("<= 10", "<= 1024"), "fstype_waste": ("<= 3", None)}


def run(full: bool) -> Iterator[Row]:
    """Yield the rows for 200 M list_lrus of 100,000 hosts in five runs if `full`, else for 400,000 of 200."""
    with tempfile.TemporaryDirectory() as folder:
        repeats = 3 if full else 1
        write(Path(folder) / "fleet", Fleet(hosts=20_000 if full else 40, lists=2_000, runs=5))
        write(Path(folder) / "daily", Fleet(hosts=1_000 if full else 10, lists=20, runs=365 if full else 20, days=1))
        yield from _measure_size(Path(folder) / "fleet")
        yield from _measure_publication(folder, 500 if full else 40)
        yield from _measure_rankings(f"{folder}/fleet", full, repeats)
        yield from _measure_views(f"{folder}/fleet", full)
        cost = call(measure_query, f"{folder}/daily", NEWEST_RANKING)
        runs = len(warehouse.published_runs(Path(folder) / "daily"))
        yield Row(f"session over {runs} runs", cost.value["session_s"], "s", budget="<= 0.3" if full else None)
        yield Row(f"newest ranking among {runs} runs", cost.value["query_s"], "s", budget="<= 0.3" if full else None)


def _measure_size(root: Path) -> Iterator[Row]:
    files = list_lru_files(warehouse.published_runs(root))
    rows = sum(file.rows for file in files)
    yield Row(f"{rows:,} list_lrus in Parquet", sum(file.bytes for file in files) / rows, "bytes/row", budget="<= 8")


def _measure_publication(folder: str, hosts: int) -> Iterator[Row]:
    write(Path(folder) / "published", Fleet(hosts=hosts, lists=2_000, runs=1))
    publication = call(publish, f"{folder}/published").value
    rows = publication["list_lrus"]
    name = f"{rows:,} list_lrus of {hosts} hosts"
    yield Row(f"{name} checked and spooled", rows / publication["spool_s"], "rows/s")
    yield Row(f"{name} written, checked by SQL and published", rows / publication["publish_s"], "rows/s")


def _measure_rankings(root: str, full: bool, repeats: int) -> Iterator[Row]:
    rankings = (
        ("newest ranking", NEWEST_RANKING, True, "<= 0.3"),
        ("whole ranking", ALL_RUNS_RANKING, False, "<= 2"),
        ("whole ranking from the rows", RANKING_FROM_ROWS, False, None),
    )
    for name, statement, newest_only, budget in rankings:
        query_job = partial(call, measure_query, root, statement)
        costs = run_in_turn(repeats, query=query_job, scan=partial(call, measure_scan, root, newest_only, True))
        query_s, scan_s = costs["query"].value["query_s"], costs["scan"].value["scan_s"]
        rows = f"{costs['scan'].value['rows']:,} list_lrus"
        if budget and full:
            yield Row(f"{name} of {rows}", query_s, "s", budget=budget)
        yield Row(f"{name} of {rows}", query_s, "s", "DuckDB's scan", scan_s, "<= 2" if full else None)
        peak_mib = costs["query"].peak_rss_bytes / _MIB
        yield Row(f"{name}: peak memory", peak_mib, "MiB", budget="<= 512" if full else None)


def _measure_views(root: str, full: bool) -> Iterator[Row]:
    scan_s = call(measure_scan, root, True, False).value["scan_s"]
    for file in sorted((path("sql") / "views").glob("*.sql")):
        if file.stem in _ROW_VIEWS or file.stem.startswith(_ROW_VIEW_PREFIXES):
            continue
        cost = call(measure_query, root, f"FROM {file.stem}")
        query_s, peak_mib = cost.value["query_s"], cost.peak_rss_bytes / _MIB
        budget_s, budget_mib = _BUDGETS.get(file.stem, (None, None)) if full else (None, None)
        if budget_s:
            yield Row(f"view {file.stem}", query_s, "s", budget=budget_s)
        if file.stem == "fstype_waste":
            yield Row(f"view {file.stem}", query_s, "s", "DuckDB's join", call(measure_join, root).value)
        yield Row(f"view {file.stem}", query_s, "s", "DuckDB's scan of the newest run", scan_s)
        yield Row(f"peak memory of {file.stem}", peak_mib, "MiB", budget=budget_mib)


def measure_query(root: str, statement: str) -> dict[str, Any]:
    """Run a query in a session of 512 MiB; return the seconds to open the session, those of the query, and its rows."""
    start = time.perf_counter()
    session = query.Session(warehouse.tables(Path(root)))
    session.sql(f"SET memory_limit = '{_MEMORY_LIMIT}'")
    query_start = time.perf_counter()
    with session.stream(statement) as batches:  # the result may be larger than the limit
        rows = sum(batch.num_rows for batch in batches)
    return {"session_s": query_start - start, "query_s": time.perf_counter() - query_start, "rows": rows}


def measure_scan(root: str, newest_only: bool, by_target: bool) -> dict[str, Any]:
    """Only sum the columns of the same files with DuckDB, and return the seconds and the number of rows."""
    import duckdb

    manifests = warehouse.published_runs(Path(root))[-1 if newest_only else 0 :]
    paths = [m.directory.file_path(file.path) for m in manifests for file in list_lru_files([m])]
    sums = ", ".join(f"sum({name})" for name in _SUM_COLUMNS)
    statement = f"SELECT {sums} FROM read_parquet({paths})" + (" GROUP BY run_id, target" if by_target else "")
    connection = duckdb.connect()
    connection.execute(f"SET memory_limit = '{_MEMORY_LIMIT}'")
    start = time.perf_counter()
    connection.execute(statement).fetchall()
    rows = sum(file.rows for file in list_lru_files(manifests))
    return {"scan_s": time.perf_counter() - start, "rows": rows}


def measure_join(root: str) -> float:
    """Join list_lrus of the newest run with their superblocks in DuckDB, sum them by type, and return the seconds."""
    import duckdb

    manifest = warehouse.published_runs(Path(root))[-1]
    paths = {file.table: manifest.directory.file_path(file.path) for file in manifest.files}
    statement = f"""
        SELECT target, fstype, count(*), sum(lazy_bytes),
            sum(list_lru_one_bytes + pointer_array_bytes + node_array_bytes + xa_node_bytes)
        FROM '{paths["list_lrus"]}' AS list_lrus
        LEFT JOIN (SELECT run_id, target, address AS superblock, fstype FROM '{paths["superblocks"]}') AS superblocks
            USING (run_id, target, superblock)
        GROUP BY target, fstype
    """
    with tempfile.TemporaryDirectory() as spill_directory, duckdb.connect() as connection:
        connection.execute(f"SET memory_limit = '{_MEMORY_LIMIT}'; SET temp_directory = '{spill_directory}'")
        start = time.perf_counter()
        connection.execute(statement).fetchall()
        return time.perf_counter() - start


def list_lru_files(manifests: Iterable[Manifest]) -> list[File]:
    """Return the files of the table list_lrus in some runs."""
    return [file for manifest in manifests for file in manifest.files if file.table == "list_lrus"]


def publish(root: str) -> dict[str, Any]:
    """Publish the outcomes of a generated run as a new run; return its id, its rows and the seconds of both steps."""
    (manifest,) = warehouse.published_runs(Path(root))
    outcomes = [json.loads(json.dumps(outcome(*record))) for record in records(manifest)]
    run_id = warehouse.new_run_id()
    run_columns = {"run_id": run_id, "audit": "bench", "started_at": 0, "targets": len(outcomes), "tool_version": "0"}
    start = time.perf_counter()
    staging = warehouse.Staging.create(Path(root), run_columns)
    for target_outcome in outcomes:
        staging.append(target_outcome)
    publish_start = time.perf_counter()
    manifest = staging.publish(query.check)
    end = time.perf_counter()
    rows = {file.table: file.rows for file in manifest.files}
    return {"spool_s": publish_start - start, "publish_s": end - publish_start, **rows, "run_id": run_id}


def outcome(target: str, tables: dict[str, dict[str, list[Any]]]) -> dict[str, Any]:
    """Return the tables of a published target as the outcome of the runner that they came from."""
    attempts = tables["attempts"]
    return {
        "target": target,
        "row": {name: cells[0] for name, cells in tables["targets"].items()},
        "attempts": [dict(zip(attempts, cells, strict=True)) for cells in zip(*attempts.values(), strict=True)],
        "tables": {
            name: {
                "columns": list(tables[name]),
                "rows": [list(cells) for cells in zip(*tables[name].values(), strict=True)],
            }
            for name in HOST_TABLES
            if name in tables
        },
    }
