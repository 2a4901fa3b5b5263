"""Conditions on what a run found, for alerting: `wasted_bytes > 10GiB`."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import Any

from pipeline.common.errors import UsageError
from pipeline.common.text import parsed_bytes
from pipeline.report.model import Report

_OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_CONDITION = re.compile(r"\s*([a-z_]+)\s*(>=|<=|>|<)\s*(\d.*?)\s*", re.ASCII)
_FIGURES = {
    "wasted_bytes": "what all hosts waste",
    "wasted_pct_of_memory": "that, of their memory",
    "worst_wasted_bytes": "what the worst host wastes",
    "worst_wasted_pct_of_memory": "the largest share of a host's memory that is wasted",
    "list_lru_bytes": "what all list_lrus hold",
    "not_good": "targets that are not good",
    "not_good_pct": "that, of all targets",
}
FIGURES = ", ".join(_FIGURES)


class ThresholdError(UsageError):
    """A condition is none; one line."""


@dataclass(frozen=True)
class Threshold:
    """A figure compared with a number.

    :ivar figure: one of `FIGURES`. :ivar limit: bytes, a number of targets, or percent.
    """

    figure: str
    operator: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """Read a condition: a figure, `>`, `>=`, `<` or `<=`, and a number; of bytes also as `10GB` or `10 GiB`.

        :raises ThresholdError:
        """
        found = _CONDITION.fullmatch(text)
        if not found:
            raise ThresholdError(f"{text!a} is no condition such as 'wasted_bytes > 10GiB'")
        figure, sign, number = found.groups()
        if figure not in _FIGURES:
            raise ThresholdError(f"{figure} is none of {FIGURES}")
        if not (figure.endswith("_bytes") or number[-1].isdigit()):
            raise ThresholdError(f"{figure} has no unit")
        try:
            limit = parsed_bytes(number)
        except ValueError as error:
            raise ThresholdError(f"{text!a}: {error}") from error
        return cls(figure, sign, limit)

    def fires(self, report: Report) -> bool:
        """Say whether a run is beyond it; what is not known (no host has numbers) is not."""
        value = _figures(report)[self.figure]
        return value is not None and bool(_OPERATORS[self.operator](value, self.limit))

    def said(self, report: Report) -> str:
        """Return what fired, in one line."""
        value = _figures(report)[self.figure]
        return f"{self.figure} is {value:,}, {self.operator} {self.limit:,.15g}"


def _figures(report: Report) -> dict[str, Any]:
    totals, run = report.totals, report.run.to_pylist()[0]
    worst = report.host_waste.select(["wasted_bytes", "wasted_pct_of_memory"]).to_pylist()
    shares = [row["wasted_pct_of_memory"] for row in worst if row["wasted_pct_of_memory"] is not None]
    known = bool(worst)
    not_good = run["targets"] - run["good"]
    return {
        "wasted_bytes": totals["wasted_bytes"] if known else None,
        "wasted_pct_of_memory": _pct(totals["wasted_bytes"], totals["memory_bytes"]),
        "worst_wasted_bytes": max((row["wasted_bytes"] for row in worst), default=None),
        "worst_wasted_pct_of_memory": max(shares, default=None),
        "list_lru_bytes": totals["list_lru_bytes"] if known else None,
        "not_good": not_good,
        "not_good_pct": _pct(not_good, run["targets"]),
    }


def _pct(part: int, whole: int) -> float | None:
    return round(100 * part / whole, 2) if whole else None
