"""Runs as Parquet: outcomes are spooled as they arrive, then published together or not at all.

A warehouse is named by a path or a URI; `store.open_store` lists the accepted forms.
"""

from pipeline.warehouse.errors import ExpiredError, WarehouseError
from pipeline.warehouse.expiry import Removal, RetentionRules, removal_of, removals
from pipeline.warehouse.overlap import exclusive_audit
from pipeline.warehouse.overview import overview
from pipeline.warehouse.probe import probe
from pipeline.warehouse.runs import (
    Manifest,
    new_run_id,
    open_tables,
    published_run_ids,
    published_runs,
    read_manifest,
    resolve_resumable_run,
    resolve_run,
    resolve_staged_run,
    staged_runs,
    tables,
)
from pipeline.warehouse.staging import Staging
from pipeline.warehouse.verify import problems

__all__ = [
    "ExpiredError",
    "Manifest",
    "Removal",
    "RetentionRules",
    "Staging",
    "WarehouseError",
    "exclusive_audit",
    "new_run_id",
    "open_tables",
    "overview",
    "probe",
    "problems",
    "published_run_ids",
    "published_runs",
    "read_manifest",
    "removal_of",
    "removals",
    "resolve_resumable_run",
    "resolve_run",
    "resolve_staged_run",
    "staged_runs",
    "tables",
]
