"""Commands that collect: run, resume, publish, plan and inspect."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.cli.exits import NONE_GOOD, OK, SOME_NOT_GOOD, THRESHOLD_FIRED
from pipeline.cli.reading import print_fired_thresholds, target_kernel
from pipeline.collector.status import GOOD
from pipeline.common.errors import UsageError
from pipeline.common.output import message
from pipeline.common.text import escape_surrogates

# An expiry of a long history removes runs for seconds, and a report takes a tenth of one.
_EXPIRY_RETRIES = 20

if TYPE_CHECKING:
    from pipeline.fanout.runner import Limits
    from pipeline.fanout.workers import Workers
    from pipeline.inventory import Target, Targets
    from pipeline.inventory.plan import Node, Plan
    from pipeline.warehouse import Staging


def run(args: argparse.Namespace) -> int:
    from pipeline import warehouse
    from pipeline.fanout import cluster

    cluster.address_to_join(args.address)  # refuse a wrong one before anything is staged
    targets = _targets(args)
    with warehouse.exclusive_audit(args.warehouse, _audit_name(args), args.overlap):
        return _run_locked(args, targets)


def _run_locked(args: argparse.Namespace, targets: Targets) -> int:
    from pipeline import inventory, warehouse

    warehouse.probe(args.warehouse)
    # Connect to the workers first: nothing is staged if that fails.
    with contextlib.ExitStack() as stack, _planned(args, targets) as (plan, workers):
        planned_targets = [*(target for batch in plan.batches for target in batch.targets)]
        planned_targets += [missing.target for missing in plan.unreachable]
        run = {
            **_new_run_fields(),
            "audit": _audit_name(args),
            "started_at": int(datetime.now(UTC).timestamp() * 1e6),
            "targets": len(planned_targets),
            "inventory_sha256": inventory.sha256(planned_targets),
        }
        options = {"limits": vars(_limits(args)), "retries": args.retries, "redact": args.redact}
        # Pseudonyms are those of one run: a core of another run would have others.
        carries_cores = not (args.again or args.redact)
        published_targets = [target.published() for target in planned_targets]
        private_fields = {
            target.name: {"ssh_args": target.ssh_args, "unusable": target.unusable}
            for target, published in zip(planned_targets, published_targets, strict=True)
            if published is not target
        }
        staging = warehouse.Staging.create(
            args.warehouse,
            run,
            options,
            map(vars, published_targets),
            private_fields=private_fields,
            carries_cores=carries_cores,
        )
        stack.enter_context(_resume_hint(staging))
        _collect(args, staging, plan, workers)
    return _publish(args, staging)


def resume(args: argparse.Namespace) -> int:
    from pipeline import warehouse
    from pipeline.fanout import cluster

    cluster.address_to_join(args.address)  # refuse a wrong one before a revision is staged
    run_id = warehouse.resolve_resumable_run(args.warehouse, args.run)
    staged_run = warehouse.staged_runs(args.warehouse).get(run_id)
    audit = staged_run["audit"] if staged_run else warehouse.read_manifest(args.warehouse, run_id).audit
    with warehouse.exclusive_audit(args.warehouse, audit, args.overlap):
        return _resume_locked(args, run_id)


def _resume_locked(args: argparse.Namespace, run_id: str) -> int:
    from pipeline import warehouse

    warehouse.probe(args.warehouse)
    if run_id in warehouse.staged_runs(args.warehouse):
        staging = warehouse.Staging(args.warehouse, run_id)
    else:
        manifest = warehouse.read_manifest(args.warehouse, run_id)
        if manifest.good == manifest.targets:
            message(f"every target of {run_id} is good: nothing is left to collect")
            return OK
        staging = warehouse.Staging.revise(args.warehouse, run_id, **_new_run_fields())
        if not args.quiet:
            message(f"{staging.directory.name} revises {run_id}")
    if targets := _unfinished_targets(staging):
        with _resume_hint(staging), _planned(args, targets) as (plan, workers):
            _collect(args, staging, plan, workers)
    return _publish(args, staging)


def publish(args: argparse.Namespace) -> int:
    from pipeline import warehouse
    from pipeline.fanout import runner

    staging = warehouse.Staging(args.warehouse, warehouse.resolve_staged_run(args.warehouse, args.run))
    targets = _unfinished_targets(staging)
    if targets and not args.partial:
        run_id = staging.directory.name
        raise UsageError(
            f"{len(targets)} of {staging.run['targets']} targets of {run_id} are not collected; "
            f"resume it with: lru-audit resume {run_id}, or publish it with --partial"
        )
    for target in targets:
        staging.append(runner.outcome(target, []))
    return _publish(args, staging)


def plan(args: argparse.Namespace) -> int:
    from pipeline import warehouse
    from pipeline.fanout import cluster
    from pipeline.inventory import plan

    targets = _targets(args)
    warehouse.probe(args.warehouse)
    with _joined_cluster(args):
        whole_plan, nodes = _make_plan(args, targets), cluster.nodes()
        for line in plan.lines(whole_plan, nodes, args.timeout):
            print(line)
        return _check(args, whole_plan, nodes) if args.check else OK


def _check(args: argparse.Namespace, whole_plan: Plan, nodes: Sequence[Node]) -> int:
    """Collect a sample of the targets, print their statuses, and return the exit code that a run would have."""
    from pipeline.cli import progress
    from pipeline.fanout import driver
    from pipeline.inventory import plan

    sample = plan.sample(whole_plan, nodes)
    _check_ssh(args, sample)
    outcomes: list[dict[str, Any]] = []
    with (
        driver.connection(sample, args.address) as workers,
        progress.show(sample.target_count, quiet=args.quiet) as display,
    ):
        driver.run(sample, on_outcome=outcomes.append, progress=display, limits=_limits(args), workers=workers)
    rows = [("tried", "from", "status", "reason")]
    for outcome in sorted(outcomes, key=lambda outcome: str(outcome["target"])):
        row, attempt = outcome["row"], outcome["attempts"][-1]
        rows.append((outcome["target"], attempt["node"] or "", row["status"], row["error"] or ""))
    print()
    for line in plan.table(rows):
        print(line)
    good_count = sum(outcome["row"]["status"] in GOOD for outcome in outcomes)
    if good_count == len(outcomes) and not whole_plan.unreachable:
        return OK
    return SOME_NOT_GOOD if good_count else NONE_GOOD


def inspect(args: argparse.Namespace) -> int:
    from pipeline import inventory
    from pipeline.fanout import runner, transports
    from pipeline.report.screens import inspect

    targets = inventory.load([args.target])
    if len(targets) > 1:
        raise UsageError(f"{args.target} contains {len(targets)} cores; inspect takes one, run takes them all")
    if targets[0].kind == "ray":
        raise UsageError(f"{args.target} needs Ray, which inspect does not use; audit it with lru-audit run")
    (target,) = _with_options(targets, args)
    if target.over_ssh:
        transports.check_client([target], target.ssh_config)
    figures = inspect.host_waste(runner.outcome(target, [runner.run(target, 1, _limits(args))]))
    is_good = figures["status"] in GOOD
    if args.json:
        print(json.dumps(escape_surrogates(figures), indent=2))
    elif is_good:
        print(inspect.text(figures), end="")
    if not is_good:
        message(f"lru-audit: {target.name}: {figures['status']}: {figures['error']}")
    return OK if is_good else NONE_GOOD


def _targets(args: argparse.Namespace) -> Targets:
    """Return the targets of the arguments and the inventory, completed with the options."""
    from pipeline import inventory

    targets = inventory.load(args.targets, args.inventory, limit_patterns=args.limit, labels=args.label)
    ignored = []
    if targets.other_file_count:
        ignored.append(f"{targets.other_file_count} files that are not cores")
    if targets.unsearched_count:
        ignored.append(f"{targets.unsearched_count} archives that could not be searched to their end")
    if ignored and not args.quiet:
        message(f"ignored {' and '.join(ignored)}")
    for line in (*targets.warnings, *(targets.notes if not args.quiet else ())):
        message(line)
    targets[:] = _with_options(targets, args)
    return targets


def _with_options(targets: Sequence[Target], args: argparse.Namespace) -> list[Target]:
    """Return targets with the options that apply to them; what the inventory says of a target takes precedence."""
    from pipeline.inventory import scopes

    if (args.ship_drgn or args.ship_python is not None) != (args.drgn_wheels is not None):
        sending = "--ship-drgn" if args.ship_python is None else "--ship-python"
        raise UsageError(f"{sending} and --drgn-wheels DIR must be given together; fill DIR with lru-audit fetch-drgn")
    if args.ship_python is not None:
        _check_python(args.ship_python, args.drgn_wheels)
    paths = ("vmlinux", "debug_dir", "btf_dir", "vmcoreinfo", "ssh_config", "drgn_wheels", "ship_python")
    options = {option: _absolute(getattr(args, option)) for option in paths}
    names = ("charged", "target_kernel", "max_reads", "python")
    options |= {option: getattr(args, option) for option in names}
    if target_kernel(args) != args.target_kernel:
        options["target_layout"] = args.target_layout
    options["verify"] = args.verify or None
    return scopes.apply({option: value for option, value in options.items() if value is not None}, targets)


def _check_python(path: Path, wheel_directory: Path) -> None:
    """Check that an archive has a CPython to send, and that there is a wheel of drgn for it.

    :raises UsageError:
    """
    from pipeline.fanout.transports import standalone, wheels

    try:
        build = standalone.package(str(path)).build  # a fault anywhere in the file would be that of every host
    except standalone.StandaloneError as error:
        raise UsageError(f"--ship-python: {error}") from error
    if not wheels.has(wheel_directory, build.version, build.arch):
        raise UsageError(
            f"no wheel of drgn in {wheel_directory} for Python {build.version} on {build.arch} of --ship-python; run "
            f"lru-audit fetch-drgn --drgn-wheels {wheel_directory} --python {build.version} --arch {build.arch}"
        )


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def _limits(args: argparse.Namespace) -> Limits:
    from pipeline.fanout.runner import Limits

    return Limits(timeout_s=args.timeout)


def _audit_name(args: argparse.Namespace) -> str:
    if args.audit is not None:
        return str(args.audit)
    if args.inventory in (None, "-"):
        return "adhoc"
    return Path(args.inventory.removeprefix("ansible:")).stem


@contextlib.contextmanager
def _planned(args: argparse.Namespace, targets: Sequence[Target]) -> Iterator[tuple[Plan, Workers]]:
    """Plan the targets, and connect to the workers for the plan while the block lasts."""
    from pipeline.fanout import driver

    with _joined_cluster(args):
        plan = _make_plan(args, targets)
        _check_ssh(args, plan)
        with driver.connection(plan, args.address) as workers:
            yield plan, workers


def _check_ssh(args: argparse.Namespace, plan: Plan) -> None:
    """Check that ssh can run here, where no other node of a cluster runs it."""
    from pipeline.fanout import cluster, transports

    if cluster.address_to_join(args.address) is None:
        # `resume` has no such option: its targets keep the file.
        config = _absolute(vars(args).get("ssh_config"))
        dialled = (target for batch in plan.batches if batch.over_ssh for target in batch.targets)
        transports.check_client(dialled, config)


def _joined_cluster(args: argparse.Namespace) -> contextlib.AbstractContextManager[object]:
    """Join the Ray cluster of the arguments while the block lasts, if they name one."""
    from pipeline.fanout import cluster

    address = cluster.address_to_join(args.address)
    return cluster.connection(address=address) if address else contextlib.nullcontext()


def _make_plan(args: argparse.Namespace, targets: Sequence[Target]) -> Plan:
    """Plan the targets for the cluster that this process has joined, else for this machine."""
    from pipeline.fanout import cluster
    from pipeline.inventory import plan

    return plan.make_plan(targets, args.parallel or cluster.cpus(), cluster.nodes(), args.ssh_parallel)


def _new_run_fields() -> dict[str, Any]:
    """Return the fields of run.json that every new run and revision has."""
    from pipeline import warehouse
    from pipeline.collector.model.cost import MODEL_VERSION

    return {"run_id": warehouse.new_run_id(), "tool_version": __version__, "model_version": MODEL_VERSION}


def _unfinished_targets(staging: Staging) -> list[Target]:
    """Return the targets of a staged run that have no outcome."""
    from pipeline.inventory import Target

    _, targets = staging.inputs()
    finished_targets = staging.finished_targets()
    return [_restore(staging, Target, target) for target in targets if target["name"] not in finished_targets]


def _restore(staging: Staging, factory: Callable[..., Any], fields: dict[str, Any]) -> Any:
    """Create an object from its fields in staging, which another version may have written."""
    try:
        return factory(**fields)
    except TypeError as error:
        problem = "staged by another version of list-lru-audit; resume it with that version"
        raise UsageError(f"{staging.directory}: {problem}: {error}") from error


def _collect(args: argparse.Namespace, staging: Staging, plan: Plan, workers: Workers) -> None:
    from pipeline.cli import progress
    from pipeline.fanout import driver, redact, runner

    options = staging.options()
    collect = functools.partial(redact.run, staging.key()) if options.get("redact") else runner.run
    limits = replace(_restore(staging, runner.Limits, options["limits"]), unpack_directory=staging.unpack_directory)
    runner.remove_orphans(staging.unpack_directory)
    with progress.show(plan.target_count, quiet=args.quiet) as display:
        driver.run(
            plan,
            on_outcome=staging.append,
            progress=display,
            limits=limits,
            retries=options["retries"],
            known_digests=None if options.get("redact") else staging.known_digests(),
            collect=collect,
            workers=workers,
            grows=args.parallel is None,
        )


@contextlib.contextmanager
def _resume_hint(staging: Staging) -> Iterator[None]:
    """Print what is kept and how to resume if the block is interrupted or loses the last node."""
    from pipeline import warehouse
    from pipeline.fanout.cluster import ClusterError

    try:
        yield
    except (KeyboardInterrupt, ClusterError):
        run_id = staging.directory.name
        with contextlib.suppress(warehouse.WarehouseError):  # the run is not published yet
            message(f"published {warehouse.read_manifest(staging.root, run_id).directory}")
            raise
        counts = f"{len(staging.finished_targets())} of {staging.run['targets']}"
        message(f"{counts} targets were collected and are kept in {staging.directory}")
        message(f"resume it with: lru-audit resume {run_id}")
        raise


def _publish(args: argparse.Namespace, staging: Staging) -> int:
    """Publish a run whose targets all have an outcome, print its report, and return the exit code."""
    from pipeline import query

    with _resume_hint(staging):
        manifest = staging.publish(query.check)
    if not args.quiet:
        if staging.unchanged_counts:
            message(_unchanged_note(staging))
        message(f"published {manifest.directory}")
    if _print_report(args, manifest.run_id):
        return THRESHOLD_FIRED
    if manifest.good == manifest.targets:
        return OK
    return SOME_NOT_GOOD if manifest.good else NONE_GOOD


def _print_report(args: argparse.Namespace, run_id: str) -> bool:
    """Print the report of a published run, and return whether a condition of --fail-if holds.

    If an older run expires meanwhile, the report starts again: the command has published its own run and does not fail.
    """
    from pipeline import query, warehouse
    from pipeline.common import output
    from pipeline.report import render
    from pipeline.report.model import build_report

    retries = _EXPIRY_RETRIES
    while True:
        try:
            with warehouse.open_tables(args.warehouse) as tables:
                report = build_report(query.Session(tables), run_id)
                render.text(report, io.StringIO())  # reads every figure, so that nothing is printed twice
                try:
                    render.text(report, sys.stdout)
                    sys.stdout.flush()
                except BrokenPipeError:  # the run is published even if the reader of stdout has gone
                    output.discard_stdout()
                return print_fired_thresholds(args.fail_if, report)
        except warehouse.ExpiredError:
            if not retries:
                raise
            retries -= 1


def _unchanged_note(staging: Staging) -> str:
    """Return the line on stderr about the cores whose rows a published run has from earlier runs."""
    count, runs = staging.unchanged_counts.total(), sorted(staging.unchanged_counts)
    since = f"run {runs[-1]}" + (" or earlier" if len(runs) > 1 else "")
    counts = f"{count:,} of {staging.run['targets']:,} targets"
    return f"{counts} are cores that have not changed since {since} and were not read; run --again reads them"
