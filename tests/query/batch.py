"""The child process of many statements: confined as the one of `lru-audit sql`, which answers a single statement.

It is run in that one's place. The request's query is a JSON list of statements. Each gets two lines of JSON in the
result file: one when it starts, and its outcome. A statement that ends the process, or takes too long, has no outcome.
"""

from __future__ import annotations

import faulthandler
import json
import os
import pickle
import runpy
import sys
from pathlib import Path
from typing import Any

LANDLOCK = Path(__file__).parents[2] / "pipeline" / "query" / "landlock.py"
TIMEOUT_S = 5
MAX_CHARACTERS = 20_000
"""Length of an outcome: of an error, or of the rows as an Arrow stream."""
EXIT_DONE = 4
"""Exit code after the last statement: not zero, which promises a result."""
MAX_BATCHES = 3
"""Batches of rows that are read of a result."""


def main() -> None:
    parent_pid, result_fd = map(int, sys.argv[1:])
    runpy.run_path(str(LANDLOCK))["confine"](parent_pid)
    request = pickle.load(sys.stdin.buffer)

    from pipeline.query.answer import session_of

    session = session_of(request)
    for statement in json.loads(request.query):
        write(result_fd, statement)
        faulthandler.dump_traceback_later(TIMEOUT_S, exit=True)
        write(result_fd, outcome(session, statement))
        faulthandler.cancel_dump_traceback_later()
    sys.exit(EXIT_DONE)


def outcome(session: Any, statement: str) -> list[str]:
    """The kind of a statement's end, and its error or rows as text."""
    from pipeline.query.session import QueryError

    try:
        with session.stream(statement) as reader:
            batches = [
                batch.serialize().to_pybytes().decode("latin-1")
                for batch, _ in zip(reader, range(MAX_BATCHES), strict=False)
            ]
    except QueryError as error:
        return ["error", str(error)[:MAX_CHARACTERS]]
    except Exception as error:
        return [type(error).__name__, str(error)[:MAX_CHARACTERS]]
    return ["rows", "".join(batches)[:MAX_CHARACTERS]]


def write(result_fd: int, value: object) -> None:
    os.write(result_fd, json.dumps(value).encode() + b"\n")


if __name__ == "__main__":
    main()
