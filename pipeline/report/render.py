"""The report as text for a terminal, as JSON, CSV, Parquet and markdown."""

from __future__ import annotations

import json
import os
import re
from typing import Any, BinaryIO, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pipeline.common.text import counted, human_bytes, human_error, printable
from pipeline.report import advice, escape, machines, rows, waste
from pipeline.report.model import Report

# Limits of the text format: a terminal shows the worst hosts.
MAX_HOSTS = 50
MAX_NOT_OK = 20
# Sections of JSON and markdown besides the ranking: attributes of Report and their titles.
_BREAKDOWNS = {
    "kernels": "By kernel",
    "fstypes": "By filesystem type",
    "labels": "By label",
    "distribution": "Distribution",
    "trend": "Trend",
    "upgrades": "Kernels that changed",
    "doublings": "Next doublings",
    "memcg_costs": "What else memory cgroups cost",
    "upgrade_net": "Net of an upgrade",
    "core_copies": "Copies of a core",
    "machines": "Further targets of a machine",
    "namesakes": "Host names of several machines",
}
# Terminal width for the wide ranking, which pipes and logs get as well, and for the narrow one.
_WIDE_COLUMNS = 140
_MIN_COLUMNS = 80
# From here on the net of an upgrade leaves names as much room as they have in the narrow ranking.
_NET_COLUMNS = 93
# Wide enough that no name is folded.
_UNFOLDED_COLUMNS = 10_000


def text(report: Report, file: TextIO) -> None:
    """Write a summary, the coverage with reasons, the ranking and the advice, as wide as the terminal.

    Without a terminal, in a pipe or a log, names in the ranking are not folded, so that grep finds them. This is the
    only format that rounds bytes.
    """
    has_width = file.isatty() or "COLUMNS" in os.environ
    console = _console(file, None if has_width else _WIDE_COLUMNS)
    # A terminal that is too narrow for the table folds its lines itself: better than columns without their names.
    ranking_console = console if has_width and console.width >= _MIN_COLUMNS else _console(file, _UNFOLDED_COLUMNS)
    for line in _summary(report):
        console.print(line)
    if len(report.not_ok):
        console.print()
        console.print(_coverage(report))
        console.print()
        console.print(_not_ok(report))
        _print_more(console, len(report.not_ok), MAX_NOT_OK, "SELECT * FROM targets WHERE status <> 'ok'")
    if len(report.host_waste):
        console.print()
        ranking_console.print(_ranking(report, console.width))
        _print_more(console, len(report.host_waste), MAX_HOSTS, "SELECT * FROM host_waste")
        console.print()
        console.print(_legend(report, console.width))
    if len(report.memcg_costs) > 1:
        console.print()
        kernels = printable(" or ".join(report.target_kernels))
        upgrade = f"; upgraded: with Linux {kernels}" if kernels else ""
        at_most = "; <=: at most" if any(report.memcg_costs["upgraded_at_most"].to_pylist()) else ""
        console.print(f"What else memory cgroups cost here (each host once{upgrade}{at_most}):")
        console.print(_memcg_costs(report))
    if net := report.fleet_net:
        console.print()
        console.print(_fleet_net(net))
    if steps := advice.steps(report):
        console.print("\nWhat to do:")
        table = Table.grid(padding=(0, 1, 0, 0))
        for number, step in enumerate(steps, 1):
            table.add_row(f" {number}.", step.text)
        console.print(table)


def json_(report: Report, file: TextIO) -> None:
    """Write one object: `run`, `notes` on dates of runs, `totals`, the steps of `advice`, and lists of rows."""
    content = {
        "run": rows.records(report.run)[0],
        "notes": report.clock_notes,
        "totals": report.totals,
        "coverage": rows.records(report.coverage),
        "not_ok": rows.records(report.not_ok),
        "advice": [step._asdict() for step in advice.steps(report)],
        **{name: rows.records(getattr(report, name)) for name in _BREAKDOWNS},
        "host_waste": rows.records(report.host_waste),
    }
    file.write(json.dumps(content, indent=1) + "\n")


def csv(report: Report, file: TextIO) -> None:
    """Write the ranking with the columns of `host_waste`."""
    rows.csv(report.host_waste, file)


def parquet(report: Report, file: BinaryIO) -> None:
    """Write the ranking with the columns of `host_waste`."""
    rows.parquet(report.host_waste, file)


