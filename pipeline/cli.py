"""The command line: parse, call, print. Data goes to stdout, progress and errors to stderr.

What is slow to import (ray, pyarrow, duckdb) is imported by the command that needs it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.collector.status import GOOD
from pipeline.text import printable

if TYPE_CHECKING:
    from pipeline.inventory import Target, Targets
    from pipeline.plan import Node, Plan
    from pipeline.report import Report, Threshold
    from pipeline.runner import Limits
    from pipeline.warehouse import Staging

OK, FAILED, USAGE, SOME_NOT_GOOD, NONE_GOOD, FIRED, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130

_ARCHES = ("x86_64", "aarch64")
_PYTHONS = tuple(f"3.{minor}" for minor in range(6, 15))

_EXIT_CODES = """\
exit codes:
  0  every target good              3  published, some targets not good
  1  the command itself failed      4  published, none good; inspect: the target is not good
  2  usage or inventory             5  a --fail-if condition holds
                                    130  interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; no exception passes but a defect of this program."""
    _open_standard_streams()
    args = _parser().parse_args(argv)
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
        # What is still buffered cannot be written either; keep the interpreter from trying at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # the reader of stdout has gone, as `| head` does
            print(f"lru-audit: {error.filename or 'stdout'}: {error.strerror or error}", file=sys.stderr)
        return FAILED
    except Exception as error:
        # The rooms' own errors explain themselves; anything else is a defect of this program.
        explained: int | None = getattr(error, "exit_code", None)
        if explained is None:
            raise
        print(f"lru-audit: {error}", file=sys.stderr)
        return explained


def _open_standard_streams() -> None:
    """Have a stdout and a stderr, whatever the caller closed, that no name ends by its characters."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115
        getattr(sys, name).reconfigure(errors="backslashreplace")


class UsageError(Exception):
    """The arguments make no sense together."""

    exit_code = USAGE


def _run(args: argparse.Namespace) -> int:
    from pipeline import cluster, inventory, warehouse

    targets = _targets(args)
    # Ray first: where it cannot be had, nothing is staged; and `ray:*` is what it has.
    with cluster.connected(args.parallel, args.address):
        planned = _made(args, targets)
        placed = [*(target for batch in planned.batches for target in batch.targets)]
        placed += [one.target for one in planned.unreachable]
        run = {
            **_now(),
            "audit": _audit(args),
            "started_at": int(datetime.now(UTC).timestamp() * 1e6),
            "targets": len(placed),
            "inventory_sha256": inventory.sha256(placed),
        }
        options = {"limits": vars(_limits(args)), "retries": args.retries}
        staging = warehouse.Staging.create(args.warehouse, run, options, map(vars, placed))
        _collect(args, staging, planned)
    return _publish(args, staging)


def _made(args: argparse.Namespace, targets: Sequence[Target]) -> Plan:
    """Place targets in the cluster that this process is connected to."""
    from pipeline import cluster, plan

    return plan.make(targets, args.parallel or cluster.cpus(), cluster.nodes(), args.ssh_parallel)


def _now() -> dict[str, Any]:
    """What is known of any run that starts now."""
    from pipeline import warehouse
    from pipeline.collector.cost import MODEL_VERSION

    return {"run_id": warehouse.new_run_id(), "tool_version": __version__, "model_version": MODEL_VERSION}


def _resume(args: argparse.Namespace) -> int:
    from pipeline import cluster, warehouse

    run_id = warehouse.resumable(args.warehouse, args.run)
    if run_id in warehouse.staged(args.warehouse):
        staging = warehouse.Staging(args.warehouse, run_id)
    else:
        revised = warehouse.read(args.warehouse, run_id)
        if revised.good == revised.targets:
            print(f"every target of {run_id} is good: nothing is left to collect", file=sys.stderr)
            return OK
        staging = warehouse.Staging.revise(args.warehouse, run_id, **_now())
        if not args.quiet:
            print(f"{staging.directory.name} revises {run_id}", file=sys.stderr)
    if left := _left(staging):
        with cluster.connected(args.parallel, args.address):
            _collect(args, staging, _made(args, left))
    return _publish(args, staging)


