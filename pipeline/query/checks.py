"""The checks of `sql/checks/` over the tables of a run: each returns the rows that contradict one another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pyarrow.dataset as ds

from pipeline.common import data
from pipeline.common.errors import AuditError
from pipeline.query.session import QueryError, Session

# A run of 100,000 targets takes 4 GB otherwise, for a tenth less of CPU time; the rest is spilled.
_MEMORY_BYTES = 1 << 30


class Offence(NamedTuple):
    """A target whose rows fail a check."""

    target: str
    check: str
    reason: str


class CheckError(AuditError):
    """Rows fail a check and no target is to blame: a defect of the run itself."""


def check(tables: Mapping[str, ds.UnionDataset]) -> list[Offence]:
    """Run every check over one run and return the offending targets, one reason for each target and check.

    :param tables: the datasets of that run alone.

    Raises CheckError for rows that name no target.
    """
    try:
        return _offences(Session(tables, memory_bytes=_MEMORY_BYTES))
    except QueryError as error:
        if "Out of Memory" not in str(error):
            raise
    return _offences(Session(tables))  # not all that DuckDB holds can be spilled


def _offences(session: Session) -> list[Offence]:
    offences = []
    for file in sorted((data.path("sql") / "checks").glob("*.sql")):
        offending = session.rows(
            f"""SELECT target, min(reason) AS reason, CAST(count(*) AS BIGINT) AS offending
            FROM ({file.read_text(encoding="utf-8").rstrip().removesuffix(";")}\n)
            GROUP BY target ORDER BY target NULLS FIRST"""
        )
        for row in offending:
            more = f" (and {row['offending'] - 1} more)" if row["offending"] > 1 else ""
            if row["target"] is None:
                raise CheckError(f"check {file.stem}: {row['reason']}{more}; nothing was published")
            offences.append(Offence(row["target"], file.stem, row["reason"] + more))
    return offences
