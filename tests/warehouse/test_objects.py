"""A warehouse in an object store: moto's S3 server on loopback, and endpoints that do not respond."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyarrow import NativeFile, fs

from pipeline import cli, query, warehouse
from pipeline.warehouse import expiry, schema
from pipeline.warehouse.store import open_store
from tests.warehouse import s3
from tests.warehouse.outcomes import STARTED_AT, failure, ok, run, session

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
OLD, NEW, NEWER = "20251101T000000Z-aaaaaaaa", "20251102T000000Z-bbbbbbbb", "20251103T000000Z-cccccccc"
DAY_S = 86_400
_buckets = itertools.count()


@pytest.fixture(scope="module")
def endpoint():
    with s3.server() as address:
        yield address


@pytest.fixture
def bucket(endpoint, monkeypatch, tmp_path):
    s3.use_endpoint(monkeypatch, endpoint, tmp_path / "state")
    name = f"fleet-{next(_buckets)}"
    s3.client(endpoint).create_bucket(Bucket=name)
    return name


@pytest.fixture
def list_keys(endpoint, bucket):
    """A function that lists the bucket's keys with another client, without directory markers."""

    def bucket_keys() -> list[str]:
        objects = s3.client(endpoint).list_objects_v2(Bucket=bucket).get("Contents", [])
        return sorted(item["Key"] for item in objects if not item["Key"].endswith("/"))

    return bucket_keys


def publish(root: str, *outcomes: dict, **values: object) -> warehouse.Manifest:
    targets = [{"name": outcome["target"]} for outcome in outcomes]
    staging = warehouse.Staging.create(root, run(**{"targets": len(outcomes), **values}), {"retries": 2}, targets)
    for outcome in outcomes:
        staging.append(outcome)
    return staging.publish(query.check)


def test_rows_of_an_unchanged_core_are_carried_over_although_their_run_expires(bucket):
    root = f"s3://{bucket}/prefix"
    outcome = ok("a", mounts=3)
    outcome["row"]["input_digest"] = "d1"
    publish(root, outcome, run_id=OLD)
    target = {"name": "a", "kind": "vmcore"}
    staging = warehouse.Staging.create(root, run(NEW), {}, [target], carries_cores=True)
    assert staging.known_digests() == {"a": "d1"}
    open_store(root).withdraw(OLD)
    staging.append(
        {**outcome, "row": {**outcome["row"], "status": "not_run", "attempts": 0}, "attempts": [], "unchanged": True}
    )
    staging.publish(query.check)
    (row,) = session(root).rows("SELECT run_id, carried_from, superblocks FROM targets")
    assert row == {"run_id": NEW, "carried_from": OLD, "superblocks": 3}


def test_a_run_is_published_and_read_as_in_a_directory(bucket, list_keys, tmp_path, capsys):
    root = f"s3://{bucket}/some/prefix"
    for location in (root, tmp_path / "w"):
        publish(location, ok("a", mounts=3), failure("b"), run_id=OLD)
    names = ["inputs.jsonl.gz", "manifest.json", *(f"{table}-00000.parquet" for table in schema.tables())]
    assert list_keys() == [f"some/prefix/runs/{OLD}/{name}" for name in sorted(names)]
    assert not list((tmp_path / "state").rglob("*.parquet")), "nothing of it is left here"
    for is_confined in (False, True):
        remote, local = (session(location, is_confined=is_confined) for location in (root, tmp_path / "w"))
        for view in ("host_waste", "fstype_waste", "list_lrus ORDER BY address", "coverage"):
            assert remote.rows(f"FROM {view}") == local.rows(f"FROM {view}"), view
        assert remote.rows("SELECT count(*) AS n FROM superblocks WHERE target = 'a'") == [{"n": 3}]
    assert cli.main(["report", "-w", root, "--format", "csv"]) == cli.OK
    assert f"\n1,{OLD},a,a,5.10.0-30-cloud-amd64" in capsys.readouterr().out
    assert cli.main(["sql", "-w", root, "--format", "csv", "SELECT target FROM targets ORDER BY ALL"]) == cli.OK
    assert capsys.readouterr().out == "target\na\nb\n"
    assert cli.main(["verify", "-w", root]) == cli.OK
    assert cli.main(["runs", "-w", root]) == cli.OK
    assert capsys.readouterr().out.splitlines()[1].startswith(OLD)