def _publish_staged(args: argparse.Namespace) -> int:
    from pipeline import runner, warehouse

    staging = warehouse.Staging(args.warehouse, warehouse.unpublished(args.warehouse, args.run))
    left = _left(staging)
    if left and not args.partial:
        run_id = staging.directory.name
        raise UsageError(
            f"{len(left)} of {staging.run['targets']} targets of {run_id} are not collected; "
            f"go on with: lru-audit resume {run_id}, or publish it with --partial"
        )
    for target in left:
        staging.append(runner.outcome(target, []))
    return _publish(args, staging)


def _left(staging: Staging) -> list[Target]:
    """Return the targets of a staged run that have no outcome."""
    from pipeline.inventory import Target

    _, targets = staging.inputs()
    collected = staging.collected()
    return [_restored(staging, Target, target) for target in targets if target["name"] not in collected]


def _restored(staging: Staging, make: Callable[..., Any], fields: dict[str, Any]) -> Any:
    try:
        return make(**fields)
    except TypeError as error:
        raise UsageError(f"{staging.directory}: staged by another version of list-lru-audit: {error}") from error


def _collect(args: argparse.Namespace, staging: Staging, planned: Plan) -> None:
    from pipeline import fanout, progress
    from pipeline.runner import Limits

    options = staging.options()
    with _kept(staging), progress.show(planned.targets, quiet=args.quiet) as shown:
        fanout.run(
            planned,
            on_outcome=staging.append,
            progress=shown,
            limits=_restored(staging, Limits, options["limits"]),
            retries=options["retries"],
        )


@contextlib.contextmanager
def _kept(staging: Staging) -> Iterator[None]:
    """Where a run is interrupted or loses its last node, say what of it is kept, and how to go on."""
    from pipeline.cluster import ClusterError

    try:
        yield
    except (KeyboardInterrupt, ClusterError):
        collected = f"{len(staging.collected())} of {staging.run['targets']} targets were collected"
        print(f"{collected} and are kept in {staging.directory}", file=sys.stderr)
        print(f"go on with: lru-audit resume {staging.directory.name}", file=sys.stderr)
        raise


def _publish(args: argparse.Namespace, staging: Staging) -> int:
    """Publish a run of which every target has an outcome, and print the ranking."""
    from pipeline import query, report, warehouse

    with _kept(staging):
        published = staging.publish(query.check)
    if not args.quiet:
        print(f"published {published.directory}", file=sys.stderr)
    with warehouse.reading(args.warehouse) as tables:
        found = report.build(query.Session(tables), published.run_id)
        with contextlib.suppress(BrokenPipeError):  # it is published whether or not somebody reads on
            report.RENDERERS["text"](found, sys.stdout)
            sys.stdout.flush()
        if _fired(args.fail_if, found):
            return FIRED
    if published.good == published.targets:
        return OK
    return SOME_NOT_GOOD if published.good else NONE_GOOD


def _fired(thresholds: Sequence[Threshold], found: Report) -> bool:
    """Name the conditions that hold, and return whether one does."""
    fired = [threshold for threshold in thresholds if threshold.fires(found)]
    for threshold in fired:
        print(f"lru-audit: --fail-if: {threshold.said(found)}", file=sys.stderr)
    return bool(fired)


def _audit(args: argparse.Namespace) -> str:
    if args.audit is not None:
        return str(args.audit)
    if args.inventory in (None, "-"):
        return "adhoc"
    return Path(args.inventory.removeprefix("ansible:")).stem


def _targets(args: argparse.Namespace) -> Targets:
    """Return the targets of the arguments and the inventory; what a target does not say itself comes from options."""
    from pipeline import inventory

    targets = inventory.load(args.targets, args.inventory, limits=args.limit, labels=args.label)
    if targets.other_files and not args.quiet:
        print(f"{targets.other_files} other files are no cores", file=sys.stderr)
    targets[:] = [_with_options(target, args) for target in targets]
    return targets


