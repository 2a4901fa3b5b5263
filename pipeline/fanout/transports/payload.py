"""The bytes sent to a host: the bootstrap, the collector's sources, and the shell command that runs them."""

from __future__ import annotations

import functools
import shlex
import zlib
from pathlib import Path

START_MARKER = "lru-audit starts "
"""Prefix of the line on stderr that names the interpreter, printed once ssh has logged in and the shell has run."""

ANNOUNCEMENT = "lru-audit runs"
"""The line that collector/remote.py prints on stderr as soon as it runs: sudo, if any, has let it in."""

_INTERPRETERS = ("python3", "/usr/libexec/platform-python")  # the second is RHEL 8's own
_COLLECTOR = Path(__file__).parents[2] / "collector"
_BOOTSTRAP = "remote.py"


@functools.cache
def bootstrap() -> bytes:
    """Return the source of the program that receives the rest of the payload, collector/remote.py."""
    return (_COLLECTOR / _BOOTSTRAP).read_bytes()


@functools.cache
def sources() -> bytes:
    """Return the collector's source files as a compressed Python literal, a dict of path to text."""
    paths = sorted(path for path in _COLLECTOR.rglob("*.py") if path.name != _BOOTSTRAP)
    files = {str(path.relative_to(_COLLECTOR.parents[1])): path.read_text("utf-8") for path in paths}
    return pack({"pipeline/__init__.py": "", **files})


def pack(files: dict[str, str]) -> bytes:
    return zlib.compress(repr(files).encode(), 9)


def command_line(python: str | None, become: bool) -> str:
    """Return the command line, valid in any login shell, that runs the bootstrap from stdin."""
    candidates = " ".join(shlex.quote(name) for name in ([python] if python else _INTERPRETERS))
    sudo = "sudo -n -- " if become else ""
    script = (
        f"LC_ALL=C; export LC_ALL; for p in {candidates}; do "
        f'p=$(command -v "$p") || continue; echo "{START_MARKER}$p" >&2; '
        f'exec {sudo}"$p" -c "import sys;exec(sys.stdin.buffer.read({len(bootstrap())}))"; '
        "done; exit 127"
    )
    return f"exec sh -c {shlex.quote(script)}"