def markdown(report: Report, file: TextIO) -> None:
    """Write a document with summary, advice, ranking, breakdowns, coverage and failures, with exact numbers."""
    title, *lines = _summary(report)
    file.write(f"# {escape.markdown(title)}\n\n")
    for line in lines:
        file.write(f"{escape.markdown(line)}\n")
    if steps := advice.steps(report):
        file.write("\n## What to do\n\n")
        for number, step in enumerate(steps, 1):
            file.write(f"{number}. {escape.markdown(step.text)}\n")
    bounds_note = "Where lower_bound is true, lazy_bytes is an upper bound, and wasted_bytes a lower one.\n\n"
    for section, note, table in (
        ("Ranking", bounds_note if report.totals["lower_bound"] else "", report.host_waste),
        *((section, "", getattr(report, name)) for name, section in _BREAKDOWNS.items()),
        ("Coverage", "", report.coverage),
        ("Not ok", "", report.not_ok),
    ):
        if len(table):
            file.write(f"\n## {section}\n\n{note}")
            rows.markdown(table, file)


class _Console(Console):
    """Raises BrokenPipeError for a closed pipe, where rich's own class ends the process."""

    def on_broken_pipe(self) -> None:
        raise


def _console(file: TextIO, width: int | None) -> Console:
    return _Console(file=file, width=width, markup=False, highlight=False, emoji=False)


def _summary(report: Report) -> list[str]:
    run = rows.records(report.run)[0]
    totals = report.totals
    lines = [
        f"Run {run['run_id']} of audit {printable(run['audit'])}",
        f"{run['good']} of {run['targets']} targets good"
        + ("" if run["complete"] else f", {run['status_not_run']} not run")
        + f", finished {run['finished_at'][:19].replace('T', ' ')} UTC.",
    ]
    if totals["hosts"]:
        wasted_bytes, lower_bound = totals["wasted_bytes"], totals["lower_bound"]
        share = 100 * wasted_bytes / max(1, totals["memory_bytes"])
        hosts = "1 host" if totals["hosts"] == 1 else f"{totals['hosts']} hosts"
        verb = "wastes" if totals["hosts"] == 1 else "waste"
        if totals["machines"] < totals["hosts"]:
            hosts = f"{totals['hosts']} targets of {totals['machines']} host{'' if totals['machines'] == 1 else 's'}"
        memory = f"{human_bytes(totals['memory_bytes'])} memory"
        is_known = waste.is_known(wasted_bytes, lower_bound)
        lines += [
            f"{hosts} {verb} {waste.text(wasted_bytes, lower_bound)}, {share:.1f} % of {memory}:"
            if is_known
            else f"Nothing is known to be wasted on {hosts} with {memory}:",
            f"list_lrus hold {human_bytes(totals['list_lru_bytes'])}, "
            f"a lazy kernel would hold {'at most ' if lower_bound else ''}{human_bytes(totals['lazy_bytes'])}"
            f"{human_error(totals['lazy_error_bytes'])}.",
        ]
        if is_known:
            lines.append(
                f"The difference: objects {human_bytes(totals['saves_objects_bytes'])}, "
                f"one array instead of one per node {human_bytes(totals['saves_transpose_bytes'])}, "
                f"xarrays instead of arrays {human_bytes(totals['saves_xarray_bytes'])}."
            )
        lines += machines.notes(report)
    return lines + [printable(note) for note in report.clock_notes]


def _coverage(report: Report) -> Table:
    table = _table("status", "error type", ">targets", ">%")
    for row in rows.records(report.coverage):
        _add_row(table, row["status"], row["error_type"], row["targets"], f"{row['pct']:.1f}")
    return table


def _not_ok(report: Report) -> Table:
    table = _table("target", "status", "reason")
    for row in rows.records(report.not_ok.slice(0, MAX_NOT_OK)):
        _add_row(table, row["target"], row["status"], row["error"])
    return table


