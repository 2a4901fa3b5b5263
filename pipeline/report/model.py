"""The report of one run, as every renderer gets it: the rows of the views under their own column names."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from pipeline.query import QueryError, Session


@dataclass(frozen=True)
class Report:
    """What one run found.

    :ivar run: the one row of `runs`.
    :ivar totals: sums over the ranking: `hosts`, `memory_bytes`, `list_lru_bytes`, `lazy_bytes`, `wasted_bytes`, and
        the three `saves_*_bytes` that sum to it.
    :ivar coverage: rows of `coverage`, the most frequent first.
    :ivar not_ok: `target`, `status`, `error_type`, `error` of every target that has no numbers.
    :ivar host_waste: the ranking, rows of `host_waste`.
    :ivar lazy_targets: the lazy kernels that the eager hosts among them are compared with.
    """

    run: pa.Table
    totals: dict[str, int]
    coverage: pa.Table
    not_ok: pa.Table
    host_waste: pa.Table
    lazy_targets: list[str]


def build(session: Session, run_id: str | None = None, audit: str | None = None) -> Report:
    """Build the report of a run.

    :param run_id: a full run id; default the newest run of `audit`, else of the audit with the newest run that is
        not `adhoc`.

    Raises QueryError when there is no such run.
    """
    run = _run(session, run_id, audit)
    of_run = {"run": run["run_id"][0].as_py()}
    totals = session.rows(
        """
        SELECT
            CAST(count(*) AS BIGINT) AS hosts,
            CAST(coalesce(sum(memory_bytes), 0) AS BIGINT) AS memory_bytes,
            CAST(coalesce(sum(list_lru_bytes), 0) AS BIGINT) AS list_lru_bytes,
            CAST(coalesce(sum(lazy_bytes), 0) AS BIGINT) AS lazy_bytes,
            CAST(coalesce(sum(wasted_bytes), 0) AS BIGINT) AS wasted_bytes,
            CAST(coalesce(sum(saves_objects_bytes), 0) AS BIGINT) AS saves_objects_bytes,
            CAST(coalesce(sum(saves_transpose_bytes), 0) AS BIGINT) AS saves_transpose_bytes,
            CAST(coalesce(sum(saves_xarray_bytes), 0) AS BIGINT) AS saves_xarray_bytes
        FROM host_waste_at($run)
        JOIN (SELECT run_id, target, memory_bytes FROM targets) USING (run_id, target)
        LEFT JOIN lazy_savings_at($run) USING (target)
        """,
        of_run,
    )
    return Report(
        run=run,
        totals=totals[0],
        coverage=session.sql(
            "FROM coverage WHERE run_id = $run ORDER BY targets DESC, status, error_type NULLS FIRST", of_run
        ),
        not_ok=session.sql(
            """
            SELECT target, status, error_type, error
            FROM targets
            WHERE run_id = $run AND status <> 'ok'
            ORDER BY status, error_type, target
            """,
            of_run,
        ),
        host_waste=session.sql("FROM host_waste_at($run) ORDER BY rank, target", of_run),
        lazy_targets=session.sql(
            """
            SELECT DISTINCT lazy_target
            FROM targets
            WHERE run_id = $run AND status = 'ok' AND lazy_target IS NOT NULL
            ORDER BY lazy_target
            """,
            of_run,
        )["lazy_target"].to_pylist(),
    )


def _run(session: Session, run_id: str | None, audit: str | None) -> pa.Table:
    if run_id is not None:
        found = session.sql("FROM runs WHERE run_id = $run", {"run": run_id})
        missing = f"no published run {run_id!a} in this warehouse"
    elif audit is not None:
        found = session.sql("FROM latest_runs WHERE audit = $audit", {"audit": audit})
        missing = f"no published run of audit {audit!a} in this warehouse"
    else:
        found = session.sql("FROM runs SEMI JOIN newest_run USING (run_id)")
        missing = "no published run in this warehouse; make one with: lru-audit run TARGET..."
    if not len(found):
        raise QueryError(missing)
    return found
