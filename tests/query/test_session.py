"""Views return the published rows on both bindings, and a user's SQL reaches nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline import query, warehouse
from tests.warehouse.outcomes import STARTED_AT, failure, ok, publish, session

ROOT = Path(__file__).parents[2]
DAY_US = 86_400_000_000
# The columns of the design document, section 7, in their order.
VIEWS = {
    "host_waste": """rank run_id target host kernel_release layout memcg_nr_cache_ids nr_node_ids superblocks list_lrus
        online_memcgs list_lru_bytes formula_bytes lazy_low_bytes lazy_bytes lazy_high_bytes lazy_basis wasted_bytes
        wasted_pct_of_memory lower_bound lazy_error_bytes""",
    "lazy_savings": "target saves_objects_bytes saves_transpose_bytes saves_xarray_bytes saves_bytes",
    "coverage": "run_id status error_type targets pct",
    "slab_reconciliation": """target kernel_release layout slab_cache slab_cache_active_objects list_lru_one_in_cache
        other_objects pct_explained slab_cache_bytes list_lru_one_bytes pointer_array_slab_bytes
        pointer_array_page_bytes node_array_bytes xa_node_bytes list_lru_bytes memcg_slab_bytes
        slab_unreclaimable_bytes pct_unreclaimable_explained""",
    "id_bloat": """target kernel_release memcg_nr_cache_ids online_ids dead_ids dead_ids_bytes online_but_empty_bytes
        in_use_bytes wasted_bytes""",
    "cgroup_waste": """target parent path online_children dying_children last_serial_nr dir_rev ids list_lru_bytes
        lazy_bytes wasted_bytes""",
    "kernel_waste": "kernel_release layout hosts list_lru_bytes lazy_bytes wasted_bytes lazy lower_bound",
    "next_doubling": """target kernel_release memcg_nr_cache_ids online_ids ids_left next_cache_ids next_object_bytes
        next_array_bytes next_bytes""",
    "label_waste": "label value targets hosts list_lru_bytes lazy_bytes wasted_bytes lower_bound",
    "fstype_waste": "target fstype superblocks list_lrus list_lru_bytes lazy_bytes wasted_bytes",
    "superblock_waste": """target superblock fstype s_id mounts mountpoint kernel_internal detached owner
        list_lrus list_lru_bytes lazy_bytes wasted_bytes""",
    "machines": "target host_name machine_target relation",
    "growth": """audit target from_run_id to_run_id from_captured_at to_captured_at from_kernel_release
        to_kernel_release rebooted comparable memcg_nr_cache_ids_delta superblocks_delta online_memcgs_delta
        list_lru_bytes_delta wasted_bytes_delta from_uptime_s to_uptime_s from_layout to_layout from_lazy_basis
        to_lazy_basis from_list_lru_bytes to_list_lru_bytes from_wasted_bytes to_wasted_bytes
        from_slab_unreclaimable_bytes to_slab_unreclaimable_bytes from_percpu_bytes to_percpu_bytes from_target_kernel
        from_net_bytes""",
    "upgrades": """audit target from_run_id to_run_id from_captured_at to_captured_at from_kernel_release
        to_kernel_release rebooted comparable predicted_saves_bytes freed_bytes pct_of_predicted from_uptime_s
        to_uptime_s memcg_nr_cache_ids_delta superblocks_delta online_memcgs_delta list_lru_bytes_delta
        wasted_bytes_delta from_layout to_layout predicted_kernel predicted_net_bytes totals_freed_bytes pct_of_net
        lower_bound""",
    "upgrade_net": "target target_kernel frees_bytes takes_bytes net_bytes lower_bound lazy_error_bytes",
    "dying_cgroups": """target kernel_release online_memcgs dying_memcgs pct_dying memcg_ids parent path dying_children
        dying_bytes dying_memcg_bytes dying_children_bytes""",
    "dying_causes": """target kernel_release cgroup cause fstype mountpoint file deleted inode files memcgs
        bytes""",
    "missing": "target last_ok_run_id last_ok_at audit run_id status error_type error",
}
BREAKDOWNS = ("superblock_waste", "fstype_waste", "cgroup_waste")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Audit prod with two runs, the second with a failed target, and audit adhoc with one run."""
    root = tmp_path_factory.mktemp("warehouse")
    publish(root, ok("a"), ok("b", mounts=3), run_id="20250101T000000Z-00000001", audit="prod", started_at=STARTED_AT)
    publish(
        root,
        ok("a", mounts=4, nodes=2, cache_ids=94),
        failure("b"),
        ok("né\x1b|c", mounts=7, nodes=2, cache_ids=766),
        run_id="20250102T000000Z-00000002",
        audit="prod",
        started_at=STARTED_AT + DAY_US,
    )
    publish(root, ok("x"), run_id="20250103T000000Z-00000003", started_at=STARTED_AT + 2 * DAY_US)
    return root