def _ranking(report: Report, width: int) -> Table:
    is_wide = width >= _WIDE_COLUMNS
    nets = {row["target"]: row for row in report.upgrade_net.to_pylist()} if width >= _NET_COLUMNS else {}
    columns = (">#", "target", "kernel", ">ids", ">sb", ">memcgs", ">list_lru", ">lazy", ">wasted", ">%mem")
    table = _table(*columns, *((">net",) if nets else ()), *((">nodes", ">formula", "layout") if is_wide else ()))
    # Marks take room that names need: they only tell lower bounds from the expected figures of other hosts.
    at_most, at_least = ("<= ", ">= ") if report.totals["expected_hosts"] else ("", "")
    for row in rows.records(report.host_waste.slice(0, MAX_HOSTS)):
        is_known = waste.is_known(row["wasted_bytes"], row["lower_bound"])
        pct = row["wasted_pct_of_memory"] if is_known else None
        net = nets.get(row["target"])
        formula = None if row["formula_bytes"] is None else human_bytes(row["formula_bytes"])
        _add_row(
            table,
            row["rank"],
            report.ranking_name(row["target"]),
            row["kernel_release"] if is_wide else _version(row["kernel_release"]),
            row["memcg_nr_cache_ids"],
            row["superblocks"],
            row["online_memcgs"],
            human_bytes(row["list_lru_bytes"]),
            (at_most if row["lower_bound"] else "")
            + human_bytes(row["lazy_bytes"])
            + human_error(row["lazy_error_bytes"]),
            waste.text(row["wasted_bytes"], row["lower_bound"], at_least),
            None if pct is None else f"{pct:.1f}",
            *((waste.text(net["net_bytes"], net["lower_bound"], at_least) if net else None,) if nets else ()),
            *((row["nr_node_ids"], formula, row["layout"]) if is_wide else ()),
        )
    return table


def _memcg_costs(report: Report) -> Table:
    table = _table("part", ">holds", ">online", ">dying", ">left", ">upgraded")
    columns = ("held_bytes", "online_bytes", "dying_bytes", "left_bytes")
    for row in rows.records(report.memcg_costs):
        upgraded = None
        if row["upgraded_bytes"] is not None:
            upgraded = ("<= " if row["upgraded_at_most"] else "") + human_bytes(row["upgraded_bytes"])
        _add_row(table, row["part"], *(human_bytes(row[name]) for name in columns), upgraded)
    return table


def _fleet_net(net: dict[str, Any]) -> str:
    freed = " freed" if waste.is_known(net["net_bytes"], net["lower_bound"]) else ""
    net_text = waste.text(net["net_bytes"], net["lower_bound"], error_bytes=net["lazy_error_bytes"])
    return f"Net of the upgrade of {counted(net['hosts'], 'host')}: {net_text}{freed}."


def _version(kernel_release: str | None) -> str:
    """Return the numbers at the start of a release (`5.10.0-30` of `5.10.0-30-cloud-amd64`), or else all of it."""
    release = kernel_release or ""
    numbers = re.match(r"\d+\.[\d.]*\d(-\d+)?", release)
    return numbers[0] if numbers else release


def _legend(report: Report, width: int) -> str:
    legend = (
        "ids: memcg_nr_cache_ids, never shrinks; sb: superblocks; memcgs: online; "
        f"lazy: what Linux {printable(' or '.join(report.lazy_targets) or 'v5.18+')} would hold"
    )
    if report.totals["expected_hosts"]:
        legend += " for the memcgs that own objects"
    if width >= _NET_COLUMNS and report.target_kernels:
        kernels = printable(" or ".join(report.target_kernels))
        legend += f"; net: what an upgrade to Linux {kernels} frees of all that memcgs cost"
    legend += "."
    if report.totals["lazy_error_bytes"] is not None:
        legend += (
            " ±: half of the 95 % interval, from a sample of the objects; the waste and the net have this error, too."
        )
    if not report.totals["lower_bound"]:
        return legend
    bounds = "where marked <= and >=" if report.totals["expected_hosts"] else "here"
    return (
        f"{legend} Charged objects were not read {bounds}: lazy is at most this, if every online memcg used every "
        "list, and the waste at least this."
    )


def _print_more(console: Console, count: int, max_rows: int, query: str) -> None:
    if count > max_rows:
        console.print(f'... and {count - max_rows} more: lru-audit sql "{query}"')


def _table(*columns: str) -> Table:
    """Return a table with these columns; `>` before a name marks numbers, which are never folded."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        if name.startswith(">"):
            table.add_column(name[1:], justify="right", no_wrap=True)
        else:
            table.add_column(name, overflow="fold")
    return table


def _add_row(table: Table, *cells: Any) -> None:
    table.add_row(*(printable(rows.cell(value)) for value in cells))
