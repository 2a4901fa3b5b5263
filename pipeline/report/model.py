"""The report of one run, from which every renderer takes its rows, under the column names of the views."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import pyarrow as pa

from pipeline.common import clock, data
from pipeline.query import QueryError, Session

MAX_DETAILED_HOSTS = 20
"""The worst hosts, up to this many, have a section each."""


class Report:
    """The figures of one run. Each section is a statement of `sql/reports/`, run when a renderer first reads it."""

    def __init__(self, session: Session, run: pa.Table) -> None:
        """Create the report of a run.

        :param run: the run's row of `runs`.
        """
        self.run = run
        self.run_id: str = run["run_id"][0].as_py()
        self._session = session

    @cached_property
    def totals(self) -> dict[str, Any]:
        """Sums over the ranking: `hosts`, `memory_bytes`, `list_lru_bytes`, `lazy_bytes`, `wasted_bytes`, the three
        `saves_*_bytes` that sum to it, and `machines` with the sums `machines_*_bytes`, which count each machine once;
        `older_cores`, `copies` and `further_audits` are the other targets. Where `lower_bound` is true (of the sums of
        machines, `machines_lower_bound`), the waste is a lower bound and lazy_bytes an upper one."""
        return self._row("totals") or {}

    @cached_property
    def clock_notes(self) -> list[str]:
        """Sentences on runs of the audit whose dates cannot be true, or contradict the order of the runs."""
        run = self.run.to_pylist()[0]
        notes = clock.future_notes({**row, "audit": run["audit"]} for row in self.future_runs.to_pylist())
        if later := self._row("later_dated_run"):
            notes.append(
                f"run {self.run_id} is dated {clock.minute(run['started_at'])}, though run {later['run_id']} of "
                f"{clock.minute(later['started_at'])} was published before it started: was a clock wrong? "
                "Runs stay in the order in which they started"
            )
        return [f"{note[0].upper()}{note[1:]}." for note in notes]

    @cached_property
    def future_runs(self) -> pa.Table:
        """`run_id` and `started_at` of the runs of the audit that are dated in the future."""
        return self._rows("future_runs")

    @cached_property
    def coverage(self) -> pa.Table:
        """Rows of `coverage`, the most frequent status first."""
        return self._rows("coverage")

    @cached_property
    def not_ok(self) -> pa.Table:
        """`target`, `status`, `error_type`, `error` of every target without numbers."""
        return self._rows("not_ok")

    @cached_property
    def host_waste(self) -> pa.Table:
        """The ranking: rows of `host_waste`."""
        return self._rows("host_waste")

    @cached_property
    def memory_bytes_by_target(self) -> dict[str, int]:
        """The memory of each target of the ranking."""
        return {row["target"]: row["memory_bytes"] for row in self._rows("memory").to_pylist()}

    @cached_property
    def lazy_targets(self) -> list[str]:
        """The lazy kernels with which the eager hosts are compared."""
        names: list[str] = self._rows("lazy_targets")["lazy_target"].to_pylist()
        return names

    @cached_property
    def labels_by_target(self) -> dict[str, dict[str, str]]:
        """The labels of each target that has labels."""
        labels: dict[str, dict[str, str]] = {}
        for row in self._rows("labels_of").to_pylist():
            labels.setdefault(row["target"], {})[row["label"]] = row["value"]
        return labels

    @cached_property
    def core_copies(self) -> pa.Table:
        """Rows of `core_copies`: the targets whose core another target has too."""
        return self._rows("core_copies")

    @cached_property
    def same_core_by_target(self) -> dict[str, str]:
        """The `same_core_as` of each target of `core_copies`."""
        return {row["target"]: row["same_core_as"] for row in self.core_copies.to_pylist()}

    def ranking_name(self, target: str) -> str:
        """Return a target's name in the ranking, which says whose core it has."""
        same_core_as = self.same_core_by_target.get(target)
        return target if same_core_as is None else f"{target} (same core as {same_core_as})"

    @cached_property
    def machines(self) -> pa.Table:
        """Rows of `machines` for the targets whose machine another target stands for."""
        return self._rows("machines")

    @cached_property
    def namesakes(self) -> pa.Table:
        """The host names that several machines have, and the marks in which these differ."""
        return self._rows("namesakes")

    @cached_property
    def kernels(self) -> pa.Table:
        """The waste by kernel release; 0 for kernels that are `lazy`."""
        return self._rows("kernels")

    @cached_property
    def fstypes(self) -> pa.Table:
        """The waste by filesystem type."""
        return self._rows("fstypes")

    @cached_property
    def labels(self) -> pa.Table:
        """The waste by label: `label`, `value`, ...; the values of each label sum to the waste of the run."""
        return self._rows("labels")

    @cached_property
    def upgrades(self) -> pa.Table:
        """Hosts whose kernel changed in the last runs of this audit, with the bytes that the change freed."""
        return self._rows("upgrades")

    @cached_property
    def distribution(self) -> pa.Table:
        """A histogram of hosts by waste: `below_bytes`, `hosts`, `wasted_bytes`."""
        return self._rows("distribution")

    @cached_property
    def trend(self) -> pa.Table:
        """This run and the earlier runs of the same audit, the oldest first."""
        newest_first = self._rows("trend")
        return newest_first.take(list(reversed(range(len(newest_first)))))

    @cached_property
    def doublings(self) -> pa.Table:
        """Rows of `next_doubling`: the hosts that are closest to a doubling."""
        return self._rows("doublings")

    @cached_property
    def memcg_costs(self) -> pa.Table:
        """What each part of what memory cgroups cost holds on all machines, and would hold after an upgrade."""
        return self._rows("memcg_costs")

    @cached_property
    def memcg_memory(self) -> pa.Table:
        """Rows of `memcg_memory`."""
        return self._rows("memcg_memory")

    @cached_property
    def top_memcg_parts(self) -> pa.Table:
        """`target`, `part` and `held_bytes` of the machines that hold most for memory cgroups."""
        return self._rows("top_memcg_parts")

    @cached_property
    def upgrade_net(self) -> pa.Table:
        """Rows of `upgrade_net`."""
        return self._rows("upgrade_net")

    @cached_property
    def fleet_net(self) -> dict[str, Any] | None:
        """`hosts`, `frees_bytes`, `takes_bytes`, `net_bytes` and `lazy_error_bytes` of the upgrades of all machines,
        and whether they are a `lower_bound`; None if nothing is predicted."""
        return self._row("fleet_net")

    @cached_property
    def target_kernels(self) -> list[str]:
        """The kernels for which memory is predicted."""
        return sorted(set(self.upgrade_net["target_kernel"].to_pylist()))

    @cached_property
    def advice(self) -> dict[str, Any]:
        """The sums of `sql/reports/advice.sql`, with the rows of `net`, `mounts`, `detached`, `dying` and `churn`, each
        a dict or None, and the rows of `lazy`."""
        sums = self._row("advice") or {}
        return {
            **sums,
            "net": self._row("advice_net"),
            "mounts": self._row("advice_mounts"),
            "detached": self._row("advice_detached"),
            "dying": self._row("advice_dying"),
            "churn": self._row("advice_churn"),
            "lazy": self._rows("advice_lazy").to_pylist(),
        }

    @cached_property
    def worst_hosts(self) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """The rows of `ids`, `slabs`, `superblocks` and `cgroups` of each of the worst hosts, by target."""
        first_rows = self.host_waste.slice(0, MAX_DETAILED_HOSTS).select(["target", "wasted_bytes"]).to_pylist()
        targets = [row["target"] for row in first_rows if row["wasted_bytes"] > 0]
        sections = ("ids", "slabs", "superblocks", "cgroups")
        details: dict[str, dict[str, list[dict[str, Any]]]] = {
            target: {section: [] for section in sections} for target in targets
        }
        for section in sections:
            for row in self._rows(f"top_{section}", targets=targets).to_pylist():
                details[row["target"]][section].append(row)
        return details

    def _row(self, name: str) -> dict[str, Any] | None:
        rows: list[dict[str, Any]] = self._rows(name).to_pylist()
        return rows[0] if rows else None

    def _rows(self, name: str, **params: Any) -> pa.Table:
        statement = (data.path("sql") / "reports" / f"{name}.sql").read_text(encoding="utf-8")
        return self._session.sql(statement, {"run": self.run_id, **params})


def build_report(session: Session, run_id: str | None = None, audit: str | None = None) -> Report:
    """Return the report of a run.

    :param run_id: a full run id; default the newest run of `audit`. Without an audit either, the newest run of any
        audit except `adhoc`, or of `adhoc` if it is the only audit.
    :raises QueryError: the run does not exist.
    """
    if run_id is not None:
        run = session.sql("FROM runs WHERE run_id = $run", {"run": run_id})
        message = f"no published run {run_id!a}"
    elif audit is not None:
        run = session.sql("FROM latest_runs WHERE audit = $audit", {"audit": audit})
        message = f"no published run of audit {audit!a}"
    else:
        run = session.sql("FROM runs WHERE run_id = newest_run_id()")
        message = "no published run; make one with: lru-audit run TARGET..."
    if not len(run):
        raise QueryError(message)
    return Report(session, run)
