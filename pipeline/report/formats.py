"""The formats of a report, each with its renderer. Each renderer escapes names for its format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.report import render
from pipeline.report.html import html
from pipeline.report.model import Report
from pipeline.report.prometheus import prometheus

RENDERERS: dict[str, Callable[[Report, Any], None]] = {
    "text": render.text,
    "html": html,
    "markdown": render.markdown,
    "csv": render.csv,
    "json": render.json_,
    "parquet": render.parquet,
    "prometheus": prometheus,
}
"""Renderers by format name. `parquet` writes to a binary file, the others to a text file."""
