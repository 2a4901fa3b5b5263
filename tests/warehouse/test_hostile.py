"""Data from a collector on a hostile host never causes a crash or a partial row, and never affects another host."""

from __future__ import annotations

import copy
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import query, warehouse
from pipeline.warehouse.outcome import HOST_TABLES
from tests.warehouse import outcomes
from tests.warehouse.outcomes import failure, ok, run, session, set_cell


def publish(root: Any, *target_outcomes: dict[str, Any]) -> Any:
    return outcomes.publish(root, *target_outcomes, check=query.check)


def target_row(root: Any, target: str) -> dict[str, Any]:
    (row,) = session(root).rows("FROM targets WHERE target = $target", {"target": target})
    return row


def set_field(name: str, value: Any, mounts: int = 2) -> dict[str, Any]:
    outcome = ok("evil", mounts=mounts)
    outcome["row"][name] = value
    return outcome


def set_table(name: str, value: Any) -> dict[str, Any]:
    outcome = ok("evil")
    outcome["tables"][name] = value
    return outcome


def drop_column(name: str, column: str) -> dict[str, Any]:
    outcome = ok("evil")
    table = outcome["tables"][name]
    index = table["columns"].index(column)
    for row in (table["columns"], *table["rows"]):
        del row[index]
    return outcome


def duplicate_last_row(name: str) -> dict[str, Any]:
    outcome = ok("evil")
    outcome["tables"][name]["rows"].append(copy.copy(outcome["tables"][name]["rows"][-1]))
    return outcome


MISFITS = {
    "text for a number": (set_cell(ok("evil"), "list_lrus", "nodes", "1"), "list_lrus.nodes holds str, not count"),
    "a float": (set_cell(ok("evil"), "list_lrus", "nodes", 1.0), "list_lrus.nodes holds float, not count"),
    "a truth value for a number": (set_cell(ok("evil"), "list_lrus", "nodes", True), "holds bool, not count"),
    "a number for a truth value": (set_cell(ok("evil"), "list_lrus", "memcg_aware", 1), "holds int, not bool"),
    "a number for text": (set_cell(ok("evil"), "superblocks", "fstype", 7), "superblocks.fstype holds int, not string"),
    "a negative counter": (set_cell(ok("evil"), "list_lrus", "list_lru_one_objects", -1), "number outside 0 to"),
    "more bytes than a list_lru can cost": (set_cell(ok("evil"), "list_lrus", "lazy_bytes", 2**41), "number outside 0"),
    "more nodes than a kernel can have": (
        set_cell(ok("evil"), "list_lrus", "nodes", 1025),
        "nodes holds a number outside 0",
    ),
    "an address of 65 bits": (
        set_cell(ok("evil"), "superblocks", "address", 2**64),
        "superblocks.address holds a number",
    ),
    "a negative address": (
        set_cell(ok("evil"), "superblocks", "address", -1),
        "number outside 0 to 18446744073709551615",
    ),
    "null where a number must be": (set_cell(ok("evil"), "list_lrus", "lazy_bytes", None), "lazy_bytes is null"),
    "a lone surrogate": (set_cell(ok("evil"), "superblocks", "s_id", "\ud800"), "s_id holds a lone surrogate"),
    "megabytes of name": (set_cell(ok("evil"), "superblocks", "s_id", "x" * 70_000), "more than 65536 characters"),
    "an unknown word": (set_cell(ok("evil"), "memcgs", "state", "undead"), "holds 'undead', not one of online, dying"),
    "an unknown column": (set_field("run_id", "other"), "no column 'run_id' for a collector"),
    "another target's name": (
        set_table("memcgs", {"columns": ["target", "css_id", "state"], "rows": [["victim", 1, "online"]]}),
        "memcgs has no column 'target' for a collector to write",
    ),
    "a missing column": (drop_column("list_lrus", "lazy_bytes"), "list_lrus.lazy_bytes is missing"),
    "an unknown table": (set_table("runs", {"columns": [], "rows": []}), "unknown table 'runs' from the collector"),
    "a table that is a list": (set_table("memcgs", []), "memcgs must have distinct columns"),
    "a short row": (
        set_table("memcgs", {"columns": ["css_id", "state"], "rows": [[1]]}),
        "memcgs must have distinct columns",
    ),
    "a row that is a map": (
        set_table("memcgs", {"columns": ["css_id"], "rows": [{"css_id": 1}]}),
        "memcgs must have distinct columns",
    ),
    "a column twice": (
        set_table("memcgs", {"columns": ["css_id", "css_id"], "rows": [[1, 1]]}),
        "memcgs must have distinct columns",
    ),
    "a column name that is a number": (
        set_table("memcgs", {"columns": [1], "rows": [[1]]}),
        "memcgs must have distinct columns",
    ),
    "a number for a list": (set_field("possible_nodes", 3), "targets.possible_nodes holds int, not list<int64>"),
    "text in a list of numbers": (set_field("possible_nodes", [0, "1"]), "possible_nodes holds other elements"),
    "a list without end": (set_field("possible_nodes", [0] * 2000), "a list of more than 1024 elements"),
    "a date that no calendar has": (set_field("captured_at", 2**62), "targets.captured_at holds a number outside"),
    "a map for text": (set_field("notes", {"a": 1}), "targets.notes holds dict, not string"),
}


