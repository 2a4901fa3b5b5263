"""DuckDB, and only here: the views of `sql/` over a warehouse's tables, the checks, and confined SQL of users."""

from pipeline.query.checks import CheckError, Offence, check
from pipeline.query.confined import Limits, ask
from pipeline.query.initial import script
from pipeline.query.session import QueryError, Session

__all__ = ["CheckError", "Limits", "Offence", "QueryError", "Session", "ask", "check", "script"]
