"""Commands that collect nothing: report, sql, runs, verify, expire, estimate and fetch-drgn."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.cli.exits import FAILED, OK, THRESHOLD_FIRED
from pipeline.collector.model import target_kernels
from pipeline.common import clock
from pipeline.common.errors import UsageError
from pipeline.common.output import message
from pipeline.common.text import printable

if TYPE_CHECKING:
    from pipeline.report.model import Report
    from pipeline.report.threshold import Threshold


def report(args: argparse.Namespace) -> int:
    from pipeline import query, warehouse
    from pipeline.common import output
    from pipeline.report.formats import RENDERERS
    from pipeline.report.model import build_report
    from pipeline.report.prometheus import prometheus

    run_id = args.run and warehouse.resolve_run(args.warehouse, args.run, args.audit)
    format_name = args.format or output.format_for(args.output, RENDERERS, "text")
    render = RENDERERS[format_name]
    if format_name == "prometheus":
        render = functools.partial(prometheus, max_series=args.max_series)
    with warehouse.open_tables(args.warehouse) as tables:
        try:
            report = build_report(query.Session(tables), run_id, args.audit)
        except query.QueryError as error:
            raise query.QueryError(f"{args.warehouse}: {error}") from error
        with output.open_output(args.output, binary=format_name == "parquet") as file:
            render(report, file)
        if format_name in ("csv", "parquet", "prometheus"):  # they have no place for notes
            for note in report.clock_notes:
                message(note)
        return THRESHOLD_FIRED if print_fired_thresholds(args.fail_if, report) else OK


def print_fired_thresholds(thresholds: Sequence[Threshold], report: Report) -> bool:
    """Print the conditions of --fail-if that hold, and return whether any does."""
    fired_thresholds = [threshold for threshold in thresholds if threshold.fires(report)]
    for threshold in fired_thresholds:
        message(f"lru-audit: --fail-if: {threshold.message(report)}")
    return bool(fired_thresholds)


def sql(args: argparse.Namespace) -> int:
    from pipeline.cli import sql

    sql.run(args)
    return OK


def runs(args: argparse.Namespace) -> int:
    from pipeline import warehouse
    from pipeline.report.screens import listing

    runs = warehouse.overview(args.warehouse)
    listing.FORMATS[args.format](runs, sys.stdout)
    _print_future_notes(runs)
    return OK


def verify(args: argparse.Namespace) -> int:
    from pipeline import query, warehouse

    run_ids = warehouse.published_run_ids(args.warehouse, args.run)
    problems = 0
    for run_id in run_ids:
        for line in warehouse.problems(args.warehouse, run_id, query.check):
            problems += 1
            print(printable(line), flush=True)
    with contextlib.suppress(warehouse.WarehouseError):  # a damaged manifest is one of the problems
        _print_future_notes(map(vars, warehouse.published_runs(args.warehouse)))
    message(f"runs verified: {len(run_ids)}; problems: {problems}")
    return FAILED if problems else OK


def _print_future_notes(runs: Iterable[Mapping[str, Any]]) -> None:
    for note in clock.future_notes(runs):
        message(note)


def expire(args: argparse.Namespace) -> int:
    from pipeline import warehouse
    from pipeline.report.screens import listing

    rules = warehouse.RetentionRules(args.keep_last, args.keep_daily, args.keep_weekly, args.keep_monthly)
    if args.run is None:
        removals = warehouse.removals(args.warehouse, rules, args.interrupted_days)
    elif rules != warehouse.RetentionRules() or args.interrupted_days is not None:
        raise UsageError("--run removes that run only: leave out --keep-... and --interrupted-days")
    else:
        removals = iter([warehouse.removal_of(args.warehouse, args.run)])
    for removal in removals:
        if not args.dry_run:
            removal.carry_out()
        print(listing.removal(removal.path, removal.reason, removal.size_bytes), flush=True)
    if args.dry_run:
        message("a dry run: nothing was removed")
    return OK


def target_kernel(args: argparse.Namespace) -> str | None:
    """Return the value of --target-kernel, else of --target-layout.

    :raises UsageError: they contradict each other.
    """
    try:
        target_kernels.check(args.target_kernel, args.target_layout)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return args.target_kernel or args.target_layout


def estimate(args: argparse.Namespace) -> int:
    from pipeline.report.screens import estimate

    if (args.online_memcgs or 0) > args.cache_ids:
        raise UsageError(
            f"--online-memcgs {args.online_memcgs} exceeds --cache-ids {args.cache_ids}; each memcg needs an id"
        )
    shape = args.superblocks, args.nodes, args.cache_ids, args.online_memcgs
    figures = estimate.estimate(*shape, target_kernel(args) or target_kernels.DEFAULT)
    print(json.dumps(figures.as_dict(), indent=2) if args.json else estimate.text(figures), end="")
    return OK


def fetch_drgn(args: argparse.Namespace) -> int:
    from pipeline.fanout.transports import wheels

    args.drgn_wheels.mkdir(parents=True, exist_ok=True)
    is_complete = wheels.fetch(args.drgn_wheels, args.python, args.arch, message)
    for wheel in sorted(args.drgn_wheels.glob("drgn-*.whl")):
        print(printable(str(wheel)))
    return OK if is_complete else FAILED