def expire(root: str, interrupted_days: float | None = None) -> None:
    for removal in warehouse.removals(root, warehouse.RetentionRules(last=1), interrupted_days):
        removal.carry_out()


def test_a_published_run_is_revised_and_may_then_expire_anywhere(bucket, list_keys, monkeypatch, tmp_path):
    root = f"s3://{bucket}"
    publish(root, ok("a"), failure("b"), run_id=OLD)
    assert warehouse.resolve_resumable_run(root, "latest") == OLD
    staging = warehouse.Staging.revise(root, OLD, run_id=NEW, tool_version="0.2.0", model_version=1)
    assert staging.finished_targets() == {"a"}
    assert staging.inputs() == ({"retries": 2}, [{"name": "a"}, {"name": "b"}])
    staging.append(ok("b"))
    del staging
    with monkeypatch.context() as another_machine:
        another_machine.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
        publish(root, ok("a"), run_id=NEWER, started_at=STARTED_AT + 1)
        expire(root)
    assert [manifest.run_id for manifest in warehouse.published_runs(root)] == [NEWER]
    warehouse.Staging(root, NEW).publish(query.check)
    assert [(manifest.run_id, manifest.good) for manifest in warehouse.published_runs(root)] == [(NEW, 2), (NEWER, 1)]
    expire(root)
    assert {key.split("/")[1] for key in list_keys()} == {NEW, NEWER}, "the newest, and what was published last"


@pytest.mark.parametrize("is_confined", [False, True])
def test_a_query_that_loses_a_run_says_to_run_it_again(bucket, is_confined):
    root = f"s3://{bucket}/w"
    for number, run_id in enumerate((OLD, NEW)):
        publish(root, ok("a"), run_id=run_id, started_at=STARTED_AT + number)

    def ask() -> None:
        with warehouse.open_tables(root) as tables:
            for removal in warehouse.removals(root, warehouse.RetentionRules(last=1)):
                removal.carry_out()
            query.Session(tables, is_confined=is_confined).sql("SELECT sum(list_lru_one_bytes) FROM list_lrus")

    with pytest.raises(warehouse.WarehouseError, match=f"s3://{bucket}/w: run {OLD} was expired meanwhile: run the"):
        ask()
    assert session(root, is_confined=is_confined).rows("SELECT run_id FROM runs") == [{"run_id": NEW}]


class _OtherFilesystem:
    """A bucket's filesystem with some functions replaced, which get the filesystem as their first argument."""

    def __init__(self, filesystem: fs.FileSystem, functions: dict[str, Callable[..., object]]) -> None:
        self.filesystem = filesystem
        self.functions = functions

    def __getattr__(self, name: str) -> object:
        if name in self.functions:
            return partial(self.functions[name], self.filesystem)
        return getattr(self.filesystem, name)


def try_commit(root: str, **functions: Callable[..., object]) -> None:
    store = open_store(root)
    store.root = replace(store.root, filesystem=_OtherFilesystem(store.root.filesystem, functions))
    store.try_commit(Path("unused"))


def test_a_probe_writes_where_runs_are_published_and_leaves_nothing(bucket, list_keys):
    root = f"s3://{bucket}/w"
    written_keys = []
    try_commit(root, delete_file=lambda *_: written_keys.extend(list_keys()))
    assert written_keys == ["w/runs/.lru-audit-probe"]
    warehouse.probe(root)
    assert list_keys() == []
    assert warehouse.published_runs(root) == []


def test_a_probe_leaves_its_object_where_nothing_may_be_deleted(bucket, list_keys):
    """As for an account without the right; moto's server does not check policies."""
    root = f"s3://{bucket}/w"

    def refuse(_: fs.FileSystem, path: str) -> None:
        raise PermissionError(f"AWS Error ACCESS_DENIED during DeleteObject operation: {path}")

    for _ in range(2):
        try_commit(root, delete_file=refuse)
    assert list_keys() == ["w/runs/.lru-audit-probe"]
    assert warehouse.published_runs(root) == []


