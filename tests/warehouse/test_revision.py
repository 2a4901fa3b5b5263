"""A revision has the good rows of the revised run unchanged, and collects the other targets again."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline import cli, query, warehouse
from pipeline.warehouse import records, schema
from tests.warehouse.outcomes import STARTED_AT, directory_of, failure, ok, publish, run, session

ROOT = Path(__file__).parents[2]
OLD, NEW = "20251101T000000Z-aaaaaaaa", "20251102T000000Z-bbbbbbbb"
NEW_RUN = {"run_id": NEW, "tool_version": "0.2.0", "model_version": 7}


@pytest.fixture
def root(tmp_path):
    """A published run of a good host, an unreachable one, and one without list_lrus."""
    targets = [{"name": name, "kind": "vmcore", "source": f"/cores/{name}"} for name in "abc"]
    values = run(OLD, audit="prod", targets=3, inventory_sha256="f" * 64)
    staging = warehouse.Staging.create(tmp_path, values, {"retries": 2}, targets)
    good = ok("a", mounts=60, nodes=2)
    good["tables"]["superblocks"]["columns"].append("s_id_raw")
    for row in good["tables"]["superblocks"]["rows"]:
        row.append("ff00" if row[0] % 8192 else None)
    good["row"]["labels"] = {"rack": "r1", "odd": "'\n\u202e"}
    for outcome in (good, failure("b"), failure("c", "unsupported")):
        staging.append(outcome)
    staging.publish(query.check)
    return tmp_path


def rows(directory, name: str, target: str) -> pa.Table:
    table = pq.read_table(directory / f"{name}-00000.parquet")
    return table.filter(pc.field("target") == target).drop_columns("run_id").combine_chunks()


def test_good_rows_are_the_same_in_every_column_and_the_rest_is_collected_again(root, monkeypatch):
    monkeypatch.setattr("pipeline.warehouse.records._BATCH_ROWS", 7)  # a host's rows come in several parts
    staging = warehouse.Staging.revise(root, OLD, **NEW_RUN)
    assert staging.finished_targets() == {"a", "c"}
    options, targets = staging.inputs()
    assert options == staging.options() == {"retries": 2}
    assert [target["name"] for target in targets] == ["a", "b", "c"]
    staging.append(ok("b"))
    directory = directory_of(staging.publish(query.check))
    for name in set(schema.tables()) - {"runs"}:
        for target in "ac":
            old_rows, new_rows = rows(root / "runs" / OLD, name, target), rows(directory, name, target)
            assert new_rows.equals(old_rows, check_metadata=True), (name, target)
    assert len(rows(directory, "list_lrus", "a")) == 121
    (row,) = session(root).rows("FROM latest_runs")
    assert (row["run_id"], row["revision_of"], row["audit"], row["good"]) == (NEW, OLD, "prod", 3)
    assert (row["tool_version"], row["model_version"], row["inventory_sha256"]) == ("0.2.0", 7, "f" * 64)
    assert row["started_at"].timestamp() * 1e6 == STARTED_AT


def test_a_revision_that_was_killed_while_rows_were_carried_over_is_gone_on_with(root):
    staging = warehouse.Staging.revise(root, OLD, **NEW_RUN)
    content = (staging.directory / "outcomes.jsonl").read_bytes()
    (staging.directory / "outcomes.jsonl").write_bytes(content[: content.index(b"\n") + 30])
    (staging.directory / "carried").unlink()
    del staging
    assert warehouse.Staging(root, NEW).finished_targets() == {"a", "c"}
    assert (root / "staging" / NEW / "outcomes.jsonl").read_bytes() == content


def expire_all_but(root, newest: str) -> None:
    publish(root, ok("a"), run_id=newest, audit="prod", started_at=STARTED_AT + 1)
    for removal in warehouse.removals(root, warehouse.RetentionRules(last=1)):
        removal.carry_out()


def test_once_rows_are_carried_over_the_run_that_had_them_is_needed_no_longer(root):
    staging = warehouse.Staging.revise(root, OLD, **NEW_RUN)
    staging.append(ok("b"))
    del staging
    expire_all_but(root, "20251103T000000Z-cccccccc")
    assert not (root / "runs" / OLD).exists()
    staging = warehouse.Staging(root, NEW)
    assert staging.finished_targets() == {"a", "b", "c"}
    assert staging.publish(query.check).good == 3


@pytest.fixture
def half_carried(root):
    """A revision whose driver was killed after carrying over one of two good targets."""
    script = f"""
        import os, signal, sys
        from tests.warehouse.outcomes import *

        def append_once(*args, results=[], append=warehouse.Staging._append):
            if results:
                os.kill(os.getpid(), signal.SIGKILL)
            results.append(append(*args))

        warehouse.Staging._append = append_once
        warehouse.Staging.revise(sys.argv[1], {OLD!r}, **{NEW_RUN!r})
        """
    process = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(root)], cwd=ROOT, check=False)
    assert process.returncode == -signal.SIGKILL
    return root


def test_until_then_that_run_is_kept(half_carried):
    expire_all_but(half_carried, "20251103T000000Z-cccccccc")
    assert warehouse.Staging(half_carried, NEW).finished_targets() == {"a", "c"}


@pytest.mark.parametrize("command", ["resume", "publish"])
def test_a_revised_run_that_is_gone_before_is_one_line_and_costs_no_outcome(half_carried, command, capsys):
    """An expire on another machine can remove it from an object store."""
    shutil.rmtree(half_carried / "runs" / OLD)
    spool = half_carried / "staging" / NEW / "outcomes.jsonl"
    content = spool.read_bytes()
    assert content.count(b"\n") == 1
    assert cli.main([command, NEW, "-w", str(half_carried)]) == cli.FAILED
    out, err = capsys.readouterr()
    cause = f"run {OLD}, which it revises, was expired before its good rows were carried over; start a new audit with:"
    assert (out, err) == ("", f"lru-audit: {spool.parent}: {cause} lru-audit run\n")
    assert spool.read_bytes() == content


def test_a_run_that_expires_while_its_rows_are_carried_over_is_the_same_line(root, monkeypatch):
    def records_after_expiry(manifest, records=records.records):
        shutil.rmtree(root / "runs" / OLD)
        return records(manifest)

    monkeypatch.setattr("pipeline.warehouse.staging.records", records_after_expiry)
    with pytest.raises(warehouse.WarehouseError, match=f"{NEW}: run {OLD}, which it revises, was expired before its"):
        warehouse.Staging.revise(root, OLD, **NEW_RUN)


def test_what_is_resumed_is_the_newest_and_never_what_is_revised_already(root):
    assert warehouse.resolve_resumable_run(root, "latest") == OLD
    staging = warehouse.Staging.revise(root, OLD, **NEW_RUN)
    assert warehouse.resolve_resumable_run(root, "latest") == NEW
    for is_published in (False, True):
        if is_published:
            staging.append(failure("b"))
            staging.publish(query.check)
        with pytest.raises(warehouse.WarehouseError, match=f"run {OLD} is revised by {NEW}: resume that one"):
            warehouse.resolve_resumable_run(root, OLD)
    assert warehouse.resolve_resumable_run(root, "20251102") == NEW
    with pytest.raises(warehouse.WarehouseError, match="no run in staging"):
        warehouse.resolve_staged_run(root, NEW)


def test_a_staged_run_is_open_once(root):
    staging = warehouse.Staging.revise(root, OLD, **NEW_RUN)
    with pytest.raises(warehouse.WarehouseError, match=f"{NEW}: another lru-audit has this run open"):
        warehouse.Staging(root, NEW)
    del staging
    warehouse.Staging(root, NEW)


def test_what_a_driver_left_that_was_killed_once_its_run_was_published_is_removed(root):
    leftover = root / "staging" / OLD
    leftover.mkdir()
    (leftover / "run.json").write_text("{}")
    assert warehouse.staged_runs(root) == {}
    warehouse.Staging.create(root, run(NEW))
    assert not leftover.exists()


@pytest.mark.parametrize("damage", ["absent", "cut"])
def test_a_run_whose_inputs_cannot_be_read_is_one_line(root, damage):
    inputs = root / "runs" / OLD / "inputs.jsonl.gz"
    if damage == "cut":
        inputs.write_bytes(inputs.read_bytes()[:-9])
    else:
        inputs.unlink()
    with pytest.raises(warehouse.WarehouseError, match=r"inputs.jsonl.gz: cannot be read: .*lru-audit run$"):
        warehouse.Staging.revise(root, OLD, **NEW_RUN)


def test_a_run_of_a_newer_schema_is_not_carried_over(root):
    manifest = root / "runs" / OLD / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"schema": {schema.VERSION}', f'"schema": {schema.VERSION + 1}'))
    with pytest.raises(warehouse.WarehouseError, match="written by a newer list-lru-audit"):
        warehouse.Staging.revise(root, OLD, **NEW_RUN)
    shutil.rmtree(root / "staging")
