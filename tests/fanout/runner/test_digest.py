"""Digests of cores: the same while a core and all that its rows depend on stay the same, another after any change."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.fanout.runner import digest
from pipeline.inventory import Target


@pytest.fixture(autouse=True)
def no_minimum_age(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "_MIN_AGE_S", 0.0)


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """A core with a vmlinux, a file with VMCOREINFO and a directory of BTF files."""
    for name in ("core", "vmlinux", "note", "btf/5.4.0.btf", "btf/x86_64/5.10.0.btf.tar.xz", "btf/README"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content")
    paths = {name: str(tmp_path / name) for name in ("core", "vmlinux", "note", "btf")}
    return Target(
        "web", "vmcore", paths["core"], vmlinux=paths["vmlinux"], vmcoreinfo=paths["note"], btf_dir=paths["btf"]
    )


def digest_of(target: Target) -> str | None:
    return digest.Digester().digests([target]).get(target.name)


def write_with_old_times(path: Path, content: bytes) -> None:
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_with_old_times(path: Path, content: bytes) -> None:
    copy = path.with_suffix(".new")
    copy.write_bytes(content)
    shutil.copystat(path, copy)
    copy.rename(path)


def test_it_stays_the_same_for_the_same_core(target: Target) -> None:
    first_digest = digest_of(target)
    assert first_digest is not None
    Path(target.source).read_bytes()  # changes the access time
    Path(target.btf_dir or "", "README").write_text("not BTF")
    renamed = replace(target, labels={"rack": "r1"}, timeout_s=9.0)
    assert digest_of(target) == digest_of(renamed) == first_digest


@pytest.mark.parametrize("file", ["core", "vmlinux", "note", "btf/5.4.0.btf", "btf/x86_64/5.10.0.btf.tar.xz"])
@pytest.mark.parametrize(
    "change",
    [
        lambda path: write_with_old_times(path, b"CONTENT"),
        lambda path: write_with_old_times(path, b"longer content"),
        lambda path: replace_with_old_times(path, b"CONTENT"),
        lambda path: os.utime(path, (0, 0)),
    ],
    ids=["the same size and mtime", "another size", "another inode", "another mtime"],
)
def test_a_changed_file_changes_it(target: Target, tmp_path: Path, file: str, change: Callable[[Path], None]) -> None:
    first_digest = digest_of(target)
    change(tmp_path / file)
    assert digest_of(target) not in (first_digest, None)


def test_a_new_btf_file_changes_it(target: Target, tmp_path: Path) -> None:
    first_digest = digest_of(target)
    (tmp_path / "btf" / "5.15.0.btf").write_bytes(b"content")
    assert digest_of(target) not in (first_digest, None)


@pytest.mark.parametrize("file", ["core", "vmlinux", "note"])
def test_a_batch_stamps_its_btf_directory_once_and_the_other_files_each_time(
    target: Target, tmp_path: Path, file: str
) -> None:
    digester = digest.Digester()
    first_digests = digester.digests([target])
    (tmp_path / "btf" / "5.15.0.btf").write_bytes(b"content")
    assert digester.digests([target]) == first_digests != {}
    assert digest_of(target) not in (first_digests["web"], None), "the next run reads the core again"
    write_with_old_times(tmp_path / file, b"CONTENT")
    assert digester.digests([target]).get("web") not in (first_digests["web"], None)


def test_a_link_to_another_core_changes_it(target: Target, tmp_path: Path) -> None:
    link = tmp_path / "newest"
    linked_target = replace(target, source=str(link))
    digests = []
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(b"content")
        link.unlink(missing_ok=True)
        link.symlink_to(name)
        digests.append(digest_of(linked_target))
    assert len({*digests, digest_of(target), None}) == 4


@pytest.mark.parametrize(
    "option",
    [
        {"charged": False},
        {"target_kernel": "6.1"},
        {"target_layout": "6.13"},
        {"verify": True},
        {"max_reads": 1000},
        {"debug_dir": "/debug"},
        {"vmlinux": None},
        {"vmcoreinfo": None},
        {"btf_dir": None},
        {"via": "ray:node1"},
    ],
    ids=str,
)
def test_an_option_that_bears_on_rows_changes_it(target: Target, option: dict[str, object]) -> None:
    assert digest_of(replace(target, **option)) not in (digest_of(target), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("file", ["collector/model/cost.py", "inventory/packed.py", "fanout/runner/unpack.py"])
def test_another_collector_or_unpacker_changes_it(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    first_digest = digest_of(target)
    copy = tmp_path / "pipeline"
    shutil.copytree(digest._PIPELINE, copy)
    monkeypatch.setattr(digest, "_versions", digest._versions.__wrapped__)  # as in a new process for each call
    monkeypatch.setattr(digest, "_PIPELINE", copy)
    assert digest_of(target) == first_digest
    with (copy / file).open("a") as source:
        source.write("# changed")
    assert digest_of(target) not in (first_digest, None)


@pytest.mark.parametrize("library", ["drgn", "pyarrow"])
def test_another_drgn_or_pyarrow_changes_it(target: Target, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    first_digest = digest_of(target)
    version = importlib.metadata.version
    monkeypatch.setattr(digest, "_versions", digest._versions.__wrapped__)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9.9" if name == library else version(name))
    assert digest_of(target) not in (first_digest, None)


@pytest.mark.parametrize(
    "other",
    [
        {"kind": "live", "source": "live:"},
        {"kind": "ray", "source": "ray:node1"},
        {"kind": "ssh", "source": "ssh:web"},
        {"kind": "qmp"},
        {"via": "ssh:web"},
        {"python": "/usr/bin/python3"},
        {"source": "/nonexistent"},
        {"source": "/dev/null"},
        {"vmlinux": "/nonexistent"},
        {"vmcoreinfo": "/nonexistent"},
        {"btf_dir": "/nonexistent"},
    ],
    ids=str,
)
def test_there_is_none_for_other_targets_and_files_that_cannot_be_opened(
    target: Target, other: dict[str, object]
) -> None:
    fine = replace(target, name="fine")
    assert digest.Digester().digests([replace(target, **other), fine]).keys() == {"fine"}  # type: ignore[arg-type]


def test_there_is_none_without_a_drgn_whose_version_is_known(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(digest, "_versions", digest._versions.__wrapped__)
    monkeypatch.setattr(importlib.metadata, "version", version)
    assert digest_of(target) is None


@pytest.mark.parametrize("file", ["core", "vmlinux", "note", "btf/5.4.0.btf"])
def test_there_is_none_for_a_file_that_may_change_again_in_the_same_tick(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    path = tmp_path / file
    os.utime(path, (0, 0))  # the change of the times is recent, even if the times are old
    changed_at = path.stat().st_ctime
    monkeypatch.setattr(digest, "_MIN_AGE_S", 2.0)
    monkeypatch.setattr(digest.time, "time", lambda: changed_at + 1.9)
    assert digest_of(target) is None
    monkeypatch.setattr(digest.time, "time", lambda: changed_at + 3600.0)
    assert digest_of(target) is not None


def test_a_hung_file_system_delays_a_batch_for_a_limited_time(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    stat = os.stat

    def hang(path: str, **options: Any) -> os.stat_result:
        if path == "/hung/core":
            answer.wait()
        return stat(path, **options)

    monkeypatch.setattr(digest.os, "stat", hang)
    monkeypatch.setattr(digest, "_TIMEOUT_S", 0.5)
    hung, after = replace(target, name="hung", source="/hung/core"), replace(target, name="after")
    try:
        assert digest.Digester().digests([target, hung, after]).keys() == {"web"}
    finally:
        answer.set()
