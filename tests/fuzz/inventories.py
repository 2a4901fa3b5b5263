"""Parsers of what an inventory, its options and its archives say."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from unittest import mock

import pyarrow as pa

from pipeline import inventory
from pipeline.collector import formats
from pipeline.common import text as common_text
from pipeline.fanout.runner import unpack
from pipeline.inventory import connection, cores, destination, interpreter, packed, ssh_arguments, templates
from pipeline.inventory.selection import Selection
from pipeline.report import threshold
from tests import dumps
from tests.fuzz.kernels import small_kdump
from tests.fuzz.target import Target, file_with, scratch


def load(data: bytes, suffix: str) -> None:
    """Load an inventory without looking at the files and directories that it names.

    Each error is one printable line that names the file; each target can be published, and survives JSON.
    """
    path = file_with(data, "inventory" + suffix)
    with mock.patch.object(os.path, "isdir", return_value=False):
        try:
            targets = inventory.load([], path, labels=["rack"] if suffix == ".json" else [])
        except inventory.InventoryError as error:
            if error.errors != [inventory.NO_TARGET]:
                _check_printable(error.errors)
            return
    _check_printable([*targets.notes, *targets.warnings])
    assert len({target.name for target in targets}) == len(targets)
    for target in targets:
        assert target.name.isprintable()
        assert inventory.Target(**json.loads(json.dumps(vars(target)))) == target
        if target.source.startswith("ssh:"):
            assert not re.search(r"[\s'\"$`;|&<>()]", target.source), target.source
    inventory.sha256(targets)


def _check_printable(lines: Sequence[str]) -> None:
    for line in lines:
        assert line.isprintable(), line


def yaml_seeds() -> Iterator[bytes]:
    yield b"""\
- &base {target: 'ssh:root@db1:2222', name: db1, labels: {rack: r1}, become: true, python: python3.9}
- target: /cores/vmcore
  via: ssh:collector
  vmlinux: vmlinux-5.10
  timeout_s: 1.5e2
- {<<: *base, name: db2, target: 'ssh:[fe80::1%eth0]:22'}
- {<<: [*base], name: "d\\x623", target: "ssh:db3", target_kernel: '6.12'}
- target: 'qmp:/run/vm.sock'
- target: 'ray:*'
- target: 'live:'
"""
    yield b"%YAML 1.1\n--- !!seq\n- {target: ~, name: 007, labels: [1, *x]}\n...\n"
    yield b"- &a [x, x]\n- &b [*a, *a]\n- {target: *b, ? {a: b} : c}\n"


def csv_seeds() -> Iterator[bytes]:
    yield b'target,name,labels.rack,become,timeout_s\nssh:db1,db1,r1,yes,10\n"ssh:root@db2:22","d ""2""",,,\n'
    yield "\ufefftarget\r\nlive:\r\n".encode()


def json_seeds() -> Iterator[bytes]:
    yield b"[" * 4000
    yield b'{"a":' * 800
    yield json.dumps(
        [
            {"target": "ssh:db1", "labels": {"rack": "r1"}, "become": True, "timeout_s": 1e2, "python": "python3 -I"},
            {"target": "vmcore", "name": "x", "via": "ray:node-1", "debug_dir": "debug", "vmcoreinfo": "v"},
        ]
    ).encode()
    hosts = {
        "db1": {"ansible_host": "fe80::1", "ansible_port": 22, "ansible_user": "{{ user }}", "user": "root", "rack": 1},
        "db2": {"ansible_ssh_common_args": "-o ProxyJump=bastion -i ~/key", "ansible_become": "yes", "rack": "{{ x }}"},
        "local": {"ansible_connection": "local", "rack": {"__ansible_vault": "$ANSIBLE_VAULT;1.1"}},
        "db3": {"ansible_connection": "winrm", "ansible_become_flags": "-H -S", "rack": {"__ansible_unsafe": "r"}},
    }
    groups = {
        "web": {"hosts": ["db1", "db2"], "children": ["db"]},
        "db": {"hosts": ["db3"]},
        "all": {"children": ["web"]},
    }
    yield json.dumps({"_meta": {"hostvars": hosts}, **groups}).encode()


def parse_connection(data: bytes) -> None:
    """Take lines as variables of one Ansible host."""
    lines = data.decode(errors="surrogateescape").split("\n")
    values = {f"ansible_{name}": value for name, _, value in (line.partition("=") for line in lines[1:])}
    found = connection.connect(lines[0], connection.Variables(values, (), {}, {}))
    if found.destination is not None:
        assert destination.parse(str(found.destination)) == found.destination
    assert all(word.isprintable() for word in found.ssh_args)


def connection_seeds() -> Iterator[bytes]:
    yield (
        b"db1\nhost=10.0.0.1\nport=22\nuser=root\nprivate_key_file=~/.ssh/id\nhost_key_checking=no\ntimeout=10\n"
        b"ssh_args=-C -o ControlMaster=auto\nssh_common_args=-o ProxyCommand='ssh -W %h:%p jump'\n"
        b"ssh_extra_args=-vvv -4 -J jump -o 'User = root' -F ~/config\nbecome=yes\nbecome_method=sudo\n"
        b"become_user=root\nbecome_exe=/usr/bin/sudo\nbecome_flags=-H -S -n\npython_interpreter=/usr/bin/python3.9"
    )
    yield (b"db1\nconnection=ansible.builtin.paramiko\nparamiko_host=h\nparamiko_proxy_command=nc %h")
    yield b"h\nconnection=local"