def _with_options(target: Target, args: argparse.Namespace) -> Target:
    if args.ship_drgn != (args.drgn_wheels is not None):
        raise UsageError("--ship-drgn and --drgn-wheels DIR go together; lru-audit fetch-drgn fills it")
    if target.vmlinux is None and target.debug_dir is None:
        target = replace(target, vmlinux=_absolute(args.vmlinux), debug_dir=_absolute(args.debug_dir))
    if target.kind == "qmp" and target.vmcoreinfo is None:
        target = replace(target, vmcoreinfo=_absolute(args.vmcoreinfo))
    if target.over_ssh:
        target = replace(target, ssh_config=_absolute(args.ssh_config), drgn_wheels=_absolute(args.drgn_wheels))
    return replace(
        target,
        btf_dir=_absolute(args.btf_dir),
        charged=args.charged,
        target_layout=args.target_layout,
        verify=args.verify,
        max_reads=args.max_reads,
    )


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def _limits(args: argparse.Namespace) -> Limits:
    from pipeline.runner import Limits

    return Limits(timeout_s=args.timeout)


def _plan(args: argparse.Namespace) -> int:
    from pipeline import cluster, plan

    targets = _targets(args)
    nodes = [plan.this_machine()]
    joins = (args.address or os.environ.get("RAY_ADDRESS") or "local") != "local"
    with cluster.connected(args.parallel, args.address) if joins or args.check else contextlib.nullcontext():
        if joins:
            nodes = cluster.nodes()
        parallel = args.parallel or (cluster.cpus() if joins else os.cpu_count() or 1)
        made = plan.make(targets, parallel, nodes, args.ssh_parallel)
        for line in plan.text(made, nodes, args.timeout):
            print(line)
        return _check(args, made, nodes) if args.check else OK


def _check(args: argparse.Namespace, made: Plan, nodes: Sequence[Node]) -> int:
    """Try some targets of a plan, print how each ended, and return the exit code of a run."""
    from pipeline import fanout, plan, progress

    sample = plan.sample(made, nodes)
    outcomes: list[dict[str, Any]] = []
    with progress.show(sample.targets, quiet=args.quiet) as shown:
        fanout.run(sample, on_outcome=outcomes.append, progress=shown, limits=_limits(args))
    rows = [("tried", "from", "status", "reason")]
    for outcome in sorted(outcomes, key=lambda outcome: str(outcome["target"])):
        row, attempt = outcome["row"], outcome["attempts"][-1]
        rows.append((outcome["target"], attempt["node"] or "", row["status"], row["error"] or ""))
    print()
    for line in plan.table(rows):
        print(line)
    good = sum(outcome["row"]["status"] in GOOD for outcome in outcomes)
    if good == len(outcomes) and not made.unreachable:
        return OK
    return SOME_NOT_GOOD if good else NONE_GOOD


def _inspect(args: argparse.Namespace) -> int:
    from pipeline import inspect, inventory, runner

    targets = inventory.load([args.target])
    if len(targets) > 1:
        raise UsageError(f"{args.target} holds {len(targets)} cores; inspect takes one, run takes them all")
    if targets[0].kind == "ray":
        raise UsageError(f"{args.target} needs Ray, which inspect does not use; run does")
    target = _with_options(targets[0], args)
    figures = inspect.host_waste(runner.outcome(target, [runner.run(target, 1, _limits(args))]))
    good = figures["status"] in GOOD
    if args.json:
        print(json.dumps(figures, indent=2))
    elif good:
        print(inspect.text(figures), end="")
    if not good:
        print(f"lru-audit: {target.name}: {figures['status']}: {figures['error']}", file=sys.stderr)
    return OK if good else NONE_GOOD


def _report(args: argparse.Namespace) -> int:
    from pipeline import output, query, report, warehouse

    run_id = None if args.run in (None, "latest") else warehouse.resolve(args.warehouse, args.run, args.audit)
    render = report.RENDERERS[args.format]
    if args.format == "prometheus":
        render = functools.partial(report.prometheus, max_series=args.max_series)
    with warehouse.reading(args.warehouse) as tables:
        found = report.build(query.Session(tables), run_id, args.audit)
        with output.opened(args.output, binary=args.format == "parquet") as file:
            render(found, file)
        return FIRED if _fired(args.fail_if, found) else OK


def _sql(args: argparse.Namespace) -> int:
    from pipeline import adhoc

    adhoc.run(args)
    return OK


