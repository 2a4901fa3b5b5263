"""Every run of a warehouse as one row: the published ones by their manifests, and those that wait in staging."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.warehouse import locks
from pipeline.warehouse.runs import runs, staged
from pipeline.warehouse.staging import SPOOL, collected
from pipeline.warehouse.store import at


def overview(root: str | Path) -> list[dict[str, Any]]:
    """Return the runs, the newest last, then those in staging.

    state is `published`, `unfinished` (resume goes on with it) or `running` (a process has it open). collected are the
    targets with an outcome. good, complete, duration_ms and size_bytes (of the tables) are None unless published.
    """
    rows = [
        {
            "run_id": one.run_id,
            "audit": one.audit,
            "state": "published",
            "started_at": one.started_at,
            "duration_ms": int((one.finished_at - one.started_at).total_seconds() * 1000),
            "targets": one.targets,
            "collected": one.targets - one.outcomes.get("not_run", 0),
            "good": one.good,
            "complete": one.complete,
            "revision_of": one.revision_of,
            "size_bytes": one.size_bytes,
        }
        for one in runs(root)
    ]
    for run_id, run in sorted(staged(root).items()):
        directory = at(root).staging / run_id
        rows.append(
            {
                "run_id": run_id,
                "audit": run["audit"],
                "state": "unfinished" if locks.is_free(directory / SPOOL) else "running",
                "started_at": datetime.fromtimestamp(run["started_at"] / 1_000_000, UTC),
                "duration_ms": None,
                "targets": run["targets"],
                "collected": len(collected(directory)),
                "good": None,
                "complete": None,
                "revision_of": run["revision_of"],
                "size_bytes": None,
            }
        )
    return rows
