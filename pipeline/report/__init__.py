"""One report model and its renderers, and the rendering of query results; hostile names are escaped for each output."""

from pipeline.report import rows
from pipeline.report.model import Report, build
from pipeline.report.render import RENDERERS

__all__ = ["RENDERERS", "Report", "build", "rows"]
