"""One target as an inventory writes it to one that can be planned, or to everything wrong with it."""

from __future__ import annotations

import math
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.common.text import printable, quote
from pipeline.inventory import destination
from pipeline.inventory.entry import KEYS, Entry

FORMS = (
    "PATH or vmcore:PATH (a core, or a directory searched for cores), live: (this machine), ssh:[USER@]HOST[:PORT], "
    "ray:NODE or ray:* (nodes of the Ray cluster), qmp:SOCKET (the monitor of a QEMU guest)"
)
# A host name, an address or an id; it is only ever compared.
_NODE = re.compile(r"[A-Za-z0-9_.:%-]+")
_NO_VIA = {
    "live": "live: is this machine",
    "ray": "ray: runs it on the node itself",
    "ssh": "ssh: runs it on the host itself (a jump host is ProxyJump in ssh's configuration)",
}
_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True)
class Target:
    """One kernel to audit.

    - name: unique in the run, printable;
    - kind: ``vmcore``, ``live``, ``ssh``, ``qmp`` or ``ray``;
    - source: the absolute path of the core or of QEMU's monitor socket, ``live:``, ``ssh:[USER@]HOST[:PORT]`` or
      ``ray:NODE``;
    - via: where the collector of a core or a guest has to run, ``ssh:[USER@]HOST[:PORT]`` or ``ray:NODE``;
    - become: whether the collector runs through ``sudo -n`` on the host that ssh reaches;
    - ssh_config: absolute path of a configuration file for ssh, default the account's own;
    - drgn_wheels: absolute path of a directory of drgn's wheels to send one of over ssh, or None;
    - vmcoreinfo: absolute path of a file with a QEMU guest's VMCOREINFO, or None;
    - vmlinux, debug_dir, btf_dir: absolute paths, where the kernel's types are;
    - python: the collector's interpreter, default the one that runs this program;
    - timeout_s: seconds, default the run's;
    - charged: whether to read what memcgs are charged for; default the collector's, for cores yes, for ``live:`` no;
    - target_layout: the lazy kernel to estimate, ``5.18`` or ``6.13``, default the collector's, ``5.18``;
    - verify: whether to look at every pointer array of an eager kernel rather than at a sample;
    - max_reads: how often the collector may read, in system calls, default without end;
    - machine: which one ``live:`` is, as the plan says, None before.
    """

    name: str
    kind: str
    source: str
    via: str | None = None
    become: bool = False
    ssh_config: str | None = None
    drgn_wheels: str | None = None
    vmcoreinfo: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    vmlinux: str | None = None
    debug_dir: str | None = None
    btf_dir: str | None = None
    python: str | None = None
    timeout_s: float | None = None
    charged: bool | None = None
    target_layout: str | None = None
    verify: bool = False
    max_reads: int | None = None
    machine: str | None = None

    @property
    def over_ssh(self) -> bool:
        """Whether its collector runs on a host that ssh reaches."""
        return self.kind == "ssh" or (self.via or "").startswith("ssh:")


def parse(entry: Entry, errors: list[str]) -> Target | None:
    """Return the target of an entry, its name empty where only all targets together tell what it is called.

    What is wrong is added to `errors`. Then it is what can be told of the entry, of no kind where that is its name
    alone, or None.
    """

    def wrong(key: str, problem: object) -> None:
        errors.append(f"{entry.at(key)}: {problem}")

    for key in entry.fields:
        if key not in KEYS:
            wrong(key, f"unknown key {quote(key)}; known are {', '.join(KEYS)}")
    keys = ("target", "name", "via", "vmcoreinfo", "vmlinux", "debug_dir", "python")
    text = {key: _text(entry, key, errors) for key in keys}
    labels = _labels(entry, errors)
    timeout_s = _timeout_s(entry, errors)
    become = _become(entry, errors)
    if entry.fields.get("target") is None:
        errors.append(f"{entry.where}: no target; there are {FORMS}")
    named = Target(text["name"], "", text["target"] or "") if text["name"] else None
    if text["target"] is None:
        return named
    try:
        kind, source = _source(entry, text["target"])
    except ValueError as error:
        wrong("target", error)
        return named
    via = None
    if text["via"] is not None:
        try:
            via = _via(kind, text["via"])
        except ValueError as error:
            wrong("via", error)
            return named
    python = text["python"]
    if python and "/" in python:  # a bare name is looked up in the PATH of the machine that runs it
        if (kind in ("ssh", "ray") or via) and not python.startswith("/"):
            wrong("python", f"python is on another machine: a name or its whole path there, not {quote(python)}")
        python = _absolute(entry, python)
    if text["vmcoreinfo"] and kind != "qmp":
        wrong("vmcoreinfo", "vmcoreinfo is for qmp: only; other kernels bring their own")
    if text["name"] and source == "ray:*":
        wrong("name", "one name for every node of the Ray cluster")
    target = Target(
        name=text["name"] or _name(kind, source, via),
        kind=kind,
        source=source,
        via=via,
        become=become,
        vmcoreinfo=_absolute(entry, text["vmcoreinfo"]),
        labels=labels,
        vmlinux=_absolute(entry, text["vmlinux"]),
        debug_dir=_absolute(entry, text["debug_dir"]),
        python=python,
        timeout_s=timeout_s,
    )
    if become and not target.over_ssh:
        wrong("become", "become is for what ssh reaches; elsewhere start lru-audit, or Ray, as root")
    return target if named or entry.fields.get("name") is None else None


