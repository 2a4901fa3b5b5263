"""Values of Ansible's host variables that are templates, or encrypted by ansible-vault.

`ansible-inventory` prints both as they are written. `ask_ansible` has Ansible itself fill them in, in one call for all
hosts, which connects to none of them; `expand` fills in what needs no Ansible.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

# Names of settings in ansible.cfg and the environment: of the ssh connection, and of Ansible itself.
_SSH_SETTINGS = (
    *("remote_user", "port", "private_key_file", "host_key_checking", "timeout"),
    *("ssh_executable", "ssh_args", "ssh_common_args", "ssh_extra_args"),
)
_GENERAL_SETTINGS = (
    *("DEFAULT_TRANSPORT", "INTERPRETER_PYTHON", "DEFAULT_BECOME"),
    *("DEFAULT_BECOME_METHOD", "DEFAULT_BECOME_USER", "DEFAULT_BECOME_EXE", "DEFAULT_BECOME_FLAGS"),
)
# Only what the play prints matters: no notifications, no log and no colors that the user's configuration asks for.
_ENVIRONMENT = {
    "ANSIBLE_STDOUT_CALLBACK": "minimal",
    "ANSIBLE_CALLBACKS_ENABLED": "minimal",
    "ANSIBLE_CALLBACK_WHITELIST": "minimal",  # the name up to Ansible 2.10
    "ANSIBLE_LOG_PATH": os.devnull,
    "ANSIBLE_NOCOLOR": "1",
    "ANSIBLE_RETRY_FILES_ENABLED": "0",
}
# Limits what is quoted of an error: a few paragraphs.
_MAX_ERROR = 1000
_MARKER = "list-lru-audit"
_MARKED = re.compile(rf"{_MARKER} ([0-9.]+):([A-Za-z0-9+/=]*):")
# Plain references are nested a few deep; a variable that refers to itself has no end.
_MAX_REFERENCES = 100
_REFERENCE = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")


class Answers(NamedTuple):
    """What Ansible has filled in.

    - values: by host and variable; those that Ansible cannot fill in are missing;
    - settings: those of ansible.cfg and the environment, by name;
    - problem: why Ansible gave no answer at all, or None.
    """

    values: dict[tuple[str, str], Any]
    settings: dict[str, Any]
    problem: str | None = None


def is_open(value: object) -> bool:
    """Return whether a value of a host's variable is a template or encrypted."""
    return is_encrypted(value) or (isinstance(value, str) and any(sign in value for sign in ("{{", "{%", "{#")))


def is_encrypted(value: object) -> bool:
    return isinstance(value, dict) and "__ansible_vault" in value


def expand(template: str, variables: Mapping[str, Any]) -> str:
    """Replace the references `{{ NAME }}` of a template by the host's own variables.

    :raises LookupError: it has other expressions or refers to what is no text; the message is the reason.
    """
    for _ in range(_MAX_REFERENCES):
        reference = _REFERENCE.search(template)
        if reference is None:
            if is_open(template):
                raise LookupError("only Ansible can fill it in")
            return template
        name = reference[1]
        value = variables.get(name)
        if not isinstance(value, (str, int, float)):
            raise LookupError(f"{name} is not a text among the host's variables")
        template = template[: reference.start()] + str(value) + template[reference.end() :]
    raise LookupError(f"more than {_MAX_REFERENCES} references; does it refer to itself?")


