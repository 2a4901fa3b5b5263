"""The commands that collect: run, resume, publish, plan and inspect."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.collector.status import GOOD
from pipeline.common.errors import UsageError

from .exits import FIRED, NONE_GOOD, OK, SOME_NOT_GOOD
from .reading import fired

if TYPE_CHECKING:
    from pipeline.fanout.runner import Limits
    from pipeline.inventory import Target, Targets
    from pipeline.inventory.plan import Node, Plan
    from pipeline.warehouse import Staging


def run(args: argparse.Namespace) -> int:
    from pipeline import warehouse

    targets = _targets(args)
    with warehouse.alone(args.warehouse, _audit(args), args.overlap):
        return _run_alone(args, targets)


def _run_alone(args: argparse.Namespace, targets: Targets) -> int:
    from pipeline import inventory, warehouse
    from pipeline.fanout import cluster

    # Ray first: where it cannot be had, nothing is staged; and `ray:*` is what it has.
    with contextlib.ExitStack() as staged, cluster.connected(args.parallel, args.address):
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
        options = {"limits": vars(_limits(args)), "retries": args.retries, "redact": args.redact}
        staging = warehouse.Staging.create(args.warehouse, run, options, map(vars, placed))
        staged.enter_context(_kept(staging))
        _collect(args, staging, planned)
    return _published(args, staging)


def resume(args: argparse.Namespace) -> int:
    from pipeline import warehouse

    run_id = warehouse.resumable(args.warehouse, args.run)
    known = warehouse.staged(args.warehouse).get(run_id)
    audit = known["audit"] if known else warehouse.read(args.warehouse, run_id).audit
    with warehouse.alone(args.warehouse, audit, args.overlap):
        return _resume_alone(args, run_id)


def _resume_alone(args: argparse.Namespace, run_id: str) -> int:
    from pipeline import warehouse
    from pipeline.fanout import cluster

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
        with _kept(staging), cluster.connected(args.parallel, args.address):
            _collect(args, staging, _made(args, left))
    return _published(args, staging)


def publish(args: argparse.Namespace) -> int:
    from pipeline import warehouse
    from pipeline.fanout import runner

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
    return _published(args, staging)


def plan(args: argparse.Namespace) -> int:
    from pipeline.fanout import cluster
    from pipeline.inventory import plan

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
    from pipeline.cli import progress
    from pipeline.fanout import driver
    from pipeline.inventory import plan

    sample = plan.sample(made, nodes)
    outcomes: list[dict[str, Any]] = []
    with progress.show(sample.targets, quiet=args.quiet) as shown:
        driver.run(sample, on_outcome=outcomes.append, progress=shown, limits=_limits(args))
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


def inspect(args: argparse.Namespace) -> int:
    from pipeline import inventory
    from pipeline.fanout import runner
    from pipeline.report.screens import inspect

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
    from pipeline.fanout.runner import Limits

    return Limits(timeout_s=args.timeout)


def _audit(args: argparse.Namespace) -> str:
    if args.audit is not None:
        return str(args.audit)
    if args.inventory in (None, "-"):
        return "adhoc"
    return Path(args.inventory.removeprefix("ansible:")).stem


def _made(args: argparse.Namespace, targets: Sequence[Target]) -> Plan:
    """Place targets in the cluster that this process is connected to."""
    from pipeline.fanout import cluster
    from pipeline.inventory import plan

    return plan.make(targets, args.parallel or cluster.cpus(), cluster.nodes(), args.ssh_parallel)


def _now() -> dict[str, Any]:
    """What is known of any run that starts now."""
    from pipeline import warehouse
    from pipeline.collector.model.cost import MODEL_VERSION

    return {"run_id": warehouse.new_run_id(), "tool_version": __version__, "model_version": MODEL_VERSION}


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
    from pipeline.cli import progress
    from pipeline.fanout import driver, redact, runner

    options = staging.options()
    collect = functools.partial(redact.run, staging.key()) if options.get("redact") else runner.run
    with progress.show(planned.targets, quiet=args.quiet) as shown:
        driver.run(
            planned,
            on_outcome=staging.append,
            progress=shown,
            limits=_restored(staging, runner.Limits, options["limits"]),
            retries=options["retries"],
            collect=collect,
        )


@contextlib.contextmanager
def _kept(staging: Staging) -> Iterator[None]:
    """Where a run is interrupted or loses its last node, say what of it is kept, and how to go on."""
    from pipeline import warehouse
    from pipeline.fanout.cluster import ClusterError

    try:
        yield
    except (KeyboardInterrupt, ClusterError):
        run_id = staging.directory.name
        with contextlib.suppress(warehouse.WarehouseError):  # a run is published at one moment, which may be past
            print(f"published {warehouse.read(staging.root, run_id).directory}", file=sys.stderr)
            raise
        collected = f"{len(staging.collected())} of {staging.run['targets']} targets were collected"
        print(f"{collected} and are kept in {staging.directory}", file=sys.stderr)
        print(f"go on with: lru-audit resume {run_id}", file=sys.stderr)
        raise


def _published(args: argparse.Namespace, staging: Staging) -> int:
    """Publish a run of which every target has an outcome, and print the ranking."""
    from pipeline import query, warehouse
    from pipeline.common import output
    from pipeline.report.formats import RENDERERS
    from pipeline.report.model import build_report

    with _kept(staging):
        published = staging.publish(query.check)
    if not args.quiet:
        print(f"published {published.directory}", file=sys.stderr)
    with warehouse.reading(args.warehouse) as tables:
        found = build_report(query.Session(tables), published.run_id)
        try:
            RENDERERS["text"](found, sys.stdout)
            sys.stdout.flush()
        except BrokenPipeError:  # it is published whether or not somebody reads on
            output.discard()
        if fired(args.fail_if, found):
            return FIRED
    if published.good == published.targets:
        return OK
    return SOME_NOT_GOOD if published.good else NONE_GOOD