def _runs(args: argparse.Namespace) -> int:
    from pipeline import listing, warehouse

    listing.FORMATS[args.format](warehouse.overview(args.warehouse), sys.stdout)
    return OK


def _verify(args: argparse.Namespace) -> int:
    from pipeline import query, warehouse

    run_ids = warehouse.verifiable(args.warehouse, args.run)
    problems = 0
    for run_id in run_ids:
        for line in warehouse.problems(args.warehouse, run_id, query.check):
            problems += 1
            print(printable(line), flush=True)
    print(f"runs verified: {len(run_ids)}; problems: {problems}", file=sys.stderr)
    return FAILED if problems else OK


def _expire(args: argparse.Namespace) -> int:
    from pipeline import listing, warehouse

    rules = warehouse.Rules(args.keep_last, args.keep_daily, args.keep_weekly, args.keep_monthly)
    for removal in warehouse.removals(args.warehouse, rules, args.interrupted_days):
        if not args.dry_run:
            removal.carry_out()
        print(listing.removal(removal.path, removal.why, removal.size_bytes), flush=True)
    if args.dry_run:
        print("a dry run: nothing was removed", file=sys.stderr)
    return OK


def _estimate(args: argparse.Namespace) -> int:
    from pipeline import estimate

    if (args.online_memcgs or 0) > args.cache_ids:
        raise UsageError(f"{args.online_memcgs} memcgs need as many ids, and there are {args.cache_ids}")
    shape = args.superblocks, args.nodes, args.cache_ids, args.online_memcgs
    figures = estimate.estimate(*shape, args.target_layout)
    print(json.dumps(figures.as_dict(), indent=2) if args.json else estimate.text(figures), end="")
    return OK


def _fetch_drgn(args: argparse.Namespace) -> int:
    from pipeline import wheels

    args.drgn_wheels.mkdir(parents=True, exist_ok=True)
    everywhere = wheels.fetch(args.drgn_wheels, args.python, args.arch, lambda text: print(text, file=sys.stderr))
    for wheel in sorted(args.drgn_wheels.glob("drgn-*.whl")):
        print(wheel)
    return OK if everywhere else FAILED


