"""What may go: published runs that no rule keeps, and what killed processes left."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.warehouse import locks
from pipeline.warehouse.errors import TornError, storage
from pipeline.warehouse.runs import STAGED, Manifest, inputs, read_staged, runs
from pipeline.warehouse.staging import CARRIED, SPOOL
from pipeline.warehouse.store import EXPIRED, RUN_ID, Store, at, discard, here, reachable

_DAY_S = 86_400.0
# An upload has no lock, and of a large file nothing is seen before all of it is there.
_UPLOAD_S = _DAY_S


@dataclass(frozen=True)
class Rules:
    """How many runs of an audit to keep: the newest ones, and the newest one of each of so many days, ISO weeks and
    months (UTC, by started_at) that have runs. A run that one rule keeps stays; rules do not add up. No rule keeps all.
    """

    last: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0

    @property
    def periods(self) -> tuple[tuple[int, str], ...]:
        """Each rule as a number of periods, and strftime's format that tells one from another."""
        return (self.daily, "%Y-%m-%d"), (self.weekly, "%G-W%V"), (self.monthly, "%Y-%m")


@dataclass(frozen=True)
class Removal:
    """Something to remove, and why; size_bytes is None where nobody added it up."""

    path: str
    why: str
    size_bytes: int | None
    action: Callable[[], None]

    def carry_out(self) -> None:
        with storage(self.path):
            self.action()


def removals(root: str | Path, rules: Rules, interrupted_days: float | None = None) -> Iterator[Removal]:
    """Yield what is to be removed, in the order in which that is safe; a kill in between leaves whole runs only.

    :param interrupted_days: also runs that were interrupted, and uploads that were, and nobody went on with for so
        long, an upload for a day at least: it has no lock. A run that a living process has open is never among them.

    Raises WarehouseError, before anything is removed, where it cannot be read what is there.
    """
    store = at(root)
    with reachable(store):
        published = runs(root)
        before = time.time() - interrupted_days * _DAY_S if interrupted_days is not None else None
        # First what is staged: a run that a killed driver had published would look unpublished without its twin.
        left = [*_left_in_staging(store, before), *_left_in_runs(store, before)]
        revising = set(_revising(store))
        kept = keep(published, rules, revising)
    yield from left
    revised = {one.revision_of for one in published}
    for manifest in _revised_first([one for one in published if one.run_id not in kept]):
        why = "revised" if manifest.run_id in revised else "no rule keeps it"
        withdraw = partial(store.withdraw, manifest.run_id)
        yield Removal(str(manifest.directory), f"{why}, audit {manifest.audit}", manifest.size_bytes, withdraw)


def keep(published: Sequence[Manifest], rules: Rules, revising: set[str]) -> set[str]:
    """Return the run_ids that stay.

    Rules look at runs that no other one revises. The newest good run of an audit (complete, and with a target that is
    `ok`) stays in any case, so does a run whose rows a staged one still needs, and every revision of a run that stays:
    a run never comes back from behind its revision.

    :param revising: run_ids that runs in staging revise, and whose good rows they have not all carried over.
    """
    if rules == Rules():
        return {manifest.run_id for manifest in published}
    revisions = {one.revision_of: one.run_id for one in published if one.revision_of}
    newest_first = sorted(published, key=lambda one: (one.started_at, one.run_id), reverse=True)
    kept = {one.run_id for one in published if one.run_id in revising}
    for audit in {one.audit for one in published}:
        of_audit = [one for one in newest_first if one.audit == audit]
        kept |= {one.run_id for one in [one for one in of_audit if _is_good(one)][:1]}
        unrevised = [one for one in of_audit if one.run_id not in revisions]
        kept |= {one.run_id for one in unrevised[: rules.last]}
        for number, period in rules.periods:
            newest: dict[str, str] = {}
            for one in unrevised:
                newest.setdefault(f"{one.started_at:{period}}", one.run_id)
            kept |= set(list(newest.values())[:number])
    for run_id in list(kept):
        while run_id := revisions.get(run_id, ""):
            kept.add(run_id)
    return kept


def _is_good(manifest: Manifest) -> bool:
    return manifest.complete and manifest.outcomes.get("ok", 0) > 0


def _revised_first(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Return runs so that each comes after the one that it revises, otherwise the oldest first."""
    by_id = {one.run_id: one for one in manifests}
    ordered: dict[str, Manifest] = {}
    for one in manifests:
        chain = [one]
        while revised := by_id.get(chain[-1].revision_of or ""):
            chain.append(revised)
        for member in reversed(chain):
            ordered.setdefault(member.run_id, member)
    return list(ordered.values())


def _revising(store: Store) -> Iterator[str]:
    for path in store.staging.glob(f"*/{STAGED}"):
        with suppress(TornError):
            if not (path.parent / CARRIED).exists():
                yield read_staged(path.parent)["revision_of"]


def _left_in_staging(store: Store, before: float | None) -> Iterator[Removal]:
    if not store.staging.is_dir():
        return
    with locks.tidying(store.staging) as alone:
        found = [(path, _why(store, path, before, alone)) for path in sorted(store.staging.iterdir())]
    for path, why in found:
        if why:
            yield Removal(str(path), why, _size(path), partial(_tidy, store, path, before))


def _why(store: Store, path: Path, before: float | None, alone: bool) -> str | None:
    """Say why a directory in staging may go, or return None.

    :param before: seconds since the epoch; what was interrupted and not touched since may go.
    :param alone: nobody is making a directory in staging now.
    """
    if path.name.endswith(EXPIRED) and RUN_ID.fullmatch(path.name.removesuffix(EXPIRED)):
        return "left by an expire that was killed"
    if not RUN_ID.fullmatch(path.name) or not locks.is_free(path / SPOOL):
        return None
    if store.has(path.name):
        return "published"
    try:
        read_staged(path)
        inputs(here(path))
    except TornError:
        if not alone:
            return None
        if not _has_outcomes(path):
            return "half made, cannot be resumed"
    changed = max(entry.stat().st_mtime for entry in (path, *path.iterdir()))
    return "interrupted, and nobody went on with it" if before is not None and changed <= before else None


def _has_outcomes(path: Path) -> bool:
    try:
        return (path / SPOOL).stat().st_size > 0
    except FileNotFoundError:
        return False


def _tidy(store: Store, path: Path, before: float | None) -> None:
    """Remove a directory from staging if it still may go."""
    with locks.tidying(store.staging) as alone, suppress(FileNotFoundError):
        if not _why(store, path, before, alone):
            return
        if path.name.endswith(EXPIRED):
            shutil.rmtree(path)
        else:
            discard(path, store.staging)


def _left_in_runs(store: Store, before: float | None) -> Iterator[Removal]:
    for name, why in _remains(store, store.names(), before):
        yield Removal(str(store.run(name)), why, None, partial(_clear, store, name, before))


def _remains(store: Store, names: Iterable[str], before: float | None) -> Iterator[tuple[str, str]]:
    """Yield those of the names in `runs/` that are of no run and may go, and why."""
    for name, changed in store.remains(names):
        if changed is None:
            yield name, "left by an expire that was killed"
        elif before is not None and changed <= min(before, time.time() - _UPLOAD_S):
            yield name, "an upload that was interrupted"


def _clear(store: Store, name: str, before: float | None) -> None:
    """Remove what is no run if it still may go: its upload may have been gone on with since, or have ended."""
    for again, _ in _remains(store, [name], before):
        store.withdraw(again)


def _size(directory: Path) -> int:
    return sum(path.lstat().st_size for path in directory.rglob("*") if path.is_file())
