"""DuckDB, and only here: the views of `sql/` over a warehouse's tables, the checks, and confined SQL of users."""

from pipeline.query.checks import CheckError, Offence, check
from pipeline.query.session import QueryError, Session

__all__ = ["CheckError", "Offence", "QueryError", "Session", "check"]
