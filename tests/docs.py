"""Examples in the docs: run their commands and replace their output. `python -m tests.docs` rewrites all of them.

An example is a console block with `<!-- run -->` above it; the stdout of each command stands below the command. The
examples of a document run in order, with one warehouse, in a directory of their own that has README.md and tests/.
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
_ROOT_PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = (*_ROOT_PAGES, *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
_EXAMPLE = re.compile(r"(?<=<!-- run -->\n```console\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
# The pages that have examples.
DOCUMENTS = tuple(page for page in PAGES if _EXAMPLE.search((ROOT / page).read_text()))
# Commands of make that set up an installation, and the part of them that the examples run.
_COMMANDS_OF_MAKE = {"make audit": "lru-audit run tests/vmcores --audit bundled"}
# Replaces the temporary directory in the output.
_SHOWN_DIRECTORY = "/home/sre/list-lru-audit"
_SHELL_FUNCTION = 'lru-audit() { "$PYTHON" -m pipeline "$@"; }\n'
_VARIABLE_TEXT = [
    (re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}"), "RUN"),
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d"), "TIME"),
    (re.compile("─+"), "─"),  # the widths of columns depend on the path of the checkout
    (re.compile("  +"), "  "),
    (re.compile(r"\d+ at a time"), "N at a time"),  # depends on the CPUs
]


def regenerate(document: str) -> str:
    """Return the text of a document with the present output of its examples."""
    with tempfile.TemporaryDirectory() as temporary_directory:
        directory = Path(temporary_directory) / "project"  # usually makes the path as long as _SHOWN_DIRECTORY
        directory.mkdir()
        for name in ("README.md", "tests"):
            (directory / name).symlink_to(ROOT / name)
        return _EXAMPLE.sub(lambda example: _run(example[0], directory), (ROOT / document).read_text())


def normalize(text: str) -> str:
    """Replace what differs between runs and between machines."""
    for pattern, replacement in _VARIABLE_TEXT:
        text = pattern.sub(replacement, text)
    return text


def _run(example: str, directory: Path) -> str:
    """Run the commands of an example and return it with their output."""
    script = _SHELL_FUNCTION
    for command in _commands(example):
        prompt = _quote(f"$ {command}")
        script += f"status=$?; printf '%s\\n' {prompt}; (exit $status)\n{_COMMANDS_OF_MAKE.get(command, command)}\n"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LRU_AUDIT_", "RAY_"))}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    env |= {"LRU_AUDIT_WAREHOUSE": str(directory.parent / "warehouse"), "PYTHON": sys.executable}
    env |= {"PYTHONPATH": str(ROOT), "COLUMNS": "105"}
    process = subprocess.run(
        ["bash", "-c", script],
        cwd=directory,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    # The only error allowed is a --fail-if condition that holds; an example shows its exit code.
    assert not re.search("^Traceback|^lru-audit: (?!--fail-if)", process.stderr, re.MULTILINE), process.stderr
    output = process.stdout.replace(str(directory), _SHOWN_DIRECTORY)
    return re.sub(r" +$", "", output, flags=re.MULTILINE)


def _commands(example: str) -> Iterator[str]:
    """Yield the commands: lines that begin with `$ `, and the lines that continue them after a backslash."""
    for match in re.finditer(r"^\$ ((?:.*\\\n)*.*)$", example, re.MULTILINE):
        yield match[1]


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


if __name__ == "__main__":
    for name in DOCUMENTS:
        (ROOT / name).write_text(regenerate(name))
