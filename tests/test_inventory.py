"""What `pipeline.inventory` promises: good targets in, every error out at once, with its line."""

from __future__ import annotations

import io
import json
import os
import struct
import time
from pathlib import Path

import pytest

from pipeline import inventory
from pipeline.inventory import InventoryError, Target

ELF_CORE = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<H", 4)
ELF_CORE_BIG_ENDIAN = b"\x7fELF\x02\x02\x01" + bytes(9) + struct.pack(">H", 4)
ELF_PROGRAM = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<H", 2)


def write(path: Path, content: bytes = ELF_CORE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(targets: list[Target]) -> list[str]:
    return [target.name for target in targets]


def errors(targets: list[str], file: Path | None = None) -> list[str]:
    with pytest.raises(InventoryError) as caught:
        inventory.load(targets, file)
    assert str(caught.value) == "\n".join(caught.value.errors)
    return caught.value.errors


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


@pytest.mark.parametrize("argument", ["ssh:host", "qmp:/run/a.sock", "ray:*", "ssh:user@host:22"])
def test_forms_of_later_releases_are_refused_with_the_forms_there_are(argument):
    (error,) = errors([argument])
    assert "is not in this release" in error
    assert "vmcore:PATH" in error
    assert "live:" in error


@pytest.mark.parametrize("argument", ["http://host/core", "vmcore:", "live:host", "", "Kcore:x"])
def test_what_is_no_target_is_refused(argument):
    assert len(errors([argument])) == 1


def test_all_errors_of_the_arguments_come_at_once():
    found = errors(["ssh:a", "x:b", "/ok", "vmcore:"])
    assert [error.split(":")[0] for error in found] == ["argument 1", "argument 2", "argument 4"]


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
    assert targets.other_files == 4


def test_a_directory_without_a_core_is_an_error_that_counts_the_others(tmp_path):
    write(tmp_path / "a.txt", b"text")
    (error,) = errors([str(tmp_path)])
    assert "no core" in error
    assert "1 other file" in error


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
        "debug_dir": "/usr/lib/debug",
        "python": "venv/bin/python",
        "timeout_s": 30,
    },
    {"target": "live:", "name": "here", "python": "python3.12"},
]


def as_yaml(folder: Path) -> Path:
    return write(
        folder / "fleet.yaml",
        b"""- target: cores/a
  name: a
  labels: {rack: r1, role: db}
  vmlinux: dbg/vmlinux
  debug_dir: /usr/lib/debug
  python: venv/bin/python
  timeout_s: 30
- {target: 'live:', name: here, python: python3.12}
""",
    )


def as_json(folder: Path) -> Path:
    return write(folder / "fleet.json", json.dumps(ROWS, indent=2).encode())


def as_csv(folder: Path) -> Path:
    return write(
        folder / "fleet.csv",
        b"target,name,labels.rack,labels.role,vmlinux,debug_dir,python,timeout_s\n"
        b"cores/a,a,r1,db,dbg/vmlinux,/usr/lib/debug,venv/bin/python,30\n"
        b"live:,here,,,,,python3.12,\n",
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
            debug_dir="/usr/lib/debug",
            python=f"{folder}/venv/bin/python",
            timeout_s=30.0,
        ),
        Target(name="here", kind="live", source="live:", python="python3.12"),
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
- target: ssh:host
  vmlinuz: /x
- name: no target
- target: /c
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
    found = [error.removeprefix(f"{file}:") for error in errors(["ray:x"], file)]
    assert sorted(error.split(" ")[0] for error in found) == sorted(
        ["argument", "4:", "5:", "6:", "7:", "9:", "11:", "13:", "15:", "16:", "18:", "19:"]
    )
    text = "\n".join(found)
    for part in ("name 'a' is already taken by '/a'", "'vmlinuz'", "no target", "via", "'soon'", "mapping", "twice"):
        assert part in text
    assert "\x1b" not in text


def test_json_errors_have_their_line(tmp_path):
    rows = (
        '[\n {"target": "/a", "bad": 1},\n\n {"target": "/b",\n  "name": 5},\n 7,\n {"target": "/c", "target": "/d"}]'
    )
    file = write(tmp_path / "f.json", rows.encode())
    assert [error.split(":")[1] for error in errors([], file)] == ["6", "7", "2", "4"]


def test_csv_errors_have_their_line(tmp_path):
    file = write(tmp_path / "f.csv", b"target,name,timeout_s\n/a,a,5\n/b,b\n/c,a,-1\n")
    assert [error.split(":")[1] for error in errors([], file)] == ["3", "4"]
    file = write(tmp_path / "g.csv", b"target,rack,labels\n/a,r1,x\n")
    assert [error.split(":")[1] for error in errors([], file)] == ["1", "1"]


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


# The digest, and size


def test_the_digest_is_that_of_the_targets_whatever_the_format_and_order(tmp_path):
    digests = {inventory.sha256(inventory.load([], make(tmp_path))) for make in (as_yaml, as_json, as_csv)}
    assert len(digests) == 1
    targets = inventory.load([], as_yaml(tmp_path))
    assert inventory.sha256(targets[::-1]) in digests
    assert inventory.sha256(targets[:1]) not in digests


def test_a_hundred_thousand_targets_load_in_seconds(tmp_path):
    rows = "".join(f"- {{target: /c/{n}/vmcore, name: h{n}, labels: {{rack: r{n % 9}}}}}\n" for n in range(100_000))
    file = write(tmp_path / "f.yaml", rows.encode())
    start = time.process_time()
    assert len(inventory.load([], file)) == 100_000
    assert time.process_time() - start < 15  # 4 s on an idle machine
