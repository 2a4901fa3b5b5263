"""The project's macros and views as one script for any DuckDB client: its command line, Jupyter, harlequin."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pyarrow.dataset as ds

from pipeline.query.session import BROKEN_OPTIMIZER, QueryError, Session, is_local

# Versions without the optimizer refuse its name, and SET takes no subquery, hence the variable.
_SETTINGS = f"""\
SET TimeZone = 'UTC';
SET VARIABLE broken_optimizer = (
    SELECT coalesce(any_value(name), '') FROM duckdb_optimizers() WHERE name = '{BROKEN_OPTIMIZER}'
);
SET disabled_optimizers = getvariable('broken_optimizer');
RESET VARIABLE broken_optimizer;
"""


def init_script(tables: Mapping[str, ds.UnionDataset]) -> str:
    """Return SQL that creates the macros and views over these tables' files, and can be run again to replace them.

    :raises QueryError: the tables are in an object store.
    """
    if not is_local(tables):
        raise QueryError("--print-init needs a warehouse in a local directory; DuckDB cannot read this one")
    return "\n".join((_SETTINGS, *map(_replace_existing, Session(tables).definitions())))


def _replace_existing(statement: str) -> str:
    # harlequin splits a script at every semicolon, even in a comment.
    without_comments = re.sub(r"(?m)^ *--.*\n", "", statement)
    return re.sub(r"(?m)^CREATE (?!OR REPLACE )", "CREATE OR REPLACE ", without_comments, count=1).rstrip() + "\n"