def _completion(args: argparse.Namespace) -> int:
    import shtab

    parser = _parser()
    (commands,) = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for command in commands.values():
        for action in command._actions:
            if action.type is Path or action.dest in ("target", "targets", "inventory"):
                action.complete = shtab.FILE
    print(shtab.complete(parser, shell=args.shell))
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lru-audit",
        description="Find the memory that eager list_lru allocation wastes on Linux before v5.18.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lru-audit {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    run = _command(
        commands,
        _run,
        "run",
        "collect, publish, print the ranking",
        "lru-audit run /var/crash\n  lru-audit run -i fleet.yaml --audit nightly -w /data/warehouse\n"
        "  lru-audit run -i ansible:hosts.ini --limit group.db=true --label rack",
    )
    _add_targets(run)
    run.add_argument("--audit", type=_name, help="name of the series of runs (default: the inventory's, else adhoc)")
    run.add_argument("--retries", type=_count, default=1, help="of a target whose worker was killed (%(default)s)")
    _add_fail_if(run)
    _add_fanout(run)
    _add_warehouse(run)
    _add_collection(run)

    plan = _command(
        commands,
        _plan,
        "plan",
        "what run would audit, and from where; touches no target unless told to --check",
        "lru-audit plan -i fleet.yaml --limit 'db*'\n  lru-audit plan ray:* --address 10.0.0.1:6379",
    )
    _add_targets(plan)
    plan.add_argument(
        "--check",
        action="store_true",
        help="then try one target of each kind from each node; exits as run does, publishes nothing",
    )
    _add_fanout(plan)
    _add_collection(plan)

    resume = _command(
        commands,
        _resume,
        "resume",
        "go on with a run that was interrupted, or collect again what was not good in a published one",
        "lru-audit resume latest\n  lru-audit resume 20261125T030329Z",
    )
    resume.add_argument("run", metavar="RUN", help="run id, a unique prefix of it, or latest")
    _add_fail_if(resume)
    _add_fanout(resume)
    _add_warehouse(resume)

    publish = _command(
        commands,
        _publish_staged,
        "publish",
        "publish a run that was interrupted",
        "lru-audit publish latest --partial",
    )
    publish.add_argument("run", metavar="RUN", help="run id, a unique prefix of it, or latest")
    publish.add_argument("--partial", action="store_true", help="targets that were not collected become not_run")
    publish.add_argument("--quiet", action="store_true", help="print the ranking only")
    _add_fail_if(publish)
    _add_warehouse(publish)

    inspect = _command(
        commands,
        _inspect,
        "inspect",
        "the analysis of the commit message for one kernel",
        "lru-audit inspect /var/crash/vmcore\n  lru-audit inspect live: --json",
    )
    inspect.add_argument("target", metavar="TARGET", help="a core, live:, ssh:[USER@]HOST[:PORT] or qmp:SOCKET")
    inspect.add_argument("--json", action="store_true", help="the columns of targets and host_waste")
    inspect.set_defaults(inventory=None, quiet=True)
    _add_collection(inspect)

    report = _command(
        commands,
        _report,
        "report",
        "what a published run found",
        "lru-audit report\n  lru-audit report --audit nightly --format html -o waste.html",
    )
    report.add_argument("--run", help="run id, a unique prefix of it, or latest")
    report.add_argument("--audit", help="its newest run (default: of the audit with the newest that is not adhoc)")
    report.add_argument(
        "--format",
        choices=("text", "html", "markdown", "csv", "json", "parquet", "prometheus"),
        default="text",
    )
    report.add_argument("-o", "--output", type=Path, help="file to write instead of stdout")
    _add_fail_if(report)
    report.add_argument(
        "--max-series",
        metavar="N",
        type=_count,
        default=10_000,
        help="prometheus: with more hosts than N only totals are written (default 10000)",
    )
    _add_warehouse(report)

    sql = _command(
        commands,
        _sql,
        "sql",
        "query the warehouse, read-only",
        'lru-audit sql "FROM host_waste"\n'
        "  lru-audit sql --param target=db1 --format csv 'SELECT * FROM targets WHERE target = $target'\n"
        "  lru-audit sql --print-init > audit.sql && duckdb -init audit.sql",
    )
    sql.add_argument("query", metavar="QUERY", nargs="?", help="one SELECT in DuckDB's dialect; - reads it from stdin")
    sql.add_argument("-f", "--file", type=Path, help="file with the query")
    sql.add_argument(
        "--param", metavar="NAME=VALUE", action="append", default=[], help="value of $NAME in the query; again for more"
    )
    sql.add_argument("--run", help="only this run: its id, a unique prefix of it, or latest")
    sql.add_argument("--audit", help="only runs of this audit")
    formats = ("table", "csv", "json", "jsonl", "markdown", "parquet")
    sql.add_argument("--format", choices=formats, help="(default: by the suffix of -o, else table)")
    sql.add_argument("-o", "--output", type=Path, help="file to write instead of stdout")
    sql.add_argument("--timeout", type=_seconds, default=300.0, help="seconds for the query (%(default)g)")
    sql.add_argument(
        "--memory", type=_memory, metavar="SIZE", help="most that it may use, such as 4GiB (default: half)"
    )
    sql.add_argument(
        "--print-init",
        action="store_true",
        help="print the SQL that makes the views in any DuckDB, as for duckdb -init FILE; runs no query",
    )
    _add_warehouse(sql)

    _add_keeping(commands)

    estimate = _command(
        commands,
        _estimate,
        "estimate",
        "the cost model as a calculator",
        "lru-audit estimate --superblocks 952 --nodes 4 --cache-ids 24574 --online-memcgs 480",
    )
    estimate.add_argument("--superblocks", type=_count, required=True)
    estimate.add_argument("--nodes", type=_nodes, required=True, help="NUMA nodes, all possible")
    estimate.add_argument("--cache-ids", type=_cache_ids, required=True, help="memcg_nr_cache_ids")
    estimate.add_argument("--online-memcgs", type=_cache_ids, help="memcgs that a lazy kernel would have entries for")
    _add_target_layout(estimate)
    estimate.set_defaults(target_layout="5.18")
    estimate.add_argument("--json", action="store_true")

    fetch = _command(
        commands,
        _fetch_drgn,
        "fetch-drgn",
        "download the wheels of drgn that are sent to hosts without it",
        "lru-audit fetch-drgn --drgn-wheels wheels --python 3.6 3.9 --arch x86_64 aarch64",
    )
    fetch.add_argument("--drgn-wheels", type=Path, required=True, metavar="DIR", help="directory to fill")
    fetch.add_argument("--python", type=_python, nargs="+", default=list(_PYTHONS), metavar="3.N", help="of the hosts")
    fetch.add_argument("--arch", nargs="+", choices=_ARCHES, default=[os.uname().machine], help="(%(default)s)")

    completion = _command(
        commands,
        _completion,
        "completion",
        "print completion for a shell",
        "lru-audit completion bash > /etc/bash_completion.d/lru-audit",
    )
    completion.add_argument("shell", choices=("bash", "zsh"))
    return parser


