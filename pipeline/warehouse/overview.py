"""One row for each run of a warehouse: the published runs from their manifests, and the runs in staging."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from pipeline.warehouse import locks
from pipeline.warehouse.runs import Manifest, published_runs, staged_runs, start_of
from pipeline.warehouse.staging import SPOOL_FILE, finished_targets
from pipeline.warehouse.store import open_store


def overview(root: str | Path) -> list[dict[str, Any]]:
    """Return the published runs in their order, the newest last, then the runs in staging.

    `state` is `published`, `unfinished` (can be resumed) or `running` (a process has it open). `collected` is the
    number of targets with an outcome. `good`, `complete`, `duration_ms` and `size_bytes` (of the tables) are None
    unless published; `duration_ms` also if the clock was set back during the run.
    """
    rows = [
        {
            "run_id": manifest.run_id,
            "audit": manifest.audit,
            "state": "published",
            "started_at": manifest.started_at,
            "duration_ms": _duration_ms(manifest),
            "targets": manifest.targets,
            "collected": manifest.targets - manifest.outcomes.get("not_run", 0),
            "good": manifest.good,
            "complete": manifest.complete,
            "revision_of": manifest.revision_of,
            "size_bytes": manifest.size_bytes,
        }
        for manifest in published_runs(root)
    ]
    for run_id, run in sorted(staged_runs(root).items()):
        directory = open_store(root).staging / run_id
        rows.append(
            {
                "run_id": run_id,
                "audit": run["audit"],
                "state": "unfinished" if locks.is_free(directory / SPOOL_FILE) else "running",
                "started_at": start_of(run),
                "duration_ms": None,
                "targets": run["targets"],
                "collected": len(finished_targets(directory)),
                "good": None,
                "complete": None,
                "revision_of": run["revision_of"],
                "size_bytes": None,
            }
        )
    return rows


def _duration_ms(manifest: Manifest) -> int | None:
    duration = manifest.finished_at - manifest.started_at
    return duration // timedelta(milliseconds=1) if duration >= timedelta(0) else None
