"""A revision has the good rows of the run that it revises as they are, and the rest anew."""

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
from tests.warehouse.outcomes import STARTED_AT, directory_of, failed, ok, publish, run, session

ROOT = Path(__file__).parents[2]
OLD, NEW = "20251101T000000Z-aaaaaaaa", "20251102T000000Z-bbbbbbbb"
NOW = {"run_id": NEW, "tool_version": "0.2.0", "model_version": 7}


@pytest.fixture
def root(tmp_path):
    """A published run of a good host, one that is not, and one without list_lrus."""
    targets = [{"name": name, "kind": "vmcore", "source": f"/cores/{name}"} for name in "abc"]
    known = run(OLD, audit="prod", targets=3, inventory_sha256="f" * 64)
    staging = warehouse.Staging.create(tmp_path, known, {"retries": 2}, targets)
    good = ok("a", mounts=60, nodes=2)
    good["tables"]["superblocks"]["columns"].append("s_id_raw")
    for row in good["tables"]["superblocks"]["rows"]:
        row.append("ff00" if row[0] % 8192 else None)
    good["row"]["labels"] = {"rack": "r1", "odd": "'\n\u202e"}
    for outcome in (good, failed("b"), failed("c", "unsupported")):
        staging.append(outcome)
    staging.publish(query.check)
    return tmp_path


def rows(directory, name: str, target: str) -> pa.Table:
    table = pq.read_table(directory / f"{name}-00000.parquet")
    return table.filter(pc.field("target") == target).drop_columns("run_id").combine_chunks()


def test_good_rows_are_the_same_in_every_column_and_the_rest_is_collected_again(root, monkeypatch):
    monkeypatch.setattr("pipeline.warehouse.records._BATCH_ROWS", 7)  # a host's rows come in several parts
    staging = warehouse.Staging.revise(root, OLD, **NOW)
    assert staging.collected() == {"a", "c"}
    options, targets = staging.inputs()
    assert options == staging.options() == {"retries": 2}
    assert [target["name"] for target in targets] == ["a", "b", "c"]
    staging.append(ok("b"))
    published = directory_of(staging.publish(query.check))
    for name in set(schema.tables()) - {"runs"}:
        for target in "ac":
            before, after = rows(root / "runs" / OLD, name, target), rows(published, name, target)
            assert after.equals(before, check_metadata=True), (name, target)
    assert len(rows(published, "list_lrus", "a")) == 121
    (row,) = session(root).rows("FROM latest_runs")
    assert (row["run_id"], row["revision_of"], row["audit"], row["good"]) == (NEW, OLD, "prod", 3)
    assert (row["tool_version"], row["model_version"], row["inventory_sha256"]) == ("0.2.0", 7, "f" * 64)
    assert row["started_at"].timestamp() * 1e6 == STARTED_AT


def test_a_revision_that_was_killed_while_rows_were_carried_over_is_gone_on_with(root):
    staging = warehouse.Staging.revise(root, OLD, **NOW)
    whole = (staging.directory / "outcomes.jsonl").read_bytes()
    (staging.directory / "outcomes.jsonl").write_bytes(whole[: whole.index(b"\n") + 30])
    (staging.directory / "carried").unlink()
    del staging
    assert warehouse.Staging(root, NEW).collected() == {"a", "c"}
    assert (root / "staging" / NEW / "outcomes.jsonl").read_bytes() == whole


def expire_all_but(root, newest: str) -> None:
    publish(root, ok("a"), run_id=newest, audit="prod", started_at=STARTED_AT + 1)
    for removal in warehouse.removals(root, warehouse.Rules(last=1)):
        removal.carry_out()


def test_once_rows_are_carried_over_the_run_that_had_them_is_needed_no_longer(root):
    staging = warehouse.Staging.revise(root, OLD, **NOW)
    staging.append(ok("b"))
    del staging
    expire_all_but(root, "20251103T000000Z-cccccccc")
    assert not (root / "runs" / OLD).exists()
    staging = warehouse.Staging(root, NEW)
    assert staging.collected() == {"a", "b", "c"}
    assert staging.publish(query.check).good == 3


