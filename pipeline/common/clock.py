"""Dates of runs, which the clocks of other machines have given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

# Bounds how far working clocks differ: by minutes where one is never set. Runs are hours apart.
_TOLERANCE = timedelta(hours=1)


def is_in_future(time: datetime) -> bool:
    """Whether a time is ahead of this machine's clock by more than working clocks differ."""
    return time > datetime.now(UTC) + _TOLERANCE


def future_notes(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a line for each audit that has runs which are dated in the future.

    :param runs: `audit`, `run_id` and `started_at` of each, the newest last.
    """
    future_runs: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        if is_in_future(run["started_at"]):
            future_runs.setdefault(run["audit"], []).append(run)
    return [_future_note(audit, audit_runs) for audit, audit_runs in future_runs.items()]


def minute(time: datetime) -> str:
    """Return a time as text, to the minute."""
    return f"{time:%Y-%m-%d %H:%M} UTC"


def _future_note(audit: str, runs: list[Mapping[str, Any]]) -> str:
    run_id, started_at = runs[-1]["run_id"], runs[-1]["started_at"]
    others = f" (and {len(runs) - 1} more)" if len(runs) > 1 else ""
    return (
        f"run {run_id} of {audit}{others} is dated {minute(started_at)}, in the future (now: "
        f"{minute(datetime.now(UTC))}): is its clock wrong, or that of this machine? If its own is, lru-audit expire "
        f"--run {run_id} removes it"
    )
