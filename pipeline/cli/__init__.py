"""Command line. Data is printed to stdout, progress and errors to stderr.

Each command imports the slow packages that it needs (ray, pyarrow, duckdb), so that others start quickly.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence

from pipeline.cli.arguments import parser
from pipeline.cli.exits import FAILED, INTERRUPTED, NONE_GOOD, OK, SOME_NOT_GOOD, THRESHOLD_FIRED, USAGE
from pipeline.common import output
from pipeline.common.errors import AuditError

__all__ = ["FAILED", "INTERRUPTED", "NONE_GOOD", "OK", "SOME_NOT_GOOD", "THRESHOLD_FIRED", "USAGE", "main", "parser"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code. Only exceptions that are bugs of this program propagate."""
    _open_standard_streams()
    # SIGTERM, sent by systemd, cron and timeout, and the SIGHUP of a closed terminal interrupt a run like Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    try:
        args = parser().parse_args(argv)
        exit_code: int = args.command(args)
        sys.stdout.flush()
        return exit_code
    except KeyboardInterrupt:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the cleanup is done; only the exit remains
        output.message("interrupted")
        return INTERRUPTED
    except OSError as error:
        output.discard_stdout()  # else the interpreter tries again at exit to write what is buffered
        if not isinstance(error, BrokenPipeError):  # raised after the reader of stdout has gone, such as `| head`
            output.message(f"lru-audit: {error.filename or 'stdout'}: {error.strerror or error}")
        return FAILED
    except AuditError as error:
        output.message(f"lru-audit: {error}")
        return error.exit_code


def _open_standard_streams() -> None:
    """Open stdout and stderr if the caller closed them, and make them escape characters that they cannot encode."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115
        getattr(sys, name).reconfigure(errors="backslashreplace")
