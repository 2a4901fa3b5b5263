"""A run is complete or absent, immutable, and has the layout that readers expect."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import query, warehouse
from pipeline.warehouse import schema
from pipeline.warehouse.outcome import HOST_TABLES
from pipeline.warehouse.parquet import TableWriter
from tests.warehouse.outcomes import directory_of, failure, ok, publish, run, session

ROOT = Path(__file__).parents[2]


def read_table(directory: Path, table: str) -> list[dict]:
    return pq.ParquetFile(directory / f"{table}-00000.parquet").read().to_pylist()


def test_every_outcome_is_a_row_with_its_rows_stamped_by_run_and_target(tmp_path):
    directory = publish(tmp_path, ok("b", mounts=3), failure("c"), ok("a"))
    assert [row["target"] for row in read_table(directory, "targets")] == ["a", "b", "c"]
    assert [row["target"] for row in read_table(directory, "superblocks")] == ["a"] * 2 + ["b"] * 3
    assert [row["target"] for row in read_table(directory, "list_lrus")] == ["a"] * 5 + ["b"] * 7
    for table in ("targets", "attempts", *HOST_TABLES):
        assert {row["run_id"] for row in read_table(directory, table)} == {directory.name}


def test_values_arrive_as_they_were_sent(tmp_path):
    directory = publish(tmp_path, ok("a", nodes=2, cache_ids=7))
    (target,) = read_table(directory, "targets")
    assert target["labels"] == [("rack", "r1")]
    assert target["possible_nodes"] == [0, 1]
    assert target["captured_at"].isoformat() == "2025-11-23T12:13:20+00:00"
    assert target["uptime_s"] is None
    dentry = read_table(directory, "list_lrus")[0]
    assert dentry["address"] == 0xFFFF_8880_0000_0040
    assert dentry["list_lru_one_bytes"] == 2 * 7 * 32


def test_a_name_that_is_not_utf8_keeps_its_bytes(tmp_path):
    outcome = ok("a")
    outcome["tables"]["superblocks"]["columns"].append("s_id_raw")
    for row, raw in zip(outcome["tables"]["superblocks"]["rows"], ("ff00", None), strict=True):
        row.append(raw)
    directory = publish(tmp_path, outcome)
    assert [row["s_id_raw"] for row in read_table(directory, "superblocks")] == [b"\xff\x00", None]


def test_a_run_without_good_targets_has_every_table(tmp_path):
    directory = publish(tmp_path, failure("a"))
    rows = {name: pq.ParquetFile(directory / f"{name}-00000.parquet").metadata.num_rows for name in schema.tables()}
    assert rows == {"runs": 1, "targets": 1, "attempts": 1, **dict.fromkeys(HOST_TABLES, 0)}


def test_an_outcome_that_comes_again_replaces_the_earlier_one(tmp_path):
    staging = warehouse.Staging.create(tmp_path, run())
    for outcome in (failure("a", "lost"), ok("a", mounts=5), ok("a", mounts=3)):
        staging.append(outcome)
    directory = directory_of(staging.publish(query.check))
    assert len(read_table(directory, "superblocks")) == 3
    assert [row["status"] for row in read_table(directory, "targets")] == ["ok"]


def test_the_run_row_and_the_manifest_count_the_outcomes(tmp_path):
    directory = publish(tmp_path, ok("a"), failure("b"), failure("c", "not_run"), audit="fleet", model_version=1)
    (row,) = read_table(directory, "runs")
    assert (row["targets"], row["good"], row["status_ok"], row["status_unreachable"]) == (3, 1, 1, 1)
    assert row["complete"] is False
    assert (row["audit"], row["model_version"]) == ("fleet", 1)
    (manifest,) = warehouse.published_runs(tmp_path)
    assert manifest.outcomes == {"not_run": 1, "ok": 1, "unreachable": 1}
    assert manifest.complete is False


def test_the_manifest_describes_the_files_on_disk(tmp_path):
    directory = publish(tmp_path, ok("a"))
    files = {file["path"]: file for file in json.loads((directory / "manifest.json").read_bytes())["files"]}
    assert sorted(files) == sorted(path.name for path in directory.glob("*.parquet"))
    for name, file in files.items():
        digest = subprocess.run(["sha256sum", directory / name], capture_output=True, text=True, check=True).stdout
        assert file["sha256"] == digest.split()[0]
        assert file["bytes"] == (directory / name).stat().st_size
        assert file["rows"] == pq.ParquetFile(directory / name).metadata.num_rows


def test_columns_are_zstd_with_dictionaries_and_addresses_as_deltas(tmp_path):
    directory = publish(tmp_path, ok("a"))
    group = pq.ParquetFile(directory / "list_lrus-00000.parquet").metadata.row_group(0)
    encodings = {}
    for index in range(group.num_columns):
        column = group.column(index)
        assert column.compression == "ZSTD"
        encodings[column.path_in_schema] = column.encodings
    assert "DELTA_BINARY_PACKED" in encodings["address"]
    assert "DELTA_BINARY_PACKED" in encodings["superblock"]
    assert "RLE_DICTIONARY" in encodings["lazy_bytes"]
    assert [order.column_index for order in group.sorting_columns] == [1, 2]  # target, address


def test_units_and_meaning_are_in_the_files(tmp_path):
    directory = publish(tmp_path, ok("a"))
    field = pq.ParquetFile(directory / "targets-00000.parquet").schema_arrow.field("memory_bytes")
    assert field.metadata[b"unit"] == b"bytes"
    assert field.metadata[b"source"] == b"_totalram_pages"


def test_row_groups_have_duckdbs_size(tmp_path):
    rows = 250_000
    table = schema.tables()["memcgs"]
    with TableWriter(tmp_path / "memcgs-00000.parquet", table) as writer:
        for start in range(0, rows, 50_000):
            ids = list(range(start, start + 50_000))
            constants = {name: [name] * len(ids) for name in ("run_id", "target", "path")}
            writer.add({**constants, "css_id": ids, "state": ["online"] * len(ids)})
    metadata = pq.ParquetFile(tmp_path / "memcgs-00000.parquet").metadata
    groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    assert groups == [122_880, 122_880, rows - 2 * 122_880]
    assert pq.ParquetFile(tmp_path / "memcgs-00000.parquet").read(["css_id"])["css_id"].to_pylist() == list(range(rows))


def test_no_directory_is_named_like_a_hive_partition(tmp_path):
    publish(tmp_path, ok("key=value"))
    assert not [path for path in tmp_path.rglob("*") if "=" in path.name]


def test_a_published_run_is_readable_as_the_umask_says(tmp_path):
    old_umask = os.umask(0o027)
    try:
        directory = publish(tmp_path / "w", ok("a"))
    finally:
        os.umask(old_umask)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o750
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o640}


def test_a_staged_run_is_not_seen_and_leaves_nothing_once_published(tmp_path):
    staging = warehouse.Staging.create(tmp_path, run())
    staging.append(ok("a"))
    staging.write()
    assert warehouse.published_runs(tmp_path) == []
    assert session(tmp_path).sql("FROM targets").num_rows == 0
    staging.publish(query.check)
    assert [manifest.run_id for manifest in warehouse.published_runs(tmp_path)] == [staging.run["run_id"]]
    assert list((tmp_path / "staging").iterdir()) == []


def test_a_published_run_is_never_replaced(tmp_path):
    directory = publish(tmp_path, ok("a"))
    content = (directory / "manifest.json").read_bytes()
    staging = warehouse.Staging.create(tmp_path, run(directory.name))
    staging.append(failure("a"))
    with pytest.raises(warehouse.WarehouseError, match="not empty"):
        staging.publish(query.check)
    assert (directory / "manifest.json").read_bytes() == content


def test_a_run_that_misses_a_target_is_not_published(tmp_path):
    staging = warehouse.Staging.create(tmp_path, run(targets=2))
    staging.append(ok("a"))
    with pytest.raises(query.CheckError, match=r"targets_complete: .* planned 2 targets and has 1"):
        staging.publish(query.check)
    assert warehouse.published_runs(tmp_path) == []
    staging.append(failure("b", "not_run"))
    staging.publish(query.check)
    assert len(warehouse.published_runs(tmp_path)) == 1


def test_a_spool_that_a_killed_process_left_torn_is_gone_on_with(tmp_path):
    staging = warehouse.Staging.create(tmp_path, run(targets=2))
    staging.append(ok("a"))
    with (staging.directory / "outcomes.jsonl").open("ab") as spool:
        spool.write(b'["b",{"targets":{"kind":["vmc')
    (run_id,) = warehouse.staged_runs(tmp_path)
    del staging
    staging = warehouse.Staging(tmp_path, run_id)
    staging.append(failure("b"))
    assert [row["target"] for row in read_table(directory_of(staging.publish(query.check)), "targets")] == ["a", "b"]


def test_a_warehouse_path_that_is_a_file_is_one_clear_line(tmp_path):
    (tmp_path / "w").write_text("")
    with pytest.raises(warehouse.WarehouseError, match=r"/w.*: Not a directory; nothing was audited$"):
        warehouse.Staging.create(tmp_path / "w", run())


def script(body: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python with the imports of the tests in a separate process."""
    code = "from pathlib import Path\nfrom tests.warehouse.outcomes import *\n" + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, "-c", "import sys\n" + code, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_full_disk_is_one_clear_line_and_costs_no_outcome(tmp_path):
    # Writes over a file size limit fail as on a full disk.
    child = script(
        """
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        root = Path(sys.argv[1])
        staging = warehouse.Staging.create(root, run("20251123T121320Z-0000000a", targets=2))
        staging.append(ok("a"))
        size = staging.directory.joinpath("outcomes.jsonl").stat().st_size
        for limit, call in ((size + 100, lambda: staging.append(ok("b"))), (200, lambda: staging.publish(query.check))):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                call()
            except warehouse.WarehouseError as error:
                print(error)
        """,
        tmp_path,
    )
    assert child.returncode == 0, child.stderr
    first, second = child.stdout.splitlines()
    for line in (first, second):
        assert "File too large; nothing was published, collected targets are kept in" in line
        assert str(tmp_path / "staging/20251123T121320Z-0000000a") in line
    staging = warehouse.Staging(tmp_path, "20251123T121320Z-0000000a")
    staging.append(failure("b"))
    assert [row["status"] for row in read_table(directory_of(staging.publish(query.check)), "targets")] == [
        "ok",
        "unreachable",
    ]


