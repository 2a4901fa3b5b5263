"""Runs as Parquet: outcomes are spooled as they arrive, then published whole or not at all.

A warehouse is named by a path or a URI, as `store.at` takes it.
"""

from pipeline.warehouse.errors import WarehouseError
from pipeline.warehouse.expiry import Removal, Rules, removals
from pipeline.warehouse.overlap import alone
from pipeline.warehouse.overview import overview
from pipeline.warehouse.runs import (
    Manifest,
    new_run_id,
    read,
    reading,
    resolve,
    resumable,
    runs,
    staged,
    tables,
    unpublished,
    verifiable,
)
from pipeline.warehouse.staging import Staging
from pipeline.warehouse.verify import problems

__all__ = [
    "Manifest",
    "Removal",
    "Rules",
    "Staging",
    "WarehouseError",
    "alone",
    "new_run_id",
    "overview",
    "problems",
    "read",
    "reading",
    "removals",
    "resolve",
    "resumable",
    "runs",
    "staged",
    "tables",
    "unpublished",
    "verifiable",
]
