"""Reader of Ansible's inventories, from the JSON of `ansible-inventory --list`: hosts to entries, groups to labels.

Host variables may contain passwords, so only those of the connection and those that --label names are read.
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
from pipeline.inventory.entry import TOO_MANY_DIGITS, Entry, InventorySyntaxError

LABELS_NEED_ANSIBLE = "--label names variables of Ansible's hosts; other inventories define labels themselves"

# Groups that say nothing about a host: every host is in one of them.
_IMPLICIT_GROUPS = {"all", "ungrouped"}
# Without these, ansible-inventory treats an inventory that it cannot read as empty.
_STRICT_ENVIRONMENT = {"ANSIBLE_INVENTORY_UNPARSED_FAILED": "1", "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "1"}


def run_ansible_inventory(inventory: str) -> str:
    """Return the JSON that ansible-inventory prints for an inventory in any form that it reads."""
    if not os.path.exists(inventory):
        raise InventorySyntaxError(None, "no such file or directory")
    command = f"ansible-inventory --list -i {inventory}"
    program = shutil.which("ansible-inventory")
    if program is None:
        raise InventorySyntaxError(
            None, f"ansible-inventory is not on PATH: install ansible-core, or give -i hosts.json, made by `{command}`"
        )
    argv = [program, "--list", f"--inventory={inventory}"]
    env = os.environ | _STRICT_ENVIRONMENT
    process = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, env=env, check=False)
    if process.returncode:
        stderr_lines = process.stderr.decode(errors="backslashreplace").split("\n")
        reason = next((line for line in stderr_lines if "ERROR" in line), f"exit code {process.returncode}")
        raise InventorySyntaxError(None, f"ansible-inventory: {reason.strip()}; see `{command}`")
    return process.stdout.decode()


def entries(text: str, display_name: str, directory: str, labels: Sequence[str], errors: list[str]) -> Iterator[Entry]:
    """Yield an entry for each host, ordered by name.

    :param text: JSON of `ansible-inventory --list`.
    :param display_name: name of the inventory in errors.
    :param directory: base of relative paths.
    :param labels: variables of a host that become labels.
    :param errors: receives the errors.
    """
    try:
        listing = json.loads(text)
    except json.JSONDecodeError as error:
        raise InventorySyntaxError(error.lineno, error.msg) from None
    except ValueError:
        raise InventorySyntaxError(None, TOO_MANY_DIGITS) from None
    except RecursionError:
        raise InventorySyntaxError(1, "nested too deep") from None
    match listing:
        case {"_meta": {"hostvars": dict(hostvars)}}:
            groups = _groups({name: group for name, group in listing.items() if name != "_meta"})
        case _:
            raise InventorySyntaxError(
                1, "neither a list of targets nor the output of `ansible-inventory --list`: no _meta.hostvars"
            )
    unused_labels = set(labels)
    for name in sorted(hostvars.keys() | groups.keys()):
        host = _Host(hostvars.get(name))
        unused_labels -= host.variables.keys()
        location = f"{display_name}: host {quote(name)}"
        try:
            yield Entry(location, host.fields(name, groups.get(name, []), labels), {}, directory)
        except ValueError as error:
            errors.append(f"{location}: {error}")
    errors += [
        f"{display_name}: no host has a variable {quote(label)}, which --label names" for label in sorted(unused_labels)
    ]


def _groups(listing: dict[str, Any]) -> dict[str, list[str]]:
    """Return the groups of each host, including the parents of its groups."""
    parents: dict[str, list[str]] = {}
    members: dict[str, list[str]] = {}
    for name, group in listing.items():
        if not isinstance(group, dict):
            raise InventorySyntaxError(None, f"group {quote(name)} must be an object with hosts and children")
        if "vars" in group:
            problem = f"group {quote(name)} contains vars; run ansible-inventory without --export"
            raise InventorySyntaxError(None, problem)
        members[name] = _names(name, group, "hosts")
        for child in _names(name, group, "children"):
            parents.setdefault(child, []).append(name)
    groups: dict[str, set[str]] = {}
    for name, hosts in members.items():
        ancestors: set[str] = set()
        stack = [name]
        while stack:
            group = stack.pop()
            if group not in ancestors:
                ancestors.add(group)
                stack += parents.get(group, [])
        for host in hosts:
            groups.setdefault(host, set()).update(ancestors)
    return {host: sorted(names - _IMPLICIT_GROUPS) for host, names in groups.items()}


def _names(group_name: str, group: dict[str, Any], key: str) -> list[str]:
    names = group.get(key, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InventorySyntaxError(None, f"{key} of group {quote(group_name)} must be a list of names")
    return names


class _Host:
    """The variables of one host; only those of the connection and those that --label names are read."""

    def __init__(self, variables: Any) -> None:
        self.variables = variables if isinstance(variables, dict) else {}

    def fields(self, name: str, groups: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
        """Return the fields of the host's entry.

        :raises ValueError: a variable has an invalid value.
        """
        host_labels = {f"group.{group}": "true" for group in groups}
        host_labels |= {key: value for key in labels if (value := self._text(key)) is not None}
        if self._text("ansible_connection") == "local":
            return {"target": "live:", "name": name, "labels": host_labels}
        # Ansible still accepts the older ansible_ssh_* names.
        host, user, port = (
            self._text(f"ansible_{key}") or self._text(f"ansible_ssh_{key}") for key in ("host", "user", "port")
        )
        python = self._text("ansible_python_interpreter")
        destination = str(Destination(host or name, user))
        return {
            "target": f"ssh:{destination}:{port}" if port else f"ssh:{destination}",
            "name": name,
            "labels": host_labels,
            "become": self._text("ansible_become"),
            "python": None if python and python.startswith("auto") else python,
        }

    def _text(self, key: str) -> str | None:
        """Return a variable as text, None if it is missing or empty."""
        value = self.variables.get(key)
        if isinstance(value, dict):  # from a source that Ansible does not trust
            value = value.get("__ansible_unsafe", value)
        if value is None or value == "":
            return None
        if isinstance(value, bool):
            return str(value).lower()
        if not isinstance(value, (str, int, float)):
            raise ValueError(f"{key} must be text")
        if "{{" in str(value):
            raise ValueError(f"{key} is a template, which ansible-inventory does not expand; write its value instead")
        return str(value)