@pytest.fixture(scope="module")
def misfits(tmp_path_factory):
    root = tmp_path_factory.mktemp("warehouse")
    publish(root, ok("honest"), *({**outcome, "target": name} for name, (outcome, _) in MISFITS.items()))
    return session(root)


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_the_schema_is_bad_output_with_the_reason(misfits, name):
    (row,) = misfits.rows("FROM targets WHERE target = $name", {"name": name})
    assert (row["status"], row["error_type"]) == ("bad_output", "schema")
    assert MISFITS[name][1] in row["error"]
    assert "\n" not in row["error"]


def test_what_does_not_fit_leaves_no_row_and_no_number(misfits):
    for table in HOST_TABLES:
        assert misfits.rows(f"SELECT DISTINCT target FROM {table}") == [{"target": "honest"}]
    (row,) = misfits.rows("SELECT count(memory_bytes) AS n, count(host) AS hosts FROM targets")
    assert row == {"n": 1, "hosts": 1}
    assert misfits.rows("SELECT target FROM host_waste") == [{"target": "honest"}]


def test_the_attempt_ends_as_its_target_does(misfits):
    statuses = misfits.rows("SELECT DISTINCT status FROM attempts WHERE target <> 'honest'")
    assert statuses == [{"status": "bad_output"}]


CONTRADICTIONS = {
    "keys_unique": duplicate_last_row("memcgs"),
    "rows_counted": set_field("superblocks", 3),
    "memcgs_counted": set_field("online_memcgs", 7),
    "ok_has_numbers": set_field("memory_bytes", None),
    "nodes_possible": set_field("possible_nodes", [0, 1]),
    "object_bytes": set_cell(ok("evil"), "list_lrus", "list_lru_one_bytes", 31),
    "lazy_adds_up": set_cell(ok("evil"), "list_lrus", "lazy_object_bytes", 63),
    "lazy_within_bounds": set_cell(ok("evil"), "list_lrus", "lazy_low_bytes", 10_000),
    "superblock_known": set_cell(ok("evil"), "list_lrus", "superblock", 1),
    "totals_fit": set_field("memory_bytes", 5_000, mounts=20),
    "memcg_memory_adds_up": set_cell(ok("evil"), "memcg_memory", "online_bytes", 1),
    "totals_fit_with_memcg_memory": set_field("percpu_bytes", 2**52),
    "totals_kept_in_memcg_memory": set_cell(ok("evil"), "memcg_memory", "upgraded_bytes", 1),
}


@pytest.fixture(scope="module")
def contradictions(tmp_path_factory):
    root = tmp_path_factory.mktemp("warehouse")
    publish(root, ok("honest"), *({**outcome, "target": name} for name, outcome in CONTRADICTIONS.items()))
    return session(root)


@pytest.mark.parametrize("check", CONTRADICTIONS)
def test_rows_that_contradict_one_another_are_bad_output(contradictions, check):
    (row,) = contradictions.rows("FROM targets WHERE target = $check", {"check": check})
    assert (row["status"], row["error_type"]) == ("bad_output", f"check:{check}")
    assert row["error"]


def test_a_host_that_contradicts_itself_stops_nobody_else(contradictions):
    assert contradictions.rows("SELECT target FROM host_waste") == [{"target": "honest"}]
    assert contradictions.rows("SELECT DISTINCT target FROM list_lrus") == [{"target": "honest"}]


