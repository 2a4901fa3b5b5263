"""Cores that are compressed or in an archive: the same rows, and nothing is left of what was unpacked."""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from pipeline.fanout import runner, workers
from pipeline.fanout.runner import child, digest, unpack
from pipeline.inventory import Target
from tests import dumps

VMCORES = Path(__file__).parents[2] / "vmcores"
CORE = VMCORES / "deb510-n1" / "vmcore"
COST_COLUMNS = {"reads", "read_bytes", "peak_rss_bytes"}
COMMANDS = {
    "gzip": "gzip -c vmcore",
    "two gzip members": "cat vmcore.1.gz vmcore.2.gz",
    "bzip2": "bzip2 -c vmcore",
    "xz": "xz -0c vmcore",
    "zstd": "zstd -qc vmcore",
    "lz4": "lz4 -qc vmcore",
    "tar": "tar -c dmesg vmcore",
    "sparse tar": "tar -cS dmesg vmcore",
    "tar.gz": "tar -cz dmesg vmcore",
    "tar.zst": "tar --zstd -c dmesg vmcore",
}


def collect(core: Path, **limits: Any) -> dict[str, Any]:
    return runner.run(Target("t", "vmcore", str(core)), 1, runner.Limits(**{"timeout_s": 60, **limits}))


def rows(attempt: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    assert attempt["attempt"]["status"] == "ok", attempt["attempt"]
    columns = {name: value for name, value in attempt["columns"].items() if name not in COST_COLUMNS}
    return columns, attempt["tables"]


def refusal(core: Path, **limits: Any) -> str:
    attempt = collect(core, **limits)["attempt"]
    assert attempt["status"] == "bad_core", attempt
    return attempt["error"]


@pytest.fixture(scope="module")
def plain() -> tuple[dict[str, Any], dict[str, Any]]:
    return rows(collect(CORE))


@pytest.mark.parametrize("form", COMMANDS)
def test_a_packed_core_has_the_rows_of_the_plain_one_and_leaves_nothing(form: str, tmp_path: Path, plain: Any) -> None:
    command = COMMANDS[form].split()
    if shutil.which("zstd" if form == "tar.zst" else command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    dump = CORE.read_bytes()
    work, place = tmp_path / "work", tmp_path / "place"
    dumps.write(work / "vmcore", dump)
    dumps.write(work / "dmesg", b"[    0.000000] Linux version 5.10\n")
    dumps.write(work / "vmcore.1.gz", gzip.compress(dump[:1000000]))
    dumps.write(work / "vmcore.2.gz", gzip.compress(dump[1000000:]))
    packed = dumps.write(tmp_path / "packed", subprocess.check_output(command, cwd=work))
    assert rows(collect(packed, unpack_directory=str(place))) == plain
    assert list(place.iterdir()) == []
    assert place.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_flattened_core_that_libkdumpfile_refuses_is_rearranged(
    is_compressed: bool, tmp_path: Path, plain: Any
) -> None:
    flattened = dumps.flatten_like_makedumpfile(CORE.read_bytes())
    core = dumps.write(tmp_path / "dump.202611291200", gzip.compress(flattened) if is_compressed else flattened)
    assert rows(collect(core, unpack_directory=str(tmp_path / "place"))) == plain
    assert list((tmp_path / "place").iterdir()) == []


def test_a_flattened_core_that_is_compressed_and_cut_off_is_refused(tmp_path: Path) -> None:
    flattened = dumps.flatten_like_makedumpfile(CORE.read_bytes())
    core = dumps.write(tmp_path / "dump.gz", gzip.compress(flattened[:-16]))
    assert "it ends early" in refusal(core)


def test_a_system_map_beside_a_packed_core_is_used(tmp_path: Path) -> None:
    """Without it the variables of this kernel, which has no CONFIG_KALLSYMS_ALL, are unknown."""
    core = VMCORES / "deb510-arm64" / "vmcore"
    (system_map,) = core.parent.glob("System.map-*")
    packed = dumps.write(tmp_path / "vmcore.gz", gzip.compress(core.read_bytes(), 1))
    attempt = collect(packed)["attempt"]
    assert attempt["status"] == "no_types"
    assert f"{tmp_path / system_map.name}" in attempt["error"]
    assert "lru-unpacked" not in attempt["error"]
    shutil.copy(system_map, tmp_path)
    assert rows(collect(packed)) == rows(collect(core))


def test_an_archive_with_several_cores_names_them(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(CORE, "db1/vmcore")
        archive.add(CORE, "db2/vmcore")
    error = refusal(tmp_path / "a.tar")
    assert "several cores in it: db1/vmcore, db2/vmcore" in error
    assert f"tar -xf {tmp_path / 'a.tar'}" in error


def test_what_is_damaged_or_has_no_core_is_a_bad_core(tmp_path: Path) -> None:
    packed = gzip.compress(CORE.read_bytes(), 1)
    assert "cannot be unpacked" in refusal(dumps.write(tmp_path / "cut.gz", packed[:-1000]))
    assert "has no core in it" in refusal(dumps.write(tmp_path / "text.gz", gzip.compress(b"text")))
    inner = dumps.incomplete(CORE.read_bytes())[:1000000]
    error = refusal(dumps.write(tmp_path / "early.gz", gzip.compress(inner, 1)))
    assert error.startswith(f"{tmp_path / 'early.gz'} ends early, after 1000000 bytes")


def header(size: int, kind: bytes) -> bytes:
    """The header of a tar member that claims a size."""
    member = tarfile.TarInfo("a")
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (header(1 << 77, tarfile.REGTYPE) + bytes(9216), "it cannot be unpacked: it ends early"),
        (header(1 << 40, tarfile.XHDTYPE) + bytes(9216), f"it cannot be unpacked: a header of {1 << 40} bytes"),
        ((header(2, tarfile.GNUTYPE_LONGNAME) + b"a".ljust(512, b"\0")) * 1500, "it cannot be unpacked: maximum recur"),
    ],
    ids=["size", "pax", "long names"],
)
def test_a_hostile_archive_ends_as_a_bad_core_that_names_the_command(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    packed = dumps.write(tmp_path / "a.tar", content)
    assert f"unpack it: tar -xf {packed}; {reason}" in refusal(packed, timeout_s=20)


def test_a_dictionary_larger_than_the_memory_limit_is_over_budget(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 20}]
    content = lzma.compress(CORE.read_bytes()[:100000], filters=filters)
    # The block header, after the stream header of 12 bytes: its size, flags, filter, size of properties, properties
    # (29: 96 MiB), padding, CRC32.
    block = bytearray(content[12:20])
    assert block[2:4] == b"\x21\x01"
    block[4] = 29
    content = content[:12] + block + struct.pack("<I", zlib.crc32(block)) + content[24:]
    packed = dumps.write(tmp_path / "vmcore.xz", content)
    attempt = collect(packed, memory_bytes=90 << 20)["attempt"]
    assert (attempt["status"], attempt["error_type"]) == ("over_budget", "MemoryError")
    assert f"unpack it: xz -dc {packed} > NEW; needs more than 90 MiB of memory" in attempt["error"]


@pytest.mark.parametrize("form", ["cut", "text", "several", "lz4 -l"])
def test_each_failure_to_unpack_names_the_command_that_does(form: str, tmp_path: Path) -> None:
    content = gzip.compress(CORE.read_bytes(), 1)[:-1000] if form == "cut" else gzip.compress(b"text")
    packed = dumps.write(tmp_path / "packed", content)
    command = f"gzip -dc {packed} > NEW"
    if form == "several":
        command = f"tar -xf {packed}"
        with tarfile.open(packed, "w") as archive:
            archive.add(CORE, "db1/vmcore")
            archive.add(CORE, "db2/vmcore")
    if form == "lz4 -l":
        command = f"lz4 -dc {packed} > NEW"
        packed.write_bytes(bytes.fromhex("02214c18 05000000 4074657874"))
    assert f"unpack it: {command}; it " in refusal(packed)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_what_writing_raises_where_there_is_no_room_says_so(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(unpack, "_write", fail)
    packed = dumps.write(tmp_path / "vmcore.gz", gzip.compress(CORE.read_bytes(), 1))
    with pytest.raises(unpack.UnpackError, match=f"no room for it in {tmp_path}: {os.strerror(number)}") as error_info:
        unpack.unpack(str(packed), str(tmp_path / "directory"))
    assert error_info.value.error_type == unpack.NO_ROOM


def test_a_full_disk_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "CORE", "/dev/full")
    packed = dumps.write(tmp_path / "vmcore.gz", gzip.compress(CORE.read_bytes(), 1))
    with pytest.raises(unpack.UnpackError, match=r"no room for it in .*: No space left on device"):
        unpack.unpack(str(packed), str(tmp_path / "directory"))


def test_a_hostile_name_is_quoted_in_the_command(tmp_path: Path) -> None:
    packed = tmp_path / "vmcore;reboot;.tar"
    with tarfile.open(packed, "w") as archive:
        archive.add(CORE, "db1/vmcore")
        archive.add(CORE, "db2/vmcore")
    assert f"audit the directory of: tar -xf '{packed}'" in refusal(packed)


def test_zeros_become_holes(tmp_path: Path) -> None:
    content = b"KDUMP   " + bytes(100 << 20) + b"end"
    unpack.unpack(str(dumps.write(tmp_path / "core.gz", gzip.compress(content, 1))), str(tmp_path))
    core = tmp_path / unpack.CORE
    assert core.read_bytes() == content
    assert core.stat().st_blocks * 512 < 1 << 20


def test_a_core_without_end_ends_at_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "_MAX_CORE_BYTES", 10 << 20)
    bomb = dumps.write(tmp_path / "core.gz", gzip.compress(b"KDUMP   " + bytes(100 << 20), 1))
    with pytest.raises(unpack.UnpackError) as error_info:
        unpack.unpack(str(bomb), str(tmp_path))
    assert error_info.value.error_type == unpack.NO_ROOM


