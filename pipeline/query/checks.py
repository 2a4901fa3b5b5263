"""The checks of `sql/checks/` over the tables of one run. Each returns the rows that contradict one another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pyarrow.dataset as ds

from pipeline.common import data
from pipeline.common.errors import AuditError
from pipeline.query.session import QueryError, Session, half_of_memory_bytes

# Keeps the publication of 100,000 targets below 1 GiB; DuckDB spills, for a fifth more CPU time than with 1 GiB.
_MEMORY_BYTES = 384 << 20


class Violation(NamedTuple):
    """A target whose rows fail a check, with the reason."""

    target: str
    check: str
    reason: str


class CheckError(AuditError):
    """Rows that belong to no target fail a check: a defect of the run itself."""


def check(tables: Mapping[str, ds.UnionDataset]) -> list[Violation]:
    """Run every check over one run and return the violations, at most one for each target and check.

    :param tables: the datasets of that run only.
    :raises CheckError: rows fail a check and name no target.
    """
    try:
        return _violations(Session(tables, memory_bytes=min(_MEMORY_BYTES, half_of_memory_bytes())))
    except QueryError as error:
        if "Out of Memory" not in str(error):
            raise
    return _violations(Session(tables))  # DuckDB cannot spill everything


def _violations(session: Session) -> list[Violation]:
    violations = []
    for file in sorted((data.path("sql") / "checks").glob("*.sql")):
        rows = session.rows(
            f"""SELECT target, min(reason) AS reason, CAST(count(*) AS BIGINT) AS row_count
            FROM ({file.read_text(encoding="utf-8").rstrip().removesuffix(";")}\n)
            GROUP BY target ORDER BY target NULLS FIRST"""
        )
        for row in rows:
            others = f" (and {row['row_count'] - 1} more)" if row["row_count"] > 1 else ""
            if row["target"] is None:
                raise CheckError(f"check {file.stem}: {row['reason']}{others}; nothing was published")
            violations.append(Violation(row["target"], file.stem, row["reason"] + others))
    return violations
