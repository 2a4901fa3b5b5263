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
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.common.text import joined_lines, quote

# Names of settings in ansible.cfg and the environment: of the ssh connection, and of Ansible itself.
_SSH_SETTINGS = (
    *("remote_user", "port", "private_key_file", "host_key_checking", "timeout"),
    *("ssh_executable", "ssh_args", "ssh_common_args", "ssh_extra_args"),
)
_GENERAL_SETTINGS = (
    *("DEFAULT_TRANSPORT", "INTERPRETER_PYTHON", "DEFAULT_BECOME"),
    *("DEFAULT_BECOME_METHOD", "DEFAULT_BECOME_USER", "DEFAULT_BECOME_EXE", "DEFAULT_BECOME_FLAGS"),
)
QUIET_ENVIRONMENT = {
    "ANSIBLE_ASK_PASS": "0",
    "ANSIBLE_BECOME_ASK_PASS": "0",
    "ANSIBLE_VERBOSITY": "0",
    "ANSIBLE_NOCOLOR": "1",
}
"""Keeps Ansible from asking for passwords, which nothing here needs, and from adding to its output."""
# Only what the play prints matters: all of its tasks, without notifications and log that the configuration asks for.
_ENVIRONMENT = {
    **QUIET_ENVIRONMENT,
    "ANSIBLE_STDOUT_CALLBACK": "minimal",
    "ANSIBLE_CALLBACKS_ENABLED": "minimal",
    "ANSIBLE_CALLBACK_WHITELIST": "minimal",  # the name up to Ansible 2.10
    "ANSIBLE_LOG_PATH": os.devnull,
    "ANSIBLE_RETRY_FILES_ENABLED": "0",
    "ANSIBLE_RUN_TAGS": "all",
    "ANSIBLE_SKIP_TAGS": "",
}
# Limits what is quoted of an error: a few paragraphs.
_MAX_ERROR = 1000
_MARKER = "list-lru-audit"
_SETTINGS_LABEL = "settings"
_MARKED = re.compile(rf"{_MARKER} (\w+):([A-Za-z0-9+/=]*):")
# Plain references are nested a few deep; a variable that refers to itself has no end.
_MAX_REFERENCES = 100
_REFERENCE = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")
_EXPRESSION = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
# A text in an expression, also one that has no end.
_LITERAL = re.compile(r"""'(?:\\.|[^'\\])*(?:'|\\?$)|"(?:\\.|[^"\\])*(?:"|\\?$)""", re.DOTALL)


class Answers(NamedTuple):
    """What Ansible has filled in.

    - values: by host and variable; those that Ansible cannot fill in are missing;
    - settings: those of ansible.cfg and the environment, by name;
    - problem: why Ansible gave no answer at all, or None.
    """

    values: dict[tuple[str, str], Any]
    settings: dict[str, Any]
    problem: str | None = None


def is_unfilled(value: object) -> bool:
    """Return whether a value of a host's variable is a template or encrypted."""
    return is_encrypted(value) or (isinstance(value, str) and any(sign in value for sign in ("{{", "{%", "{#")))


def is_encrypted(value: object) -> bool:
    return isinstance(value, dict) and "__ansible_vault" in value


def describe(template: str) -> str:
    """Return what a reason says of a template: its expressions without texts, which may be passwords."""
    expressions = [_LITERAL.sub("'...'", expression) for expression in _EXPRESSION.findall(template)]
    return f"is a template, {quote(' '.join(expressions))}" if expressions else "is a template"


def expand(template: str, variables: Mapping[str, Any]) -> str:
    """Replace the references `{{ NAME }}` of a template by the host's own variables.

    :raises LookupError: it has other expressions, or refers to a list or a mapping; the message is the reason.
    """
    for _ in range(_MAX_REFERENCES):
        reference = _REFERENCE.search(template)
        if reference is None:
            if is_unfilled(template):
                raise LookupError("only Ansible can fill it in")
            return template
        name = reference[1]
        value = variables.get(name)
        if not isinstance(value, (str, int, float)):
            raise LookupError(f"{name} is not a text among the host's variables")
        template = template[: reference.start()] + str(value) + template[reference.end() :]
    raise LookupError(f"more than {_MAX_REFERENCES} references; does it refer to itself?")


