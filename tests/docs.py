"""Examples in the docs, run for real: `python -m tests.docs` writes what their commands print now.

An example is a console block with `<!-- run -->` above it. Its commands run in the checkout, with a warehouse that all
examples of a document share; what each prints on stdout stands below it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md",)
_EXAMPLE = re.compile(r"(?<=<!-- run -->\n```console\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
# What `make` sets up before it, a reader sees once.
_MAKE = {"make audit": "lru-audit run tests/vmcores --audit bundled"}
_HERE = "/home/sre/list-lru-audit"
_SHELL = 'lru-audit() { "$PYTHON" -m pipeline "$@"; }\n'
_VARYING = [
    (re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}"), "RUN"),
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d"), "TIME"),
    (re.compile("─+"), "─"),  # as wide as the path of the checkout
]


def now(document: str) -> str:
    """Return a document as its examples would have it now."""
    with tempfile.TemporaryDirectory() as warehouse:
        return _EXAMPLE.sub(lambda example: _run(example[0], warehouse), (ROOT / document).read_text())


def steady(text: str) -> str:
    """Return text without what differs from run to run: run ids and times."""
    for pattern, name in _VARYING:
        text = pattern.sub(name, text)
    return text


def _run(example: str, warehouse: str) -> str:
    """Return an example with what its commands print."""
    script = _SHELL
    for command in _commands(example):
        shown = _quoted(f"$ {command}")
        script += f"status=$?; printf '%s\\n' {shown}; (exit $status)\n{_MAKE.get(command, command)}\n"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LRU_AUDIT_", "RAY_"))}
    env |= {"LRU_AUDIT_WAREHOUSE": warehouse, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "COLUMNS": "105"}
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    printed = done.stdout.replace(str(ROOT), _HERE)
    return re.sub(r" +$", "", printed, flags=re.MULTILINE)


def _commands(example: str) -> Iterator[str]:
    """Yield the commands, lines that begin with `$ `; one may go on after a backslash."""
    for found in re.finditer(r"^\$ ((?:.*\\\n)*.*)$", example, re.MULTILINE):
        yield found[1]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


if __name__ == "__main__":
    for name in DOCUMENTS:
        (ROOT / name).write_text(now(name))
