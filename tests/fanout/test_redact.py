"""A redacted run: the same bytes in every breakdown, and no name that the guests themselves say on any disk."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import query, warehouse
from pipeline.fanout import redact, runner
from pipeline.inventory import Target
from tests.warehouse.outcomes import directory_of, run, session

VMCORES = Path(__file__).parents[1] / "vmcores"
CORES = ("bytedance", "deb510-n2", "deb7-n2")
KEY = bytes(range(32))


@pytest.fixture(scope="module")
def attempts() -> dict[str, dict[str, Any]]:
    """What the runner got of some cores."""
    targets = [Target(name, "vmcore", str(VMCORES / name / "vmcore")) for name in CORES]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(CORES, pool.map(lambda target: runner.run(target, 1, runner.Limits()), targets), strict=True))


@pytest.fixture(scope="module")
def names() -> set[str]:
    """Every part of a path that the guests list as mounted or as a cgroup, but what is a filesystem type, too."""
    paths, types = set(), set()
    for name in CORES:
        truth = VMCORES / name / "truth"
        paths |= {line.split()[1] for line in (truth / "mounts").read_text().splitlines()}
        paths |= {line.split()[0] for line in (truth / "mounts").read_text().splitlines()}
        paths |= set((truth / "cgroup_dirs").read_text().split())
        types |= {line.split()[-1] for line in (truth / "filesystems").read_text().splitlines()} | {"rootfs", "dev"}
    found = {part for path in paths for part in path.split("/") if part} - types
    assert len(found) > 400
    assert {"m", "c7", "tmpfs3", "overlay1", "ext4-3", "loop2"} <= found
    return {name for name in found if not name.isdigit()} - {"kernel", "none"}  # words of our own


def publish(root: Path, attempts: dict[str, dict[str, Any]]) -> Any:
    staging = warehouse.Staging.create(root, run(audit="prod", targets=len(attempts)))
    for name, attempt in attempts.items():
        staging.append(runner.outcome(Target(name, "vmcore", f"/cores/{name}", labels={"rack": "r1"}), [attempt]))
    return staging


@pytest.fixture(scope="module")
def both(attempts, tmp_path_factory):
    """The same run with and without names: its folder and a session each; of the one without its spool, too."""
    plain, hidden = (tmp_path_factory.mktemp(name) for name in ("plain", "hidden"))
    publish(plain, attempts).publish(query.check)
    staging = publish(hidden, {name: redact.redacted(KEY, attempt) for name, attempt in attempts.items()})
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
def test_every_breakdown_has_the_same_bytes(both, view, columns):
    plain, hidden, _, _ = both
    asked = f"SELECT {columns} FROM {view} ORDER BY ALL"
    assert hidden.rows(asked) == plain.rows(asked) != []


def words(stored: bytes) -> set[str]:
    return set(re.findall(r"[\w.+-]+", stored.decode("utf-8", "replace")))


def test_no_name_is_in_what_is_published_or_was_spooled(both, names):
    _, _, directory, spool = both
    assert words(spool) & names == set()
    # Others may be a part of a pseudonym, or of what is compressed.
    long = [name.encode() for name in names if len(name) > 5 and re.search("[g-z]", name)]
    assert {b"tmpfs33", b"overlay1", b"ext4-3"} <= {*long}
    for path in directory.iterdir():
        assert not any(name in path.read_bytes() for name in long), path.name
    for path in directory.glob("*.parquet"):
        cells = json.dumps(pq.read_table(path).to_pylist(), default=str)
        assert words(cells.encode()) & names == set(), path.name


def test_the_same_search_finds_the_names_where_they_are_not_redacted(attempts, names):
    assert len(words(json.dumps(attempts).encode()) & names) > 400


def test_the_hierarchy_is_kept_and_a_cgroup_is_called_the_same_as_an_owner_and_as_a_path(both):
    plain, hidden, _, _ = both
    paths = "SELECT target, css_id, parent, path FROM memcgs ORDER BY ALL"
    for shown, real in zip(hidden.rows(paths), plain.rows(paths), strict=True):
        assert re.fullmatch(r"/|(/[0-9a-f]{12})+", shown["path"])
        assert shown["path"].count("/") == real["path"].count("/")
    for shown, real in zip(
        hidden.rows("FROM superblocks ORDER BY target, address"),
        plain.rows("FROM superblocks ORDER BY target, address"),
        strict=True,
    ):
        assert (shown["fstype"], shown["s_dev"]) == (real["fstype"], real["s_dev"])
        if not real["kernel_internal"]:
            assert re.fullmatch(r"(/?[0-9a-f]{12})+", shown["s_id"])
    owned = "SELECT count(*) AS n FROM superblocks AS s JOIN memcgs AS m ON s.target = m.target AND s.owner = m.path"
    assert hidden.rows(owned) == plain.rows(owned) != [{"n": 0}]


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
        "list_lrus": {"columns": ["name"], "rows": [["dentry"], ["xfs_buf(88:web)+40"], [None]]},
    }
    attempt = runner.result(1, "node", 0, 0, "ok", None, error, columns, tables)
    return redact.redacted(KEY, copy.deepcopy(attempt))


def test_every_place_of_a_name_and_nothing_else_is_replaced():
    made = snapshot(notes="web and /pods/web grew", slab_cache="kmalloc-32(9:web)", host="db1")
    (mounted, own, detached, odd) = made["tables"]["superblocks"]["rows"]
    pods, web = made["tables"]["memcgs"]["rows"][1][0].split("/")[1:]
    assert mounted[4] is None
    assert mounted[6] == f"/{pods}/{web}"
    assert re.fullmatch("(/[0-9a-f]{12}){2}", mounted[3])
    assert own == ["tmpfs", "tmpfs", None, None, None, True, "user:[4026532000]"]
    assert re.fullmatch("[0-9a-f]{12}", detached[1]), "what is mounted no more has its device's name"
    assert odd == ["ext4", None, None, None, None, None, None]
    assert made["tables"]["list_lrus"]["rows"] == [["dentry"], [f"xfs_buf(88:{web})+40"], [None]]
    assert made["columns"] == {
        "notes": f"{web} and /{pods}/{web} grew",
        "slab_cache": f"kmalloc-32(9:{web})",
        "host": "db1",
    }


@pytest.mark.parametrize(
    ("status", "error", "kept"),
    [
        ("crashed", "killed by SIGSEGV; stderr: KeyError: '/pods/web'", "killed by SIGSEGV"),
        ("lost", "the connection ended; stderr: Killed /pods/web", "the connection ended"),
        ("denied", "run as root", "run as root"),
        ("ok", None, None),
    ],
)
def test_the_last_words_of_a_collector_are_left_out(status, error, kept):
    attempt = runner.result(1, "node", 0, 0, status, None, error)
    assert redact.redacted(KEY, attempt)["attempt"]["error"] == kept


STARTS = "echo lru-audit starts /usr/bin/python3"


@pytest.mark.parametrize(
    ("there", "ending"),
    [
        ("echo /pods/web: not mounted; exit 1", ("denied", "NoShell", r"the login does not run commands .*expired\?")),
        (f"{STARTS}; echo sudo: /pods/web: a password is required; exit 1", ("denied", "Sudo", "sudo refuses; .*")),
        ("echo sh: /pods/web: Permission denied; exit 255", ("denied", "AuthenticationFailed", "no key of this .*")),
        (
            "echo connect to /pods/web: No route to host; exit 255",
            ("unreachable", "NoRoute", "there is no route to it"),
        ),
        ("echo cd: /pods/web; exit 255", ("unreachable", "SshFailed", "ssh made no connection")),
        (f"{STARTS}; echo /pods/web; exit 255", ("lost", "ConnectionLost", "the connection ended before .*")),
        (f"{STARTS}; echo /pods/web; exit 3", ("bad_output", "FrameError", "no frame on stdout; exit code 3")),
        (f"{STARTS}; echo /pods/web; kill -SEGV $$", ("crashed", "signal:SIGSEGV", "killed by SIGSEGV")),
    ],
)
def test_what_a_host_says_in_place_of_a_snapshot_is_left_out(tmp_path, monkeypatch, there, ending):
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/sh\nexec >&2\n{there}\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    target = Target("h", "ssh", "ssh:db1")
    assert "/pods/web" in runner.run(target, 1, runner.Limits())["attempt"]["error"]
    attempt = redact.run(KEY, target, 1, runner.Limits())["attempt"]
    status, error_type, own = ending
    assert (attempt["status"], attempt["error_type"]) == (status, error_type)
    assert re.fullmatch(f"db1: {own}", attempt["error"])
    assert "pods" not in str(attempt)


def test_another_run_has_other_pseudonyms_and_one_that_is_gone_on_with_the_same(tmp_path):
    known = run(targets=2)
    first = warehouse.Staging.create(tmp_path, known)
    key = first.key()
    assert len(key) == 32
    assert stat.S_IMODE((first.directory / "key").stat().st_mode) == 0o600
    collect = functools.partial(redact.run, key)
    target = Target("a", "vmcore", str(VMCORES / "deb7-n2" / "vmcore"))
    before = collect(target, 1, runner.Limits())
    first.append(runner.outcome(target, [before]))
    del first
    again = warehouse.Staging(tmp_path, known["run_id"])
    assert again.key() == key
    after = functools.partial(redact.run, again.key())(target, 1, runner.Limits())
    assert after["tables"]["memcgs"] == before["tables"]["memcgs"]
    again.append(runner.outcome(Target("b", "vmcore", "/b"), [after]))
    published = again.publish(query.check)
    assert not any(key in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert list(tmp_path.rglob("key")) == []
    assert published.good == 2
    other = warehouse.Staging.create(tmp_path, run(targets=1))
    assert other.key() != key


def test_the_key_is_gone_before_anybody_can_see_the_run(tmp_path, monkeypatch):
    staging = warehouse.Staging.create(tmp_path, run())
    staging.key()
    staging.append(runner.outcome(Target("a", "vmcore", "/a"), []))
    monkeypatch.setattr("pipeline.warehouse.staging.shutil.rmtree", lambda *_, **__: None)  # killed before it
    staging.publish(query.check)
    assert (staging.directory / "run.json").exists()
    assert not (staging.directory / "key").exists()


def test_what_the_command_line_publishes_has_pseudonyms(tmp_path):
    command = [sys.executable, "-m", "pipeline", "run", VMCORES / "deb510-n1", "-w", tmp_path, "--redact", "--quiet"]
    subprocess.run(command, check=True, capture_output=True)
    published = session(tmp_path)
    paths = [row["path"] for row in published.rows("SELECT path FROM memcgs")]
    assert len(paths) > 50
    assert all(re.fullmatch(r"/|(/[0-9a-f]{12})+", path) for path in paths)
    (host,) = published.rows("SELECT * FROM host_waste")
    assert host["host"] == "deb510-n1"
    assert host["wasted_bytes"] > 400_000