def ask_ansible(inventory: str, unfilled_values: Mapping[tuple[str, str], Any], variables: Iterable[str]) -> Answers:
    """Have Ansible fill in values of hosts, and tell its settings.

    :param inventory: as ansible-inventory reads it.
    :param unfilled_values: values by host and variable.
    :param variables: those of a connection, which the play hides: of this machine, they would be taken for settings.
    """
    program = shutil.which("ansible-playbook")
    if program is None:
        return Answers({}, {}, "ansible-playbook is not on PATH")
    # What is encrypted means the same for each host of a group, and a missing password is found out slowly.
    first_hosts: dict[tuple[str, str], tuple[str, str]] = {}
    subjects = {
        subject: first_hosts.setdefault((subject[1], json.dumps(value)), subject) if is_encrypted(value) else subject
        for subject, value in unfilled_values.items()
    }
    questions = _Questions({subject: unfilled_values[subject] for subject in subjects.values()})
    # Without an unfilled value there is no need to evaluate an inventory that may be a slow program.
    argv = [program, "--inventory", inventory if unfilled_values else "localhost,", "/dev/stdin"]
    play = json.dumps([_play(questions.tasks, {*variables, *(variable for _, variable in unfilled_values)})])
    process = subprocess.run(argv, input=play.encode(), capture_output=True, env=os.environ | _ENVIRONMENT, check=False)
    values: dict[tuple[str, str], Any] = {}
    settings: dict[str, Any] = {}
    for label, encoded in _MARKED.findall(process.stdout.decode(errors="replace")):
        answers = json.loads(base64.b64decode(encoded))
        if label == _SETTINGS_LABEL:
            settings = dict(zip(_SSH_SETTINGS + _GENERAL_SETTINGS, answers, strict=True))
        else:
            pairs = zip(questions.subjects[label], answers, strict=True)
            values |= {subject: value for subject, value in pairs if value is not None and not is_unfilled(value)}
    problem = None
    if not settings:
        reason = error_text(process) if process.returncode else "it does not tell its settings"
        problem = f"ansible-playbook: {reason}"
    answered = {subject: values[asked] for subject, asked in subjects.items() if asked in values}
    return Answers(answered, settings, problem)


def error_text(process: subprocess.CompletedProcess[bytes]) -> str:
    """Return what a program of Ansible says of its failure, in one line: its error, then the warnings before it."""
    stderr = process.stderr.decode(errors="backslashreplace")
    error = re.search(r"\[?ERROR", stderr)
    start = error.start() if error else 0
    return joined_lines(f"{stderr[start:]} {stderr[:start]}", _MAX_ERROR) or f"exit code {process.returncode}"


class _Questions:
    """Tasks of a play that print the values of hosts.

    One task asks for a variable of all hosts. Where it fails, others ask for the hosts of one template each, and where
    that fails for each host by itself: one that Ansible cannot fill in must not lose the others.

    :ivar subjects: the hosts and their variable that a task asks for, by its label.
    """

    def __init__(self, unfilled_values: Mapping[tuple[str, str], Any]) -> None:
        self.subjects: dict[str, list[tuple[str, str]]] = {}
        self.tasks = []
        hosts: dict[str, dict[str, list[str]]] = {}
        for (host, variable), value in unfilled_values.items():
            hosts.setdefault(variable, {}).setdefault(json.dumps(value), []).append(host)
        for variable, hosts_by_template in hosts.items():
            groups = [
                self._ask(variable, group, [self._ask(variable, [host]) for host in group])
                for group in hosts_by_template.values()
            ]
            all_hosts = [host for group in hosts_by_template.values() for host in group]
            self.tasks.append(self._ask(variable, all_hosts, groups))

    def _ask(self, variable: str, hosts: list[str], alternatives: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        """Return the task that asks for a variable of hosts, with the tasks for the case that it fails."""
        if len(alternatives) == 1:
            return alternatives[0]
        label = str(len(self.subjects))
        self.subjects[label] = [(host, variable) for host in hosts]
        # Encoded, since a name may look like a template.
        encoded_hosts = [base64.b64encode(host.encode()).decode() for host in hosts]
        encoded_variable = base64.b64encode(variable.encode()).decode()
        task = _print(
            label,
            f"({encoded_hosts} | map('b64decode') | map('extract', hostvars, '{encoded_variable}' | b64decode)"
            " | map('default', none) | list)",
        )
        return {"block": [task], "rescue": alternatives} if alternatives else {**task, "ignore_errors": True}


def _play(tasks: Sequence[dict[str, Any]], variables: Iterable[str]) -> dict[str, Any]:
    """Return the play on this machine that prints the settings, and then what the tasks do.

    :param variables: variables that this machine must not have: a template that fails would end the play.
    """
    ssh = ", ".join(map(repr, _SSH_SETTINGS))
    general = ", ".join(map(repr, _GENERAL_SETTINGS))
    settings = f"(query('config', {ssh}, plugin_type='connection', plugin_name='ssh') + query('config', {general}))"
    return {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "no_log": False,
        "strategy": "linear",
        "vars": dict.fromkeys(variables),
        "tasks": [{**_print(_SETTINGS_LABEL, settings), "ignore_errors": True}, *tasks],
    }


def _print(label: str, expression: str) -> dict[str, Any]:
    """Return the task that prints the value of an expression, with a label by which it is found."""
    message = f"{_MARKER} {label}:{{{{ {expression} | to_json(vault_to_text=True) | b64encode }}}}:"
    return {"debug": {"msg": message}}
