"""Rows of unchanged cores are those of the newest run with a good row, and stay when that run expires."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline import query, warehouse
from pipeline.warehouse import carry, schema
from pipeline.warehouse.outcome import HOST_TABLES
from tests.warehouse.outcomes import STARTED_AT, directory_of, failure, ok, run, session, skip_checks

RUNS = [f"2025110{day}T000000Z-{day:08x}" for day in range(1, 10)]
# The columns of `targets` that differ in a carried row.
DIFFERENT = ("run_id", "attempts", "started_at", "duration_ms", "labels", "carried_from")


def core(name: str, digest: str | None = "d1", **options: Any) -> dict[str, Any]:
    outcome = ok(name, **options)
    outcome["row"]["input_digest"] = digest
    return outcome


def unchanged(name: str, **labels: str) -> dict[str, Any]:
    """Return the outcome of an unchanged core, as the driver makes it."""
    row = {"kind": "vmcore", "source": f"/cores/{name}", "via": None, "labels": labels, "status": "not_run"}
    return {"target": name, "row": {**row, "attempts": 0}, "attempts": [], "tables": {}, "unchanged": True}


def stage(root: Path | str, number: int, *names: str, **values: Any) -> warehouse.Staging:
    """Stage the run of a night that carries cores over."""
    run_values = {"audit": "crash", "started_at": STARTED_AT + number, "targets": len(names), **values}
    targets = [{"name": name, "kind": "vmcore"} for name in names]
    return warehouse.Staging.create(root, run(RUNS[number], **run_values), {}, targets, carries_cores=True)


def publish(root: Path | str, number: int, *outcomes: dict[str, Any], check: Any = query.check, **values: Any) -> Path:
    staging = stage(root, number, *(outcome["target"] for outcome in outcomes), **values)
    for outcome in outcomes:
        staging.append(outcome)
    return directory_of(staging.publish(check))


def expire(root: Path, run_id: str) -> None:
    for removal in warehouse.removals(root, warehouse.RetentionRules(last=1)):
        if run_id in removal.path:
            removal.carry_out()
    assert not (root / "runs" / run_id).exists()


def rows(directory: Path, name: str, target: str) -> pa.Table:
    table = pq.read_table(directory / f"{name}-00000.parquet")
    return table.filter(pc.field("target") == target).drop_columns("run_id").combine_chunks()


def test_the_rows_are_the_same_in_every_other_column(tmp_path, monkeypatch):
    monkeypatch.setattr(carry, "_BATCH_ROWS", 7)  # the rows of a target come in several parts
    first = publish(tmp_path, 0, *(core(name, mounts=20 + ord(name)) for name in "abcdef"))
    # Fresh, unchanged and failed targets take turns, and f is gone.
    staging = stage(tmp_path, 1, *"abcde0")
    for outcome in (unchanged("a"), unchanged("b"), core("c", mounts=3), unchanged("d", rack="r9"), failure("e")):
        staging.append(outcome)
    staging.append(core("0"))
    second = directory_of(staging.publish(query.check))
    for target in "abd":
        for name in HOST_TABLES:
            assert len(rows(first, name, target)) > 1
            assert rows(second, name, target).equals(rows(first, name, target), check_metadata=True), (name, target)
        old_row, new_row = (rows(directory, "targets", target).to_pylist()[0] for directory in (first, second))
        assert {name for name in new_row if new_row[name] != old_row[name]} <= set(DIFFERENT)
        assert (new_row["attempts"], new_row["started_at"], new_row["duration_ms"]) == (0, None, None)
        assert new_row["carried_from"] == RUNS[0]
        assert new_row["labels"] == ([("rack", "r9")] if target == "d" else [])
        assert len(rows(second, "attempts", target)) == 0
    fresh = pq.read_table(second / "targets-00000.parquet").filter(pc.field("carried_from").is_null())
    assert fresh["target"].to_pylist() == ["0", "c", "e"]
    for name in schema.tables():
        targets = pq.read_table(second / f"{name}-00000.parquet").to_pydict().get("target", [])
        assert targets == sorted(targets), name
    assert list(warehouse.problems(tmp_path, RUNS[1], query.check)) == []
    assert staging.unchanged_counts == {RUNS[0]: 3}


def test_a_core_that_stays_the_same_for_many_nights_names_the_run_that_read_it(tmp_path):
    publish(tmp_path, 0, core("a"))
    for number in (1, 2, 3):
        publish(tmp_path, number, unchanged("a"))
        expire(tmp_path, RUNS[number - 1])
    (row,) = session(tmp_path).rows(
        "SELECT run_id, carried_from, wasted_bytes FROM targets JOIN host_waste USING (run_id)"
    )
    assert (row["run_id"], row["carried_from"]) == (RUNS[3], RUNS[0])
    first_lists = ok("a")["tables"]["list_lrus"]
    assert row["wasted_bytes"] == sum(
        lru["list_lru_one_bytes"] + lru["pointer_array_bytes"] + lru["node_array_bytes"] - lru["lazy_bytes"]
        for lru in (dict(zip(first_lists["columns"], cells, strict=True)) for cells in first_lists["rows"])
    )


def test_known_are_the_newest_good_rows_of_this_audit(tmp_path):
    publish(tmp_path, 0, core("other"), core("gone", "d0"), core("partly", "d0"), core("bad", "d0"), audit="other")
    publish(tmp_path, 1, core("gone", "d1"), core("partly", "d1"), core("bad", "d1"), core("young", "d1"))
    raced = core("raced", "d2")
    raced["row"]["consistency"] = "raced"
    live = core("live", "d2")
    none = failure("unsupported", "unsupported")
    none["row"]["input_digest"] = "d2"
    publish(
        tmp_path, 2, core("partly", "d2"), failure("bad"), core("young", None), raced, live, none, check=skip_checks
    )
    names = ("other", "gone", "partly", "bad", "young", "raced", "unsupported", "new")
    staging = stage(tmp_path, 3, *names, targets=8)
    assert staging.known_digests() == {"gone": "d1", "partly": "d2", "bad": "d1", "unsupported": "d2"}
    for name in ("gone", "partly", "bad", "unsupported"):
        staging.append(unchanged(name))
    for name in ("other", "young", "raced", "new"):
        staging.append(failure(name))
    staging.publish(query.check)
    carried = session(tmp_path).rows(
        f"SELECT target, status, carried_from FROM targets WHERE run_id = '{RUNS[3]}' AND attempts = 0 ORDER BY ALL"
    )
    assert [tuple(row.values()) for row in carried] == [
        ("bad", "ok", RUNS[1]),
        ("gone", "ok", RUNS[1]),
        ("partly", "ok", RUNS[2]),
        ("unsupported", "unsupported", RUNS[2]),
    ]


def test_a_revised_run_and_one_of_another_schema_version_are_left_out(tmp_path, monkeypatch):
    publish(tmp_path, 0, core("a", "old"), failure("b"))
    revision = warehouse.Staging.revise(tmp_path, RUNS[0], run_id=RUNS[1], tool_version="0.1.0", model_version=2)
    revision.append(core("b", "new"))
    revision.publish(query.check)
    assert stage(tmp_path, 2, "a", "b").known_digests() == {"a": "old", "b": "new"}
    assert {path.name for path in (tmp_path / "staging" / RUNS[2] / "earlier").iterdir()} == {RUNS[1], "digests.json"}
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    assert stage(tmp_path, 3, "a", "b").known_digests() == {}


def test_a_run_with_carried_rows_can_be_revised_and_carried_from_again(tmp_path):
    publish(tmp_path, 0, core("a"), core("b"))
    publish(tmp_path, 1, unchanged("a"), failure("b"))
    revision = warehouse.Staging.revise(tmp_path, RUNS[1], run_id=RUNS[2], tool_version="0.1.0", model_version=2)
    revision.append(core("b"))
    second, third = tmp_path / "runs" / RUNS[1], directory_of(revision.publish(query.check))
    for name in ("targets", *HOST_TABLES):
        assert rows(third, name, "a").equals(rows(second, name, "a")), name
    fourth = publish(tmp_path, 3, unchanged("a"), unchanged("b"))
    assert pq.read_table(fourth / "targets-00000.parquet")["carried_from"].to_pylist() == [RUNS[0], RUNS[2]]


def test_the_earlier_run_may_expire_and_the_staged_run_be_resumed(tmp_path):
    first = publish(tmp_path, 0, core("a"), core("b"), core("c"))
    old_lists = [rows(first, "list_lrus", target) for target in "ab"]
    staging = stage(tmp_path, 1, *"abc")
    staging.append(unchanged("a"))
    del staging
    publish(tmp_path, 2, core("c"), core("d"))
    expire(tmp_path, RUNS[0])
    resumed = warehouse.Staging(tmp_path, RUNS[1])
    assert resumed.finished_targets() == {"a"}
    assert resumed.known_digests() == {"a": "d1", "b": "d1", "c": "d1"}
    resumed.append(unchanged("b"))
    resumed.append(failure("c"))
    second = directory_of(resumed.publish(query.check))
    assert [rows(second, "list_lrus", target) for target in "ab"] == old_lists
    assert not (tmp_path / "staging" / RUNS[1]).exists()


def test_rows_that_contradict_a_check_of_this_version_become_bad_output(tmp_path):
    broken = core("b")
    broken["row"]["list_lrus"] += 1  # a check of an older version did not count the rows
    publish(tmp_path, 0, core("a"), broken, check=skip_checks)
    publish(tmp_path, 1, unchanged("a"), unchanged("b", rack="r1"))
    columns = "status, error_type, attempts, labels['rack'] AS rack"
    targets = session(tmp_path).rows(f"SELECT {columns} FROM targets WHERE run_id = '{RUNS[1]}' ORDER BY target")
    assert [tuple(row.values()) for row in targets] == [
        ("ok", None, 0, None),
        ("bad_output", "check:rows_counted", 0, "r1"),
    ]
    assert stage(tmp_path, 2, "a", "b").known_digests() == {"a": "d1"}, "b is read again, not rejected every night"
    publish(tmp_path, 3, unchanged("a"), failure("b"))
    assert stage(tmp_path, 4, "a", "b").known_digests() == {"a": "d1"}
    publish(tmp_path, 5, unchanged("a"), core("b", "d2"))
    assert stage(tmp_path, 6, "a", "b").known_digests() == {"a": "d1", "b": "d2"}


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [flip_bit, lambda path: os.truncate(path, 99), replace_by_directory, Path.unlink])
@pytest.mark.parametrize("table", ["list_lrus", "targets"])
def test_a_damaged_run_is_named_and_only_its_cores_are_read_again(tmp_path, caplog, table, damage):
    publish(tmp_path, 0, core("b"))
    directory = publish(tmp_path, 1, core("a"))
    path = directory / f"{table}-00000.parquet"
    damage(path)
    assert stage(tmp_path, 2, "a", "b").known_digests() == {"b": "d1"}
    assert str(path) in caplog.text
    assert "the cores of this run are read again" in caplog.text


def test_a_linked_table_with_bad_blocks_costs_the_rows_of_its_run(tmp_path, monkeypatch, caplog):
    publish(tmp_path, 0, core("a"))
    publish(tmp_path, 1, core("b"))
    read = carry.sha256

    def read_badly(path: Path) -> str:
        if RUNS[0] in str(path):
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    monkeypatch.setattr(carry, "sha256", read_badly)
    assert stage(tmp_path, 2, "a", "b").known_digests() == {"b": "d1"}
    assert f"runs/{RUNS[0]}" in caplog.text


def test_a_full_disk_in_staging_ends_the_run(tmp_path, monkeypatch):
    publish(tmp_path, 0, core("a"))

    def refuse(source: str, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link", source)

    monkeypatch.setattr(carry.os, "link", refuse)
    with open("/dev/full", "wb", buffering=0) as full_file:
        monkeypatch.setattr(carry, "open", lambda path, mode: full_file, raising=False)
        with pytest.raises(warehouse.WarehouseError, match="No space left on device; nothing was audited"):
            stage(tmp_path, 1, "a")


def test_a_broken_manifest_does_not_keep_a_run_from_starting(tmp_path, caplog):
    directory = publish(tmp_path, 0, core("a"))
    (directory / "manifest.json").write_text("{}")
    assert stage(tmp_path, 1, "a").known_digests() == {}
    assert "invalid manifest" in caplog.text


def test_a_run_that_expires_meanwhile_costs_its_rows_only(tmp_path, monkeypatch):
    publish(tmp_path, 0, core("a"))
    publish(tmp_path, 1, core("b"))
    link = os.link

    def link_late(source: str, target: Path) -> None:
        if RUNS[0] in source:
            shutil.rmtree(tmp_path / "runs" / RUNS[0], ignore_errors=True)
        link(source, target)

    monkeypatch.setattr(carry.os, "link", link_late)
    assert stage(tmp_path, 2, "a", "b").known_digests() == {"b": "d1"}


def test_a_file_system_without_hard_links_has_copies(tmp_path, monkeypatch):
    publish(tmp_path, 0, core("a"))
    staging = stage(tmp_path, 1, "a")
    assert (staging.directory / "earlier" / RUNS[0] / "list_lrus-00000.parquet").stat().st_nlink == 2

    def refuse(source: str, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", source)

    monkeypatch.setattr(carry.os, "link", refuse)
    staging = stage(tmp_path, 2, "a")
    assert (staging.directory / "earlier" / RUNS[0] / "list_lrus-00000.parquet").stat().st_nlink == 1
    staging.append(unchanged("a"))
    staging.publish(query.check)


def test_a_run_that_does_not_carry_keeps_nothing(tmp_path):
    publish(tmp_path, 0, core("a"))
    targets = [{"name": "a", "kind": "vmcore"}]
    staging = warehouse.Staging.create(tmp_path, run(RUNS[1], audit="crash"), {}, targets)
    assert staging.known_digests() == {}
    assert not (staging.directory / "earlier").exists()