def _add_keeping(commands: Any) -> None:
    """Add the commands that list, verify and expire runs."""
    runs = _command(
        commands,
        _runs,
        "runs",
        "list the runs of a warehouse, and those that wait in staging",
        "lru-audit runs\n  lru-audit runs --format json -w s3://fleet/lru-audit",
    )
    runs.add_argument("--format", choices=("text", "json"), default="text")
    _add_warehouse(runs)

    verify = _command(
        commands,
        _verify,
        "verify",
        "recheck size, sha256 and row count of every file of published runs, and the checks over their rows",
        "lru-audit verify\n  lru-audit verify latest",
    )
    verify.add_argument("run", metavar="RUN", nargs="?", help="run id, a unique prefix of it, or latest (default: all)")
    _add_warehouse(verify)

    expire = _command(
        commands,
        _expire,
        "expire",
        "remove runs that no rule keeps, and what killed processes left",
        "lru-audit expire --keep-daily 14 --keep-weekly 8 --keep-monthly 24 --dry-run\n"
        "  lru-audit expire --interrupted-days 7",
    )
    expire.description = """Remove runs that no rule keeps, and what killed processes left.

Each audit has its runs kept by itself: the newest N of --keep-last, and the newest one of each of the N newest days,
ISO weeks or months (UTC) that have runs. A run that any rule keeps stays; rules do not add up. Without a rule no run
goes. Always kept are the newest good run of an audit (complete, some target ok) and what a run in staging revises. A
run that another one revises counts for no rule and goes; its revision never goes before it."""
    for period in ("last", "daily", "weekly", "monthly"):
        expire.add_argument(f"--keep-{period}", type=_positive, default=0, metavar="N")
    expire.add_argument(
        "--interrupted-days",
        type=_count,
        metavar="N",
        help="also remove runs that were interrupted, and uploads, that nobody went on with for N days (default: none)",
    )
    expire.add_argument("--dry-run", action="store_true", help="print what would be removed, and remove nothing")
    _add_warehouse(expire)


def _command(commands: Any, function: Any, name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"examples:\n  {examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=function)
    return parser


def _add_targets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "targets",
        metavar="TARGET",
        nargs="*",
        help="a core, a directory of cores, live: (this machine), ssh:[USER@]HOST[:PORT], ray:NODE or ray:* (nodes of "
        "the Ray cluster), qmp:SOCKET (the monitor of a QEMU guest)",
    )
    parser.add_argument(
        "-i",
        "--inventory",
        help=".yaml, .json or .csv file of targets; - for one a line on stdin; ansible:FILE for Ansible's (any form "
        "that ansible-inventory reads; its JSON as a .json file, too)",
    )
    parser.add_argument(
        "--limit",
        metavar="PATTERN",
        action="append",
        default=[],
        help="only targets whose name matches a glob, or whose label does (rack=r1*); again for more of the same; a "
        "name and different labels have all to match",
    )
    parser.add_argument(
        "--label",
        metavar="VAR",
        action="append",
        default=[],
        help="make a variable of Ansible's hosts a label; no other is stored (groups are labels group.NAME)",
    )


def _add_fail_if(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fail-if",
        metavar="CONDITION",
        type=_threshold,
        action="append",
        default=[],
        help="exit with 5 where a condition holds, such as 'worst_wasted_bytes > 10GiB' or 'not_good_pct >= 5'; also "
        "wasted_bytes, wasted_pct_of_memory, worst_wasted_pct_of_memory, list_lru_bytes, not_good; again for another",
    )