@pytest.fixture(scope="module", params=["parquet", "arrow"])
def binding(request):
    return request.param


@pytest.fixture(scope="module")
def db(root, binding):
    return session(root, is_confined=binding == "arrow")


@pytest.fixture(scope="module")
def confined_session(root):
    return session(root, is_confined=True)


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_has_the_columns_of_the_design(db, view):
    assert db.sql(f"FROM {view}").column_names == VIEWS[view].split()


@pytest.mark.parametrize("contents", ["published", "empty"])
def test_every_view_is_there_and_no_sum_is_a_float(root, tmp_path, contents):
    db = session(root if contents == "published" else tmp_path)
    names = [row["view_name"] for row in db.rows("SELECT view_name FROM duckdb_views() WHERE NOT internal")]
    assert {*VIEWS, *BREAKDOWNS, "runs", "memcgs", "latest_memcgs"} <= set(names)
    for name in names:
        table = db.sql(f"FROM {name}")
        for field in table.schema:
            if "pct" not in field.name:
                assert not pa.types.is_floating(field.type), f"{name}.{field.name}"
                assert not pa.types.is_decimal(field.type), f"{name}.{field.name}"
        assert contents == "published" or len(table) == 0


def test_the_rows_of_each_label_and_of_all_kernels_sum_to_the_fleet_to_the_byte(db):
    sums = "sum(list_lru_bytes)::BIGINT AS a, sum(lazy_bytes)::BIGINT AS b, sum(wasted_bytes)::BIGINT AS c"
    (fleet,) = db.rows(f"SELECT {sums} FROM host_waste")
    assert db.rows(f"SELECT {sums} FROM kernel_waste") == [fleet]
    by_label = db.rows(f"SELECT label, {sums} FROM label_waste GROUP BY label")
    assert by_label == [{"label": "rack", **fleet}]


@pytest.mark.parametrize("breakdown", BREAKDOWNS)
def test_a_breakdown_sums_to_the_hosts_total_to_the_byte(db, breakdown):
    totals_query = "SELECT target, list_lru_bytes, lazy_bytes, wasted_bytes FROM host_waste ORDER BY target"
    sums_query = f"""
        SELECT target, sum(list_lru_bytes)::BIGINT AS list_lru_bytes, sum(lazy_bytes)::BIGINT AS lazy_bytes,
        sum(wasted_bytes)::BIGINT AS wasted_bytes FROM {breakdown} GROUP BY target ORDER BY target"""
    assert len(db.rows(totals_query)) == 2
    assert db.rows(sums_query) == db.rows(totals_query)


def test_both_bindings_answer_the_same(root, confined_session):
    direct_session = session(root)
    for row in direct_session.rows("SELECT view_name FROM duckdb_views() WHERE NOT internal"):
        name = row["view_name"]
        if not name.startswith("_stored_"):
            statement = f"FROM {name} ORDER BY ALL"
            assert confined_session.rows(statement) == direct_session.rows(statement), name


