"""What can be typed: each command with its options, and what their values may be."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.common.text import parsed_bytes

from . import collecting, reading
from .exits import EXPLAINED, OK

if TYPE_CHECKING:
    from pipeline.report.threshold import Threshold

_ARCHES = ("x86_64", "aarch64")
_PYTHONS = tuple(f"3.{minor}" for minor in range(6, 15))


def parser() -> argparse.ArgumentParser:
    """Make the parser of the whole command line; ``command`` of what it parses is the function to call."""
    made = argparse.ArgumentParser(
        prog="lru-audit",
        description="Find the memory that eager list_lru allocation wastes on Linux before v5.18.",
        epilog=EXPLAINED,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"lru-audit {__version__}")
    commands = made.add_subparsers(metavar="COMMAND", required=True)

    run = _command(
        commands,
        collecting.run,
        "run",
        "collect, publish, print the ranking",
        "lru-audit run /var/crash\n  lru-audit run -i fleet.yaml --audit nightly -w /data/warehouse\n"
        "  lru-audit run -i ansible:hosts.ini --limit group.db=true --label rack",
    )
    _add_targets(run)
    run.add_argument("--audit", type=_name, help="name of the series of runs (default: the inventory's, else adhoc)")
    run.add_argument(
        "--redact",
        action="store_true",
        help="keep names of mounts, devices and cgroups as pseudonyms only, for a warehouse that others may see; names "
        "of hosts and targets, labels and filesystem types stay (call targets in the inventory as you like)",
    )
    run.add_argument("--retries", type=_count, default=1, help="of a target whose worker was killed (%(default)s)")
    _add_fail_if(run)
    _add_overlap(run)
    _add_fanout(run)
    _add_warehouse(run)
    _add_collection(run)

    plan = _command(
        commands,
        collecting.plan,
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
        collecting.resume,
        "resume",
        "go on with a run that was interrupted, or collect again what was not good in a published one",
        "lru-audit resume latest\n  lru-audit resume 20261125T030329Z",
    )
    resume.add_argument("run", metavar="RUN", help="run id, a unique prefix of it, or latest")
    _add_fail_if(resume)
    _add_overlap(resume)
    _add_fanout(resume)
    _add_warehouse(resume)

    publish = _command(
        commands,
        collecting.publish,
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
        collecting.inspect,
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
        reading.report,
        "report",
        "what a published run found",
        "lru-audit report\n  lru-audit report --audit nightly -o waste.html",
    )
    report.add_argument("--run", help="run id, a unique prefix of it, or latest")
    report.add_argument("--audit", help="its newest run (default: of the audit with the newest that is not adhoc)")
    report.add_argument(
        "--format",
        choices=("text", "html", "markdown", "csv", "json", "parquet", "prometheus"),
        help="(default: by the suffix of -o, .prom for prometheus, else text)",
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
        reading.sql,
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
        reading.estimate,
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
        reading.fetch_drgn,
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
    return made


def _completion(args: argparse.Namespace) -> int:
    import shtab

    made = parser()
    (commands,) = (action.choices for action in made._actions if isinstance(action, argparse._SubParsersAction))
    for command in commands.values():
        for action in command._actions:
            if action.type is Path or action.dest in ("target", "targets", "inventory"):
                action.complete = shtab.FILE
    print(shtab.complete(made, shell=args.shell))
    return OK


def _add_keeping(commands: Any) -> None:
    """Add the commands that list, verify and expire runs."""
    runs = _command(
        commands,
        reading.runs,
        "runs",
        "list the runs of a warehouse, and those that wait in staging",
        "lru-audit runs\n  lru-audit runs --format json -w s3://fleet/lru-audit",
    )
    runs.add_argument("--format", choices=("text", "json"), default="text")
    _add_warehouse(runs)

    verify = _command(
        commands,
        reading.verify,
        "verify",
        "recheck size, sha256 and row count of every file of published runs, and the checks over their rows",
        "lru-audit verify\n  lru-audit verify latest",
    )
    verify.add_argument("run", metavar="RUN", nargs="?", help="run id, a unique prefix of it, or latest (default: all)")
    _add_warehouse(verify)

    expire = _command(
        commands,
        reading.expire,
        "expire",
        "remove runs that no rule keeps, and what killed processes left",
        "lru-audit expire --keep-daily 14 --keep-weekly 8 --keep-monthly 24 --dry-run\n"
        "  lru-audit expire --interrupted-days 7",
    )
    expire.description = """Remove runs that no rule keeps, and what killed processes left.

Each audit has its runs kept by itself: the newest N of --keep-last, and the newest one of each of the N newest days,
ISO weeks or months (UTC) that have runs. A run that any rule keeps stays; rules do not add up. Without a rule no run
goes. Always kept is the newest good run of an audit (complete, some target ok). A run that another one revises counts
for no rule and goes; its revision never goes before it. A revision that waits in staging needs the run that it revises
only until the good rows are carried over, which comes before anything is collected: until then that run is kept, but
with s3:// only by an expire on the machine that stages the revision."""
    for period in ("last", "daily", "weekly", "monthly"):
        expire.add_argument(f"--keep-{period}", type=_positive, default=0, metavar="N")
    expire.add_argument(
        "--interrupted-days",
        type=_count,
        metavar="N",
        help="also remove runs that were interrupted, and uploads to s3://, that nobody went on with for N days; an "
        "upload has no lock and stays for a day at least (default: none)",
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


def _add_overlap(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--overlap",
        action="store_true",
        help="go on where another run of this audit is at work in the warehouse (default: end with 1 and say whose); "
        "runs that other machines write into S3 are not seen, a scheduler has to keep them apart",
    )


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
    from pipeline.report.threshold import Threshold, ThresholdError

    try:
        return Threshold.parse(text)
    except ThresholdError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return value


def _memory(text: str) -> int:
    try:
        size = parsed_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
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
