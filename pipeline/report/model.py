"""The report of one run, as every renderer gets it: the rows of the views under their own column names."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import pyarrow as pa

from pipeline.common import data
from pipeline.query import QueryError, Session

MOST_IN_DETAIL = 20
"""So many of the worst hosts are shown each on its own."""


class Report:
    """What one run found: a statement of `sql/reports/` for each section, asked when a renderer first wants it."""

    def __init__(self, session: Session, run: pa.Table) -> None:
        """Take a run, the one row of `runs`."""
        self.run = run
        self.run_id: str = run["run_id"][0].as_py()
        self._session = session

    @cached_property
    def totals(self) -> dict[str, int]:
        """Sums over the ranking: `hosts`, `memory_bytes`, `list_lru_bytes`, `lazy_bytes`, `wasted_bytes`, and the
        three `saves_*_bytes` that sum to it. There are fewer `machines` than hosts where cores are of one machine."""
        return self._one("totals") or {}

    @property
    def older_cores(self) -> str:
        """What the sums count and `advice` does not, as a sentence; empty where they count the same."""
        count = self.totals["hosts"] - self.totals["machines"]
        cores = f"{count:,} older core{'' if count == 1 else 's'}"
        return f"These sums include {cores} of a host; what to do counts each host once." if count else ""

    @cached_property
    def coverage(self) -> pa.Table:
        """Rows of `coverage`, the most frequent first."""
        return self._rows("coverage")

    @cached_property
    def not_ok(self) -> pa.Table:
        """`target`, `status`, `error_type`, `error` of every target that has no numbers."""
        return self._rows("not_ok")

    @cached_property
    def host_waste(self) -> pa.Table:
        """The ranking, rows of `host_waste`."""
        return self._rows("host_waste")

    @cached_property
    def lazy_bases(self) -> set[str]:
        """The `lazy_basis` of the eager hosts: `online` where lazy_bytes is an upper bound and the waste a lower."""
        return set(self.host_waste["lazy_basis"].to_pylist()) - {None}

    @cached_property
    def bounded(self) -> set[str]:
        """Targets of basis `online` among such of basis `charged`: a ranking has to mark them."""
        if self.lazy_bases != {"online", "charged"}:
            return set()
        ranked = self.host_waste.select(["target", "lazy_basis"]).to_pylist()
        return {row["target"] for row in ranked if row["lazy_basis"] == "online"}

    @cached_property
    def memory_bytes(self) -> dict[str, int]:
        """The memory of each target of the ranking."""
        return {row["target"]: row["memory_bytes"] for row in self._rows("memory").to_pylist()}

    @cached_property
    def lazy_targets(self) -> list[str]:
        """The lazy kernels that the eager hosts are compared with."""
        names: list[str] = self._rows("lazy_targets")["lazy_target"].to_pylist()
        return names

    @cached_property
    def labels_of(self) -> dict[str, dict[str, str]]:
        """The labels of each target that has some."""
        labels: dict[str, dict[str, str]] = {}
        for row in self._rows("labels_of").to_pylist():
            labels.setdefault(row["target"], {})[row["label"]] = row["value"]
        return labels

    @cached_property
    def kernels(self) -> pa.Table:
        """What each kernel would give back; those that are `lazy` nothing."""
        return self._rows("kernels")

    @cached_property
    def fstypes(self) -> pa.Table:
        """The waste by filesystem type."""
        return self._rows("fstypes")

    @cached_property
    def labels(self) -> pa.Table:
        """The waste by label: `label`, `value`, ...; the values of a label sum to the whole."""
        return self._rows("labels")

    @cached_property
    def upgrades(self) -> pa.Table:
        """Hosts that got another kernel in the last runs of this audit, and what that freed."""
        return self._rows("upgrades")

    @cached_property
    def distribution(self) -> pa.Table:
        """How many hosts waste how much: `below_bytes`, `hosts`, `wasted_bytes`."""
        return self._rows("distribution")

    @cached_property
    def trend(self) -> pa.Table:
        """This run and those before it of the same audit, the oldest first."""
        newest_first = self._rows("trend")
        return newest_first.take(list(reversed(range(len(newest_first)))))

    @cached_property
    def doublings(self) -> pa.Table:
        """Rows of `next_doubling` that are nearest."""
        return self._rows("doublings")

    @cached_property
    def advice(self) -> dict[str, Any]:
        """What `sql/reports/advice.sql` adds up, with the row of `mounts` and of `churn`, each a dict or None, and the
        rows of `lazy`."""
        found = self._one("advice") or {}
        return {
            **found,
            "mounts": self._one("advice_mounts"),
            "churn": self._one("advice_churn"),
            "lazy": self._rows("advice_lazy").to_pylist(),
        }

    @cached_property
    def worst(self) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """For each of the worst hosts that waste: its rows of `ids`, `slabs`, `superblocks` and `cgroups`."""
        first = self.host_waste.slice(0, MOST_IN_DETAIL).select(["target", "wasted_bytes"]).to_pylist()
        targets = [row["target"] for row in first if row["wasted_bytes"] > 0]
        sections = ("ids", "slabs", "superblocks", "cgroups")
        worst: dict[str, dict[str, list[dict[str, Any]]]] = {
            target: {section: [] for section in sections} for target in targets
        }
        for section in sections:
            for row in self._rows(f"top_{section}", targets=targets).to_pylist():
                worst[row["target"]][section].append(row)
        return worst

    def _one(self, name: str) -> dict[str, Any] | None:
        rows: list[dict[str, Any]] = self._rows(name).to_pylist()
        return rows[0] if rows else None

    def _rows(self, name: str, **params: Any) -> pa.Table:
        statement = (data.path("sql") / "reports" / f"{name}.sql").read_text(encoding="utf-8")
        return self._session.sql(statement, {"run": self.run_id, **params})


def build_report(session: Session, run_id: str | None = None, audit: str | None = None) -> Report:
    """Return the report of a run.

    :param run_id: a full run id; default the newest run of `audit`, else of the audit with the newest run that is
        not `adhoc`.

    Raises QueryError when there is no such run.
    """
    if run_id is not None:
        found = session.sql("FROM runs WHERE run_id = $run", {"run": run_id})
        missing = f"no published run {run_id!a}"
    elif audit is not None:
        found = session.sql("FROM latest_runs WHERE audit = $audit", {"audit": audit})
        missing = f"no published run of audit {audit!a}"
    else:
        found = session.sql("FROM runs SEMI JOIN newest_run USING (run_id)")
        missing = "no published run; make one with: lru-audit run TARGET..."
    if not len(found):
        raise QueryError(missing)
    return Report(session, found)