def _text(entry: Entry, key: str, errors: list[str]) -> str | None:
    value = entry.fields.get(key)
    if value is None:
        return None
    if isinstance(value, str) and value and value.isprintable():
        return value
    if isinstance(value, str) and value:
        errors.append(f"{entry.at(key)}: {key} has unprintable characters: {quote(value)}")
    else:
        errors.append(f"{entry.at(key)}: {key} must be text, not {quote(value)}")
    return None


def _source(entry: Entry, text: str) -> tuple[str, str]:
    """Return the kind and the source of a TARGET; what has no `word:` in front is a path.

    :raises ValueError: with the reason.
    """
    form = re.match(r"([A-Za-z]+):", text)
    kind, rest = (form[1], text[form.end() :]) if form else ("vmcore", text)
    match kind:
        case "vmcore" | "qmp" if rest:
            return kind, str(_absolute(entry, rest))
        case "live" if not rest:
            return kind, text
        case "ray" if rest == "*" or _NODE.fullmatch(rest):
            return kind, text
        case "ssh":
            return kind, f"ssh:{destination.parse(rest)}"
        case "vmcore" | "qmp":
            problem = "no path after"
        case "live":
            problem = "nothing may follow live: in"
        case "ray":
            problem = "no host name, ip or id of a node after ray: in"
        case _:
            problem = "unknown form (a path with a colon needs vmcore: in front)"
    raise ValueError(f"{problem} {quote(text)}; there are {FORMS}")


def _via(kind: str, text: str) -> str:
    """Return where the collector of a core or a guest has to run.

    :raises ValueError: with the reason.
    """
    if kind in _NO_VIA:
        raise ValueError(f"via is for cores and QEMU guests; {_NO_VIA[kind]}")
    where, _, rest = text.partition(":")
    if where == "ssh":
        return f"ssh:{destination.parse(rest)}"
    if where == "ray" and _NODE.fullmatch(rest):
        return text
    raise ValueError(f"via must be ssh:[USER@]HOST[:PORT] or ray:NODE, not {quote(text)}")


def _name(kind: str, source: str, via: str | None) -> str:
    """Return what a target is called that was given no name, empty for a path on this machine."""
    if via is not None:
        return f"{_name(via.partition(':')[0], via, None)}:{printable(source)}"
    if kind == "live":
        return printable(socket.gethostname())
    if kind == "ssh":
        return destination.parse(source.removeprefix("ssh:")).name
    if kind == "ray":
        return source if source == "ray:*" else source.removeprefix("ray:")
    return ""


def _labels(entry: Entry, errors: list[str]) -> dict[str, str]:
    labels = entry.fields.get("labels")
    if labels is None:
        return {}
    where = entry.at("labels")
    if not isinstance(labels, dict):
        errors.append(f"{where}: labels must be a mapping of text to text, not {quote(labels)}")
        return {}
    for key, label in labels.items():
        if not (key and isinstance(label, str)):
            errors.append(f"{where}: label {quote(key)} must be text, not {quote(label)}")
        elif not (key + label).isprintable():
            errors.append(f"{where}: label {quote(key)} has unprintable characters: {quote(label)}")
    return labels


def _timeout_s(entry: Entry, errors: list[str]) -> float | None:
    value: Any = entry.fields.get("timeout_s")
    if value is None:
        return None
    try:
        timeout_s = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        timeout_s = math.nan
    if not 0 < timeout_s < math.inf:
        errors.append(f"{entry.at('timeout_s')}: timeout_s must be seconds above 0, not {quote(value)}")
    return timeout_s


def _become(entry: Entry, errors: list[str]) -> bool:
    value = entry.fields.get("become")
    if value is None:
        return False
    flag = _FLAGS.get(str(value).lower())
    if flag is None:
        errors.append(f"{entry.at('become')}: become must be true or false, not {quote(value)}")
    return bool(flag)


def _absolute(entry: Entry, path: str | None) -> str | None:
    # pathlib leaves .. in: what it means after a symbolic link is for the kernel to say.
    return None if path is None else str(Path(entry.folder) / path)
