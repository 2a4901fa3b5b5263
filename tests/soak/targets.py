"""Targets of every kind, each with the ends that it may have: cores, hosts behind a scripted ssh, monitors of guests.

Most targets are cheap: their collector is a script that prints what a real collector has printed of a bundled core.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import dumps

ROOT = Path(__file__).parents[2]
VMCORES = ROOT / "tests" / "vmcores"
RECORDED = ("deb510-n1", "deb61-n2", "deb7-n2")
SMALL = ("deb510-n1", "deb510-n2", "deb510-arm64", "deb510-offline", "deb61-n2", "deb612-n4", "deb7-n2")
BYTES_COLUMNS = ("list_lru_one_bytes", "pointer_array_bytes", "node_array_bytes", "xa_node_bytes")
"""Columns of `list_lrus` whose sum is what the list_lrus hold."""
# Seconds that a target may take which never ends.
_HANG_TIMEOUT_S = 3
_TORN_BYTES = 1 << 20

# Collectors, as scripts. {output} is what a real collector has printed.
_SCRIPTS = {
    "slow": "sleep 2\ncat {output}",
    "drips": 'cat {output} | while read -r line; do printf %.1s "$line"; sleep 1; done',
    "hangs": "sleep 600",
    "dies": "kill -SEGV $$",
    "dead": "exit 7",
    "noise": "head -c 200000 /dev/urandom",
    "endless": "exec yes",
    "torn": "head -c 3000 {output}",
    "contradicts": "cat {output}.contradicting",
    "lies": 'sed \'s/^{{"table":"superblocks".*/&\\n&/\' {output}',
    "boasts": 'sed \'/"memcgs"/s/"rows":\\[\\[[0-9]*/"rows":[[9007199254740993/\' {output}',
}
# What a host does whose name begins with the word; {command} is what it was asked to run.
_SSH = """#!/bin/sh
case $1 in -G) exec {ssh} "$@" ;; esac
for argument; do host=$command; command=$argument; done
fail() {{ echo "$*" >&2; exit 255; }}
case $host in
refused-*) fail "ssh: connect to host $host port 22: Connection refused" ;;
unresolved-*) fail "ssh: Could not resolve hostname $host: Name or service not known" ;;
stranger-*) fail "root@$host: Permission denied (publickey)." ;;
cut-*) sh -c "$command" | head -c 3000; fail "client_loop: send disconnect: Broken pipe" ;;
far-*) sleep 1 ;;
esac
exec sh -c "$command"
"""


@dataclass(frozen=True)
class Kind:
    """A kind of targets.

    :param entry: the fields of its inventory entry; HOST is replaced by the name of the target.
    :param ends: each a status and an error_type.
    :param core: the bundled core whose figures it has if it is `ok`.
    :param weight: how often it is chosen.
    """

    name: str
    entry: Mapping[str, Any]
    ends: Sequence[tuple[str, str | None]]
    core: str | None = None
    weight: int = 1


@dataclass(frozen=True)
class Figures:
    """What a target of a core has: the bytes of its list_lrus, and the rows of each table."""

    list_lru_bytes: int
    rows: Mapping[str, int]


@dataclass
class Fleet:
    """The files of the targets, below `folder`, and the kinds that use them."""

    folder: Path
    kinds: list[Kind] = field(default_factory=list)
    figures: dict[str, Figures] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bin = self.folder / "bin"
        self.bin.mkdir(parents=True)
        for core in SMALL:
            self._record(core)
        self.kinds = [*self._cores(), *self._scripted(), *self._over_ssh(), *self._others()]

    def environment(self) -> dict[str, str]:
        """Return the environment in which `ssh` is that of this fleet."""
        return {"PATH": f"{self.bin}:{os.environ['PATH']}"}

    def choose(self, chance: random.Random, count: int) -> dict[str, Kind]:
        """Return kinds by the names of the targets."""
        kinds = chance.choices(self.kinds, [kind.weight for kind in self.kinds], k=count)
        return {f"{kind.name}-{number}": kind for number, kind in enumerate(kinds)}

    def write_inventory(self, path: Path, targets: Mapping[str, Kind]) -> None:
        entries = []
        for name, kind in targets.items():
            entry = {key: value.replace("HOST", name) if key == "via" else value for key, value in kind.entry.items()}
            entries.append({**entry, "name": name, "labels": {"kind": kind.name}})
        path.write_text(json.dumps(entries))

    def _record(self, core: str) -> None:
        output = self.folder / f"{core}.out"
        command = [sys.executable, "-m", "pipeline.collector", VMCORES / core / "vmcore"]
        with output.open("wb") as file:
            subprocess.run(command, cwd=ROOT, stdout=file, check=True)
        _, header, frame = output.read_bytes().partition(b"list-lru-audit snapshot 1\n")
        *tables, end = map(json.loads, frame.splitlines())
        rows: Counter[str] = Counter()
        for table in tables:
            rows[table["table"]] += len(table["rows"])
        lists = [table for table in tables if table["table"] == "list_lrus"]
        columns = lists[0]["columns"]
        indices = [columns.index(column) for column in BYTES_COLUMNS]
        list_lru_bytes = sum(row[index] or 0 for table in lists for row in table["rows"] for index in indices)
        self.figures[core] = Figures(list_lru_bytes, rows)
        lists[0]["rows"][0][columns.index("list_lru_one_objects")] += 1
        lines = "".join(f"{json.dumps(record)}\n" for record in (*tables, end))
        output.with_name(f"{output.name}.contradicting").write_text(f"{header.decode()}{lines}")

    def _script(self, name: str, text: str) -> str:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    def _cores(self) -> Iterator[Kind]:
        """Yield the kinds that are read by the real collector."""
        for core in SMALL:
            yield Kind(core, {"target": str(VMCORES / core / "vmcore")}, [("ok", None)], core)
        content = (VMCORES / "deb510-n1" / "vmcore").read_bytes()
        packed = self.folder / "packed.gz"
        packed.write_bytes(gzip.compress(content, 1))
        torn = dumps.write(self.folder / "torn-core", content[:_TORN_BYTES])
        foreign = dumps.write(self.folder / "foreign", b"LibvirtQemudSave".ljust(1 << 16, b"\0"))
        half = dumps.write(self.folder / "half.gz", packed.read_bytes()[:100_000])
        yield Kind("packed", {"target": str(packed)}, [("ok", None)], "deb510-n1", 2)
        yield Kind("torn-core", {"target": str(torn)}, [("bad_core", "Incomplete")])
        yield Kind("foreign", {"target": str(foreign)}, [("bad_core", "Foreign")])
        yield Kind("half-packed", {"target": str(half)}, [("bad_core", "UnpackError")])
        yield Kind("text", {"target": str(ROOT / "README.md")}, [("bad_core", "ValueError")])
        yield Kind("absent", {"target": str(self.folder / "absent")}, [("unreachable", "FileNotFoundError")])

    def _scripted(self) -> Iterator[Kind]:
        """Yield the kinds whose collector is a script."""
        for core in RECORDED:
            script = self._script(f"recorded-{core}", f"cat {self.folder}/{core}.out")
            yield Kind(f"recorded-{core}", _with_python(script), [("ok", None)], core, 8)
        ends: dict[str, list[tuple[str, str | None]]] = {
            "slow": [("ok", None)],
            "drips": [("timeout", "deadline")],
            "hangs": [("timeout", "deadline")],
            "dies": [("crashed", "signal:SIGSEGV")],
            "dead": [("bad_output", "FrameError")],
            "noise": [("bad_output", "FrameError")],
            "endless": [("bad_output", "output")],
            "torn": [("bad_output", "FrameError")],
            "lies": [("bad_output", "FrameError")],
            "boasts": [("bad_output", "schema")],
            "contradicts": [("bad_output", "check:object_bytes")],
        }
        for name, text in _SCRIPTS.items():
            script = self._script(name, text.format(output=self.folder / "deb510-n1.out"))
            entry = _with_python(script)
            if name in ("drips", "hangs"):
                entry["timeout_s"] = _HANG_TIMEOUT_S
            yield Kind(name, entry, ends[name], "deb510-n1" if name == "slow" else None)

    def _over_ssh(self) -> Iterator[Kind]:
        """Yield the hosts behind `ssh`, if this machine has it for its settings."""
        ssh = shutil.which("ssh")
        if ssh is None:
            return
        path = self.bin / "ssh"
        path.write_text(_SSH.format(ssh=ssh, command="{command}"))
        path.chmod(0o755)
        core = str(VMCORES / "deb510-n1" / "vmcore")
        real = {"target": f"vmcore:{core}", "via": "ssh:HOST", "python": sys.executable}
        recorded = {**real, "python": str(self.bin / "recorded-deb510-n1")}
        yield Kind("remote", real, [("ok", None)], "deb510-n1", 2)
        yield Kind("far", recorded, [("ok", None)], "deb510-n1", 6)
        yield Kind("refused", recorded, [("unreachable", "ConnectionRefused")])
        yield Kind("unresolved", recorded, [("unreachable", "NameNotResolved")])
        yield Kind("stranger", recorded, [("denied", "AuthenticationFailed")])
        yield Kind("cut", recorded, [("lost", "ConnectionLost")])
        for name in ("drips", "noise", "endless", "lies"):
            entry = {**real, "python": str(self.bin / name)}
            status = {"drips": ("timeout", "deadline"), "endless": ("bad_output", "output")}
            end = status.get(name, ("bad_output", "FrameError" if name == "noise" else None))
            if name == "drips":
                entry["timeout_s"] = _HANG_TIMEOUT_S
            yield Kind(f"remote-{name}", entry, [end])

    def _others(self) -> Iterator[Kind]:
        """Yield a guest without a monitor, one whose monitor is a dead socket, and this machine."""
        dead = self.folder / "monitor"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(dead))
        yield Kind("qmp", {"target": f"qmp:{self.folder}/no-monitor"}, [("unreachable", "FileNotFoundError")])
        yield Kind("qmp-dead", {"target": f"qmp:{dead}"}, [("unreachable", "ConnectionRefusedError")])
        live = [("ok", None), ("inconsistent", None)] if Path("/proc/kcore").exists() else [("denied", None)]
        yield Kind("live", {"target": "live:"}, live)


def _with_python(script: str) -> dict[str, Any]:
    return {"target": f"vmcore:{script}", "python": script}
