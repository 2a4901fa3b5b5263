"""Conditions on the figures of a run, for alerts: `wasted_bytes > 10GiB`."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import Any

from pipeline.common.errors import UsageError
from pipeline.common.text import parse_bytes
from pipeline.report.model import Report

_OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_CONDITION = re.compile(r"\s*([a-z_]+)\s*(>=|<=|>|<)\s*(\d.*?)\s*", re.ASCII)
FIGURES = (
    "wasted_bytes",  # by all machines, each once
    "wasted_pct_of_memory",  # of the memory of these machines
    "worst_wasted_bytes",  # by the host that wastes most bytes
    "worst_wasted_pct_of_memory",  # of the host that wastes the largest share of its memory
    "list_lru_bytes",  # held by all list_lrus of these machines
    "not_good",  # targets
    "not_good_pct",  # of all targets
)


class ThresholdError(UsageError):
    """An invalid condition; the message is one line."""


@dataclass(frozen=True)
class Threshold:
    """A comparison of a figure with a number.

    :ivar figure: one of `FIGURES`.
    :ivar limit: bytes, a number of targets, or percent.
    """

    figure: str
    operator: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """Parse a condition: a figure, `>`, `>=`, `<` or `<=`, and a number; for bytes also as `10GB` or `10 GiB`.

        :raises ThresholdError: the condition is invalid.
        """
        match = _CONDITION.fullmatch(text)
        if not match:
            raise ThresholdError(f"invalid condition {text!a}; expected something like 'wasted_bytes > 10GiB'")
        figure, sign, number = match.groups()
        if figure not in FIGURES:
            raise ThresholdError(f"unknown figure {figure}; expected one of {', '.join(FIGURES)}")
        if not (figure.endswith("_bytes") or number[-1].isdigit()):
            raise ThresholdError(f"{figure} has no unit; expected a plain number instead of {number!a}")
        try:
            limit = parse_bytes(number)
        except ValueError as error:
            raise ThresholdError(f"{text!a}: {error}") from error
        return cls(figure, sign, limit)

    def fires(self, report: Report) -> bool:
        """Whether the condition holds for a run. It never holds for a figure that is unknown since no host is good."""
        value = _figures(report)[self.figure]
        return value is not None and bool(_OPERATORS[self.operator](value, self.limit))

    def message(self, report: Report) -> str:
        """Return the figure's value and the condition that it meets, in one line."""
        value = _figures(report)[self.figure]
        return f"{self.figure} is {value:,}, {self.operator} {self.limit:,.15g}"


def _figures(report: Report) -> dict[str, Any]:
    totals, run = report.totals, report.run.to_pylist()[0]
    hosts = report.host_waste.select(["wasted_bytes", "wasted_pct_of_memory"]).to_pylist()
    percentages = [row["wasted_pct_of_memory"] for row in hosts if row["wasted_pct_of_memory"] is not None]
    not_good = run["targets"] - run["good"]
    return {
        "wasted_bytes": totals["machines_wasted_bytes"] if hosts else None,
        "wasted_pct_of_memory": _pct(totals["machines_wasted_bytes"], totals["machines_memory_bytes"]),
        "worst_wasted_bytes": max((row["wasted_bytes"] for row in hosts), default=None),
        "worst_wasted_pct_of_memory": max(percentages, default=None),
        "list_lru_bytes": totals["machines_list_lru_bytes"] if hosts else None,
        "not_good": not_good,
        "not_good_pct": _pct(not_good, run["targets"]),
    }


def _pct(part: int, total: int) -> float | None:
    return round(100 * part / total, 2) if total else None