@pytest.mark.parametrize("is_confined", [False, True])
def test_the_rows_of_runs_are_those_of_their_files_which_stay_closed(tmp_path, is_confined):
    run_ids = [f"20250101T00000{n}Z-00000000" for n in range(3)]
    publish(tmp_path, ok("a"), failure("b"), run_id=run_ids[0], model_version=2, inventory_sha256="0a" * 32)
    publish(tmp_path, failure("b", "not_run"), run_id=run_ids[1], audit="né\x1b'|\"c", revision_of=run_ids[0])
    publish(tmp_path, ok("a"), run_id=run_ids[2], started_at=STARTED_AT + 1)
    files = sorted(tmp_path.glob("runs/*/runs-*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    for file in files:
        file.write_bytes(b"")
    assert [row["run_id"] for row in rows] == run_ids
    assert session(tmp_path, is_confined=is_confined).rows("FROM runs ORDER BY run_id") == rows


def test_runs_written_with_fewer_columns_still_read(root, tmp_path):
    tables = warehouse.tables(root)
    (current_part,) = tables["targets"].children
    pq.write_table(
        pq.read_table(current_part.files[0]).drop_columns(["notes", "lazy_basis"]), tmp_path / "targets-00000.parquet"
    )

    def dataset_part(*files: str) -> ds.FileSystemDataset:
        return ds.FileSystemDataset.from_paths(
            files, schema=current_part.schema, format=current_part.format, filesystem=current_part.filesystem
        )

    dataset = ds.UnionDataset(
        current_part.schema,
        [dataset_part(str(tmp_path / "targets-00000.parquet")), dataset_part(*current_part.files[1:])],
    )
    for is_confined in (False, True):
        db = query.Session({**tables, "targets": dataset}, is_confined=is_confined)
        rows = db.rows("SELECT target, lazy_basis FROM targets ORDER BY run_id, target")
        assert [row["lazy_basis"] for row in rows] == [None, None, "online", None, "online", "online"]
        assert db.sql("FROM targets").column_names == tables["targets"].schema.names


def test_a_run_of_a_later_version_still_reads(tmp_path, binding):
    """Each of its tables has one more column."""
    publish(tmp_path, ok("a"), run_id="20250101T000000Z-00000001")
    ranking = session(tmp_path).sql("FROM host_waste")
    later_directory = publish(tmp_path, ok("a"), run_id="20250102T000000Z-00000001")
    for file in later_directory.glob("*.parquet"):
        rows = pq.read_table(file)
        pq.write_table(rows.append_column("later", pa.array([1] * len(rows))), file)
    manifest = json.loads((later_directory / "manifest.json").read_text())
    manifest["versions"]["schema"] += 1
    (later_directory / "manifest.json").write_text(json.dumps(manifest))
    db = session(tmp_path, is_confined=binding == "arrow")
    assert db.sql("FROM host_waste").drop_columns("run_id").equals(ranking.drop_columns("run_id"))
    assert len(db.sql("FROM runs")) == len(db.sql("FROM targets")) == 2


def test_no_file_of_another_run_is_opened_for_the_newest(tmp_path, binding):
    """Other runs' files are overwritten, except the first run's for Parquet: DuckDB reads the columns from them."""
    ids = [f"2025010{day}T000000Z-00000001" for day in range(1, 5)]
    first, *middle, _ = [publish(tmp_path, ok("a"), ok("b", mounts=3), run_id=run_id) for run_id in ids]
    ranking = session(tmp_path, is_confined=binding == "arrow").sql("FROM host_waste")
    for directory in [*middle, *([first] if binding == "arrow" else [])]:
        for table in ("targets", "list_lrus", "superblocks", "memcgs"):
            (directory / f"{table}-00000.parquet").write_bytes(b"no Parquet")
    db = session(tmp_path, is_confined=binding == "arrow")
    assert db.sql("FROM host_waste").equals(ranking)
    assert db.rows("SELECT count(*) AS n FROM fstype_waste")[0]["n"] > 0
    with pytest.raises(query.QueryError):
        db.rows("SELECT sum(reads) FROM targets")


def test_a_directory_named_like_a_partition_adds_no_column(tmp_path):
    root = tmp_path / "run_id=other"
    publish(root, ok("a"))
    assert session(root).rows("SELECT DISTINCT run_id FROM targets") == [
        {"run_id": warehouse.published_runs(root)[0].run_id},
    ]


def test_the_optimizer_with_wrong_sums_is_off_where_there_is_one(db):
    optimizers = db.rows("SELECT name FROM duckdb_optimizers() WHERE name = 'partitioned_execution'")
    (setting,) = db.rows("SELECT current_setting('disabled_optimizers') AS off")
    assert ("partitioned_execution" in setting["off"]) == bool(optimizers)
    assert bool(optimizers) != duckdb.__version__.startswith("1.")


def test_addresses_above_a_bigint_join(tmp_path):
    """DuckDB filters one side of a join by the other's values; DuckDB 1.5 cannot pass that filter on to Arrow."""
    publish(tmp_path, ok("a", mounts=50), ok("b", mounts=50))
    query = "SELECT fstype, superblocks FROM fstype_waste WHERE target = 'a' AND fstype IS NOT NULL ORDER BY fstype"
    for is_confined in (False, True):
        rows = session(tmp_path, is_confined=is_confined).rows(query)
        assert rows == [{"fstype": "overlay", "superblocks": 25}, {"fstype": "tmpfs", "superblocks": 25}]


def test_a_sum_of_users_is_exact(confined_session):
    table = confined_session.sql(
        "SELECT sum(n) AS s FROM (VALUES (9223372036854775807), (9223372036854775807)) AS t(n)"
    )
    assert table["s"].to_pylist() == [18446744073709551614]


def test_times_are_utc_whatever_the_machine_says(root, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert session(root).rows("SELECT started_at::VARCHAR AS at FROM runs ORDER BY ALL LIMIT 1") == [
        {"at": "2025-11-23 12:13:20+00"}
    ]


def test_parameters_are_values(confined_session):
    hostile_text = "' OR true --"
    assert confined_session.rows("SELECT target FROM targets WHERE target = $name", {"name": hostile_text}) == []
    assert confined_session.rows("SELECT $name AS echo", {"name": hostile_text}) == [{"echo": hostile_text}]


@pytest.mark.parametrize(
    ("statement", "error_text"),
    [
        ("SELECT nope FROM targets", 'Referenced column "nope" not found'),
        ("SELECT * FROM nope", "Table with name nope does not exist"),
        ("SELEC 1", "syntax error"),
        ("SELECT 1 / (", "syntax error"),
        ("SELECT 'a'::INTEGER", "Could not convert string 'a'"),
        ("SELECT $name", "parameter"),
        ("", "only one reading statement"),
    ],
)
def test_an_error_is_one_line(confined_session, statement, error_text):
    with pytest.raises(query.QueryError) as error:
        confined_session.sql(statement)
    assert error_text in str(error.value)
    assert "\n" not in str(error.value)
    assert confined_session.rows("SELECT 1 AS still") == [{"still": 1}]


def test_a_file_that_is_gone_is_one_line_that_names_it(tmp_path):
    directory = publish(tmp_path, ok("a"))
    for is_confined in (False, True):
        db = session(tmp_path, is_confined=is_confined)
        (directory / "memcgs-00000.parquet").rename(directory / "away")
        with pytest.raises(query.QueryError, match=r"memcgs-00000\.parquet") as error:
            db.sql("SELECT sum(css_id) FROM memcgs")
        assert "\n" not in str(error.value)
        (directory / "away").rename(directory / "memcgs-00000.parquet")


def test_what_a_killed_session_may_have_spilled_is_gone_with_the_next_one(root, tmp_path):
    code = "from tests.warehouse.outcomes import session; db = session(sys.argv[1]); "
    for end, count in (("os.kill(os.getpid(), 9)", 1), ("pass", 0)):
        command = [sys.executable, "-c", f"import os, sys; {code}{end}", root]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, check=count == 0)
        assert len(list(tmp_path.iterdir())) == count


def test_a_confined_session_has_every_door_shut_and_locked(confined_session):
    closed_settings = {
        "enable_external_access": "false",
        "lock_configuration": "true",
        "python_enable_replacements": "false",
        "autoload_known_extensions": "false",
        "autoinstall_known_extensions": "false",
        "temp_directory": "",
    }
    rows = confined_session.rows("SELECT name, value FROM duckdb_settings()")
    assert {row["name"]: row["value"] for row in rows if row["name"] in closed_settings} == closed_settings


READ_STATEMENTS = [
    "SELECT count(*) FROM targets",
    "FROM host_waste",
    "FROM host_waste_at('20250101T000000Z-00000001')",
    "WITH t AS (SELECT * FROM targets) SELECT * FROM t",
    "(SELECT 1) UNION ALL SELECT 2",
    "VALUES (1)",
    "EXPLAIN SELECT * FROM host_waste",
    "EXPLAIN ANALYZE SELECT * FROM host_waste",
    "DESCRIBE host_waste",
    "SHOW TABLES",
    "SUMMARIZE targets",
    "-- a comment\nSELECT 1;",
]


@pytest.mark.parametrize("statement", READ_STATEMENTS)
def test_reading_statements_are_run(confined_session, statement):
    assert confined_session.sql(statement).num_rows >= 1


HOSTILE_STATEMENTS = [
    "COPY targets TO '{file}'",
    "COPY (SELECT 1) TO '{file}' (FORMAT parquet)",
    "WITH x AS (COPY targets TO '{file}') SELECT * FROM x",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{file}'",
    "EXPORT DATABASE '{file}'",
    "IMPORT DATABASE '{directory}'",
    "ATTACH '{file}' AS f",
    "ATTACH ':memory:' AS m",
    "USE memory",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '{file}'",
    "UPDATE EXTENSIONS",
    "SET enable_external_access = true",
    "RESET lock_configuration",
    "SET VARIABLE x = 1",
    "PRAGMA enable_profiling",
    "CALL pragma_version()",
    "CHECKPOINT",
    "VACUUM",
    "BEGIN",
    "PREPARE p AS SELECT 1",
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY targets TO '{file}'",
    "CREATE TABLE z AS SELECT 1",
    "CREATE TEMP TABLE z AS SELECT 1",
    "CREATE OR REPLACE VIEW targets AS SELECT 1",
    "CREATE SECRET (TYPE s3)",
    "DROP VIEW targets",
    "INSERT INTO targets VALUES (1)",
    "DELETE FROM targets",
    "FROM '/etc/passwd'",
    "FROM '{parquet}'",
    "FROM '{directory}/*.parquet'",
    "FROM read_parquet('{parquet}')",
    "FROM parquet_metadata('{parquet}')",
    "FROM read_csv('/etc/passwd')",
    "FROM read_csv_auto('/dev/stdin')",
    "FROM read_json('/etc/passwd')",
    "FROM read_text('/etc/passwd')",
    "FROM read_blob('/proc/self/environ')",
    "FROM glob('/etc/*')",
    "FROM sniff_csv('/etc/passwd')",
    "FROM 'https://example.invalid/x.csv'",
    "FROM query('COPY targets TO ''{file}''')",
    "FROM duckdb_secrets()",
    "FROM params",
    "FROM duckdb",
]


@pytest.mark.parametrize("statement", HOSTILE_STATEMENTS)
def test_a_hostile_statement_is_refused(root, confined_session, tmp_path, statement):
    parquet = warehouse.tables(root)["targets"].children[0].files[0]
    files_before = sorted(path for path in root.rglob("*"))
    with pytest.raises(query.QueryError) as error:
        confined_session.sql(statement.format(file=tmp_path / "out", directory=root, parquet=parquet))
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
    assert sorted(path for path in root.rglob("*")) == files_before
    assert confined_session.rows("SELECT count(*) AS n FROM targets") == [{"n": 6}]
