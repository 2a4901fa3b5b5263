"""The bytes sent to a host: the bootstrap, the collector's sources, and the shell command that runs them."""

from __future__ import annotations

import functools
import re
import shlex
import zlib
from pathlib import Path

from pipeline.fanout.transports.standalone import Package

START_MARKER = "lru-audit starts "
"""Prefix of the line on stderr that names the interpreter, printed once ssh has logged in and the shell has run."""
ASK_MARKER = "lru-audit asks for "
"""Prefix of the line on stderr that asks for a package: its archive compressed ("gzip") or not ("tar")."""
REFUSAL_MARKER = "lru-audit refuses "
"""Prefix of the line on stderr that says why a package cannot be used: a key of failures._REFUSALS and a detail."""
ANNOUNCEMENT = "lru-audit runs"
"""The line that collector/remote.py prints on stderr as soon as it runs: sudo, if any, has let it in."""

_INTERPRETERS = ("python3", "/usr/libexec/platform-python")  # the second is RHEL 8's own
# An import that python3-minimal of Debian lacks, and the oldest version, as in remote.py.
_COMPLETENESS_TEST = "import sys,json;sys.exit(sys.version_info<(3,6))"
DRGN_BYTES = 40 << 20
"""Room that drgn needs on a host besides a package, as in remote.py."""
_COMMENT_LINE = re.compile(r"^ *#.*$", re.MULTILINE)
_UNPACK_TIMEOUT_S = 600  # to receive a package; over a network that is cut without a word, head would wait for ever
_COLLECTOR = Path(__file__).parents[2] / "collector"
_BOOTSTRAP = "remote.py"

# Unpacks a package and runs its Python. Directories are tried in turn: /tmp may be noexec, or small; an empty file is a
# shell script, if it may be executed. The shell stays the parent of Python, and removes the directory whatever becomes
# of Python and the connection: without a terminal, the end of the connection is the end of stdin for head and Python,
# and SIGPIPE for what prints. tar and gzip would read beyond the archive, so head passes on its bytes only, and the
# client sends nothing more until Python starts. remote.py puts drgn's shared objects below TMPDIR.
_UNPACK = """
refuse() {{ echo "{refusal}$*" >&2; exit 127; }};
remove() {{ test -z "$d" || rm -rf "$d"; }};
d=; trap remove EXIT; trap "exit 1" HUP INT TERM PIPE;
for t in chmod head mktemp rm tar timeout uname; do command -v $t >/dev/null || refuse tool $t; done;
test "$(uname -m)" = {arch} || refuse arch "$(uname -m)";
test -e {loader} || refuse loader;
for t in "${{TMPDIR:-/tmp}}" /var/tmp /dev/shm /run "$HOME"; do
set -- $(df -Pk "$t" 2>/dev/null | tail -n 1); test "${{4:-{disk_kib}}}" -ge {disk_kib} 2>/dev/null || continue;
d=$(mktemp -d "$t/lru-audit.XXXXXXXXXX" 2>/dev/null) || continue;
: > "$d/x"; chmod 700 "$d/x"; "$d/x" 2>/dev/null </dev/null && break; remove; d=;
done;
test -n "$d" || refuse place; rm "$d/x";
if command -v gzip >/dev/null;
then echo "{ask}gzip" >&2; timeout {timeout_s} head -c {gzip_bytes} | gzip -dc;
else echo "{ask}tar" >&2; timeout {timeout_s} head -c {tar_bytes}; fi | tar -xomf - -C "$d" || refuse unpacking "$d";
TMPDIR=$d; export TMPDIR; p=$d/bin/python3; "$p" -IBS -c "" </dev/null || refuse start "$p";
{start}{sudo}"$p" -IBS -c {code}; exit
"""


@functools.cache
def bootstrap() -> bytes:
    """Return the source of the program that receives the rest of the payload, collector/remote.py."""
    return (_COLLECTOR / _BOOTSTRAP).read_bytes()


@functools.cache
def sources() -> bytes:
    """Return the collector's source files as a compressed Python literal, a dict of path to text."""
    paths = sorted(path for path in _COLLECTOR.rglob("*.py") if path.name != _BOOTSTRAP)
    files = {str(path.relative_to(_COLLECTOR.parents[1])): _without_comments(path.read_text("utf-8")) for path in paths}
    return pack({"pipeline/__init__.py": "", **files})


def _without_comments(source: str) -> str:
    """Empty the lines that are comments: a fifth of what would be sent. No string of the collector has such a line."""
    return _COMMENT_LINE.sub("", source)


def pack(files: dict[str, str]) -> bytes:
    return zlib.compress(repr(files).encode(), 9)


def command_line(python: str | None, become: bool, package: Package | None = None) -> str:
    """Return the command line, valid in any login shell, that runs the bootstrap from stdin.

    :param python: the command that starts the interpreter, as words of a shell.
    :param package: the Python to ask for where there is none.
    """
    words = shlex.split(python) if python else []
    candidates = shlex.join(words[:1] or _INTERPRETERS)
    test = f'"$p" -c "{_COMPLETENESS_TEST}" </dev/null 2>/dev/null || continue; ' if package and not words else ""
    start = f'echo "{START_MARKER}$p" >&2; '
    command = " ".join(['"$p"', *map(shlex.quote, words[1:])])
    sudo = "sudo -n -- " if become else ""
    code = f'"import sys;exec(sys.stdin.buffer.read({len(bootstrap())}))"'
    script = (
        f"LC_ALL=C; export LC_ALL; for p in {candidates}; do "
        f'p=$(command -v "$p") || continue; {test}{start}exec {sudo}{command} -c {code}; done; '
    )
    if package is None:
        script += "exit 127"
    else:
        script += (
            _UNPACK.strip()
            .replace("\n", " ")
            .format(
                refusal=REFUSAL_MARKER,
                arch=package.build.arch,
                loader=package.build.loader,
                disk_kib=(package.disk_bytes + DRGN_BYTES) >> 10,
                ask=ASK_MARKER,
                timeout_s=_UNPACK_TIMEOUT_S,
                gzip_bytes=package.gzip_bytes,
                tar_bytes=package.tar_bytes,
                start=start,
                sudo=sudo,
                code=code,
            )
        )
    return f"exec sh -c {shlex.quote(script)}"
