"""The sql command: where a query comes from, which runs it is about, and where its result goes."""

from __future__ import annotations

import argparse
import os
import re
import sys

from pipeline import query, warehouse
from pipeline.common import output
from pipeline.common.errors import UsageError
from pipeline.report import rows

_QUERY_BYTES = 1 << 20


def run(args: argparse.Namespace) -> None:
    """Run one query over the published runs, or print the script that makes the views elsewhere."""
    form = "sql" if args.print_init else args.format or output.form(args.output, rows.FORMATS, "table")
    if form == "parquet" and args.output is None and sys.stdout.isatty():
        raise UsageError("parquet is not for a terminal: name a file with -o, or pipe it")
    if args.print_init and (args.query is not None or args.file is not None):
        raise UsageError("--print-init runs no query")
    text = "" if args.print_init else _query(args)
    params = _params(args.param)
    published = _published(args)
    if not published:
        print(f"no published run in {args.warehouse}: every table is empty", file=sys.stderr)
    limits = query.Limits(args.timeout, args.memory or query.Limits.memory_bytes)
    with warehouse.reading(args.warehouse, published) as tables:
        answer = query.script(tables) if args.print_init else query.ask(tables, text, params, limits)
    if isinstance(answer, str):
        with output.opened(args.output) as file:
            file.write(answer)
        return
    with output.opened(args.output, binary=form == "parquet") as file:
        rows.FORMATS[form](answer, file)


def _query(args: argparse.Namespace) -> str:
    """Return the one query that is given."""
    if (args.query is None) == (args.file is None):
        raise UsageError("sql takes one query: as an argument, with -f FILE, or - for stdin")
    if args.file is not None:
        with args.file.open("rb") as file:
            return _text(str(args.file), file.read(_QUERY_BYTES + 1))
    if args.query == "-":
        return _text("stdin", sys.stdin.buffer.read(_QUERY_BYTES + 1))
    return _text("the query", os.fsencode(args.query))


def _text(source: str, encoded: bytes) -> str:
    if len(encoded) > _QUERY_BYTES:
        raise UsageError(f"{source}: longer than {_QUERY_BYTES >> 20} MiB")
    try:
        text = encoded.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{source}: not UTF-8: {error.reason} at byte {error.start}") from error
    if "\0" in text:
        raise UsageError(f"{source}: a NUL character at byte {encoded.index(0)}")
    return text


def _params(given: list[str]) -> dict[str, str]:
    """Return the values of `$name` parameters."""
    params: dict[str, str] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise UsageError(f"--param {each!a} is not NAME=VALUE, for $NAME in the query")
        if name in params:
            raise UsageError(f"--param {name} is given twice")
        params[name] = _text(f"--param {name}", os.fsencode(value))
    return params


def _published(args: argparse.Namespace) -> list[warehouse.Manifest]:
    """Return the runs that the query is about: all, one, or those of an audit."""
    published = warehouse.runs(args.warehouse)
    if args.run is None and args.audit is None:
        return published
    run_id = warehouse.resolve(args.warehouse, args.run or "latest", args.audit)
    if args.run is None:
        return [manifest for manifest in published if manifest.audit == args.audit]
    return [manifest for manifest in published if manifest.run_id == run_id]
