"""Parser of the command line: commands, their options, and the values that options take."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline import __version__
from pipeline.cli import collecting, reading
from pipeline.cli.exits import EXIT_CODES_HELP, OK
from pipeline.collector.model import target_kernels
from pipeline.common.text import parse_bytes, printable

if TYPE_CHECKING:
    from pipeline.report.threshold import Threshold

_ARCHES = ("x86_64", "aarch64")
_PYTHON_VERSIONS = tuple(f"3.{minor}" for minor in range(6, 15))
_RUN_HELP = "run id, a unique prefix of one, or latest"


class _Parser(argparse.ArgumentParser):
    """Quotes arguments in its errors without what they could do to a terminal."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; `command` of its result is the function to call."""
    parser = _Parser(
        prog="lru-audit",
        description="Find the memory that eager list_lru allocation wastes on Linux before v5.18.",
        epilog=EXIT_CODES_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lru-audit {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_run(commands)
    _add_plan(commands)
    _add_resume(commands)
    _add_publish(commands)
    _add_inspect(commands)
    _add_report(commands)
    _add_sql(commands)
    _add_runs(commands)
    _add_verify(commands)
    _add_expire(commands)
    _add_estimate(commands)
    _add_fetch_drgn(commands)
    _add_completion(commands)
    return parser


def _add_run(commands: Any) -> None:
    parser = _add_command(
        commands,
        collecting.run,
        "run",
        "audit targets, publish the run and print the ranking",
        "lru-audit run /var/crash\n  lru-audit run -i fleet.yaml --audit nightly -w /data/warehouse\n"
        "  lru-audit run -i ansible:hosts.ini --limit group.db=true --label rack",
    )
    _add_target_options(parser)
    parser.add_argument(
        "--audit", type=_name, help="name of the series of runs (default: name of the inventory, else adhoc)"
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="read every core; without this, a core keeps the rows of an earlier run of this audit if neither the core "
        "nor the options nor the collector have changed since",
    )
    parser.add_argument(
        "--redact",
        action="store_true",
        help="store pseudonyms instead of names of mounts, devices and cgroups, for a warehouse that others may see; "
        "hosts, targets, labels and filesystem types keep their names (an inventory can name targets freely)",
    )
    parser.add_argument(
        "--retries",
        type=_count,
        default=1,
        help="how often to retry a target that was lost, inconsistent or killed (default: %(default)s)",
    )
    _add_fail_if(parser)
    _add_overlap(parser)
    _add_fanout_options(parser)
    _add_warehouse(parser)
    _add_collector_options(parser)


def _add_plan(commands: Any) -> None:
    parser = _add_command(
        commands,
        collecting.plan,
        "plan",
        "show what run would audit and from which node; contacts no target without --check",
        "lru-audit plan -i fleet.yaml --limit 'db*'\n  lru-audit plan ray:* --address 10.0.0.1:6379",
    )
    _add_target_options(parser)
    parser.add_argument(
        "--check",
        action="store_true",
        help="also try one target of each kind from each node; publishes nothing, has the exit codes of run",
    )
    _add_fanout_options(parser)
    _add_warehouse(parser)
    _add_collector_options(parser)


def _add_resume(commands: Any) -> None:
    parser = _add_command(
        commands,
        collecting.resume,
        "resume",
        "finish an interrupted run, or collect again the targets of a published run that were not good",
        "lru-audit resume latest\n  lru-audit resume 20261125T030329Z",
    )
    parser.add_argument("run", metavar="RUN", help=_RUN_HELP)
    _add_fail_if(parser)
    _add_overlap(parser)
    _add_fanout_options(parser)
    _add_warehouse(parser)


def _add_publish(commands: Any) -> None:
    parser = _add_command(
        commands,
        collecting.publish,
        "publish",
        "publish an interrupted run",
        "lru-audit publish latest --partial",
    )
    parser.add_argument("run", metavar="RUN", help=_RUN_HELP)
    parser.add_argument(
        "--partial", action="store_true", help="publish although targets are missing; their status becomes not_run"
    )
    parser.add_argument("--quiet", action="store_true", help="print only the ranking")
    _add_fail_if(parser)
    _add_warehouse(parser)


def _add_inspect(commands: Any) -> None:
    parser = _add_command(
        commands,
        collecting.inspect,
        "inspect",
        "show the analysis of one kernel, as in the message of commit 5abc1e37afa0",
        "lru-audit inspect /var/crash/vmcore\n  lru-audit inspect live: --json",
    )
    parser.add_argument("target", metavar="TARGET", help="a core, live:, ssh:[USER@]HOST[:PORT] or qmp:SOCKET")
    parser.add_argument("--json", action="store_true", help="print JSON with the columns of targets and host_waste")
    parser.set_defaults(inventory=None, quiet=True)
    _add_collector_options(parser)


def _add_report(commands: Any) -> None:
    parser = _add_command(
        commands,
        reading.report,
        "report",
        "show the results of a published run",
        "lru-audit report\n  lru-audit report --audit nightly -o waste.html",
    )
    parser.add_argument("--run", help=_RUN_HELP)
    parser.add_argument(
        "--audit", help="report the newest run of this audit (default: of any audit with a name, else of adhoc)"
    )
    parser.add_argument(
        "--format",
        choices=("text", "html", "markdown", "csv", "json", "parquet", "prometheus"),
        help="format of the report (default: from the suffix of -o, .prom for prometheus; else text)",
    )
    parser.add_argument("-o", "--output", type=Path, help="file to write instead of stdout")
    _add_fail_if(parser)
    parser.add_argument(
        "--max-series",
        metavar="N",
        type=_count,
        default=10_000,
        help="prometheus: write only totals if there are more than N hosts (default: 10000)",
    )
    _add_warehouse(parser)


def _add_sql(commands: Any) -> None:
    parser = _add_command(
        commands,
        reading.sql,
        "sql",
        "query the warehouse, read-only",
        'lru-audit sql "FROM host_waste"\n'
        "  lru-audit sql --param target=db1 --format csv 'SELECT * FROM targets WHERE target = $target'\n"
        "  lru-audit sql --print-init > audit.sql && duckdb -init audit.sql",
    )
    parser.add_argument(
        "query", metavar="QUERY", nargs="?", help="one SELECT in DuckDB's dialect, or - to read it from stdin"
    )
    parser.add_argument("-f", "--file", type=Path, help="file with the query")
    parser.add_argument(
        "--param", metavar="NAME=VALUE", action="append", default=[], help="value of $NAME in the query; repeatable"
    )
    parser.add_argument("--run", help="query only this run: its id, a unique prefix of it, or latest")
    parser.add_argument("--audit", help="query only the runs of this audit")
    formats = ("table", "csv", "json", "jsonl", "markdown", "parquet")
    parser.add_argument(
        "--format", choices=formats, help="format of the result (default: from the suffix of -o, else table)"
    )
    parser.add_argument("-o", "--output", type=Path, help="file to write instead of stdout")
    parser.add_argument(
        "--timeout", type=_seconds, default=300.0, help="time limit of the query in seconds (default: %(default)g)"
    )
    parser.add_argument(
        "--memory",
        type=_memory,
        metavar="SIZE",
        help="memory limit of the query, such as 4GiB (default: half of what this process may use)",
    )
    parser.add_argument(
        "--print-init",
        action="store_true",
        help="print SQL that creates the views in any DuckDB, for duckdb -init FILE, instead of running a query",
    )
    _add_warehouse(parser)


def _add_runs(commands: Any) -> None:
    parser = _add_command(
        commands,
        reading.runs,
        "runs",
        "list published runs and runs in staging",
        "lru-audit runs\n  lru-audit runs --format json -w s3://fleet/lru-audit",
    )
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="format of the list (default: %(default)s)"
    )
    _add_warehouse(parser)


def _add_verify(commands: Any) -> None:
    parser = _add_command(
        commands,
        reading.verify,
        "verify",
        "check size, sha256 and row count of every file of published runs, and repeat the checks of their rows",
        "lru-audit verify\n  lru-audit verify latest",
    )
    parser.add_argument("run", metavar="RUN", nargs="?", help=f"{_RUN_HELP} (default: all runs)")
    _add_warehouse(parser)


def _add_expire(commands: Any) -> None:
    parser = _add_command(
        commands,
        reading.expire,
        "expire",
        "remove runs that no rule keeps, and remains of killed processes",
        "lru-audit expire --keep-daily 14 --keep-weekly 8 --keep-monthly 24 --dry-run\n"
        "  lru-audit expire --interrupted-days 7\n  lru-audit expire --run 20351212T",
    )
    parser.description = """Remove runs that no rule keeps, and remains of killed processes, or one run.

The rules apply to each audit separately. --keep-last keeps the newest N runs; --keep-daily, --keep-weekly and
--keep-monthly keep the newest run of each of the N newest days, ISO weeks or months (UTC) that have runs. A run stays
if any rule keeps it; rules do not add up. Without a rule no run is removed. The newest good run of an audit (complete,
some target ok) always stays, and so does the one that was published last. Newest is by the order in which runs were
started, which no clock decides (runs.sequence). A run that has a revision counts for no rule and is removed; its
revision is never removed before it. A revision in staging needs the revised run only until the good rows are copied,
which happens before anything is collected: until then the revised run stays, with s3:// only if expire runs on the
machine that stages the revision."""
    for rule, runs in (
        ("last", "N runs"),
        ("daily", "run of each of N days"),
        ("weekly", "run of each of N weeks"),
        ("monthly", "run of each of N months"),
    ):
        parser.add_argument(f"--keep-{rule}", type=_positive, default=0, metavar="N", help=f"keep the newest {runs}")
    parser.add_argument(
        "--interrupted-days",
        type=_count,
        metavar="N",
        help="also remove interrupted runs and uploads to s3:// that were not resumed for N days; an upload has no "
        "lock and stays for at least a day (default: keep them)",
    )
    parser.add_argument(
        "--run",
        help="remove this run, whatever its age, and nothing else: its id or a unique prefix, published or interrupted",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be removed, and remove nothing")
    _add_warehouse(parser)


def _add_estimate(commands: Any) -> None:
    parser = _add_command(
        commands,
        reading.estimate,
        "estimate",
        "compute the memory of a machine from its numbers of superblocks, nodes and memcgs",
        "lru-audit estimate --superblocks 952 --nodes 4 --cache-ids 24574 --online-memcgs 480",
    )
    parser.add_argument("--superblocks", type=_count, required=True, help="number of superblocks")
    parser.add_argument("--nodes", type=_nodes, required=True, help="number of possible NUMA nodes")
    parser.add_argument("--cache-ids", type=_cache_ids, required=True, help="memcg_nr_cache_ids")
    parser.add_argument("--online-memcgs", type=_cache_ids, help="number of memcgs that have entries in a lazy kernel")
    _add_target_kernel(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_fetch_drgn(commands: Any) -> None:
    parser = _add_command(
        commands,
        reading.fetch_drgn,
        "fetch-drgn",
        "download wheels of drgn for hosts without it",
        "lru-audit fetch-drgn --drgn-wheels wheels --python 3.6 3.9 --arch x86_64 aarch64",
    )
    parser.add_argument("--drgn-wheels", type=Path, required=True, metavar="DIR", help="directory to fill")
    parser.add_argument(
        "--python",
        type=_python,
        nargs="+",
        default=list(_PYTHON_VERSIONS),
        metavar="3.N",
        help=f"Python versions of the hosts (default: {_PYTHON_VERSIONS[0]} to {_PYTHON_VERSIONS[-1]})",
    )
    parser.add_argument(
        "--arch",
        nargs="+",
        choices=_ARCHES,
        default=[os.uname().machine],
        help="architectures of the hosts (default: this machine's)",
    )


def _add_completion(commands: Any) -> None:
    parser = _add_command(
        commands,
        _print_completion,
        "completion",
        "print shell completion",
        "lru-audit completion bash > /etc/bash_completion.d/lru-audit",
    )
    parser.add_argument("shell", choices=("bash", "zsh"), help="shell to complete for")


def _print_completion(args: argparse.Namespace) -> int:
    import shtab

    root = parser()
    (commands,) = (action.choices for action in root._actions if isinstance(action, argparse._SubParsersAction))
    for command in commands.values():
        for action in command._actions:
            if action.type is Path or action.dest in ("target", "targets", "inventory"):
                action.complete = shtab.FILE
    print(shtab.complete(root, shell=args.shell))
    return OK


def _add_command(commands: Any, function: Any, name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"examples:\n  {examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=function)
    return parser


def _add_target_options(parser: argparse.ArgumentParser) -> None:
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
        help=".yaml, .json or .csv file of targets; - for one target a line on stdin; ansible:FILE for an inventory in "
        "any form that ansible-inventory reads (its JSON also as a .json file)",
    )
    parser.add_argument(
        "--limit",
        metavar="PATTERN",
        action="append",
        default=[],
        help="only targets whose name, or label (rack=r1*), matches this glob; repeatable: patterns for names, or for "
        "one label, are alternatives, different labels must all match",
    )
    parser.add_argument(
        "--label",
        metavar="VAR",
        action="append",
        default=[],
        help="store this variable of Ansible's hosts as a label; repeatable; other variables are not stored, groups "
        "always become labels group.NAME",
    )


def _add_fail_if(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fail-if",
        metavar="CONDITION",
        type=_threshold,
        action="append",
        default=[],
        help="exit with 5 if this condition holds, such as 'worst_wasted_bytes > 10GiB' or 'not_good_pct >= 5'; other "
        "figures: wasted_bytes, wasted_pct_of_memory, worst_wasted_pct_of_memory, list_lru_bytes, not_good; repeatable",
    )


def _add_fanout_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--parallel",
        type=_positive,
        help="number of targets to collect at a time (default: the usable CPUs, or one for each 256 MiB of memory)",
    )
    parser.add_argument(
        "--ssh-parallel",
        type=_positive,
        default=32,
        help="number of targets to collect over ssh at a time, besides --parallel (default: %(default)s)",
    )
    parser.add_argument("--address", help="Ray cluster to join, or local for none (default: $RAY_ADDRESS, else none)")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def _add_overlap(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--overlap",
        action="store_true",
        help="continue although another run of this audit is in progress in the warehouse (default: exit with 1 and "
        "name it); runs that other machines write to S3 are not noticed, schedule them apart",
    )


def _add_warehouse(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-w",
        "--warehouse",
        default=os.environ.get("LRU_AUDIT_WAREHOUSE") or "warehouse",
        help="directory or s3://BUCKET/PREFIX[?region=R&endpoint_override=HOST:PORT] (default: $LRU_AUDIT_WAREHOUSE, "
        "else ./warehouse); runs for S3 are staged in $XDG_STATE_HOME/lru-audit, else ~/.local/state/lru-audit",
    )


def _add_collector_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout", type=_seconds, default=600.0, help="time limit of one target in seconds (default: %(default)g)"
    )
    parser.add_argument(
        "--max-reads",
        type=_positive,
        metavar="N",
        help="stop the audit of a target after N read system calls, with the status over_budget (default: no limit)",
    )
    parser.add_argument("--vmlinux", type=Path, help="file with the kernel's DWARF, to use instead of its BTF")
    parser.add_argument("--debug-dir", type=Path, help="directory to search for that file by build id and release")
    parser.add_argument(
        "--btf-dir", type=Path, help="directory of BTF files by release and arch, for kernels without BTF"
    )
    parser.add_argument(
        "--charged",
        action=argparse.BooleanOptionalAction,
        help="find the memcgs that own objects of each list, whether on the list or not. A whole scan reads 16 MB and "
        "takes 0.03 CPU s per GB of memory, and up to 0.4 s more per GB of page cache of removed cgroups, most where "
        "files are small. Default: a whole scan of cores; on running hosts at most 64 MB, if need be as a sample; none "
        "of qmp:. Without a scan wasted_bytes is a lower bound",
    )
    _add_target_kernel(parser)
    parser.add_argument(
        "--verify", action="store_true", help="check every pointer array of an eager kernel, not only a sample"
    )
    parser.add_argument("--ssh-config", type=Path, help="configuration file of ssh (default: the account's own)")
    parser.add_argument(
        "--ship-drgn", action="store_true", help="send drgn to hosts over ssh; nothing of it stays on a host"
    )
    parser.add_argument(
        "--drgn-wheels", type=Path, metavar="DIR", help="directory of wheels to send, filled by fetch-drgn"
    )
    parser.add_argument(
        "--python",
        type=_interpreter,
        metavar="COMMAND",
        help="start Python with this command where the inventory names none: a name or path, or words such as 'podman "
        "run -i IMAGE python3' (default: python3; not over ssh: this one)",
    )
    parser.add_argument(
        "--ship-python",
        type=Path,
        metavar="FILE",
        help="send a relocatable CPython, a tar archive of python-build-standalone, and drgn to hosts over ssh without "
        "Python; nothing of it stays on a host",
    )
    parser.add_argument("--vmcoreinfo", type=Path, help="file with VMCOREINFO, for cores and QEMU guests without it")


def _add_target_kernel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target-kernel",
        choices=tuple(target_kernels.KERNELS),
        help=f"kernel to upgrade to, for which memory is predicted (default: {target_kernels.DEFAULT})",
    )
    parser.add_argument(
        "--target-layout",
        choices=tuple(target_kernels.LAYOUTS),
        help="older form of --target-kernel: "
        + ", ".join(f"{layout} is {kernel}" for layout, kernel in target_kernels.LAYOUTS.items()),
    )


def _between(low: int, high: int) -> Callable[[str], int]:
    """Return a parser of integers from low to high."""

    def integer(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return value

    return integer


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
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!a} is not a number of seconds above 0 and below 1,000,000")
    return value


def _memory(text: str) -> int:
    try:
        size = parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if not 1 << 24 <= size < 1 << 50:
        raise argparse.ArgumentTypeError(f"{text} is not at least 16MiB and below 1PiB")
    return int(size)


def _python(text: str) -> str:
    if not re.fullmatch(r"3\.([6-9]|[1-9]\d)", text):
        raise argparse.ArgumentTypeError(f"invalid version {text!a}; expected 3.6 or newer, such as 3.9")
    return text


def _interpreter(text: str) -> str:
    from pipeline.inventory import interpreter

    try:
        return interpreter.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _name(text: str) -> str:
    if not re.fullmatch(r"[\w.+@-]{1,100}", text):
        raise argparse.ArgumentTypeError(f"invalid name {text!a}; expected at most 100 letters, digits and . _ + @ -")
    return text
