"""Runs as Parquet: outcomes are spooled as they arrive, then published whole or not at all."""

from pipeline.warehouse.errors import WarehouseError
from pipeline.warehouse.runs import Manifest, new_run_id, read, resolve, resumable, runs, staged, tables, unpublished
from pipeline.warehouse.staging import Staging

__all__ = [
    "Manifest",
    "Staging",
    "WarehouseError",
    "new_run_id",
    "read",
    "resolve",
    "resumable",
    "runs",
    "staged",
    "tables",
    "unpublished",
]
