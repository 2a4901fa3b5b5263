"""Targets: parses an entry of an inventory into a target that can be planned, and reports every error in it."""

from __future__ import annotations

import math
import re
import socket
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.collector.model.target_kernels import KERNELS
from pipeline.common.text import printable, quote
from pipeline.inventory import destination, interpreter, scopes, ssh_arguments
from pipeline.inventory.entry import KEYS, Entry

FORMS = (
    "PATH or vmcore:PATH (a core, or a directory searched for cores), live: (this machine), ssh:[USER@]HOST[:PORT], "
    "ray:NODE or ray:* (nodes of the Ray cluster), qmp:SOCKET (the monitor of a QEMU guest)"
)
# A host name, an address or an id of a node. It is only compared, never passed to a program.
_NODE = re.compile(r"[A-Za-z0-9_.:%-]+")
_PRIVATE_ARGUMENTS = "ssh's options in the inventory may contain passwords and are not published: start a new run"
MAX_TEXT_CHARACTERS = 4096
"""Bounds each name, path and label, as PATH_MAX does; the warehouse takes 16 times as many."""
_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True)
class Target:
    """One kernel to audit.

    - name: unique in the run, printable;
    - kind: ``vmcore``, ``live``, ``ssh``, ``qmp`` or ``ray``;
    - source: absolute path of the core or of QEMU's monitor socket, ``live:``, ``ssh:[USER@]HOST[:PORT]`` or
      ``ray:NODE``;
    - via: machine on which the collector of a core or a guest runs, ``ssh:[USER@]HOST[:PORT]`` or ``ray:NODE``; default
      any node for a core, this machine for a guest;
    - become: whether the collector runs through ``sudo -n`` on the host that ssh reaches;
    - ssh_config: absolute path of a configuration file for ssh, or none; default the account's own;
    - drgn_wheels: absolute path of a directory of drgn's wheels, one of which is sent over ssh, or None;
    - ship_python: absolute path of an archive with a CPython that is sent over ssh to a host without one, or None;
    - vmcoreinfo: absolute path of a file with the VMCOREINFO of a core or a QEMU guest, or None;
    - vmlinux, debug_dir, btf_dir: absolute paths of the kernel's types;
    - python: command that starts the collector's interpreter, words as in a shell; default the one that runs this
      program;
    - timeout_s: seconds; default that of the run;
    - charged: whether to read the objects that memcgs are charged for; default the collector's: yes for cores, no for
      QEMU guests, up to a limit for running hosts;
    - target_kernel: kernel to upgrade to, a key of target_kernels.KERNELS; default the collector's;
    - target_layout: an older form of it, a key of target_kernels.LAYOUTS;
    - verify: whether to check every pointer array of an eager kernel rather than a sample;
    - max_reads: limit on the collector's read system calls; default unlimited;
    - machine: machine that ``live:`` means, set by the plan; None before;
    - ssh_args: options for ssh from the inventory, split into words, with absolute paths and without -F, user and
      port: those are in ssh_config and source. They may contain passwords;
    - unusable: why this target cannot be reached as the inventory says, and is not contacted; or None.
    """

    name: str
    kind: str
    source: str
    via: str | None = None
    become: bool = False
    ssh_config: str | None = None
    drgn_wheels: str | None = None
    ship_python: str | None = None
    vmcoreinfo: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    vmlinux: str | None = None
    debug_dir: str | None = None
    btf_dir: str | None = None
    python: str | None = None
    timeout_s: float | None = None
    charged: bool | None = None
    target_kernel: str | None = None
    target_layout: str | None = None
    verify: bool = False
    max_reads: int | None = None
    machine: str | None = None
    ssh_args: tuple[str, ...] = ()
    unusable: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "ssh_args", tuple(self.ssh_args))  # a list in JSON

    @property
    def over_ssh(self) -> bool:
        """Whether the collector runs on a host that ssh reaches."""
        return self.kind == "ssh" or (self.via or "").startswith("ssh:")

    def published(self) -> Target:
        """Return the target as a published run has it: unusable there if its options for ssh may contain passwords."""
        if ssh_arguments.are_shown_whole(self.ssh_args):
            return self
        return replace(self, ssh_args=(), unusable=_PRIVATE_ARGUMENTS)