def test_a_probe_whose_object_another_audit_removes_succeeds(bucket, list_keys):
    @contextmanager
    def open_and_lose(filesystem: fs.FileSystem, path: str) -> Iterator[NativeFile]:
        with filesystem.open_output_stream(path) as file:
            yield file
        filesystem.delete_file(path)

    try_commit(f"s3://{bucket}/w", open_output_stream=open_and_lose)
    assert list_keys() == []


def test_a_bucket_that_does_not_exist_is_one_line_before_anything_is_collected(bucket, tmp_path, capsys):
    core = ROOT / "tests" / "vmcores" / "deb510-n1" / "vmcore"
    assert cli.main(["run", str(core), "-w", f"s3://{bucket}-absent/w"]) == cli.FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lru-audit: s3://{bucket}-absent/w/runs: ")
    assert line.endswith("; nothing was audited")


def test_a_published_run_is_never_replaced(bucket):
    root = f"s3://{bucket}/w"
    publish(root, ok("a"), run_id=OLD)
    with pytest.raises(warehouse.WarehouseError, match=f"s3://{bucket}/w/runs/{OLD}: already published"):
        publish(root, failure("a"), run_id=OLD)
    assert session(root).rows("SELECT status FROM targets") == [{"status": "ok"}]


def test_a_run_whose_upload_is_killed_at_any_file_is_absent_and_can_be_finished(bucket, list_keys):
    root = f"s3://{bucket}/w"
    files = len(schema.tables()) + 2  # and the inputs, and the manifest
    script = """
        import os, signal, sys
        from pyarrow import NativeFile, fs
        from tests.warehouse.outcomes import *

        def kill_after(remaining, copy=fs.copy_files):
            def copy_or_kill(*args):
                nonlocal remaining
                remaining -= 1
                if remaining < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                copy(*args)
            return copy_or_kill

        for uploads in range(int(sys.argv[2])):
            pid = os.fork()
            if pid == 0:
                fs.copy_files = kill_after(uploads)
                staging = warehouse.Staging.create(sys.argv[1], run(f"20251123T121320Z-{uploads:08}"))
                staging.append(ok("a"))
                staging.publish(skip_checks)
                os._exit(0)
            print(os.waitpid(pid, 0)[1])
        """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), root, str(files + 1)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stdout.split() == ["9"] * files + ["0"], process.stderr
    killed_ids = [f"20251123T121320Z-{uploads:08}" for uploads in range(files)]
    assert len(list_keys()) == sum(range(files)) + files
    assert [manifest.run_id for manifest in warehouse.published_runs(root)] == [f"20251123T121320Z-{files:08}"]
    assert sorted(warehouse.staged_runs(root)) == killed_ids
    assert list(warehouse.removals(root, warehouse.RetentionRules())) == [], "a driver may be uploading them now"
    for run_id in killed_ids:
        warehouse.Staging(root, run_id).publish(lambda tables: [])
        assert list(warehouse.problems(root, run_id, query.check)) == []
    assert len(warehouse.published_runs(root)) == files + 1


@pytest.fixture
def set_time(monkeypatch):
    """A function that sets the time that expire sees, in seconds since the epoch."""
    return lambda time_s: monkeypatch.setattr(expiry, "time", SimpleNamespace(time=lambda: time_s))


def test_what_a_killed_upload_or_expire_left_is_removed(endpoint, bucket, list_keys, set_time):
    root = f"s3://{bucket}/w"
    for run_id, missing in ((OLD, ("manifest.json", "inputs.jsonl.gz")), (NEW, ("manifest.json",))):
        publish(root, ok("a"), run_id=run_id)
        for name in missing:
            s3.client(endpoint).delete_object(Bucket=bucket, Key=f"w/runs/{run_id}/{name}")
    assert warehouse.published_runs(root) == []
    for age_days, days, run_ids in ((0, None, {NEW}), (0, 0, {NEW}), (2, 3, {NEW}), (2, None, {NEW}), (2, 1, set())):
        set_time(time.time() + age_days * DAY_S)
        expire(root, days)
        assert {key.split("/")[2] for key in list_keys()} == run_ids