@pytest.fixture
def half_carried(root):
    """A revision whose driver was killed when one of two good targets was carried over."""
    script = f"""
        import os, signal, sys
        from tests.warehouse.outcomes import *

        def append(*args, kept=[], append=warehouse.Staging._append):
            if kept:
                os.kill(os.getpid(), signal.SIGKILL)
            kept.append(append(*args))

        warehouse.Staging._append = append
        warehouse.Staging.revise(sys.argv[1], {OLD!r}, **{NOW!r})
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(root)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    return root


def test_until_then_that_run_is_kept(half_carried):
    expire_all_but(half_carried, "20251103T000000Z-cccccccc")
    assert warehouse.Staging(half_carried, NEW).collected() == {"a", "c"}


@pytest.mark.parametrize("command", ["resume", "publish"])
def test_a_revised_run_that_is_gone_before_is_one_line_and_costs_no_outcome(half_carried, command, capsys):
    """As an expire on another machine removes it, from an object store."""
    shutil.rmtree(half_carried / "runs" / OLD)
    spool = half_carried / "staging" / NEW / "outcomes.jsonl"
    before = spool.read_bytes()
    assert before.count(b"\n") == 1
    assert cli.main([command, NEW, "-w", str(half_carried)]) == cli.FAILED
    out, err = capsys.readouterr()
    why = f"run {OLD}, which it revises, was expired before its good rows were carried over; audit anew with: lru-audit"
    assert (out, err) == ("", f"lru-audit: {spool.parent}: {why} run\n")
    assert spool.read_bytes() == before


def test_a_run_that_expires_while_its_rows_are_carried_over_is_the_same_line(root, monkeypatch):
    def expired(manifest, records=records.records):
        shutil.rmtree(root / "runs" / OLD)
        return records(manifest)

    monkeypatch.setattr("pipeline.warehouse.staging.records", expired)
    with pytest.raises(warehouse.WarehouseError, match=f"{NEW}: run {OLD}, which it revises, was expired before its"):
        warehouse.Staging.revise(root, OLD, **NOW)


def test_what_is_resumed_is_the_newest_and_never_what_is_revised_already(root):
    assert warehouse.resumable(root, "latest") == OLD
    staging = warehouse.Staging.revise(root, OLD, **NOW)
    assert warehouse.resumable(root, "latest") == NEW
    for published in (False, True):
        if published:
            staging.append(failed("b"))
            staging.publish(query.check)
        with pytest.raises(warehouse.WarehouseError, match=f"run {OLD} is revised by {NEW}: resume that one"):
            warehouse.resumable(root, OLD)
    assert warehouse.resumable(root, "20251102") == NEW
    with pytest.raises(warehouse.WarehouseError, match="no run in staging"):
        warehouse.unpublished(root, NEW)


def test_a_staged_run_is_open_once(root):
    staging = warehouse.Staging.revise(root, OLD, **NOW)
    with pytest.raises(warehouse.WarehouseError, match=f"{NEW}: another lru-audit is at work on this run"):
        warehouse.Staging(root, NEW)
    del staging
    warehouse.Staging(root, NEW)


def test_what_a_driver_left_that_was_killed_once_its_run_was_published_is_removed(root):
    left = root / "staging" / OLD
    left.mkdir()
    (left / "run.json").write_text("{}")
    assert warehouse.staged(root) == {}
    warehouse.Staging.create(root, run(NEW))
    assert not left.exists()


@pytest.mark.parametrize("how", ["absent", "cut"])
def test_a_run_whose_inputs_cannot_be_read_is_one_line(root, how):
    inputs = root / "runs" / OLD / "inputs.jsonl.gz"
    if how == "cut":
        inputs.write_bytes(inputs.read_bytes()[:-9])
    else:
        inputs.unlink()
    with pytest.raises(warehouse.WarehouseError, match=r"inputs.jsonl.gz: cannot be read: .*lru-audit run$"):
        warehouse.Staging.revise(root, OLD, **NOW)


def test_a_run_of_a_newer_schema_is_not_carried_over(root):
    manifest = root / "runs" / OLD / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"schema": {schema.VERSION}', f'"schema": {schema.VERSION + 1}'))
    with pytest.raises(warehouse.WarehouseError, match="written by a newer list-lru-audit"):
        warehouse.Staging.revise(root, OLD, **NOW)
    shutil.rmtree(root / "staging")
