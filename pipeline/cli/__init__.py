"""The command line: parse, call, print. Data goes to stdout, progress and errors to stderr.

What is slow to import (ray, pyarrow, duckdb) is imported by the command that needs it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence

from pipeline.common import output
from pipeline.common.errors import AuditError

from .arguments import parser
from .exits import FAILED, FIRED, INTERRUPTED, NONE_GOOD, OK, SOME_NOT_GOOD, USAGE

__all__ = ["FAILED", "FIRED", "INTERRUPTED", "NONE_GOOD", "OK", "SOME_NOT_GOOD", "USAGE", "main", "parser"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; no exception passes but a defect of this program."""
    _open_standard_streams()
    args = parser().parse_args(argv)
    # What systemd, cron and timeout send ends a run as Ctrl-C does.
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code: int = args.command(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # nothing is left to interrupt
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        output.discard()  # what is buffered cannot be written either, and the interpreter would try at its end
        if not isinstance(error, BrokenPipeError):  # the reader of stdout has gone, as `| head` does
            print(f"lru-audit: {error.filename or 'stdout'}: {error.strerror or error}", file=sys.stderr)
        return FAILED
    except AuditError as error:
        print(f"lru-audit: {error}", file=sys.stderr)
        return error.exit_code


def _open_standard_streams() -> None:
    """Have a stdout and a stderr, whatever the caller closed, that no name ends by its characters."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115
        getattr(sys, name).reconfigure(errors="backslashreplace")
