"""Removal of published runs that no rule keeps, and of leftovers of killed processes."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.warehouse import locks
from pipeline.warehouse.errors import TornError, WarehouseError, storage_errors
from pipeline.warehouse.runs import (
    Manifest,
    find_manifest,
    newest_last,
    published_runs,
    read_inputs,
    read_run_file,
    resolve_removable_run,
    staged_directories,
    staged_runs,
)
from pipeline.warehouse.staging import CARRIED_FILE, SPOOL_FILE
from pipeline.warehouse.store import EXPIRED_SUFFIX, RUN_ID, Store, discard, local_folder, open_store, remove

_DAY_S = 86_400.0
# Minimum age of an upload to remove: it has no lock, and a large object is only visible once it is complete.
_MIN_UPLOAD_AGE_S = _DAY_S


@dataclass(frozen=True)
class RetentionRules:
    """Numbers of runs of each audit to keep.

    They keep the newest `last` runs, and the newest run of each of the newest `daily` days, `weekly` ISO weeks and
    `monthly` months that have runs (UTC, by started_at). A run stays if at least one rule keeps it; the numbers do not
    add up. Without a rule, all runs stay.
    """

    last: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0

    @property
    def periods(self) -> tuple[tuple[int, str], ...]:
        """The number of periods for each rule, with the strftime format that identifies a period."""
        return (self.daily, "%Y-%m-%d"), (self.weekly, "%G-W%V"), (self.monthly, "%Y-%m")


@dataclass(frozen=True)
class Removal:
    """A run or leftover to remove, with the reason; size_bytes is None if it was not computed."""

    path: str
    reason: str
    size_bytes: int | None
    action: Callable[[], None]

    def carry_out(self) -> None:
        with storage_errors(self.path):
            self.action()


def removals(root: str | Path, rules: RetentionRules, interrupted_days: float | None = None) -> Iterator[Removal]:
    """Yield the removals in a safe order: a kill between two of them leaves complete runs only.

    :param interrupted_days: also remove interrupted runs and uploads that have not changed for this many days; for an
        upload at least one, since it has no lock. A run that a running process has open is never removed.
    :raises WarehouseError: the warehouse cannot be read; raised before anything is removed.
    """
    store = open_store(root)
    with storage_errors(str(store)):
        runs = published_runs(root)
        cutoff = time.time() - interrupted_days * _DAY_S if interrupted_days is not None else None
        # Staging comes first: if a driver was killed between publishing a run and removing it from staging, the run
        # would look unpublished once the published one is withdrawn.
        leftovers = [*_staging_leftovers(store, cutoff), *_upload_leftovers(store, cutoff)]
        kept_ids = run_ids_to_keep(runs, rules, set(_carry_over_sources(store)))
    yield from leftovers
    revised_ids = {run.revision_of for run in runs}
    for run in _in_revision_order([run for run in runs if run.run_id not in kept_ids]):
        reason = "revised" if run.run_id in revised_ids else "no rule keeps it"
        withdraw = partial(store.withdraw, run.run_id)
        yield Removal(str(run.directory), f"{reason}, audit {run.audit}", run.size_bytes, withdraw)


def removal_of(root: str | Path, run: str) -> Removal:
    """Return the removal of one run, published or in staging, given by its id or a unique prefix.

    :raises WarehouseError: no run matches; or a run in staging revises it and still needs its rows, or is in use.
    """
    store = open_store(root)
    with storage_errors(str(store)):
        run_id = resolve_removable_run(root, run)
        if run_id in staged_runs(root):
            return _staged_removal(store, store.staging / run_id)
        if run_id in set(_carry_over_sources(store)):
            raise WarehouseError(f"{store}: a run in staging revises {run_id} and needs its rows: resume that first")
        folder, reason, size_bytes = store.run_folder(run_id), "named by --run", None
        with suppress(WarehouseError):  # a run with a damaged manifest can be removed
            if manifest := find_manifest(store, run_id):
                reason, size_bytes = f"{reason}, audit {manifest.audit}", manifest.size_bytes
                if manifest.revision_of and store.is_published(manifest.revision_of):
                    reason += f"; run {manifest.revision_of}, which it revises, counts again"
    return Removal(str(folder), reason, size_bytes, partial(_remove_published, store, run_id))


def _remove_published(store: Store, run_id: str) -> None:
    """Withdraw a run; first remove what a killed driver left of it in staging, which could be resumed after that."""
    path = store.staging / run_id
    if path.exists():
        _remove_from_staging(store, path, None)
    store.withdraw(run_id)


def _staged_removal(store: Store, path: Path) -> Removal:
    """Return the removal of a run in staging, however new it is, unless a process has it open."""
    with locks.exclusive_lock(store.staging) as is_locked:
        if not _removal_reason(store, path, math.inf, is_locked):
            raise WarehouseError(f"{path}: another lru-audit may have this run open; wait until it ends")
    return Removal(str(path), "named by --run", _size_bytes(path), partial(_remove_from_staging, store, path, math.inf))


def run_ids_to_keep(runs: Sequence[Manifest], rules: RetentionRules, carry_over_sources: set[str]) -> set[str]:
    """Return the run_ids of the runs that stay.

    The rules apply to runs without a revision, in the order of `newest_last`. These also stay: the newest good run of
    an audit (complete, and with a target that is `ok`), the one that was published last, whatever its date, a run whose
    rows a staged run still needs, and every revision of a run that stays, so that a revised run never replaces its
    revision.

    :param carry_over_sources: run_ids that runs in staging revise, and whose good rows are not all carried over yet.
    """
    if rules == RetentionRules():
        return {run.run_id for run in runs}
    revisions = {run.revision_of: run.run_id for run in runs if run.revision_of}
    newest_first = newest_last(runs)[::-1]
    kept_ids = {run.run_id for run in runs if run.run_id in carry_over_sources}
    for audit in {run.audit for run in runs}:
        audit_runs = [run for run in newest_first if run.audit == audit]
        kept_ids |= {run.run_id for run in [run for run in audit_runs if _is_good(run)][:1]}
        last_publication = max(run.publication or 0 for run in audit_runs)
        kept_ids |= {run.run_id for run in audit_runs if run.publication == last_publication}
        candidates = [run for run in audit_runs if run.run_id not in revisions]
        kept_ids |= {run.run_id for run in candidates[: rules.last]}
        for number, period_format in rules.periods:
            newest_ids: dict[str, str] = {}
            for run in candidates:
                newest_ids.setdefault(f"{run.started_at:{period_format}}", run.run_id)
            kept_ids |= set(list(newest_ids.values())[:number])
    for run_id in list(kept_ids):
        while run_id := revisions.get(run_id, ""):
            kept_ids.add(run_id)
    return kept_ids


def _is_good(run: Manifest) -> bool:
    return run.complete and run.outcomes.get("ok", 0) > 0


def _in_revision_order(runs: Sequence[Manifest]) -> list[Manifest]:
    """Return the runs sorted so that each comes after the run that it revises, otherwise the oldest first."""
    runs_by_id = {run.run_id: run for run in runs}
    ordered_runs: dict[str, Manifest] = {}
    for run in runs:
        chain = [run]
        while revised_run := runs_by_id.get(chain[-1].revision_of or ""):
            chain.append(revised_run)
        for member in reversed(chain):
            ordered_runs.setdefault(member.run_id, member)
    return list(ordered_runs.values())


def _carry_over_sources(store: Store) -> Iterator[str]:
    for path in staged_directories(store):
        with suppress(TornError):
            if not (path / CARRIED_FILE).exists():
                yield read_run_file(path)["revision_of"]


def _staging_leftovers(store: Store, cutoff: float | None) -> Iterator[Removal]:
    if not store.staging.is_dir():
        return
    with locks.exclusive_lock(store.staging) as is_locked:
        reasons = {path: _removal_reason(store, path, cutoff, is_locked) for path in sorted(store.staging.iterdir())}
    for path, reason in reasons.items():
        if reason:
            yield Removal(str(path), reason, _size_bytes(path), partial(_remove_from_staging, store, path, cutoff))


def _removal_reason(store: Store, path: Path, cutoff: float | None, is_locked: bool) -> str | None:
    """Return the reason to remove a directory from staging, or None if it must stay.

    :param cutoff: seconds since the epoch; a run that was interrupted and has not changed since then is removed.
    :param is_locked: whether staging is locked, so that no other process is creating a directory in it.
    """
    if path.name.endswith(EXPIRED_SUFFIX) and RUN_ID.fullmatch(path.name.removesuffix(EXPIRED_SUFFIX)):
        return "left by a killed expire"
    if not RUN_ID.fullmatch(path.name) or not locks.is_free(path / SPOOL_FILE):
        return None
    if store.is_published(path.name):
        return "published"
    try:
        read_run_file(path)
        read_inputs(local_folder(path))
    except TornError:
        if not is_locked:
            return None
        if not _has_outcomes(path):
            return "incomplete, cannot be resumed"
    changed_at = max(entry.lstat().st_mtime for entry in (path, *path.iterdir()))
    return "interrupted, and not resumed" if cutoff is not None and changed_at <= cutoff else None


def _has_outcomes(path: Path) -> bool:
    try:
        return (path / SPOOL_FILE).stat().st_size > 0
    except FileNotFoundError:
        return False


def _remove_from_staging(store: Store, path: Path, cutoff: float | None) -> None:
    """Remove a directory from staging unless the reason no longer holds."""
    with locks.exclusive_lock(store.staging) as is_locked, suppress(FileNotFoundError):
        if not _removal_reason(store, path, cutoff, is_locked):
            return
        if path.name.endswith(EXPIRED_SUFFIX):
            remove(path)
        else:
            discard(path, store.staging)


def _upload_leftovers(store: Store, cutoff: float | None) -> Iterator[Removal]:
    for name, reason in _upload_removal_reasons(store, store.run_names(), cutoff):
        yield Removal(str(store.run_folder(name)), reason, None, partial(_remove_upload, store, name, cutoff))


def _upload_removal_reasons(store: Store, names: Iterable[str], cutoff: float | None) -> Iterator[tuple[str, str]]:
    """Yield each of the names in `runs/` that is a leftover to remove, with the reason."""
    for name, changed_at in store.leftovers(names):
        if changed_at is None:
            yield name, "left by a killed expire"
        elif cutoff is not None and changed_at <= min(cutoff, time.time() - _MIN_UPLOAD_AGE_S):
            yield name, "interrupted upload"


def _remove_upload(store: Store, name: str, cutoff: float | None) -> None:
    """Remove a leftover unless its upload has since continued or been completed."""
    for leftover, _ in _upload_removal_reasons(store, [name], cutoff):
        store.withdraw(leftover)


def _size_bytes(directory: Path) -> int:
    """Return the size of the files in a directory; those that another process removes meanwhile do not count."""
    size_bytes = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with suppress(FileNotFoundError):
                size_bytes += Path(parent, name).lstat().st_size
    return size_bytes
