"""Redacted runs: every breakdown has the same bytes, and no name from the guests reaches a disk."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import cli, query, warehouse
from pipeline.fanout import redact, runner
from pipeline.inventory import Target
from tests import program
from tests.warehouse.outcomes import directory_of, run, session

VMCORES = Path(__file__).parents[1] / "vmcores"
CORES = ("bytedance", "deb510-n2", "deb7-n2")
KEY = bytes(range(32))


@pytest.fixture(scope="module")
def attempts() -> dict[str, dict[str, Any]]:
    """The attempts at some cores."""
    targets = [Target(name, "vmcore", str(VMCORES / name / "vmcore")) for name in CORES]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(CORES, pool.map(lambda target: runner.run(target, 1, runner.Limits()), targets), strict=True))


@pytest.fixture(scope="module")
def names() -> set[str]:
    """The components of all mounts and cgroups that the guests list, except names of filesystem types."""
    paths, types = set(), set()
    for name in CORES:
        truth = VMCORES / name / "truth"
        paths |= {line.split()[1] for line in (truth / "mounts").read_text().splitlines()}
        paths |= {line.split()[0] for line in (truth / "mounts").read_text().splitlines()}
        paths |= set((truth / "cgroup_dirs").read_text().split())
        types |= {line.split()[-1] for line in (truth / "filesystems").read_text().splitlines()} | {"rootfs", "dev"}
    parts = {part for path in paths for part in path.split("/") if part} - types
    assert len(parts) > 400
    assert {"m", "c7", "tmpfs3", "overlay1", "ext4-3", "loop2"} <= parts
    return {part for part in parts if not part.isdigit()} - {"kernel", "none"}  # words of the tool's own text


def publish(root: Path, attempts: dict[str, dict[str, Any]]) -> Any:
    staging = warehouse.Staging.create(root, run(audit="prod", targets=len(attempts)))
    for name, attempt in attempts.items():
        staging.append(runner.outcome(Target(name, "vmcore", f"/cores/{name}", labels={"rack": "r1"}), [attempt]))
    return staging


@pytest.fixture(scope="module")
def sessions(attempts, tmp_path_factory):
    """Sessions on the same run with and without names; directory and spool of the run without names."""
    plain, hidden = (tmp_path_factory.mktemp(name) for name in ("plain", "hidden"))
    publish(plain, attempts).publish(query.check)
    staging = publish(hidden, {name: redact.replace_names(KEY, attempt) for name, attempt in attempts.items()})
    spool = (staging.directory / "outcomes.jsonl").read_bytes()
    directory = directory_of(staging.publish(query.check))
    return session(plain), session(hidden), directory, spool


@pytest.mark.parametrize(
    ("view", "columns"),
    [
        ("host_waste", "* EXCLUDE (run_id)"),
        ("lazy_savings", "*"),
        ("fstype_waste", "*"),
        ("superblock_waste", "* EXCLUDE (s_id, mountpoint, owner)"),
        ("cgroup_waste", "* EXCLUDE (path)"),
        ("kernel_waste", "*"),
        ("label_waste", "*"),
        ("id_bloat", "*"),
        ("dying_cgroups", "* EXCLUDE (path)"),
        ("slab_reconciliation", "*"),
    ],
)
def test_every_breakdown_has_the_same_bytes(sessions, view, columns):
    plain, hidden, _, _ = sessions
    statement = f"SELECT {columns} FROM {view} ORDER BY ALL"
    assert hidden.rows(statement) == plain.rows(statement) != []


def words(data: bytes) -> set[str]:
    return set(re.findall(r"[\w.+-]+", data.decode("utf-8", "replace")))


def test_no_name_is_in_what_is_published_or_was_spooled(sessions, names):
    _, _, directory, spool = sessions
    assert words(spool) & names == set()
    # A shorter name may occur by chance in a pseudonym or in compressed data.
    long_names = [name.encode() for name in names if len(name) > 5 and re.search("[g-z]", name)]
    assert {b"tmpfs33", b"overlay1", b"ext4-3"} <= {*long_names}
    for path in directory.iterdir():
        assert not any(name in path.read_bytes() for name in long_names), path.name
    for path in directory.glob("*.parquet"):
        cells = json.dumps(pq.read_table(path).to_pylist(), default=str)
        assert words(cells.encode()) & names == set(), path.name


def test_the_same_search_finds_the_names_where_they_are_not_redacted(attempts, names):
    assert len(words(json.dumps(attempts).encode()) & names) > 400


def test_the_hierarchy_is_kept_and_a_cgroup_is_called_the_same_as_an_owner_and_as_a_path(sessions):
    plain, hidden, _, _ = sessions
    paths = "SELECT target, css_id, parent, path FROM memcgs ORDER BY ALL"
    for hidden_row, plain_row in zip(hidden.rows(paths), plain.rows(paths), strict=True):
        assert re.fullmatch(r"/|(/[0-9a-f]{12})+", hidden_row["path"])
        assert hidden_row["path"].count("/") == plain_row["path"].count("/")
    for hidden_row, plain_row in zip(
        hidden.rows("FROM superblocks ORDER BY target, address"),
        plain.rows("FROM superblocks ORDER BY target, address"),
        strict=True,
    ):
        assert (hidden_row["fstype"], hidden_row["s_dev"]) == (plain_row["fstype"], plain_row["s_dev"])
        if not plain_row["kernel_internal"]:
            assert re.fullmatch(r"(/?[0-9a-f]{12})+", hidden_row["s_id"])
    owner_query = (
        "SELECT count(*) AS n FROM superblocks AS s JOIN memcgs AS m ON s.target = m.target AND s.owner = m.path"
    )
    assert hidden.rows(owner_query) == plain.rows(owner_query) != [{"n": 0}]


def snapshot(error: str | None = None, **columns: Any) -> dict[str, Any]:
    tables = {
        "superblocks": {
            "columns": ["fstype", "s_id", "s_id_raw", "mountpoint", "mountpoint_raw", "kernel_internal", "owner"],
            "rows": [
                ["ext4", "sdb1", None, r"/mnt/\xff secret", "2f6d6e742fff20736563726574", False, "/pods/web"],
                ["tmpfs", "tmpfs", None, None, None, True, "user:[4026532000]"],
                ["ext4", "sdc1", None, None, None, True, None],
                ["ext4", 7, "00", ["x"], None, None, {}],
            ],
        },
        "memcgs": {"columns": ["path", "path_raw", "css_id"], "rows": [["/", None, 1], ["/pods/web", None, 2]]},
        "dying_memcg_pages": {
            "columns": ["kind", "path", "path_raw"],
            "rows": [["file", "/mnt/web", "2f6d6e742f776562"], ["other", None, None], ["shmem", 7, None]],
        },
        "list_lrus": {"columns": ["name"], "rows": [["dentry"], ["xfs_buf(88:web)+40"], [None]]},
    }
    attempt = runner.result(1, "node", 0, 0, "ok", None, error, columns, tables)
    return redact.replace_names(KEY, copy.deepcopy(attempt))


def test_every_place_of_a_name_and_nothing_else_is_replaced():
    attempt = snapshot(notes="web and /pods/web grew", slab_cache="kmalloc-32(9:web)", host="db1")
    (web_mount, internal, unmounted_row, invalid) = attempt["tables"]["superblocks"]["rows"]
    pods, web = attempt["tables"]["memcgs"]["rows"][1][0].split("/")[1:]
    assert web_mount[4] is None
    assert web_mount[6] == f"/{pods}/{web}"
    assert re.fullmatch("(/[0-9a-f]{12}){2}", web_mount[3])
    assert internal == ["tmpfs", "tmpfs", None, None, None, True, "user:[4026532000]"]
    assert re.fullmatch("[0-9a-f]{12}", unmounted_row[1]), "a superblock without a mount has its device's name"
    file, *others = attempt["tables"]["dying_memcg_pages"]["rows"]
    assert file == ["file", f"/{web_mount[3].split('/')[1]}/{web}", None]
    assert others == [["other", None, None], ["shmem", None, None]]
    assert invalid == ["ext4", None, None, None, None, None, None]
    assert attempt["tables"]["list_lrus"]["rows"] == [["dentry"], [f"xfs_buf(88:{web})+40"], [None]]
    assert attempt["columns"] == {
        "notes": f"{web} and /{pods}/{web} grew",
        "slab_cache": f"kmalloc-32(9:{web})",
        "host": "db1",
    }


@pytest.mark.parametrize(
    ("status", "error", "redacted_error"),
    [
        ("crashed", "killed by SIGSEGV; stderr: KeyError: '/pods/web'", "killed by SIGSEGV"),
        ("lost", "the connection ended; stderr: Killed /pods/web", "the connection ended"),
        ("denied", "run as root", "run as root"),
        ("ok", None, None),
    ],
)
def test_the_last_words_of_a_collector_are_left_out(status, error, redacted_error):
    attempt = runner.result(1, "node", 0, 0, status, None, error)
    assert redact.replace_names(KEY, attempt)["attempt"]["error"] == redacted_error


START = "echo lru-audit starts /usr/bin/python3"


@pytest.mark.parametrize(
    ("commands", "failure"),
    [
        ("echo /pods/web: not mounted; exit 1", ("denied", "NoShell", r"the login does not run commands .*expired\?")),
        (
            f"{START}; echo sudo: /pods/web: a password is required; exit 1",
            ("denied", "Sudo", "sudo did not run .* sudoers"),
        ),
        (
            "echo 'x@/pods/web: Permission denied (publickey).'; exit 255",
            ("denied", "AuthenticationFailed", "no key of this .*"),
        ),
        (
            "echo connect to /pods/web: No route to host; exit 255",
            ("unreachable", "NoRoute", "there is no route to it"),
        ),
        ("echo cd: /pods/web; exit 255", ("unreachable", "SshFailed", "ssh made no connection")),
        (f"{START}; echo /pods/web; exit 255", ("lost", "ConnectionLost", "the connection ended before .*")),
        (f"{START}; echo /pods/web; exit 3", ("bad_output", "FrameError", "no frame on stdout; exit code 3")),
        (f"{START}; echo /pods/web; kill -SEGV $$", ("crashed", "signal:SIGSEGV", "killed by SIGSEGV")),
    ],
)
def test_what_a_host_says_in_place_of_a_snapshot_is_left_out(tmp_path, monkeypatch, commands, failure):
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/sh\n[ $1 = -G ] && exec echo user root\nexec >&2\n{commands}\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    target = Target("h", "ssh", "ssh:db1", become=failure[1] == "Sudo")
    assert "/pods/web" in runner.run(target, 1, runner.Limits())["attempt"]["error"]
    attempt = redact.run(KEY, target, 1, runner.Limits())["attempt"]
    status, error_type, pattern = failure
    assert (attempt["status"], attempt["error_type"]) == (status, error_type)
    assert re.fullmatch(f"db1: {pattern}", attempt["error"])
    assert "pods" not in str(attempt)


def test_another_run_has_other_pseudonyms_and_one_that_is_gone_on_with_the_same(tmp_path):
    run_row = run(targets=2)
    staging = warehouse.Staging.create(tmp_path, run_row)
    key = staging.key()
    assert len(key) == 32
    assert stat.S_IMODE((staging.directory / "key").stat().st_mode) == 0o600
    collect = functools.partial(redact.run, key)
    target = Target("a", "vmcore", str(VMCORES / "deb7-n2" / "vmcore"))
    first_attempt = collect(target, 1, runner.Limits())
    staging.append(runner.outcome(target, [first_attempt]))
    del staging
    reopened_staging = warehouse.Staging(tmp_path, run_row["run_id"])
    assert reopened_staging.key() == key
    attempt = functools.partial(redact.run, reopened_staging.key())(target, 1, runner.Limits())
    assert attempt["tables"]["memcgs"] == first_attempt["tables"]["memcgs"]
    reopened_staging.append(runner.outcome(Target("b", "vmcore", "/b"), [attempt]))
    manifest = reopened_staging.publish(query.check)
    assert not any(key in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert list(tmp_path.rglob("key")) == []
    assert manifest.good == 2
    assert warehouse.Staging.create(tmp_path, run(targets=1)).key() != key


def test_the_key_is_gone_before_anybody_can_see_the_run(tmp_path, monkeypatch):
    staging = warehouse.Staging.create(tmp_path, run())
    staging.key()
    staging.append(runner.outcome(Target("a", "vmcore", "/a"), []))
    monkeypatch.setattr("pipeline.warehouse.staging.shutil.rmtree", lambda *_, **__: None)  # as if killed just before
    staging.publish(query.check)
    assert (staging.directory / "run.json").exists()
    assert not (staging.directory / "key").exists()


@pytest.mark.usefixtures("embedded_ray")
def test_what_the_command_line_publishes_has_pseudonyms(tmp_path):
    assert program.run("run", VMCORES / "deb510-n1", "-w", tmp_path, "--redact", "--quiet").returncode == cli.OK
    redacted_session = session(tmp_path)
    paths = [row["path"] for row in redacted_session.rows("SELECT path FROM memcgs")]
    assert len(paths) > 50
    assert all(re.fullmatch(r"/|(/[0-9a-f]{12})+", path) for path in paths)
    (host,) = redacted_session.rows("SELECT * FROM host_waste")
    assert host["host"] == "deb510-n1"
    assert host["wasted_bytes"] > 400_000
