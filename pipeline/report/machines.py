"""Sentences on targets that show one machine, and on host names that several machines have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.common.text import human_bytes, printable
from pipeline.report import rows, waste
from pipeline.report.model import Report

# A directory of crash dumps may have hundreds of older cores. The view `machines` has all.
_MAX_EXAMPLES = 3
_MARKS = {
    "architecture": "architecture",
    "page_size": "page size",
    "nodes": "possible nodes",
    "machine_id": "machine-id",
    "labels": "labels",
}


def notes(report: Report) -> list[str]:
    """Return the sentences, each on one line; empty if every target is a machine with a name of its own."""
    return [*_repetitions(report), *_namesakes(report)]


def _repetitions(report: Report) -> Iterator[str]:
    totals = report.totals
    counts = [
        f"{count:,} {noun if count == 1 else nouns}"
        for count, noun, nouns in (
            (totals["older_cores"], "older core of a host", "older cores of a host"),
            (totals["copies"], "copy of the same core", "copies of the same core"),
            (totals["further_audits"], "further audit of a host", "further audits of a host"),
        )
        if count
    ]
    if not counts:
        return
    repetitions = f"{', '.join(counts[:-1])} and {counts[-1]}" if len(counts) > 1 else counts[0]
    wasted_bytes, lower_bound = totals["machines_wasted_bytes"], totals["machines_lower_bound"]
    remainder = "nothing is known to be wasted"
    if waste.is_known(wasted_bytes, lower_bound):
        hosts = "1 host wastes" if totals["machines"] == 1 else f"{totals['machines']:,} hosts waste"
        remainder = f"{hosts} {waste.text(wasted_bytes, lower_bound)}"
    yield f"These sums include {repetitions}; the advice counts each host once. Without them {remainder}."
    named = [row for row in rows.records(report.machines) if row["relation"] != "copy"]
    yield from map(_repetition, named[:_MAX_EXAMPLES])
    if len(named) > _MAX_EXAMPLES:
        yield f'... and {len(named) - _MAX_EXAMPLES:,} more: lru-audit sql "FROM machines"'


def _repetition(row: dict[str, Any]) -> str:
    target, machine_target = printable(row["target"]), printable(row["machine_target"])
    host = "" if row["host_name"] is None else f" {printable(row['host_name'])}"
    if row["relation"] == "older core":
        return f"{target} is taken for an older core of {machine_target}'s host{host}."
    return f"{target} is {machine_target}'s host{host}, reached in another way."


def _namesakes(report: Report) -> Iterator[str]:
    namesakes = rows.records(report.namesakes)
    yield from map(_namesake, namesakes[:_MAX_EXAMPLES])
    if len(namesakes) > _MAX_EXAMPLES:
        yield f'... and {len(namesakes) - _MAX_EXAMPLES:,} more host names: lru-audit sql "FROM machines"'


def _namesake(row: dict[str, Any]) -> str:
    marks = [mark for name, mark in _MARKS.items() if row[f"differ_in_{name}"]]
    if row["differ_in_memory"]:
        sizes = [human_bytes(size) for size in row["memory_bytes"][:_MAX_EXAMPLES]]
        sizes += ["..."] if len(row["memory_bytes"]) > _MAX_EXAMPLES else []
        marks.insert(0, f"memory ({', '.join(sizes)})")
    if marks:
        difference = f"differ in {' and '.join(marks)}"
    else:
        difference = "were up at the same time" if row["up_at_the_same_time"] else "are different boots"
    return (
        f"{row['targets']:,} {'cores' if row['cores_only'] else 'targets'} call themselves "
        f"{printable(row['host_name'])} and {difference}: counted as {row['machines']:,} machines."
    )
