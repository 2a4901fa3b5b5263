"""Examples in the docs, run for real: `python -m tests.docs` writes what their commands print now.

An example is a console block with `<!-- run -->` above it. What each of its commands prints on stdout stands below it.
The examples of a document run one after another with one warehouse, in a folder of their own with README.md and tests/.
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
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
_EXAMPLE = re.compile(r"(?<=<!-- run -->\n```console\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
# Those with examples.
DOCUMENTS = tuple(page for page in PAGES if _EXAMPLE.search((ROOT / page).read_text()))
# What `make` sets up before it, a reader sees once.
_MAKE = {"make audit": "lru-audit run tests/vmcores --audit bundled"}
_HERE = "/home/sre/list-lru-audit"
_SHELL = 'lru-audit() { "$PYTHON" -m pipeline "$@"; }\n'
_VARYING = [
    (re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}"), "RUN"),
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d"), "TIME"),
    (re.compile("─+"), "─"),  # as wide as the path of the checkout
    (re.compile("  +"), "  "),  # as well
    (re.compile(r"\d+ at a time"), "N at a time"),  # of this machine's cores
]


def now(document: str) -> str:
    """Return a document as its examples would have it now."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "project"  # with which it is usually as long as _HERE
        folder.mkdir()
        for name in ("README.md", "tests"):
            (folder / name).symlink_to(ROOT / name)
        return _EXAMPLE.sub(lambda example: _run(example[0], folder), (ROOT / document).read_text())


def steady(text: str) -> str:
    """Return text without what differs from run to run and from machine to machine."""
    for pattern, name in _VARYING:
        text = pattern.sub(name, text)
    return text


def _run(example: str, folder: Path) -> str:
    """Return an example with what its commands print."""
    script = _SHELL
    for command in _commands(example):
        shown = _quoted(f"$ {command}")
        script += f"status=$?; printf '%s\\n' {shown}; (exit $status)\n{_MAKE.get(command, command)}\n"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LRU_AUDIT_", "RAY_"))}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    env |= {"LRU_AUDIT_WAREHOUSE": str(folder.parent / "warehouse"), "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    env["COLUMNS"] = "105"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    # A threshold that fires is shown by its exit code.
    assert not re.search("^Traceback|^lru-audit: (?!--fail-if)", done.stderr, re.MULTILINE), done.stderr
    printed = done.stdout.replace(str(folder), _HERE)
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
