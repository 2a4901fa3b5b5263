"""`pipeline.inventory`: targets from arguments and files, and all errors at once, each with its line."""

from __future__ import annotations

import errno
import gzip
import io
import json
import lzma
import os
import shutil
import struct
import subprocess
import tarfile
import tempfile
import time
import tracemalloc
from pathlib import Path

import pytest

from pipeline import inventory
from pipeline.inventory import InventoryError, Target, cores
from tests import campaign, dumps

ELF_CORE = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<H", 4)
ELF_CORE_BIG_ENDIAN = b"\x7fELF\x02\x02\x01" + bytes(9) + struct.pack(">H", 4)
ELF_PROGRAM = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<H", 2)


def write(path: Path, content: bytes = ELF_CORE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(targets: list[Target]) -> list[str]:
    return [target.name for target in targets]


def errors(targets: list[str], file: Path | str | None = None) -> list[str]:
    """Return the errors of arguments and an inventory file."""
    with pytest.raises(InventoryError) as info:
        inventory.load(targets, file)
    assert str(info.value) == "\n".join(info.value.errors)
    return info.value.errors


def entry(**fields: object) -> Target:
    """Return the target of an inventory with one entry."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump([fields], file)
        file.flush()
        (target,) = inventory.load([], Path(file.name))
    return target


def entry_errors(fields: dict[str, object]) -> list[str]:
    """Return the errors of an inventory with one entry."""
    with pytest.raises(InventoryError) as info:
        entry(**fields)
    return info.value.errors


# Arguments


def test_a_path_is_a_core_by_its_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for argument in ("a.core", "vmcore:a.core", "./a.core", f"{tmp_path}/a.core"):
        (target,) = inventory.load([argument])
        assert (target.kind, target.source, target.name) == ("vmcore", f"{tmp_path}/a.core", "a.core")


def test_live_is_this_machine():
    (target,) = inventory.load(["live:"])
    assert (target.kind, target.source, target.name) == ("live", "live:", os.uname().nodename)


def test_a_file_that_is_not_there_is_the_targets_failure_and_not_ours():
    assert names(inventory.load(["/nowhere/a.core"])) == ["a.core"]


def test_no_target_shows_three_examples():
    (error,) = errors([])
    assert error.count("lru-audit run") == 3


@pytest.mark.parametrize(
    ("argument", "kind", "name"),
    [
        ("ssh:host", "ssh", "host"),
        ("ssh:root@host.example", "ssh", "host.example"),
        ("ssh:user@host:2222", "ssh", "host:2222"),
        ("ssh:a.b-c@corp.example@10.0.0.1", "ssh", "10.0.0.1"),
        ("ssh:[::1]", "ssh", "::1"),
        ("ssh:root@[fe80::1%eth0]:22", "ssh", "[fe80::1%eth0]:22"),
        ("ray:node1", "ray", "node1"),
        ("ray:10.0.0.1", "ray", "10.0.0.1"),
        ("ray:*", "ray", "ray:*"),
    ],
)
def test_a_machine_is_called_by_its_host(argument, kind, name):
    (target,) = inventory.load([argument])
    assert (target.kind, target.source, target.name) == (kind, argument, name)


def test_a_guest_is_called_by_its_socket_or_by_its_path_where_sockets_have_one_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    targets = inventory.load(["qmp:vm1.sock", "qmp:/run/1/monitor.sock", "qmp:/run/2/monitor.sock"])
    assert [target.source for target in targets] == [
        f"{tmp_path}/vm1.sock",
        "/run/1/monitor.sock",
        "/run/2/monitor.sock",
    ]
    assert names(targets) == ["vm1", "/run/1/monitor.sock", "/run/2/monitor.sock"]


@pytest.mark.parametrize(
    "destination",
    [
        *(
            "",
            "@",
            "@host",
            "user@",
            "host:",
            "user@host:",
            ":22",
            "[::1",
            "[::1]22",
            "[]",
            "[host]",
            "[::1%;x]",
            "::1",
        ),
        *("host:0", "host:65536", "host:22x", "host:-1", "host:+1", "host:٢٢", "host:000022", "host:22:22"),
        *("-oProxyCommand=touch /tmp/x", "-host", "-l@host", "user@-host", "a b", "a\tb", "host;reboot", "$(id)"),
        *("`id`", "host|x", "host&", "host>x", "us'er@host", 'us"er@host', "us er@host", "us$er@host", "a\\b@host"),
        *("host/x", "héte", "ho\x1bst", "host\n", "%h", "user%r@host", "*", "{a,b}", "~", "!", "#"),
    ],
)
def test_a_destination_that_ssh_or_a_shell_would_take_for_something_else_is_refused(destination):
    (error,) = errors([f"ssh:{destination}"])
    assert error.startswith("argument 1: ")
    assert error.isprintable()
    via = {"target": "/core", "via": f"ssh:{destination}"}
    assert len(entry_errors(via)) == 1


@pytest.mark.parametrize(
    "argument",
    ["http://host/core", "vmcore:", "qmp:", "live:host", "ray:", "ray:a b", "ray:a*", "", "Kcore:x", "SSH:host"],
)
def test_what_is_no_target_is_refused(argument):
    assert len(errors([argument])) == 1


def test_all_errors_of_the_arguments_come_at_once():
    messages = errors(["ssh:-a", "x:b", "/ok", "vmcore:"])
    assert [error.split(":")[0] for error in messages] == ["argument 1", "argument 2", "argument 4"]


def test_a_path_with_a_colon_says_so():
    (target,) = inventory.load(["vmcore:/cores/a:b"])
    assert target.source == "/cores/a:b"


# Directories and names


def test_a_directory_is_searched_by_what_is_in_the_files(tmp_path):
    for number, magic in enumerate((ELF_CORE, ELF_CORE_BIG_ENDIAN, b"KDUMP   ", b"DISKDUMP", b"makedumpfile\0")):
        write(tmp_path / f"host{number}" / "dump", magic + bytes(100))
    write(tmp_path / "host0" / "vmlinux", ELF_PROGRAM + bytes(100))
    write(tmp_path / "host0" / "vmcore-dmesg.txt", b"dmesg")
    write(tmp_path / "empty", b"")
    os.mkfifo(tmp_path / "fifo")
    targets = inventory.load([str(tmp_path)])
    assert names(targets) == [f"host{number}/dump" for number in range(5)]
    assert targets.other_file_count == 4


def test_a_directory_without_a_core_is_an_error_that_counts_the_others(tmp_path):
    write(tmp_path / "a.txt", b"text")
    (error,) = errors([str(tmp_path)])
    assert "no core" in error
    assert "1 other file" in error


def packed(form: str, content: bytes, tmp_path: Path) -> bytes:
    """Return a file in a form, written by the programs that people pack with."""
    (tmp_path / "content").write_bytes(content)
    commands = {
        "gz": "gzip -c content",
        "bz2": "bzip2 -c content",
        "xz": "xz -c content",
        "zst": "zstd -qc content",
        "lz4": "lz4 -qc content",
        "lz4-legacy": "lz4 -lqc content",
        "tar": "tar -c content",
        "tar.gz": "tar -cz content",
        "tar.xz": "tar -cJ content",
    }
    program = commands[form].split()[0]
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}")
    return subprocess.check_output(commands[form].split(), cwd=tmp_path)


@pytest.mark.parametrize("form", ["gz", "bz2", "xz", "zst", "lz4", "tar", "tar.gz", "tar.xz"])
def test_a_packed_core_is_a_core_whatever_its_name_and_other_packed_files_are_not(form, tmp_path):
    write(tmp_path / "c" / "a", packed(form, b"KDUMP   " + bytes(5000), tmp_path))
    write(tmp_path / "c" / "b", packed(form, b"text" + bytes(5000), tmp_path))
    targets = inventory.load([str(tmp_path / "c")])
    assert (names(targets), targets.other_file_count) == (["a"], 1)


def test_a_core_is_found_in_an_archive_behind_what_kdump_writes_before_it(tmp_path):
    write(tmp_path / "h" / "1-dmesg.txt", os.urandom(1 << 20))
    write(tmp_path / "h" / "2-vmcore", b"KDUMP   " + bytes(5000))
    (tmp_path / "c").mkdir()
    subprocess.run(["tar", "-czf", "c/h.tar.gz", "h/1-dmesg.txt", "h/2-vmcore"], cwd=tmp_path, check=True)
    assert names(inventory.load([str(tmp_path / "c")])) == ["h.tar.gz"]


def search(tmp_path: Path, content: bytes, name: str = "backup.tar") -> tuple[list[str], int, int]:
    """Search a directory with one archive: the names of the rows, and the numbers of other and of unsearched files."""
    write(tmp_path / "c" / "other", b"text")
    write(tmp_path / "c" / name, content)
    paths, other_count, unsearched_count = cores.search(str(tmp_path / "c"))
    return [os.path.basename(path) for path in paths], other_count, unsearched_count


def tar(*members: tuple[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=tarfile.GNU_FORMAT) as archive:  # type: ignore[call-overload]
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """The header of a tar member that claims a size."""
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


HOSTILE = {
    "a member that claims 2**77 bytes": header("a", 1 << 77) + bytes(9216),
    "a member that claims 2**62 bytes": header("a", 1 << 62) + bytes(9216),
    "a member that claims less than nothing": header("a", -10240) + bytes(9216),
    "a chain of long names": (header("././@LongLink", 2, tarfile.GNUTYPE_LONGNAME) + b"a".ljust(512, b"\0")) * 1500,
    "a sparse map that is cut off": header("a", 512, tarfile.GNUTYPE_SPARSE)[:482] + b"\1" + bytes(29),
    "a pax header of 1 TiB": header("a", 1 << 40, tarfile.XHDTYPE) + bytes(9216),
}


@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_archive_ends_the_search_in_it(what: str, is_compressed: bool, tmp_path: Path) -> None:
    content = HOSTILE[what]
    assert search(tmp_path, gzip.compress(content) if is_compressed else content) == ([], 1, 1)


def test_a_pax_header_of_a_gigabyte_of_zeros_is_not_read_into_memory(tmp_path: Path) -> None:
    archive = tmp_path / "c" / "backup.tar"
    write(archive, header("a", 1 << 30, tarfile.XHDTYPE))
    os.truncate(archive, 2 << 30)
    tracemalloc.start()
    try:
        assert cores.search(str(tmp_path / "c")) == ([], 0, 1)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_dictionary_for_which_there_is_no_memory_ends_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> bytes:  # a stand-in: the limit of a process is that of all its tests
        raise MemoryError

    monkeypatch.setattr(lzma.LZMAFile, "read", read)
    assert search(tmp_path, lzma.compress(b"text"), "a.xz") == ([], 1, 1)


def test_all_of_an_uncompressed_archive_is_searched(tmp_path: Path) -> None:
    archive = tmp_path / "c" / "a.tar"
    write(archive, header("a", 4 << 30))
    with archive.open("r+b") as file:
        file.seek(512 + (4 << 30))
        file.write(tar(("vmcore", b"KDUMP   " + bytes(1000))))
    assert cores.search(str(tmp_path / "c")) == ([str(archive)], 0, 0)


def test_an_archive_that_is_not_searched_to_its_end_is_counted_or_a_row_by_its_name(tmp_path: Path) -> None:
    before = ("a", bytes(5 << 20))
    core = ("vmcore", b"KDUMP   " + bytes(1000))
    assert search(tmp_path / "1", tar(before, core, mode="w:gz"), "a.tar.gz") == (["a.tar.gz"], 1, 0)
    large = tar(("a", bytes(20 << 20)), core, mode="w:gz")
    assert search(tmp_path / "2", large, "backup.tar.gz") == ([], 1, 1)
    assert search(tmp_path / "3", large, "db1-crash.tar.gz") == (["db1-crash.tar.gz"], 1, 0)
    assert search(tmp_path / "4", large, "Crash_db1.tgz") == (["Crash_db1.tgz"], 1, 0)
    assert search(tmp_path / "5", large, "crashing.tar.gz") == ([], 1, 1)
    assert search(tmp_path / "6", large[:5000], "kdump.tar.gz") == (["kdump.tar.gz"], 1, 0)
    assert search(tmp_path / "7", tar(("a", b"text")), "crash.tar") == ([], 2, 0)
    (error,) = errors([str(tmp_path / "2" / "c")])
    assert error.endswith("only 1 other files and 1 archives that could not be searched to their end")


def test_an_archive_of_very_many_members_is_counted_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_MAX_ARCHIVE_MEMBERS", 3)
    assert search(tmp_path / "1", tar(*[(name, b"") for name in "abc"])) == ([], 2, 0)
    assert search(tmp_path / "2", tar(*[(name, b"") for name in "abcd"])) == ([], 1, 1)


def test_a_form_of_lz4_that_only_lz4_reads_is_a_row(tmp_path: Path) -> None:
    assert search(tmp_path, packed("lz4-legacy", b"KDUMP   ", tmp_path), "a") == (["a"], 1, 0)


def test_a_file_that_becomes_a_fifo_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regular = write(tmp_path / "c" / "a", b"text")
    os.mkfifo(tmp_path / "c" / "vmcore")
    status = os.stat(regular)
    monkeypatch.setattr(cores.os, "stat", lambda _: status)
    paths, other_count, *_ = cores.search(str(tmp_path / "c"))
    assert (paths, other_count) == ([str(tmp_path / "c" / "vmcore")], 1)


def test_what_has_the_name_of_a_dump_is_a_row_whatever_is_in_it(tmp_path):
    rows = [
        "vmcore",
        "vmcore-incomplete",
        "vmcore.1",
        "dump.202611251200",
        "dump-incomplete",
        "db1.vmcore",
        "vmcore.gz",
    ]
    others = ["vmcore-dmesg.txt", "vmcore-dmesg-incomplete.txt", "dmesg.202611251200", "vmcoreinfo", "vmcore.md5"]
    others += ["dump.sql", "vmcores.txt", "kexec-dmesg.log"]
    for name in rows + others:
        write(tmp_path / name, b"")
    targets = inventory.load([str(tmp_path)])
    assert [Path(target.source).name for target in targets] == sorted(rows)
    assert targets.other_file_count == len(others)


def test_what_a_hypervisor_saved_is_a_row_whatever_its_name(tmp_path):
    write(tmp_path / "guest.save", b"LibvirtQemudSave" + bytes(100))
    write(tmp_path / "guest.vmem", bytes(100))
    write(tmp_path / "guest.log", b"text")
    targets = inventory.load([str(tmp_path)])
    assert (names(targets), targets.other_file_count) == (["guest.save", "guest.vmem"], 1)


def test_a_name_of_a_dump_that_leads_nowhere_or_is_a_fifo_is_a_row(tmp_path):
    (tmp_path / "vmcore").symlink_to(tmp_path / "nothing")
    (tmp_path / "other").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "vmcore-1")
    targets = inventory.load([str(tmp_path)])
    assert [Path(target.source).name for target in targets] == ["vmcore", "vmcore-1"]
    assert targets.other_file_count == 1


def test_links_to_a_core_in_the_same_tree_do_not_count_it_twice(tmp_path):
    core = write(tmp_path / "c" / "host1" / "vmcore")
    (tmp_path / "c" / "host1" / "a-link").hardlink_to(core)
    (tmp_path / "c" / "latest").symlink_to(core)
    (tmp_path / "c" / "loop").symlink_to(tmp_path / "c")
    (tmp_path / "c" / "host1" / "self").symlink_to("self")
    outside = write(tmp_path / "outside")
    (tmp_path / "c" / "host2").symlink_to(outside)
    targets = inventory.load([str(tmp_path / "c")])
    assert names(targets) == ["host1/a-link", "host2"]
    assert targets.other_file_count == 1


def test_the_parts_of_a_split_dump_are_one_row_in_each_directory(tmp_path):
    dump = (Path(__file__).parents[1] / "vmcores" / "deb510-n1" / "vmcore").read_bytes()
    for folder in ("a", "b"):
        write(tmp_path / folder / "part1", dumps.part(dump, 0, 1000))
        write(tmp_path / folder / "part2", dumps.part(dump, 1000, 9000))
        write(tmp_path / folder / "whole", dump)
    targets = inventory.load([str(tmp_path)])
    assert names(targets) == ["a/part1", "a/whole", "b/part1", "b/whole"]
    assert targets.other_file_count == 0


def test_a_closed_subdirectory_is_a_row(tmp_path, monkeypatch):
    write(tmp_path / "host1" / "vmcore")
    write(tmp_path / "host2" / "vmcore")
    scandir = os.scandir

    def denied(path: str) -> object:  # a stand-in, since root may read every directory
        if str(path).endswith("host2"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert names(inventory.load([str(tmp_path)])) == ["host1/vmcore", "host2"]


def test_kdumps_cores_are_named_by_their_folders(tmp_path):
    write(tmp_path / "cores" / "a" / "vmcore")
    write(tmp_path / "cores" / "b" / "vmcore")
    (tmp_path / "cores" / "c").mkdir()
    a, b, cores = (str(tmp_path / "cores" / name) for name in ("a/vmcore", "b/vmcore", ""))
    assert names(inventory.load([cores])) == ["a/vmcore", "b/vmcore"]
    assert names(inventory.load([b, a])) == ["b/vmcore", "a/vmcore"]
    assert names(inventory.load([a])) == ["a/vmcore"]
    assert names(inventory.load([str(tmp_path / "cores" / "a")])) == ["a/vmcore"]


def test_a_bare_vmcore_moves_all_names_one_folder_up_so_that_none_collide(tmp_path):
    write(tmp_path / "c" / "vmcore")
    write(tmp_path / "c" / "c" / "vmcore")
    assert names(inventory.load([str(tmp_path / "c")])) == ["c/c/vmcore", "c/vmcore"]


def test_files_whose_names_print_alike_have_different_names(tmp_path):
    """One name has the byte 0xff, the other the text of its escape. With one name for both the run would be refused."""
    for name in (b"core-\xff", rb"core-\udcff", rb"core-\\udcff", b"core-1"):
        write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)))
    targets = inventory.load([str(tmp_path)])
    assert len(set(names(targets))) == 4
    assert all(name.isprintable() for name in names(targets))
    assert "core-1" in names(targets)


@pytest.mark.parametrize("fields", [{"name": "n" * 10_000_000}, {"labels": {"rack": "r" * 10_000_000}}])
def test_a_text_that_no_table_takes_is_refused_before_anything_is_audited(fields):
    (error,) = entry_errors({"target": "live:", **fields})
    assert "more than 4,096 characters" in error
    assert len(error) < 400
    assert entry(target="live:", name="n" * 4096, labels={"r" * 4096: "v" * 4096}).name == "n" * 4096


def test_a_hostile_file_name_becomes_a_printable_name_and_keeps_its_source(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"a\n\x1b[31m\xff.core")
    with open(path, "wb") as file:
        file.write(ELF_CORE)
    (target,) = inventory.load([str(tmp_path)])
    assert target.name == r"a\n\x1b[31m\udcff.core"
    assert os.fsencode(target.source) == path


# Inventory files

ROWS = [
    {
        "target": "cores/a",
        "name": "a",
        "labels": {"rack": "r1", "role": "db"},
        "vmlinux": "dbg/vmlinux",
        "python": "venv/bin/python",
        "timeout_s": 30,
    },
    {"target": "live:", "name": "here", "debug_dir": "/usr/lib/debug", "python": "python3.12"},
]


def as_yaml(folder: Path) -> Path:
    return write(
        folder / "fleet.yaml",
        b"""- target: cores/a
  name: a
  labels: {rack: r1, role: db}
  vmlinux: dbg/vmlinux
  python: venv/bin/python
  timeout_s: 30
- {target: 'live:', name: here, debug_dir: /usr/lib/debug, python: python3.12}
""",
    )


def as_json(folder: Path) -> Path:
    return write(folder / "fleet.json", json.dumps(ROWS, indent=2).encode())


def as_csv(folder: Path) -> Path:
    return write(
        folder / "fleet.csv",
        b"target,name,labels.rack,labels.role,vmlinux,debug_dir,python,timeout_s\n"
        b"cores/a,a,r1,db,dbg/vmlinux,,venv/bin/python,30\n"
        b"live:,here,,,,/usr/lib/debug,python3.12,\n",
    )


@pytest.mark.parametrize("make", [as_yaml, as_json, as_csv])
def test_every_format_says_the_same_and_its_paths_are_below_its_folder(tmp_path, make):
    folder = tmp_path / "fleet"
    targets = inventory.load([], make(folder))
    assert targets == [
        Target(
            name="a",
            kind="vmcore",
            source=f"{folder}/cores/a",
            labels={"rack": "r1", "role": "db"},
            vmlinux=f"{folder}/dbg/vmlinux",
            python=f"{folder}/venv/bin/python",
            timeout_s=30.0,
        ),
        Target(name="here", kind="live", source="live:", debug_dir="/usr/lib/debug", python="python3.12"),
    ]


def test_stdin_is_one_target_a_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = b"# cores\nhost1/a.core\n\n  host2/a.core \nlive:\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    targets = inventory.load([], Path("-"))
    assert [target.source for target in targets] == [f"{tmp_path}/host1/a.core", f"{tmp_path}/host2/a.core", "live:"]


def test_arguments_come_before_the_inventory(tmp_path):
    assert names(inventory.load(["/first.core"], as_yaml(tmp_path))) == ["first.core", "a", "here"]


def test_yaml_text_is_what_was_written(tmp_path):
    file = write(tmp_path / "f.yml", b"- {target: /a, name: 007, labels: {on: yes, n: 1.50}, vmlinux: }\n")
    (target,) = inventory.load([], file)
    assert (target.name, target.labels, target.vmlinux) == ("007", {"on": "yes", "n": "1.50"}, None)


def test_yaml_merges_defaults(tmp_path):
    file = write(
        tmp_path / "f.yml",
        b"- &default {target: /a, name: a, timeout_s: 5, labels: {rack: r1}}\n- {<<: *default, target: /b, name: b}\n",
    )
    second = inventory.load([], file)[1]
    assert second == Target("b", "vmcore", "/b", labels={"rack": "r1"}, timeout_s=5.0)


def test_every_error_of_a_yaml_file_comes_at_once_with_its_line(tmp_path):
    file = write(
        tmp_path / "f.yaml",
        b"""- target: /a
  name: a
- target: /b
  name: a
- target: ssh:-host
  vmlinuz: /x
- name: no target
- target: 'live:'
  via: ray:node
- target: /d
  timeout_s: soon
- target: /e
  labels: [rack]
- target: /f
  labels: {rack: [1]}
- /g
- target: /h
  name: "h\\x1b"
- target: /i
  target: /j
""",
    )
    messages = [error.removeprefix(f"{file}:") for error in errors(["ray:"], file)]
    places = ["argument", "4:", "5:", "6:", "7:", "9:", "11:", "13:", "15:", "16:", "18:", "19:"]
    assert [error.split(" ")[0] for error in messages] == places
    text = "\n".join(messages)
    for words in ("name 'a' is already taken by '/a'", "'vmlinuz'", "no target", "via", "'soon'", "mapping", "twice"):
        assert words in text
    assert "\x1b" not in text


def test_json_errors_have_their_line(tmp_path):
    rows = (
        '[\n {"target": "/a", "bad": 1},\n\n {"target": "/b",\n  "name": 5},\n 7,\n {"target": "/c", "target": "/d"}]'
    )
    file = write(tmp_path / "f.json", rows.encode())
    assert [error.split(":")[1] for error in errors([], file)] == ["2", "4", "6", "7"]


def test_csv_errors_have_their_line(tmp_path):
    file = write(tmp_path / "f.csv", b"target,name,timeout_s\n/a,a,5\n/b,b\n/c,a,-1\n")
    assert [error.split(":")[1] for error in errors([], file)] == ["3", "4", "4"], "its timeout_s and its name"
    file = write(tmp_path / "g.csv", b"target,rack,labels\n/a,r1,x\n")
    assert [error.split(":")[1] for error in errors([], file)] == ["1", "1"]


@pytest.mark.parametrize(
    "wrong",
    ["{target: /b, name: a, timeout_s: soon}", "{target: 'x:', name: a}", "{target: /b, name: a, via: x}", "{name: a}"],
)
def test_a_name_that_is_taken_is_told_with_what_else_is_wrong_with_either(tmp_path, wrong):
    file = write(tmp_path / "f.yaml", f"- {wrong}\n- {{target: /c, vmlinuz: /x}}\n- {{target: /d, name: a}}\n".encode())
    messages = errors([], file)
    assert [error.removeprefix(f"{file}:").split(":")[0] for error in messages] == ["1", "2", "3"]
    assert "the name 'a' is already taken" in messages[2]


def test_a_name_that_is_no_text_is_not_taken_for_none(tmp_path):
    file = write(tmp_path / "f.yaml", b"- {target: 'live:', name: [a]}\n- target: 'live:'\n")
    (error,) = errors([], file)
    assert "name must be text" in error


def test_a_number_of_too_many_digits_is_one_error(tmp_path):
    number = "9" * 5000
    file = write(tmp_path / "f.json", f'[{{"target": "/a"}},\n {{"target": "live:", "timeout_s": {number}}}]'.encode())
    assert errors([], file) == [f"{file}:2: a number with too many digits"]
    file = write(tmp_path / "a.json", f'{{"_meta": {{"hostvars": {{"h": {{"x": {number}}}}}}}}}'.encode())
    assert errors([], file) == [f"{file}: a number with too many digits"]
    file = write(tmp_path / "f.yaml", f"- {{target: /a, timeout_s: {number}}}".encode())
    (error,) = errors([], file)
    assert "timeout_s must be seconds above 0" in error


def test_a_colon_that_yaml_takes_for_a_mapping_is_explained(tmp_path):
    file = write(tmp_path / "f.yaml", b"- target: /a\n- target: live:\n")
    (error,) = errors([], file)
    assert error.startswith(f"{file}:2: mapping values are not allowed")
    assert error.endswith("quote a value with a colon at its end, as in target: 'live:'")


@pytest.mark.parametrize("link", ["[{0}]", "{{{0}}}"])
def test_aliases_of_aliases_are_refused_soon(tmp_path, link):
    alias_lists = [
        ", ".join(f"k{n}: *x{level}" if link[0] == "{" else f"*x{level}" for n in range(9)) for level in range(30)
    ]
    bomb = "- labels: &x0 {a: b}\n"
    bomb += "".join(f"- labels: &x{level + 1} {link.format(aliases)}\n" for level, aliases in enumerate(alias_lists))
    file = write(tmp_path / "f.yaml", bomb.encode())
    start = time.process_time()
    error = errors([], file)[-1]
    assert error.endswith("more than 10000 values in one target")
    assert len(error) < 300
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("f.yaml", b"- target: /a\n- target: [\n", 3),
        ("f.yaml", b"- target: /a\n  name: *gone\n", 2),
        ("f.yaml", b"target: /a\n", 1),
        ("f.yaml", b"", 1),
        ("f.yaml", b"- target: /a\n- target: \xff\n", 2),
        ("f.yaml", b"- target: /a\n  [x]: 5\n", 2),
        ("f.json", b'[{"target": "/a"},\n {"target": }]', 2),
        ("f.json", b'[{"target": "/a"}\n', 2),
        ("f.json", b'[{"target": "/a"}]\n{}', 2),
        ("f.yaml", b"- " + b"[" * 100_000, 1),
        ("f.json", b"[" * 100_000, 1),
        ("f.json", b"{}", 1),
        ("f.json", b"", 1),
        ("f.csv", b'target\n/a\n"/b\n', 3),
        ("f.csv", b"name\na\n", 1),
        ("f.csv", b"", 1),
    ],
)
def test_a_broken_file_is_one_error_with_its_line(tmp_path, name, content, line):
    file = write(tmp_path / name, content)
    (error,) = errors([], file)
    assert error.startswith(f"{file}:{line}: ")
    assert "\n" not in error


@pytest.mark.parametrize("name", ["gone.yaml", "fleet.txt"])
def test_a_file_that_is_no_inventory_is_an_error(tmp_path, name):
    (error,) = errors([], tmp_path / name)
    assert error.startswith(str(tmp_path / name))


def test_a_name_cannot_be_given_to_several_cores(tmp_path):
    write(tmp_path / "cores" / "a")
    write(tmp_path / "cores" / "b")
    file = write(tmp_path / "f.yaml", b"- target: cores\n  name: one\n")
    (error,) = errors([], file)
    assert error.startswith(f"{file}:2: ")


def test_the_same_core_twice_is_an_error(tmp_path):
    core = str(write(tmp_path / "host" / "vmcore"))
    (error,) = errors([str(tmp_path), core])
    assert error.startswith("argument 2: the name 'host/vmcore' is already taken")


# How and on which machine the collector runs


@pytest.mark.parametrize("via", ["ssh:root@host:22", "ssh:[::1]", "ray:node1"])
def test_a_core_and_a_guest_may_be_elsewhere(tmp_path, via):
    host = {"ssh:root@host:22": "host:22", "ssh:[::1]": "::1", "ray:node1": "node1"}[via]
    targets = [entry(target=form, via=via) for form in (f"{tmp_path}", "qmp:/run/vm.sock")]
    assert [target.via for target in targets] == [via, via]
    assert names(targets) == [f"{host}:{tmp_path}", f"{host}:/run/vm.sock"], "and is not searched for here"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"target": "live:", "via": "ray:n"}, "live: is this machine"),
        ({"target": "ssh:h", "via": "ssh:jump"}, "ProxyJump"),
        ({"target": "ray:n", "via": "ssh:h"}, "on the node itself"),
        ({"target": "/c", "via": "ray:*"}, "via must be ssh:[USER@]HOST[:PORT] or ray:NODE"),
        ({"target": "/c", "via": "host"}, "via must be"),
        ({"target": "/c", "become": True}, "hosts that ssh reaches"),
        ({"target": "ray:n", "become": "yes"}, "hosts that ssh reaches"),
        ({"target": "ssh:h", "become": "maybe"}, "true or false"),
        ({"target": "ssh:h", "vmcoreinfo": "/v"}, "vmcoreinfo is for cores and QEMU guests"),
        ({"target": "live:", "vmcoreinfo": "/v"}, "has its own in /proc/kcore"),
        ({"target": "ray:*", "vmcoreinfo": "/v"}, "has its own in /proc/kcore"),
        ({"target": "ssh:h", "python": "venv/bin/python"}, "expected a name or an absolute path"),
        ({"target": "/c", "via": "ray:n", "python": "venv/bin/python"}, "expected a name or an absolute path"),
        ({"target": "ray:*", "name": "all"}, "every node"),
    ],
)
def test_what_a_kind_cannot_do_is_an_error_with_the_reason(fields, reason):
    (error,) = entry_errors(fields)
    assert reason in error


def test_a_host_may_need_sudo_and_an_interpreter_of_its_own():
    host = entry(target="ssh:h", become="yes", python="/opt/python3.9/bin/python3")
    assert (host.become, host.python) == (True, "/opt/python3.9/bin/python3")
    assert entry(target="/c", via="ssh:h", become=True, python="python3.9").python == "python3.9"
    assert entry(target="ssh:h", become="False").become is False


def test_paths_of_a_guest_are_below_the_inventorys_folder(tmp_path):
    file = write(tmp_path / "f.csv", b"target,vmcoreinfo\nqmp:vm.sock,note\n")
    (guest,) = inventory.load([], file)
    assert (guest.source, guest.vmcoreinfo) == (f"{tmp_path}/vm.sock", f"{tmp_path}/note")


# Selection

FLEET = b"""target,name,labels.rack,labels.role
ssh:a,web1,r1,web
ssh:b,web2,r2,web
ssh:c,db1,r1,db
/d,core,,
"""


@pytest.mark.parametrize(
    ("limits", "selected"),
    [
        (["web*"], ["web1", "web2"]),
        (["web1", "db1"], ["web1", "db1"]),
        (["rack=r1"], ["web1", "db1"]),
        (["rack=r1", "rack=r2"], ["web1", "web2", "db1"]),
        (["rack=r1", "role=web"], ["web1"]),
        (["*1", "role=w*"], ["web1"]),
        (["rack=*"], ["web1", "web2", "db1"]),
        (["[!w]*"], ["db1", "core"]),
    ],
)
def test_limits_for_the_same_thing_add_up_and_different_things_have_all_to_match(tmp_path, limits, selected):
    assert names(inventory.load([], write(tmp_path / "f.csv", FLEET), limit_patterns=limits)) == selected


def test_selecting_nothing_is_an_error_that_says_of_how_many(tmp_path):
    file = write(tmp_path / "f.csv", FLEET)
    with pytest.raises(InventoryError, match=r"^--limit 'WEB\*' --limit 'rack=r 9' selects none of 5 targets$"):
        inventory.load(["/first"], file, limit_patterns=["WEB*", "rack=r 9"])


def test_errors_of_what_is_not_selected_are_errors(tmp_path):
    file = write(tmp_path / "f.csv", FLEET + b"ssh:-x,bad,,\n")
    with pytest.raises(InventoryError, match=":6: "):
        inventory.load([], file, limit_patterns=["web*"])


# The digest, and large inventories


def test_the_digest_is_that_of_the_targets_whatever_the_format_and_order(tmp_path):
    digests = {inventory.sha256(inventory.load([], make(tmp_path))) for make in (as_yaml, as_json, as_csv)}
    assert len(digests) == 1
    targets = inventory.load([], as_yaml(tmp_path))
    assert inventory.sha256(targets[::-1]) in digests
    assert inventory.sha256(targets[:1]) not in digests


def many_yaml() -> str:
    row = "- {{target: ssh:root@h{0}.example:2222, name: h{0}, labels: {{rack: r{1}}}, become: true}}\n"
    return "".join(row.format(n, n % 9) for n in range(100_000))


def many_json() -> str:
    return json.dumps([{"target": f"ssh:h{n}.example", "labels": {"rack": f"r{n % 9}"}} for n in range(100_000)])


def many_csv() -> str:
    return "target,labels.rack\n" + "".join(f"ssh:h{n}.example,r{n % 9}\n" for n in range(100_000))


def many_lines() -> str:
    return "".join(f"ssh:h{n}.example\n" for n in range(100_000))


def many_of_ansible() -> str:
    variables = {f"h{n}": {"ansible_host": f"h{n}.example", "rack": f"r{n % 9}"} for n in range(100_000)}
    groups = {f"g{n}": {"hosts": [f"h{m}" for m in range(n, 100_000, 9)]} for n in range(9)}
    return json.dumps({"_meta": {"hostvars": variables}, **groups, "all": {"children": [*groups]}})


MANY_BY_FILE = {
    "-": many_lines,
    "f.yaml": many_yaml,
    "f.json": many_json,
    "f.csv": many_csv,
    "a.json": many_of_ansible,
}


@pytest.mark.parametrize("name", campaign.example_and_faults(list(MANY_BY_FILE), 2))
def test_a_hundred_thousand_targets_load_in_seconds(tmp_path, monkeypatch, name):
    text = MANY_BY_FILE[name]().encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    file = name if name == "-" else write(tmp_path / name, text)
    start = time.thread_time()  # other tests have left threads
    assert len(inventory.load([], file)) == 100_000
    cpu_s = time.thread_time() - start
    print(f"{name}: {cpu_s:.1f} s")
    assert cpu_s < 15  # YAML takes 5 s on an idle machine, the others 1 to 2