@pytest.mark.faults
def test_killed_at_any_step_a_run_is_whole_or_absent_and_can_be_finished(tmp_path):
    """A child process is killed at its first, second, ... file system call, until one child completes."""
    child = script(
        """
        import os
        from tests.warehouse.kill_hook import kill_hook
        STEPS = {"open", "os.mkdir", "os.rename", "os.rmdir", "os.remove", "os.truncate", "shutil.rmtree"}
        RUN = "20251123T121320Z-0000000a"

        def publish_run(root):
            staging = warehouse.Staging.create(root, run(RUN, targets=2))
            staging.append(ok("a"))
            staging.append(failure("b"))
            staging.publish(lambda tables: [])

        status = 1
        steps = absent = complete = 0
        while status != 0:
            root = Path(sys.argv[1], str(steps))
            pid = os.fork()
            if pid == 0:
                sys.addaudithook(kill_hook(steps, STEPS))
                publish_run(root)
                os._exit(0)
            status = os.waitpid(pid, 0)[1]
            manifests = warehouse.published_runs(root)
            if manifests:
                complete += 1
            else:
                absent += 1
                run_file = root / "staging" / RUN / "run.json"
                if run_file.is_file() and run_file.stat().st_size:
                    staging = warehouse.Staging(root, RUN)
                    staging.append(ok("a"))
                    staging.append(failure("b"))
                    staging.publish(lambda tables: [])
                else:
                    publish_run(root / "anew")
                    manifests = warehouse.published_runs(root / "anew")
            (manifest,) = manifests or warehouse.published_runs(root)
            for file in manifest.files:
                content = (directory_of(manifest) / file.path).read_bytes()
                assert len(content) == file.bytes, (steps, file)
                import hashlib
                assert hashlib.sha256(content).hexdigest() == file.sha256, (steps, file)
            steps += 1
        print(steps, absent, complete)
        """,
        tmp_path,
    )
    assert child.returncode == 0, child.stderr
    steps, absent, complete = map(int, child.stdout.split())
    assert steps > 30
    assert absent > 20
    assert complete > 1  # killed after the rename, while staging was cleaned


@pytest.mark.faults
def test_memory_does_not_grow_with_the_number_of_outcomes(tmp_path):
    peaks, spools = [], []
    for outcomes in (1_250, 10_000):  # the tables of the first already fill a row group
        child = script(
            """
            import resource
            from pipeline.fanout.workers import _with_json_tables
            count = int(sys.argv[2])
            staging = warehouse.Staging.create(Path(sys.argv[1]), run(targets=count))
            outcome = _with_json_tables(ok(mounts=100))
            for index in range(count):
                staging.append({**outcome, "target": f"host-{index * 7919 % count}"})
            staging.write()
            spool_bytes = (staging.directory / "outcomes.jsonl").stat().st_size
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, spool_bytes)
            """,
            tmp_path / str(outcomes),
            outcomes,
        )
        assert child.returncode == 0, child.stderr
        peak, spool = map(int, child.stdout.split())
        peaks.append(peak)
        spools.append(spool)
    # As Python objects the rows would take several times their size in the spool.
    assert peaks[1] - peaks[0] < (spools[1] - spools[0]) / 2