def ask_ansible(inventory: str, open_values: Mapping[tuple[str, str], Any], variables: Iterable[str]) -> Answers:
    """Have Ansible fill in values of hosts, and tell its settings.

    :param inventory: as ansible-inventory reads it.
    :param open_values: values by host and variable.
    :param variables: those of a connection, which the play hides: of this machine, they would be taken for settings.
    """
    program = shutil.which("ansible-playbook")
    if program is None:
        return Answers({}, {}, "ansible-playbook is not on PATH")
    batches = _batches(open_values)
    # Without an open value there is no need to evaluate an inventory that may be a slow program.
    argv = [program, "--inventory", inventory if batches else "localhost,", "/dev/stdin"]
    play = json.dumps([_play(batches, {*variables, *(variable for variable, _ in batches)})])
    process = subprocess.run(argv, input=play.encode(), capture_output=True, env=os.environ | _ENVIRONMENT, check=False)
    values: dict[tuple[str, str], Any] = {}
    settings: dict[str, Any] = {}
    for label, encoded in _MARKED.findall(process.stdout.decode(errors="replace")):
        answers = json.loads(base64.b64decode(encoded))
        if label == "0":
            settings = dict(zip(_SSH_SETTINGS + _GENERAL_SETTINGS, answers, strict=True))
            continue
        number, _, index = label.partition(".")
        variable, hosts = batches[int(number) - 1]
        if index:
            hosts = [hosts[int(index)]]
        pairs = zip(hosts, answers, strict=True)
        values |= {(host, variable): value for host, value in pairs if value is not None and not is_open(value)}
    problem = None
    if not settings:
        problem = (
            "ansible-playbook does not tell its settings" if values else f"ansible-playbook: {error_text(process)}"
        )
    return Answers(values, settings, problem)


def error_text(process: subprocess.CompletedProcess[bytes]) -> str:
    """Return what a program of Ansible says of its failure, in one line."""
    stderr = process.stderr.decode(errors="backslashreplace")
    text = " ".join(stderr[max(stderr.find("ERROR"), 0) :].split())[:_MAX_ERROR]
    return text or f"exit code {process.returncode}"


def _batches(open_values: Mapping[tuple[str, str], Any]) -> list[tuple[str, list[str]]]:
    """Return the variables to fill in, each with the hosts that have one template for it."""
    hosts_by_template: dict[tuple[str, str], list[str]] = {}
    for (host, variable), value in open_values.items():
        hosts_by_template.setdefault((variable, json.dumps(value)), []).append(host)
    return [(variable, hosts) for (variable, _), hosts in hosts_by_template.items()]


def _play(batches: Iterable[tuple[str, list[str]]], variables: Iterable[str]) -> dict[str, Any]:
    """Return the play on this machine that prints the settings and the values of each batch.

    Where a batch fails, each of its hosts is tried by itself: one that Ansible cannot fill in must not lose the others.

    :param variables: variables that this machine must not have: a template that fails would end the play.
    """
    ssh = ", ".join(map(repr, _SSH_SETTINGS))
    general = ", ".join(map(repr, _GENERAL_SETTINGS))
    settings = f"(query('config', {ssh}, plugin_type='connection', plugin_name='ssh') + query('config', {general}))"
    tasks: list[dict[str, Any]] = [_print("0", settings)]
    for number, (variable, hosts) in enumerate(batches, 1):
        singles = [_print(f"{number}.{index}", _values(variable, [host])) for index, host in enumerate(hosts)]
        tasks.append({"block": [_print(str(number), _values(variable, hosts), ignore_errors=False)], "rescue": singles})
    return {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "strategy": "linear",
        "vars": dict.fromkeys(variables),
        "tasks": tasks,
    }


def _print(label: str, expression: str, *, ignore_errors: bool = True) -> dict[str, Any]:
    message = f"{_MARKER} {label}:{{{{ {expression} | to_json(vault_to_text=True) | b64encode }}}}:"
    return {"debug": {"msg": message}, "ignore_errors": ignore_errors}


def _values(variable: str, hosts: list[str]) -> str:
    """Return the expression for a variable of each host. The names are encoded, since they may look like templates."""
    encoded_hosts = [base64.b64encode(host.encode()).decode() for host in hosts]
    encoded_variable = base64.b64encode(variable.encode()).decode()
    return (
        f"({encoded_hosts} | map('b64decode') | map('extract', hostvars, '{encoded_variable}' | b64decode)"
        " | map('default', none) | list)"
    )