def test_the_largest_numbers_that_fit_break_no_view(tmp_path):
    large_outcome = ok("evil", mounts=2_000)
    for row in large_outcome["tables"]["list_lrus"]["rows"]:
        row[large_outcome["tables"]["list_lrus"]["columns"].index("pointer_array_bytes")] = 2**40
    publish(tmp_path, large_outcome, ok("honest"))
    assert target_row(tmp_path, "evil")["error_type"] == "check:totals_fit"


def test_the_largest_counts_that_fit_break_no_view(tmp_path):
    large_outcome = ok("evil", mounts=2_000)
    largest_values = {"nodes": 1_024, "memcgs_charged": 2**52, "lazy_memcgs": 65_535, "lazy_object_bytes": 2**40}
    set_columns(
        large_outcome, "list_lrus", {**largest_values, "pointer_array_bytes": 2**40, "list_lru_one_bytes": 2**40}
    )
    memcgs = large_outcome["tables"]["memcgs"]
    memcgs["rows"] = [[css_id, 0, css_id, "/", 1, "online"] for css_id in range(2, 10_000)]
    set_columns(large_outcome, "memcgs", {"serial_nr": 2**52, "dir_rev": 2**52, "lazy_lists": 2**20, "cache_id": 2**52})
    publish(tmp_path, large_outcome, ok("honest"))
    assert target_row(tmp_path, "evil")["error_type"].startswith("check:")


def set_columns(outcome: dict[str, Any], name: str, cells: dict[str, Any]) -> None:
    """Set these cells in every row of a table."""
    table = outcome["tables"][name]
    indexes = [index for index, column in enumerate(table["columns"]) if column not in cells]
    table["columns"] = [table["columns"][index] for index in indexes] + list(cells)
    table["rows"] = [[row[index] for index in indexes] + list(cells.values()) for row in table["rows"]]


def test_names_arrive_whatever_they_hold(tmp_path):
    names = ["né", "日本", "a\nb", "=cmd()", "'; DROP TABLE targets; --", "\x1b[31m", "\x00", "a/b", "../../etc"]
    publish(tmp_path, *(ok(name) for name in names))
    assert session(tmp_path).sql("SELECT target FROM targets ORDER BY target")["target"].to_pylist() == sorted(names)


def test_a_path_that_is_not_utf8_is_backslash_escaped(tmp_path):
    outcome = failure(b"core-\xff".decode(errors="surrogateescape"))
    publish(tmp_path, outcome)
    assert session(tmp_path).sql("SELECT target, source FROM targets").to_pylist() == [
        {"target": "core-\\udcff", "source": "/cores/core-\\udcff"}
    ]


def test_numbers_of_a_target_that_failed_are_dropped(tmp_path):
    outcome = ok("a")
    outcome["row"]["status"] = "inconsistent"
    publish(tmp_path, outcome)
    row = target_row(tmp_path, "a")
    assert (row["status"], row["memory_bytes"]) == ("inconsistent", None)
    assert session(tmp_path).sql("FROM list_lrus").num_rows == 0


def test_what_the_driver_itself_got_wrong_is_an_error_and_no_row(tmp_path):
    staging = warehouse.Staging.create(tmp_path, run())
    with pytest.raises(warehouse.WarehouseError, match=r"'a': targets\.status holds 'fine', not one of .* defect"):
        staging.append(failure("a", "fine"))
    with pytest.raises(query.CheckError, match="has 0"):
        staging.publish(query.check)


def test_a_table_of_more_rows_than_sums_can_hold_is_refused(tmp_path):
    rows = [[index, "dying"] for index in range(1_048_577)]
    publish(tmp_path, set_table("memcgs", {"columns": ["css_id", "state"], "rows": rows}))
    assert target_row(tmp_path, "evil")["error"] == "memcgs has more than 1048576 rows"


def test_binary_columns_take_hexadecimal_only(tmp_path):
    outcome = ok("evil")
    outcome["tables"]["superblocks"]["columns"].append("s_id_raw")
    for row in outcome["tables"]["superblocks"]["rows"]:
        row.append("xyz")
    directory = publish(tmp_path, outcome)
    (row,) = pq.ParquetFile(directory / "targets-00000.parquet").read().to_pylist()
    assert row["error"] == "superblocks.s_id_raw is not hexadecimal"