def parse(entry: Entry, errors: list[str]) -> Target | None:
    """Return the target of an entry. Its name is empty if the default depends on the other targets.

    Errors are added to `errors`. For an entry with errors the result is as complete as they allow: a target whose kind
    is empty if only its name is known, so that duplicate names are still found, or None.
    """

    def add_error(key: str, problem: object) -> None:
        errors.append(f"{entry.key_location(key)}: {problem}")

    for key in entry.fields:
        if key not in KEYS:
            add_error(key, f"unknown key {quote(key)}; known keys: {', '.join(KEYS)}")
    keys = ("target", "name", "via", "vmcoreinfo", "vmlinux", "debug_dir", "python", "target_kernel")
    values = {key: _text(entry, key, errors) for key in keys}
    labels = _labels(entry, errors)
    if entry.unusable is not None:
        source = str(values["target"])
        return Target(str(values["name"]), source.partition(":")[0], source, labels=labels, unusable=entry.unusable)
    timeout_s = _timeout_s(entry, errors)
    become = _become(entry, errors)
    if entry.fields.get("target") is None:
        errors.append(f"{entry.location}: no target; expected {FORMS}")
    incomplete_target = Target(values["name"], "", values["target"] or "") if values["name"] else None
    if values["target"] is None:
        return incomplete_target
    try:
        kind, source = _source(entry, values["target"])
    except ValueError as error:
        add_error("target", error)
        return incomplete_target
    via = None
    if values["via"] is not None and scopes.SCOPES["via"].covers(Target("", kind, source)):
        try:
            via = _via(values["via"])
        except ValueError as error:
            add_error("via", error)
            return incomplete_target
    python = None
    if values["python"] is not None:
        is_remote = kind in ("ssh", "ray") or via is not None
        try:
            python = interpreter.parse(values["python"], directory=None if is_remote else entry.directory)
        except ValueError as error:
            add_error("python", error)
    target_kernel = values["target_kernel"]
    if target_kernel is not None and target_kernel not in KERNELS:
        add_error("target_kernel", f"target_kernel must be one of {', '.join(KERNELS)}, not {quote(target_kernel)}")
    target = Target(
        name=values["name"] or _default_name(kind, source, via),
        kind=kind,
        source=source,
        via=via,
        become=become,
        vmcoreinfo=_absolute(entry, values["vmcoreinfo"]),
        labels=labels,
        vmlinux=_absolute(entry, values["vmlinux"]),
        debug_dir=_absolute(entry, values["debug_dir"]),
        python=python,
        timeout_s=timeout_s,
        target_kernel=target_kernel,
        ssh_config=entry.ssh_config,
        ssh_args=entry.ssh_args,
    )
    given_keys = [key for key in KEYS if entry.fields.get(key) is not None and (become or key != "become")]
    for key, reason in scopes.refusals(target, given_keys):
        add_error(key, reason)
    return target if incomplete_target or entry.fields.get("name") is None else None


def _text(entry: Entry, key: str, errors: list[str]) -> str | None:
    value = entry.fields.get(key)
    if value is None:
        return None
    if not (isinstance(value, str) and value):
        errors.append(f"{entry.key_location(key)}: {key} must be text, not {quote(value)}")
    elif problem := text_problem(value):
        errors.append(f"{entry.key_location(key)}: {key} has {problem}: {quote(value)}")
    else:
        return value
    return None


def text_problem(text: str) -> str | None:
    """Return what a name, a path or a label has that it may not have, or None."""
    if len(text) > MAX_TEXT_CHARACTERS:
        return f"more than {MAX_TEXT_CHARACTERS:,} characters"
    return None if text.isprintable() else "unprintable characters"


def _source(entry: Entry, text: str) -> tuple[str, str]:
    """Return the kind and the source of a TARGET; without `word:` in front it is a path.

    :raises ValueError: with the reason.
    """
    prefix = re.match(r"([A-Za-z]+):", text)
    kind, value = (prefix[1], text[prefix.end() :]) if prefix else ("vmcore", text)
    match kind:
        case "vmcore" | "qmp" if value:
            return kind, str(_absolute(entry, value))
        case "live" if not value:
            return kind, text
        case "ray" if value == "*" or _NODE.fullmatch(value):
            return kind, text
        case "ssh":
            return kind, f"ssh:{destination.parse(value)}"
        case "vmcore" | "qmp":
            problem = "no path in"
        case "live":
            problem = "unexpected text after live: in"
        case "ray":
            problem = "no host name, ip or id of a node in"
        case _:
            problem = "unknown form (a path with a colon needs vmcore: in front):"
    raise ValueError(f"{problem} {quote(text)}; expected {FORMS}")


def _via(text: str) -> str:
    """Return the machine on which the collector of a core or a guest runs.

    :raises ValueError: with the reason.
    """
    transport, _, value = text.partition(":")
    if transport == "ssh":
        return f"ssh:{destination.parse(value)}"
    if transport == "ray" and _NODE.fullmatch(value):
        return text
    raise ValueError(f"via must be ssh:[USER@]HOST[:PORT] or ray:NODE, not {quote(text)}")


def _default_name(kind: str, source: str, via: str | None) -> str:
    """Return the default name of a target, empty for a path on this machine."""
    if via is not None:
        return f"{_default_name(via.partition(':')[0], via, None)}:{printable(source)}"
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
    location = entry.key_location("labels")
    if not isinstance(labels, dict):
        errors.append(f"{location}: labels must be a mapping of text to text, not {quote(labels)}")
        return {}
    for key, label in labels.items():
        if not (key and isinstance(label, str)):
            errors.append(f"{location}: label {quote(key)} must be text, not {quote(label)}")
        elif problem := text_problem(key) or text_problem(label):
            errors.append(f"{location}: label {quote(key)} has {problem}: {quote(label)}")
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
        errors.append(f"{entry.key_location('timeout_s')}: timeout_s must be seconds above 0, not {quote(value)}")
    return timeout_s


def _become(entry: Entry, errors: list[str]) -> bool:
    value = entry.fields.get("become")
    if value is None:
        return False
    flag = _FLAGS.get(str(value).lower())
    if flag is None:
        errors.append(f"{entry.key_location('become')}: become must be true or false, not {quote(value)}")
    return bool(flag)


def _absolute(entry: Entry, path: str | None) -> str | None:
    # pathlib keeps .. in a path: after a symbolic link only the kernel can resolve it.
    return None if path is None else str(Path(entry.directory) / path)