def test_where_there_is_no_room_the_command_that_unpacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = "import os, types\nos.statvfs = lambda _: types.SimpleNamespace(f_bavail=1000, f_frsize=4096)"
    dumps.write(tmp_path / "sitecustomize.py", full.encode())
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    packed = dumps.write(tmp_path / "vmcore.gz", gzip.compress(CORE.read_bytes(), 1))
    error = refusal(packed, unpack_directory=str(tmp_path / "place"))
    assert f"unpack it: gzip -dc {packed} > NEW; no room for it in {tmp_path / 'place'}" in error
    assert list((tmp_path / "place").iterdir()) == []


def test_a_core_is_unpacked_in_tmpdir_where_the_warehouse_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: Any
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    packed = dumps.write(tmp_path / "vmcore.gz", gzip.compress(CORE.read_bytes(), 1))
    assert rows(collect(packed, unpack_directory="/nowhere/staging.unpacked")) == plain
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.fixture
def endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A packed core whose unpacking does not end."""
    slow = "import sys, time\nif sys.argv[0] == '-m':\n    import os\n    os.statvfs = lambda _: time.sleep(60)"
    dumps.write(tmp_path / "site" / "sitecustomize.py", slow.encode())
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    return dumps.write(tmp_path / "vmcore.gz", gzip.compress(CORE.read_bytes(), 1))


def test_the_deadline_is_that_of_the_target(endless: Path, tmp_path: Path) -> None:
    attempt = collect(endless, timeout_s=3, unpack_directory=str(tmp_path / "place"))["attempt"]
    assert (attempt["status"], attempt["error_type"]) == ("timeout", "deadline")
    assert f"unpack it: gzip -dc {endless}" in attempt["error"]
    assert list((tmp_path / "place").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_leaves_nothing_and_a_kill_only_until_the_next_run(
    number: signal.Signals, endless: Path, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    code = (
        "import signal, sys\nfrom pipeline.fanout import runner\nfrom pipeline.inventory import Target\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "runner.run(Target('t', 'vmcore', sys.argv[1]), 1, runner.Limits(unpack_directory=sys.argv[2]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, endless, place], stderr=subprocess.DEVNULL)
    while not any(place.glob("lru-unpacked.*/core")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    process.wait()
    if number == signal.SIGKILL:
        assert any(place.iterdir())
        runner.remove_orphans(str(place))
    assert list(place.iterdir()) == []


def test_a_packed_core_that_did_not_change_is_not_unpacked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest, "_MIN_AGE_S", 0.0)
    target = Target("t", "vmcore", str(dumps.write(tmp_path / "vmcore.gz", gzip.compress(CORE.read_bytes(), 1))))
    digests = runner.Digester().digests([target])
    assert list(digests) == ["t"]
    monkeypatch.setattr(runner, "run", None)
    ((_, unchanged_names),) = workers.collect_batch([(target, 1)], runner.Limits(), runner.run, 1, digests)
    assert unchanged_names == {"t"}


def test_a_core_that_a_host_reads_is_not_unpacked_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "/vmcore.gz is compressed; unpack it: gzip -dc /vmcore.gz > NEW"
    monkeypatch.setattr(child, "_collect_as_is", lambda *_: child._Result("bad_core", "Packed", words))
    target = Target("t", "vmcore", "/vmcore.gz", via="ssh:host")
    assert runner.run(target, 1, runner.Limits())["attempt"]["error"] == words
