"""The command line: parse, call, print. Data goes to stdout, progress and errors to stderr.

What is slow to import (ray, pyarrow, duckdb) is imported by the command that needs it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import __version__

if TYPE_CHECKING:
    from pipeline.inventory import Target, Targets
    from pipeline.runner import Limits

OK, FAILED, USAGE, SOME_NOT_GOOD, NONE_GOOD, INTERRUPTED = 0, 1, 2, 3, 4, 130

_EXIT_CODES = """\
exit codes:
  0  every target good              3  published, some targets not good
  1  the command itself failed      4  published, none good; inspect: the target is not good
  2  usage or inventory             130  interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; no exception passes but a defect of this program."""
    args = _parser().parse_args(argv)
    # A name that the terminal's encoding lacks must not end the program.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code: int = args.command(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout has gone, as `| head` does; keep the interpreter's own flush from complaining.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        explained = _code_of(error)
        if explained is None:
            raise
        print(f"lru-audit: {error}", file=sys.stderr)
        return explained


def _code_of(error: Exception) -> int | None:
    """Return the exit code of an error that a room explains in its message, None for a defect."""
    code: int | None = getattr(error, "exit_code", None)
    if code is None and isinstance(error, OSError) and error.filename:
        return FAILED  # a file that the user named, such as -o or -f
    return code


class UsageError(Exception):
    """The arguments make no sense together."""

    exit_code = USAGE


def _run(args: argparse.Namespace) -> int:
    from pipeline import fanout, inventory, plan, progress, query, report, warehouse
    from pipeline.collector.cost import MODEL_VERSION

    targets = _targets(args)
    run_id = warehouse.new_run_id()
    staging = warehouse.Staging.create(
        args.warehouse,
        {
            "run_id": run_id,
            "audit": _audit(args),
            "started_at": int(datetime.now(UTC).timestamp() * 1e6),
            "targets": len(targets),
            "tool_version": __version__,
            "model_version": MODEL_VERSION,
            "inventory_sha256": inventory.sha256(targets),
        },
    )
    collected = 0

    def keep(outcome: dict[str, Any]) -> None:
        nonlocal collected
        staging.append(outcome)
        collected += 1

    try:
        with progress.show(len(targets), quiet=args.quiet) as shown:
            fanout.run(
                plan.make(targets, args.parallel),
                on_outcome=keep,
                progress=shown,
                limits=_limits(args),
                retries=args.retries,
                address=args.address,
            )
    except KeyboardInterrupt:
        kept = f"{collected} of {len(targets)} targets were collected and are kept in {staging.directory}"
        print(kept, file=sys.stderr)
        raise
    published = staging.publish(query.check)
    if not args.quiet:
        print(f"published {published}", file=sys.stderr)
    session = query.Session(warehouse.tables(args.warehouse))
    found = report.build(session, run_id)
    report.RENDERERS["text"](found, sys.stdout)
    return _exit_code(session.rows("SELECT good, targets FROM runs WHERE run_id = $run", {"run": run_id})[0])


def _exit_code(counts: dict[str, int]) -> int:
    if counts["good"] == counts["targets"]:
        return OK
    return SOME_NOT_GOOD if counts["good"] else NONE_GOOD


def _audit(args: argparse.Namespace) -> str:
    if args.audit is not None:
        return str(args.audit)
    return args.inventory.stem if args.inventory is not None and str(args.inventory) != "-" else "adhoc"


def _targets(args: argparse.Namespace) -> Targets:
    """Return the targets of the arguments and the inventory; what a target does not say itself comes from options."""
    from pipeline import inventory

    targets = inventory.load(args.targets, args.inventory)
    if targets.other_files and not args.quiet:
        print(f"{targets.other_files} other files are no cores", file=sys.stderr)
    targets[:] = [_with_options(target, args) for target in targets]
    return targets


def _with_options(target: Target, args: argparse.Namespace) -> Target:
    if target.vmlinux is None and target.debug_dir is None:
        target = replace(target, vmlinux=_absolute(args.vmlinux), debug_dir=_absolute(args.debug_dir))
    return replace(target, btf_dir=_absolute(args.btf_dir))


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def _limits(args: argparse.Namespace) -> Limits:
    from pipeline.runner import Limits

    return Limits(timeout_s=args.timeout)


def _inspect(args: argparse.Namespace) -> int:
    from pipeline import inspect, inventory, runner

    targets = inventory.load([args.target])
    if len(targets) > 1:
        raise UsageError(f"{args.target} holds {len(targets)} cores; inspect takes one, run takes them all")
    target = _with_options(targets[0], args)
    figures = inspect.host_waste(runner.outcome(target, [runner.run(target, 1, _limits(args))]))
    good = figures["status"] in ("ok", "unsupported")
    if args.json:
        print(json.dumps(figures, indent=2))
    elif good:
        print(inspect.text(figures), end="")
    if not good:
        print(f"lru-audit: {target.name}: {figures['status']}: {figures['error']}", file=sys.stderr)
    return OK if good else NONE_GOOD


def _report(args: argparse.Namespace) -> int:
    from pipeline import query, report, warehouse

    session = query.Session(warehouse.tables(args.warehouse))
    run_id = None if args.run is None else warehouse.resolve(args.warehouse, args.run)
    found = report.build(session, run_id, args.audit)
    with args.output.open("w", encoding="utf-8") if args.output else nullcontext(sys.stdout) as file:
        report.RENDERERS[args.format](found, file)
    return OK


def _sql(args: argparse.Namespace) -> int:
    from pipeline import query, warehouse
    from pipeline.report import rows

    if (args.query is None) == (args.file is None):
        raise UsageError("sql takes one query, as an argument or with -f FILE")
    text = args.query if args.file is None else args.file.read_text(encoding="utf-8")
    result = query.Session(warehouse.tables(args.warehouse), confined=True).sql(text)
    rows.FORMATS[args.format](result, sys.stdout.buffer if args.format == "parquet" else sys.stdout)
    return OK


def _estimate(args: argparse.Namespace) -> int:
    from pipeline import estimate

    figures = estimate.estimate(args.superblocks, args.nodes, args.cache_ids, args.online_memcgs)
    print(json.dumps(figures.as_dict(), indent=2) if args.json else estimate.text(figures), end="")
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
        "lru-audit run /var/crash\n  lru-audit run -i fleet.yaml --audit nightly -w /data/warehouse",
    )
    run.add_argument("targets", metavar="TARGET", nargs="*", help="a core, a directory of cores, or live:")
    run.add_argument("-i", "--inventory", type=Path, help="file of targets: .yaml, .json, .csv, or - for stdin")
    run.add_argument("--audit", type=_name, help="name of the series of runs (default: the inventory's, else adhoc)")
    run.add_argument("--parallel", type=_positive, default=os.cpu_count() or 1, help="targets at a time (%(default)s)")
    run.add_argument("--retries", type=_count, default=1, help="of a target whose worker died (%(default)s)")
    run.add_argument("--address", help="Ray cluster to join (default: $RAY_ADDRESS, else a Ray of its own)")
    run.add_argument("--quiet", action="store_true", help="no progress")
    _add_warehouse(run)
    _add_collection(run)

    inspect = _command(
        commands,
        _inspect,
        "inspect",
        "the analysis of the commit message for one kernel",
        "lru-audit inspect /var/crash/vmcore\n  lru-audit inspect live: --json",
    )
    inspect.add_argument("target", metavar="TARGET", help="a core, or live:")
    inspect.add_argument("--json", action="store_true", help="the columns of targets and host_waste")
    inspect.set_defaults(inventory=None, quiet=True)
    _add_collection(inspect)

    report = _command(
        commands,
        _report,
        "report",
        "what a published run found",
        "lru-audit report\n  lru-audit report --audit nightly --format csv -o waste.csv",
    )
    report.add_argument("--run", help="run id, a unique prefix of it, or latest")
    report.add_argument("--audit", help="its newest run (default: of the audit with the newest that is not adhoc)")
    report.add_argument("--format", choices=("text", "markdown", "csv", "json"), default="text")
    report.add_argument("-o", "--output", type=Path, help="file to write instead of stdout")
    _add_warehouse(report)

    sql = _command(
        commands,
        _sql,
        "sql",
        "query the warehouse, read-only",
        'lru-audit sql "FROM host_waste"\n  lru-audit sql --format csv "SELECT * FROM fstype_waste"',
    )
    sql.add_argument("query", metavar="QUERY", nargs="?", help="one SELECT; DuckDB's dialect")
    sql.add_argument("-f", "--file", type=Path, help="file with the query")
    formats = ("table", "csv", "json", "jsonl", "markdown", "parquet")
    sql.add_argument("--format", choices=formats, default="table")
    _add_warehouse(sql)

    estimate = _command(
        commands,
        _estimate,
        "estimate",
        "the cost model as a calculator",
        "lru-audit estimate --superblocks 952 --nodes 4 --cache-ids 24574 --online-memcgs 480",
    )
    estimate.add_argument("--superblocks", type=_count, required=True)
    estimate.add_argument("--nodes", type=_positive, required=True, help="NUMA nodes, all possible")
    estimate.add_argument("--cache-ids", type=_count, required=True, help="memcg_nr_cache_ids")
    estimate.add_argument("--online-memcgs", type=_count, help="memcgs that a lazy kernel would have entries for")
    estimate.add_argument("--json", action="store_true")
    return parser


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


def _add_warehouse(parser: argparse.ArgumentParser) -> None:
    default = Path(os.environ.get("LRU_AUDIT_WAREHOUSE", "warehouse"))
    parser.add_argument(
        "-w",
        "--warehouse",
        type=Path,
        default=default,
        help="directory (default: $LRU_AUDIT_WAREHOUSE, else ./warehouse)",
    )


def _add_collection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--timeout", type=_seconds, default=600.0, help="seconds for one target (%(default)g)")
    parser.add_argument("--vmlinux", type=Path, help="file with the kernel's DWARF, to use instead of its BTF")
    parser.add_argument("--debug-dir", type=Path, help="directory to search by build id for it")
    parser.add_argument("--btf-dir", type=Path, help="directory of BTF by release and arch, for kernels without")


def _count(text: str) -> int:
    value = int(text)
    if not 0 <= value < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 2^31")
    return value


def _positive(text: str) -> int:
    value = _count(text)
    if not value:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return value


def _name(text: str) -> str:
    if not re.fullmatch(r"[\w.+@-]{1,100}", text):
        raise argparse.ArgumentTypeError(f"{text!a}: a name has letters, digits and . _ + @ -")
    return text