def _add_fanout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parallel", type=_positive, help="targets at a time (default: as many as Ray has CPUs)")
    parser.add_argument("--ssh-parallel", type=_positive, default=32, help="and so many over ssh (%(default)s)")
    parser.add_argument("--address", help="Ray cluster to join (default: $RAY_ADDRESS, else a Ray of its own)")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _add_warehouse(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-w",
        "--warehouse",
        default=os.environ.get("LRU_AUDIT_WAREHOUSE") or "warehouse",
        help="directory or s3://BUCKET/PREFIX[?region=R&endpoint_override=HOST:PORT] (default: $LRU_AUDIT_WAREHOUSE, "
        "else ./warehouse); with S3, runs are staged in $XDG_STATE_HOME/lru-audit, else ~/.local/state/lru-audit",
    )


def _add_collection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--timeout", type=_seconds, default=600.0, help="seconds for one target (%(default)g)")
    parser.add_argument(
        "--max-reads",
        type=_positive,
        metavar="N",
        help="stop an audit that makes more read system calls than this; over_budget (default: no limit)",
    )
    parser.add_argument("--vmlinux", type=Path, help="file with the kernel's DWARF, to use instead of its BTF")
    parser.add_argument("--debug-dir", type=Path, help="directory to search by build id for it")
    parser.add_argument("--btf-dir", type=Path, help="directory of BTF by release and arch, for kernels without")
    parser.add_argument(
        "--charged",
        action=argparse.BooleanOptionalAction,
        help="read which memcgs own objects of each list, listed or not: 16 MB a GB of memory, 0.03 CPU s a GB "
        "(default: cores yes, live: no); without it wasted_bytes is a lower bound",
    )
    _add_target_layout(parser)
    parser.add_argument(
        "--verify", action="store_true", help="look at every pointer array of an eager kernel, not at a sample"
    )
    parser.add_argument("--ssh-config", type=Path, help="configuration file of ssh (default: the account's own)")
    parser.add_argument("--ship-drgn", action="store_true", help="send drgn to hosts over ssh and leave nothing there")
    parser.add_argument("--drgn-wheels", type=Path, metavar="DIR", help="wheels for it, which fetch-drgn downloads")
    parser.add_argument("--vmcoreinfo", type=Path, help="VMCOREINFO of QEMU guests that do not hand it over")


def _add_target_layout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target-layout",
        choices=("5.18", "6.13"),
        help="lazy kernel to compare with: v5.18-6.12 (default), or v6.13+, whose list_lru_one has a lock: 32 bytes",
    )


def _between(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return value

    return number


_count = _between(0, (1 << 31) - 1)
_positive = _between(1, (1 << 31) - 1)
_nodes = _between(1, 1 << 10)  # MAX_NUMNODES
_cache_ids = _between(0, 65535)  # MEM_CGROUP_ID_MAX


def _threshold(text: str) -> Threshold:
    from pipeline import report

    try:
        return report.Threshold.parse(text)
    except report.ThresholdError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return value


def _memory(text: str) -> int:
    match = re.fullmatch(r"(?i)(\d+(?:\.\d+)?) ?([kmgt])?(i)?b?", text)
    if match is None or (match[3] and not match[2]):
        raise argparse.ArgumentTypeError(f"{text!a} is no size such as 512MiB or 4GiB")
    size = float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index((match[2] or " ").lower())
    if not 1 << 24 <= size < 1 << 50:
        raise argparse.ArgumentTypeError(f"{text}: a query needs 16MiB or more")
    return int(size)


def _python(text: str) -> str:
    if not re.fullmatch(r"3\.([6-9]|[1-9]\d)", text):
        raise argparse.ArgumentTypeError(f"{text!a} is not a Python such as 3.6, the oldest that the collector runs on")
    return text


def _name(text: str) -> str:
    if not re.fullmatch(r"[\w.+@-]{1,100}", text):
        raise argparse.ArgumentTypeError(f"{text!a}: a name has letters, digits and . _ + @ -")
    return text
