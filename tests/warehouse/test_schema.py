"""`schemas/` declares every table: the columns of DESIGN with Arrow types and explanations."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pytest

from pipeline.collector import status
from pipeline.warehouse import outcome, schema

# The tables of the design document, section 5, and the columns that snapshots add. Columns are added, never renamed.
DESIGN = {
    "runs": """run_id audit started_at finished_at sequence revision_of complete targets good tool_version
        schema_version model_version inventory_sha256""",
    "targets": """run_id target kind source via labels status error_type error attempts started_at duration_ms
        carried_from input_digest core_id boot_id machine_id
        collector_version model_version reads read_bytes peak_rss_bytes host kernel_release kernel_version arch
        page_bytes memory_bytes captured_at booted_at uptime_s nr_node_ids possible_nodes online_nodes layout
        types_source memcg_nr_cache_ids online_memcgs dying_memcgs max_online_id superblocks list_lrus slab_cache
        slab_cache_active_objects slab_cache_bytes list_lru_one_in_cache lazy_target lazy_basis charged_scan_bytes
        growing_to_cache_ids consistency notes slab_unreclaimable_bytes slab_reclaimable_bytes percpu_bytes
        target_kernel lazy_error_bytes""",
    "attempts": "run_id target attempt node started_at duration_ms status error_type error",
    "superblocks": """run_id target address fstype s_id s_id_raw s_dev s_flags mounts mountpoint mountpoint_raw
        kernel_internal detached owner""",
    "list_lrus": """run_id target address owner superblock name memcg_aware nodes cache_ids list_lru_one_objects
        list_lru_one_size list_lru_one_bytes pointer_array_bytes node_array_bytes xa_node_bytes items root_items
        memcg_items memcgs_with_items memcgs_charged lazy_low_bytes lazy_charged_bytes lazy_bytes lazy_high_bytes
        lazy_memcgs lazy_object_bytes lazy_xa_node_bytes lazy_empty_bytes eager_bytes""",
    "memcgs": """run_id target css_id cache_id memcg_id serial_nr dir_rev path path_raw parent state items
        lists_with_items lists_charged lazy_lists""",
    "dying_memcg_pages": """run_id target parent kind superblock inode deleted path path_raw files memcgs pages
        bytes""",
    "memcg_memory": "run_id target part held_bytes online_bytes dying_bytes left_bytes upgraded_bytes basis",
}
UNITS = {"_bytes": "bytes", "_ms": "ms", "_s": "s"}


def columns():
    return [(table.name, column) for table in schema.tables().values() for column in table.columns]


@pytest.mark.parametrize("table", DESIGN)
def test_a_table_has_the_columns_of_the_design(table):
    assert set(DESIGN[table].split()) <= set(schema.tables()[table].arrow.names)


def test_other_columns_are_another_version():
    """Files of one version are read with the first one's columns: see CONTRIBUTING.md, "Add a column to a table"."""
    declarations = [
        f"{name} {field.name} {field.type}" for name, table in schema.tables().items() for field in table.arrow
    ]
    assert (schema.VERSION, hashlib.sha256("\n".join(declarations).encode()).hexdigest()[:16]) == (
        7,
        "2f8e2ed738352199",
    )


def test_there_are_no_other_tables():
    assert set(schema.tables()) == set(DESIGN)


def test_every_column_says_what_it_means_and_units_agree_with_names():
    for table, column in columns():
        assert column.meaning, f"{table}.{column.name}"
        if column.name == "s_dev":
            continue
        for suffix, unit in UNITS.items():
            if column.name.endswith(suffix):
                assert column.unit == unit, f"{table}.{column.name}"


def test_counters_are_int64_and_addresses_and_inode_numbers_uint64():
    for table, column in columns():
        arrow_type = column.field.type
        assert not pa.types.is_floating(arrow_type), f"{table}.{column.name}"
        if pa.types.is_integer(arrow_type):
            is_unsigned = column.name in ("address", "superblock", "inode")
            assert arrow_type == (pa.uint64() if is_unsigned else pa.int64()), f"{table}.{column.name}"


def test_timestamps_are_microseconds_in_utc_and_labels_a_map_that_is_never_null():
    for table, column in columns():
        if column.name.endswith("_at"):
            assert column.field.type == pa.timestamp("us", tz="UTC"), f"{table}.{column.name}"
    labels = schema.tables()["targets"].by_name["labels"]
    assert labels.field.type == pa.map_(pa.string(), pa.string())
    assert not labels.nullable


def test_statuses_are_those_that_a_collection_can_end_with():
    statuses = schema.tables()["targets"].by_name["status"].values
    assert statuses == status.STATUSES
    assert outcome.GOOD == status.GOOD
    status_columns = [name for name in schema.tables()["runs"].by_name if name.startswith("status_")]
    assert status_columns == [f"status_{name}" for name in statuses]


def test_what_a_failed_target_has_no_number_for_may_be_null():
    for column in schema.tables()["targets"].columns:
        assert column.driver or column.nullable or column.name in ("run_id", "target")