def test_an_upload_is_as_old_as_its_newest_object(endpoint, bucket, set_time):
    root = f"s3://{bucket}/w"
    publish(root, ok("a"), run_id=NEW)
    client, parquet_key = s3.client(endpoint), {"Bucket": bucket, "Key": f"w/runs/{NEW}/targets-00000.parquet"}
    client.delete_object(Bucket=bucket, Key=f"w/runs/{NEW}/manifest.json")
    inputs_time = client.head_object(Bucket=bucket, Key=f"w/runs/{NEW}/inputs.jsonl.gz")["LastModified"]
    content = client.get_object(**parquet_key)["Body"].read()
    while (newest_time := client.head_object(**parquet_key)["LastModified"]) <= inputs_time:
        time.sleep(0.1)
        client.put_object(**parquet_key, Body=content)
    set_time(newest_time.timestamp() + DAY_S - 0.5)
    assert list(warehouse.removals(root, warehouse.RetentionRules(), 0)) == []
    set_time(newest_time.timestamp() + DAY_S + 1)
    assert [removal.path for removal in warehouse.removals(root, warehouse.RetentionRules(), 0)] == [
        f"{root}/runs/{NEW}"
    ]


def test_an_upload_that_ends_after_it_was_found_is_a_run(endpoint, bucket, set_time):
    root = f"s3://{bucket}/w"
    publish(root, ok("a"), run_id=NEW)
    client, manifest_key = s3.client(endpoint), {"Bucket": bucket, "Key": f"w/runs/{NEW}/manifest.json"}
    manifest = client.get_object(**manifest_key)["Body"].read()
    client.delete_object(**manifest_key)
    set_time(time.time() + 2 * DAY_S)
    (removal,) = warehouse.removals(root, warehouse.RetentionRules(), 1)
    client.put_object(**manifest_key, Body=manifest)
    removal.carry_out()
    assert [manifest.run_id for manifest in warehouse.published_runs(root)] == [NEW]
    assert list(warehouse.problems(root, NEW, query.check)) == []


def test_an_upload_that_lay_still_until_it_was_removed_is_no_run_and_can_be_finished(bucket, monkeypatch, set_time):
    """The uploading machine sleeps for two days after one table, and then continues."""
    root = f"s3://{bucket}/w"
    staging = warehouse.Staging.create(root, run(NEW))
    staging.append(ok("a"))
    with monkeypatch.context() as patch:
        uploads = itertools.count()

        def expire_during_upload(*args, copy=fs.copy_files):
            if next(uploads) == 2:
                set_time(time.time() + 2 * DAY_S)
                expire(root, 1)
            copy(*args)

        patch.setattr(fs, "copy_files", expire_during_upload)
        cause = "expire removed inputs.jsonl.gz during the upload, because it looked interrupted; .* lru-audit resume"
        with pytest.raises(warehouse.WarehouseError, match=rf"^{root}/runs/{NEW}: {cause} {NEW}$"):
            staging.publish(query.check)
    assert warehouse.published_runs(root) == []
    staging.publish(query.check)
    assert [manifest.run_id for manifest in warehouse.published_runs(root)] == [NEW]
    assert list(warehouse.problems(root, NEW, query.check)) == []


def test_a_checksum_that_differs_and_a_file_that_is_gone_are_found(endpoint, bucket, capsys):
    root = f"s3://{bucket}/w"
    publish(root, ok("a"), run_id=OLD)
    s3.client(endpoint).delete_object(Bucket=bucket, Key=f"w/runs/{OLD}/memcgs-00000.parquet")
    key = f"w/runs/{OLD}/targets-00000.parquet"
    content = s3.client(endpoint).get_object(Bucket=bucket, Key=key)["Body"].read()
    s3.client(endpoint).put_object(Bucket=bucket, Key=key, Body=content[:-9] + b"?" + content[-8:])
    assert cli.main(["verify", "latest", "-w", root]) == cli.FAILED
    lines = capsys.readouterr().out.splitlines()
    assert {line.partition(": ")[0] for line in lines} == {
        f"s3://{bucket}/{key}",
        f"s3://{bucket}/w/runs/{OLD}/memcgs-00000.parquet",
    }


