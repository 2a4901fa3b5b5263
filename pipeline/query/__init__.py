"""The only package that uses DuckDB: the views of `sql/` over a warehouse's tables, the checks, and users' SQL."""

from pipeline.query.checks import CheckError, Violation, check
from pipeline.query.confined import Limits, run_confined
from pipeline.query.initial import init_script
from pipeline.query.session import QueryError, Session

__all__ = ["CheckError", "Limits", "QueryError", "Session", "Violation", "check", "init_script", "run_confined"]
