"""The sql command: reads a query, selects its runs, and writes its result."""

from __future__ import annotations

import argparse
import os
import re
import sys

from pipeline import query, warehouse
from pipeline.common import output
from pipeline.common.errors import UsageError
from pipeline.common.output import message
from pipeline.report import rows

_MAX_QUERY_BYTES = 1 << 20


def run(args: argparse.Namespace) -> None:
    """Run one query over published runs, or print SQL that creates the views in another DuckDB."""
    format_name = "sql" if args.print_init else args.format or output.format_for(args.output, rows.FORMATS, "table")
    if format_name == "parquet" and args.output is None and sys.stdout.isatty():
        raise UsageError("parquet cannot be shown on a terminal; name a file with -o, or pipe it")
    if args.print_init and (args.query is not None or args.file is not None):
        raise UsageError("--print-init prints SQL and takes no query")
    text = "" if args.print_init else _query(args)
    params = _params(args.param)
    manifests = _selected_runs(args)
    if not manifests:
        message(f"no published run in {args.warehouse}: every table is empty")
    limits = query.Limits(args.timeout, args.memory or query.Limits.memory_bytes)
    # The output is opened first: a query may take minutes.
    with (
        output.open_output(args.output, binary=format_name == "parquet") as file,
        warehouse.open_tables(args.warehouse, manifests) as tables,
    ):
        if args.print_init:
            file.write(query.init_script(tables))
        else:
            result = query.run_confined(tables, text, params, limits)
            rows.write(result, format_name, file, limits.memory_bytes)


def _query(args: argparse.Namespace) -> str:
    """Return the query from the argument, a file or stdin."""
    if (args.query is None) == (args.file is None):
        raise UsageError("sql takes one query: as an argument, with -f FILE, or - for stdin")
    if args.file is not None:
        with args.file.open("rb") as file:
            return _decode(str(args.file), file.read(_MAX_QUERY_BYTES + 1))
    if args.query == "-":
        return _decode("stdin", sys.stdin.buffer.read(_MAX_QUERY_BYTES + 1))
    return _decode("the query", os.fsencode(args.query))


def _decode(source: str, encoded_text: bytes) -> str:
    if len(encoded_text) > _MAX_QUERY_BYTES:
        raise UsageError(f"{source}: longer than {_MAX_QUERY_BYTES >> 20} MiB")
    try:
        text = encoded_text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{source}: not UTF-8: {error.reason} at byte {error.start}") from error
    if "\0" in text:
        raise UsageError(f"{source}: contains a NUL character at byte {encoded_text.index(0)}")
    return text


def _params(arguments: list[str]) -> dict[str, str]:
    """Return the values of `$name` parameters."""
    params: dict[str, str] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise UsageError(f"invalid --param {argument!a}; expected NAME=VALUE, the value of $NAME in the query")
        if name in params:
            raise UsageError(f"--param {name} is given twice")
        params[name] = _decode(f"--param {name}", os.fsencode(value))
    return params


def _selected_runs(args: argparse.Namespace) -> list[warehouse.Manifest]:
    """Return the runs that --run and --audit select: all, one, or those of an audit."""
    manifests = warehouse.published_runs(args.warehouse)
    if args.run is None and args.audit is None:
        return manifests
    run_id = warehouse.resolve_run(args.warehouse, args.run or "latest", args.audit)
    if args.run is None:
        return [manifest for manifest in manifests if manifest.audit == args.audit]
    return [manifest for manifest in manifests if manifest.run_id == run_id]
