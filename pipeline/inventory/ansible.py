"""Ansible's inventories, in the JSON of `ansible-inventory --list`: hosts to entries, groups to labels.

Its hostvars hold passwords: what is not asked for by name is not looked at.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.common.text import quote
from pipeline.inventory.destination import Destination
from pipeline.inventory.entry import TOO_LONG, Entry, InventorySyntaxError

LABELS_ARE_ANSIBLES = "--label names variables of Ansible's hosts; other inventories have labels of their own"

# Every host is in one of them.
_NO_LABEL = {"all", "ungrouped"}
# By default it takes what it cannot read for an empty inventory.
_STRICT = {"ANSIBLE_INVENTORY_UNPARSED_FAILED": "1", "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "1"}


def output(inventory: str) -> str:
    """Return what ansible-inventory says of an inventory of any of its forms."""
    if not os.path.exists(inventory):
        raise InventorySyntaxError(None, "no such file or directory")
    command = f"ansible-inventory --list -i {inventory}"
    program = shutil.which("ansible-inventory")
    if program is None:
        raise InventorySyntaxError(
            None, f"ansible-inventory is not on PATH: install ansible-core, or give -i hosts.json, made by `{command}`"
        )
    argv = [program, "--list", f"--inventory={inventory}"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, env=os.environ | _STRICT, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="backslashreplace").split("\n")
        reason = next((line for line in said if "ERROR" in line), f"exit code {done.returncode}")
        raise InventorySyntaxError(None, f"ansible-inventory: {reason.strip()}; see `{command}`")
    return done.stdout.decode()


def entries(text: str, shown: str, folder: str, labels: Sequence[str], errors: list[str]) -> Iterator[Entry]:
    """Yield an entry for each host, in the order of their names.

    :param labels: which variables of a host become labels.
    :param errors: what is wrong is added to it.
    """
    try:
        listing = json.loads(text)
    except json.JSONDecodeError as error:
        raise InventorySyntaxError(error.lineno, error.msg) from None
    except ValueError:
        raise InventorySyntaxError(None, TOO_LONG) from None
    except RecursionError:
        raise InventorySyntaxError(1, "nested too deep") from None
    match listing:
        case {"_meta": {"hostvars": dict(hostvars)}}:
            groups = _groups({name: group for name, group in listing.items() if name != "_meta"})
        case _:
            raise InventorySyntaxError(
                1, "neither a list of targets nor the output of `ansible-inventory --list`: no _meta.hostvars"
            )
    asked = set(labels)
    for name in sorted(hostvars.keys() | groups.keys()):
        host = _Host(hostvars.get(name))
        asked -= host.variables.keys()
        where = f"{shown}: host {quote(name)}"
        try:
            yield Entry(where, host.fields(name, groups.get(name, []), labels), {}, folder)
        except ValueError as error:
            errors.append(f"{where}: {error}")
    errors += [f"{shown}: no host has a variable {quote(label)} to be a label" for label in sorted(asked)]


def _groups(listing: dict[str, Any]) -> dict[str, list[str]]:
    """Return for each host the groups that it is in, through their children as well."""
    parents: dict[str, list[str]] = {}
    members: dict[str, list[str]] = {}
    for name, group in listing.items():
        if not isinstance(group, dict):
            raise InventorySyntaxError(None, f"group {quote(name)} is no object with hosts and children")
        if "vars" in group:
            problem = f"group {quote(name)} has variables of its own: make it without --export, which leaves them there"
            raise InventorySyntaxError(None, problem)
        members[name] = _names(name, group, "hosts")
        for child in _names(name, group, "children"):
            parents.setdefault(child, []).append(name)
    groups: dict[str, set[str]] = {}
    for name, hosts in members.items():
        reached: set[str] = set()
        waiting = [name]
        while waiting:
            group = waiting.pop()
            if group not in reached:
                reached.add(group)
                waiting += parents.get(group, [])
        for host in hosts:
            groups.setdefault(host, set()).update(reached)
    return {host: sorted(names - _NO_LABEL) for host, names in groups.items()}


def _names(name: str, group: dict[str, Any], key: str) -> list[str]:
    names = group.get(key, [])
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise InventorySyntaxError(None, f"{key} of group {quote(name)} is no list of names")
    return names


class _Host:
    """The variables of one host, of which only those asked for are read."""

    def __init__(self, variables: Any) -> None:
        self.variables = variables if isinstance(variables, dict) else {}

    def fields(self, name: str, groups: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
        """Return it as the keys and values of an entry.

        :raises ValueError: a variable is not what it has to be.
        """
        label = {f"group.{group}": "true" for group in groups}
        label |= {key: value for key in labels if (value := self._text(key)) is not None}
        if self._text("ansible_connection") == "local":
            return {"target": "live:", "name": name, "labels": label}
        # The older names of these three still work in Ansible.
        host, user, port = (
            self._text(f"ansible_{key}") or self._text(f"ansible_ssh_{key}") for key in ("host", "user", "port")
        )
        python = self._text("ansible_python_interpreter")
        where = str(Destination(host or name, user))
        return {
            "target": f"ssh:{where}:{port}" if port else f"ssh:{where}",
            "name": name,
            "labels": label,
            "become": self._text("ansible_become"),
            "python": None if python and python.startswith("auto") else python,
        }

    def _text(self, key: str) -> str | None:
        """Return a variable as text, None where there is none."""
        value = self.variables.get(key)
        if isinstance(value, dict):  # what came from a source that Ansible does not trust
            value = value.get("__ansible_unsafe", value)
        if value is None or value == "":
            return None
        if isinstance(value, bool):
            return str(value).lower()
        if not isinstance(value, (str, int, float)):
            raise ValueError(f"{key} must be text")
        if "{{" in str(value):
            raise ValueError(f"{key} is a template, which ansible-inventory leaves to playbooks; give its value")
        return str(value)