def parse_words(data: bytes) -> None:
    """Parse a text as each option of the command line that has a form."""
    text = data.decode(errors="surrogateescape")
    for parse in (destination.parse, ssh_arguments.parse, interpreter.parse, threshold.Threshold.parse, _expand):
        try:
            result = parse(text)
            if isinstance(result, destination.Destination):
                assert destination.parse(str(result)) == result
            elif parse is ssh_arguments.parse:
                route = ssh_arguments.route(result)
                assert all(word.isprintable() for word in route.words)
                ssh_arguments.shown(route.words)
            elif parse is interpreter.parse:
                assert interpreter.parse(result) == result
        except (ValueError, LookupError, threshold.ThresholdError) as error:
            _check_printable([str(error)])
    selection = Selection(text.split("\n"))
    assert selection.selects("db1", {"rack": "r1"}) in (False, True)
    assert str(selection).isprintable()
    assert common_text.printable(text).isprintable()
    assert common_text.joined_lines(text).isprintable()
    assert common_text.quote(text).isprintable()


def _expand(text: str) -> str:
    templates.describe(text)
    return templates.expand(text, {"user": "root", "port": 22, "self": "{{ self }}", "list": []})


def word_seeds() -> Iterator[bytes]:
    yield b"root@db1.example:2222"
    yield b"root@[fe80::1%eth0]:22"
    yield b"-o ProxyJump=bastion -p22 -l root -i '~/my key' -oUserKnownHostsFile=known -F none -vvA"
    yield b"podman run -i 'IMAGE name' python3"
    yield b"wasted_bytes >= 1.5 GiB"
    yield b"not_good_pct>10"
    yield b"db*\nrack=r[1-3]\n!x"
    yield b"{{ user }}@{{port}} {% if x %} {{ self }} {{ 'secret' | upper }}"


def parse_packed(data: bytes) -> None:
    """Search a compressed file or an archive for dumps, and unpack it."""
    path = file_with(data)
    with contextlib.suppress(*packed.ERRORS), open(path, "rb") as file:
        for _, stream in packed.dumps(file, 1 << 20, 100):
            assert formats.is_dump(stream.peek(formats.HEAD_BYTES))
    cores._identity(file_with(data, "vmcore.1"))
    directory = scratch() / "unpacked"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    with mock.patch.object(unpack, "_MAX_CORE_BYTES", 1 << 28):
        unpack.unpack(path, str(directory))
    assert os.listdir(directory) == [unpack.CORE]


def packed_seeds() -> Iterator[bytes]:
    core = small_kdump()
    for content in (core, dumps.flatten(core, record_bytes=4096), _tar(core, tarfile.GNU_FORMAT)):
        yield gzip.compress(content)
        for codec in ("lz4", "zstd"):
            sink = pa.BufferOutputStream()
            with pa.CompressedOutputStream(sink, codec) as stream:
                stream.write(content)
            yield sink.getvalue().to_pybytes()
    yield bz2.compress(core)
    yield _tar(core, tarfile.PAX_FORMAT)
    yield _tar(core, tarfile.USTAR_FORMAT)
    yield dumps.flatten(core, record_bytes=512)


def _tar(core: bytes, file_format: int) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=file_format) as tar:
        for name, content in (
            ("x" * (120 if file_format != tarfile.USTAR_FORMAT else 90), b"text"),
            ("crash/vmcore", core),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


KEYS = [f"{key}: ".encode() for key in inventory.entry.KEYS]
VARIABLES = [name.encode() for name in connection.ALL_VARIABLES]
TARGETS = {
    "yaml": Target(
        lambda data: load(data, ".yaml"), (), yaml_seeds, [*KEYS, b"<<: *a", b"&a ", b"!!", b"? ", b"\\x"], weight=0.5
    ),
    "csv": Target(
        lambda data: load(data, ".csv"), (), csv_seeds, [b"target,", b"labels.", b"ssh:", b'""', b"\r\n"], weight=1.5
    ),
    "json": Target(
        lambda data: load(data, ".json"), (), json_seeds, [*VARIABLES, b'"_meta"', b'"hostvars"', b"{{ "], weight=0.7
    ),
    "connection": Target(
        parse_connection,
        (connection.UnusableError,),
        connection_seeds,
        [name[8:] + b"=" for name in VARIABLES],
        weight=6,
    ),
    "words": Target(
        parse_words,
        (),
        word_seeds,
        [figure.encode() for figure in threshold.FIGURES] + [b"-o", b"GiB", b"{{ ", b" }}"],
        weight=0.7,
    ),
    "packed": Target(
        parse_packed, (unpack.UnpackError, MemoryError), packed_seeds, [b"ustar", b"path=", b"size="], 24576, weight=0.3
    ),
}
