"""Reader of Ansible's inventories, from the JSON of `ansible-inventory --list`: hosts to entries, groups to labels.

Host variables may contain passwords, so only those of the connection and those that --label names are read. A value
that cannot be used concerns its own host: that one is listed with the reason, and all others are audited.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.common.text import printable, quote
from pipeline.inventory import templates
from pipeline.inventory.connection import ALL_VARIABLES, UnusableError, Variables, connect
from pipeline.inventory.entry import TOO_MANY_DIGITS, Entries, Entry, InventorySyntaxError
from pipeline.inventory.selection import Selection
from pipeline.inventory.target import text_problem

LABELS_NEED_ANSIBLE = "--label names variables of Ansible's hosts; other inventories define labels themselves"

# Groups that say nothing about a host: every host is in one of them.
_IMPLICIT_GROUPS = {"all", "ungrouped"}
# Without these, ansible-inventory treats an inventory that it cannot read as empty.
_STRICT_ENVIRONMENT = {"ANSIBLE_INVENTORY_UNPARSED_FAILED": "1", "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "1"}
_LOCAL_PYTHON = (
    "ansible_connection is local: ansible_python_interpreter is not used, but --python or this program's own"
)
# Limits the notes on a large inventory: names in a line, and lines of hosts that have nothing in common.
_MAX_NAMES = 3
_MAX_CAUSES = 10


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
    env = os.environ | _STRICT_ENVIRONMENT | templates.QUIET_ENVIRONMENT
    process = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, env=env, check=False)
    if process.returncode:
        raise InventorySyntaxError(None, f"ansible-inventory: {templates.error_text(process)}; see `{command}`")
    return process.stdout.decode()


def entries(
    text: str,
    display_name: str,
    directory: str,
    labels: Sequence[str],
    selection: Selection,
    errors: list[str],
    inventory: str | None = None,
) -> Entries:
    """Return an entry for each host that --limit selects, ordered by name. The other hosts are not looked at.

    :param text: JSON of `ansible-inventory --list`.
    :param display_name: name of the inventory in errors.
    :param directory: base of relative paths.
    :param labels: variables of a host that become labels.
    :param errors: receives the errors.
    :param inventory: the inventory as Ansible reads it, None if there is only its JSON.
    """
    all_hosts = _hosts(text)
    unused_labels = set(labels).difference(*(host.variables for host in all_hosts))
    errors += [
        f"{display_name}: no host has a variable {quote(label)}, which --label names" for label in sorted(unused_labels)
    ]
    hosts = [host for host in all_hosts if host.may_be_selected(selection, labels)]
    notes = _Notes()
    warnings: list[str] = []
    settings = _fill_in(hosts, [*ALL_VARIABLES, *labels], inventory, warnings)
    result = Entries()
    local_name = None
    for host in sorted(hosts, key=lambda host: host.name != "localhost"):
        host_labels, problems = host.labels(labels)
        if not selection.selects(host.name, host_labels):
            notes.add(host.name, *(f"{problem}, so that --limit leaves the host out" for problem in problems))
            continue
        notes.add(host.name, *(f"{problem}: this label is left out" for problem in problems))
        fields: dict[str, Any] = {"target": f"ssh:{host.name}", "name": host.name, "labels": host_labels}
        entry = Entry(f"{display_name}: host {quote(host.name)}", fields, {}, directory)
        try:
            connection = connect(host.key, host.with_settings(settings))
            if connection.destination is None:
                fields["target"] = "live:"
                if local_name is not None:
                    raise UnusableError(f"ansible_connection is local: this machine, which is audited as {local_name}")
                local_name = host.name
                if "ansible_python_interpreter" in host.variables:
                    notes.add(host.name, _LOCAL_PYTHON)
            else:
                fields |= {
                    "target": f"ssh:{connection.destination}",
                    "become": connection.become,
                    "python": connection.python,
                }
                entry = entry._replace(ssh_config=connection.ssh_config, ssh_args=connection.ssh_args)
        except UnusableError as error:
            entry = entry._replace(unusable=str(error))
            notes.add_unusable(host.name, error)
        result.append(entry)
    result.sort(key=lambda entry: str(entry.fields["name"]))
    result.left_out_count = len(all_hosts) - len(result)
    result.notes = [f"{display_name}: {line}" for line in notes.lines()]
    result.warnings = [f"{display_name}: {line}" for line in warnings]
    return result


def _hosts(text: str) -> list[_Host]:
    """Return the hosts of the JSON of `ansible-inventory --list`, ordered by name."""
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
    names = sorted(hostvars.keys() | groups.keys())
    return [_Host(name, hostvars.get(name), groups.get(name, [])) for name in names]


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
    """A host of the inventory.

    :ivar name: its name, printable.
    :ivar key: its name in the inventory.
    :ivar variables: by name.
    :ivar completed: names of those that were templates or encrypted.
    :ivar reasons: why others still are, and what helps, by name.
    """

    def __init__(self, key: str, variables: Any, groups: Sequence[str]) -> None:
        self.key = key
        self.name = printable(key)
        self.variables: dict[str, Any] = variables if isinstance(variables, dict) else {}
        self.completed: set[str] = set()
        self.reasons: dict[str, tuple[str, str]] = {}
        self._groups = groups

    def fill_in(self, name: str, value: Any) -> None:
        self.variables[name] = value
        self.completed.add(name)

    def expand(self, name: str, value: Any, remedy: str) -> None:
        """Fill in a variable as far as that needs no Ansible.

        :param remedy: how Ansible would fill it in, or why it does not.
        """
        if templates.is_encrypted(value):
            self.reasons[name] = "is encrypted by ansible-vault", f"write it in clear; {remedy}"
            return
        short_name, _, _ = self.key.partition(".")
        own_names = {"inventory_hostname": self.key, "inventory_hostname_short": short_name}
        try:
            self.fill_in(name, templates.expand(value, self.variables | own_names))
        except LookupError as error:
            self.reasons[name] = templates.describe(value), f"{error}; {remedy}"

    def with_settings(self, settings: Mapping[str, Any]) -> Variables:
        return Variables(self.variables, self.completed, self.reasons, settings)

    def may_be_selected(self, selection: Selection, labels: Sequence[str]) -> bool:
        """Return whether --limit selects the host, as far as its labels are known without filling them in."""
        unfilled_labels = [label for label in labels if templates.is_unfilled(self.variables.get(label))]
        return selection.selects(self.name, self.labels(labels)[0], unfilled_labels)

    def labels(self, names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
        """Return the labels of the host, and the reasons why others of the names are not among them."""
        result = {f"group.{printable(group)}": "true" for group in self._groups}
        problems = []
        variables = self.with_settings({})
        for name in names:
            try:
                value = variables.text(name)
            except UnusableError as error:
                problems.append(error.reason)
            else:
                if value is not None and (problem := text_problem(value)):
                    problems.append(f"{name} has {problem}")
                elif value is not None:
                    result[name] = value
        return result, problems


def _fill_in(
    hosts: Sequence[_Host], names: Sequence[str], inventory: str | None, warnings: list[str]
) -> Mapping[str, Any]:
    """Fill in those variables of the hosts that are templates or encrypted; return Ansible's settings.

    :param inventory: the inventory as Ansible reads it, None if there is only its JSON.
    :param warnings: receives why Ansible gives no answer.
    """
    unfilled_variables = [
        (host, name, value)
        for host in hosts
        for name in names
        if templates.is_unfilled(value := host.variables.get(name))
    ]
    if inventory is None:
        for host, name, value in unfilled_variables:
            host.expand(name, value, "use -i ansible:FILE")
        return {}
    unfilled_values = {(host.key, name): value for host, name, value in unfilled_variables}
    answers = templates.ask_ansible(inventory, unfilled_values, ALL_VARIABLES)
    if answers.problem is not None:
        warnings.append(f"ansible.cfg is not used: {answers.problem}")
    for host, name, value in unfilled_variables:
        if (host.key, name) in answers.values:
            host.fill_in(name, answers.values[host.key, name])
        elif answers.problem is not None:
            host.expand(name, value, answers.problem)
        else:
            host.reasons[name] = _unanswered(host, name, value, inventory)
    return answers.settings


def _unanswered(host: _Host, name: str, value: Any, inventory: str) -> tuple[str, str]:
    """Return why a variable that Ansible was asked for is not filled in, and what helps.

    Of what Ansible says of it, nothing is quoted: it may show other variables.
    """
    if templates.is_encrypted(value):
        remedy = "set ANSIBLE_VAULT_PASSWORD_FILE, or write it in clear"
        return "is encrypted by ansible-vault, and Ansible does not decrypt it", remedy
    command = ["ansible", host.key, "-i", inventory, "-m", "debug", "-a", f"var={name}"]
    reason = f"{templates.describe(value)}, which Ansible does not fill in outside of playbooks"
    return reason, f"see `{printable(shlex.join(command))}`"


class _Notes:
    """What is said of an inventory on stderr: hosts that have a cause in common share a line."""

    def __init__(self) -> None:
        self._hosts_by_cause: dict[str, list[str]] = {}
        self._texts: dict[str, str] = {}
        self._connections: Counter[str] = Counter()

    def add(self, host_name: str, *causes: str) -> None:
        for cause in causes:
            self._hosts_by_cause.setdefault(cause, []).append(host_name)

    def add_unusable(self, host_name: str, error: UnusableError) -> None:
        if error.connection is None:
            self.add(host_name, error.reason)
            self._texts.setdefault(error.reason, str(error))  # of the first host: others may differ in their names
        else:
            self._connections[error.connection] += 1

    def lines(self) -> Iterator[str]:
        if self._connections:
            counts = ", ".join(f"{name} {count}" for name, count in self._connections.most_common())
            yield f"{_hosts_are(self._connections.total())} not reached by ssh ({counts})"
        causes = sorted(self._hosts_by_cause.items(), key=lambda item: -len(item[1]))
        for cause, names in causes[:_MAX_CAUSES]:
            excess = len(names) - _MAX_NAMES
            more = f" and {excess} more" if excess > 0 else ""
            yield f"{self._texts.get(cause, cause)}: {', '.join(names[:_MAX_NAMES])}{more}"
        if rest := {name for _, names in causes[_MAX_CAUSES:] for name in names}:
            yield f"{_hosts_are(len(rest))} not used as written, for {len(causes) - _MAX_CAUSES} other reasons"


def _hosts_are(count: int) -> str:
    return "1 host is" if count == 1 else f"{count} hosts are"
