"""One report model and its renderers, and the rendering of query results; hostile names are escaped for each output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.report import render, rows
from pipeline.report.html import html
from pipeline.report.model import Report, build
from pipeline.report.prometheus import prometheus
from pipeline.report.threshold import FIGURES, Threshold, ThresholdError

RENDERERS: dict[str, Callable[[Report, Any], None]] = {
    "text": render.text,
    "html": html,
    "markdown": render.markdown,
    "csv": render.csv,
    "json": render.json_,
    "parquet": render.parquet,
    "prometheus": prometheus,
}
"""By the name of the format; `parquet` alone writes bytes."""

__all__ = ["FIGURES", "RENDERERS", "Report", "Threshold", "ThresholdError", "build", "prometheus", "rows"]