def test_runs_of_one_endpoint_are_not_resumed_at_another(bucket, endpoint, monkeypatch):
    warehouse.Staging.create(f"s3://{bucket}/w", run(OLD))
    assert list(warehouse.staged_runs(f"s3://{bucket}/w/")) == [OLD]
    assert list(warehouse.staged_runs(f"s3://{bucket}/w?scheme=http&endpoint_override={endpoint[7:]}")) == [OLD]
    assert list(warehouse.staged_runs(f"s3://{bucket}/v")) == []
    with s3.server() as other_endpoint:
        s3.client(other_endpoint).create_bucket(Bucket=bucket)
        monkeypatch.setenv("AWS_ENDPOINT_URL", other_endpoint)
        assert list(warehouse.staged_runs(f"s3://{bucket}/w")) == []


class DenyingHandler(BaseHTTPRequestHandler):
    """The handler of an S3 server that denies every request."""

    def do_GET(self) -> None:
        body = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(params=["no bucket", "denied", "refused", "silent"])
def bad_endpoint(request, endpoint):
    """An endpoint that does not work, and the expected text of the error."""
    if request.param == "no bucket":
        yield endpoint, "NO_SUCH_BUCKET"
    elif request.param == "denied":
        with ThreadingHTTPServer(("127.0.0.1", 0), DenyingHandler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}", "ACCESS_DENIED"
            server.shutdown()
    elif request.param == "refused":
        yield "http://127.0.0.1:1", "NETWORK_CONNECTION"
    else:
        with socket.create_server(("127.0.0.1", 0)) as silent_server:
            yield f"http://127.0.0.1:{silent_server.getsockname()[1]}", "AWS Error"


def test_an_endpoint_that_does_not_serve_is_one_line_within_bounds(bad_endpoint, monkeypatch, tmp_path, capsys):
    endpoint, error_text = bad_endpoint
    s3.use_endpoint(monkeypatch, endpoint, tmp_path)
    commands = (["runs"], ["verify"], ["sql", "FROM targets"], ["report"], ["expire", "--keep-last", "1"])
    for command in commands[:1] if error_text == "AWS Error" else commands:  # each command waits for three timeouts
        start = time.monotonic()
        assert cli.main([*command, "-w", "s3://nowhere/w"]) == cli.FAILED, command
        assert time.monotonic() - start < 100
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1, err
        assert err.startswith("lru-audit: s3://nowhere/w")
        assert error_text in err
    with pytest.raises(warehouse.WarehouseError, match=r"nothing was audited$"):
        warehouse.Staging.create("s3://nowhere/w", run(OLD))
    assert not list(tmp_path.rglob(OLD))


def test_a_run_is_collected_into_a_bucket_and_what_failed_is_collected_again(bucket, tmp_path):
    """The whole program, from a core to a revision; the second target is not a core at first."""
    core = ROOT / "tests" / "vmcores" / "deb510-n1" / "vmcore"
    second = tmp_path / "second"
    second.write_text("no core")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "LRU_AUDIT_"))}

    def lru_audit(*args: str) -> tuple[int, str]:
        with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as short_path:  # for the paths of Ray's sockets
            variables = {"PYTHONPATH": str(ROOT), "LRU_AUDIT_WAREHOUSE": f"s3://{bucket}/w", "TMPDIR": short_path}
            command = [sys.executable, "-m", "pipeline", *args]
            process = subprocess.run(
                command, cwd=tmp_path, env=environment | variables, capture_output=True, text=True, check=False
            )
        assert "Traceback" not in process.stderr, process.stderr
        return process.returncode, process.stdout

    code, ranking = lru_audit("run", str(core), str(second))
    assert code == cli.SOME_NOT_GOOD
    assert "1 of 2 targets good" in ranking
    second.write_bytes(core.read_bytes())
    code, ranking = lru_audit("resume", "latest")
    assert code == cli.OK
    assert "2 of 2 targets good" in ranking
    old, new = warehouse.published_runs(f"s3://{bucket}/w")
    assert (new.revision_of, new.good) == (old.run_id, 2)
    assert list((tmp_path / "state").rglob("*Z-*")) == [], "nothing waits in staging"
    (row,) = session(f"s3://{bucket}/w").rows("SELECT count(DISTINCT list_lru_bytes) AS sizes FROM host_waste")
    assert row["sizes"] == 1, "two copies of one core"
