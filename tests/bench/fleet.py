"""A warehouse of a generated fleet: hosts that grow, reboot, are upgraded or fail, audited over and over.

    python -m tests.bench.fleet DIRECTORY --hosts 20000 --lists 2000 --runs 5

The same arguments make the same rows. Hosts are in one of a hundred states (`states`), but have addresses and items
of their own. Files are written by the warehouse's own writer, and listed in manifests: any reader takes it for real.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import __version__
from pipeline.collector.model import cost
from pipeline.collector.status import GOOD
from pipeline.warehouse import schema
from pipeline.warehouse.parquet import ROW_GROUP_ROWS, TableWriter, sha256
from pipeline.warehouse.runs import MANIFEST, File, Manifest
from tests.bench.states import State, shapes, state

# struct super_block is in kmalloc-2k, 16 to a slab.
SUPERBLOCK_BYTES = 2_048
SLAB_SUPERBLOCKS = 16
# Direct mapping of x86_64 with four-level page tables, as an int64.
_DIRECT_MAP = 0xFFFF_8880_0000_0000 - 2**64
_SLAB_BYTES = SLAB_SUPERBLOCKS * SUPERBLOCK_BYTES
_SLABS = 2**23  # of 256 GiB of memory
_FILLED_AT_A_TIME = 4 * SLAB_SUPERBLOCKS  # each CPU has a slab of its own, in a random order
_FAILURES = (
    ("unreachable", "ssh", "connect to port 22: Connection timed out"),
    ("unreachable", "ssh", "Could not resolve hostname: Name or service not known"),
    ("denied", "kcore", "/proc/kcore: Operation not permitted; the kernel is locked down"),
    ("no_drgn", "ModuleNotFoundError", "no drgn for python3.6; install it or use --ship-drgn"),
    ("timeout", None, "no answer within 60 s"),
    ("inconsistent", "Raced", "memcg_nr_cache_ids changed under every retry"),
)


@dataclass(frozen=True)
class Fleet:
    """How much to generate: hosts, the mean of list_lrus on each, and runs so many days apart."""

    hosts: int
    lists: int
    runs: int
    days: int = 7
    audit: str = "fleet"
    seed: int = 1


class Seen(NamedTuple):
    """A host in one run: the state it is in, or the failure that hid it, and its last boot (days before the run)."""

    state: int | None
    failure: int | None
    uptime_days: float


def write(root: Path, fleet: Fleet) -> None:
    """Write the runs of a fleet into a warehouse."""
    states, kinds = _states(fleet)
    histories = [_history(fleet, host, kinds) for host in range(fleet.hosts)]

    def one(number: int) -> None:
        _Run(root, fleet, number).write(states, (history[number] for history in histories))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(fleet.runs)))


def _states(fleet: Fleet) -> tuple[list[State], list[tuple[list[int], list[int]]]]:
    """Return all states, and for each kind of host the numbers of those that it grows through and is upgraded to."""
    made: list[State] = []
    kinds = []
    for growing, upgraded in shapes(fleet.lists // 2):
        numbers = []
        for part in (growing, upgraded):
            numbers.append(list(range(len(made), len(made) + len(part))))
            made += [state(shape, fleet.seed + number) for shape, number in zip(part, numbers[-1], strict=True)]
        kinds.append((numbers[0], numbers[1]))
    return made, kinds


def _history(fleet: Fleet, host: int, kinds: list[tuple[list[int], list[int]]]) -> list[Seen]:
    """Return what each run sees of one host: it grows, a reboot gives its ids back, an upgrade is for good."""
    chance = random.Random(fleet.seed * 1_000_003 + host)
    growing, upgraded = chance.choice(kinds)
    lazy = chance.random() < 0.15
    step = chance.randrange(len(growing))
    uptime_days = 200 * chance.random()
    seen = []
    for _ in range(fleet.runs):
        now = upgraded[step % len(upgraded)] if lazy else growing[step]
        failed = chance.random() < 0.02
        seen.append(Seen(None if failed else now, chance.randrange(len(_FAILURES)) if failed else None, uptime_days))
        uptime_days += fleet.days
        what = chance.random() * 7 / fleet.days
        if what < 0.03:
            lazy, step, uptime_days = True, 0, chance.random() * fleet.days
        elif what < 0.1:
            step, uptime_days = 0, chance.random() * fleet.days
        elif what < 0.3:
            step = min(step + 1, len(growing) - 1)
    return seen


class _Run:
    """One run of the fleet in the writing."""

    def __init__(self, root: Path, fleet: Fleet, number: int) -> None:
        self._fleet = fleet
        self._seed = fleet.seed * 1_000_000 + number * 10_007
        self._started_at = datetime(2025, 1, 1, 3, tzinfo=UTC) + timedelta(days=number * fleet.days)
        self.run_id = f"{self._started_at:%Y%m%dT%H%M%SZ}-{number:08x}"
        self._directory = root / "runs" / self.run_id
        self._outcomes: Counter[str] = Counter()

    def write(self, states: list[State], hosts: Iterable[Seen]) -> None:
        self._directory.mkdir(parents=True)
        with ExitStack() as stack:
            self._writers = {
                name: stack.enter_context(TableWriter(self._path(name), table))
                for name, table in schema.tables().items()
            }
            lot: list[tuple[str, State]] = []
            for number, seen in enumerate(hosts):
                name = f"host-{number:06}.example"
                self._add_target(name, number, seen, states)
                if seen.state is not None:
                    lot.append((name, states[seen.state]))
                if sum(len(one.tables["list_lrus"]) for _, one in lot) >= ROW_GROUP_ROWS:
                    self._add_lot(lot)
                    lot = []
            self._add_lot(lot)
            self._add_run()
        rows = {name: writer.rows for name, writer in self._writers.items()}
        (self._directory / MANIFEST).write_text(self._manifest(rows).text(), encoding="utf-8")

    def _path(self, table: str) -> Path:
        return self._directory / f"{table}-00000.parquet"

    def _add_target(self, name: str, number: int, seen: Seen, states: list[State]) -> None:
        started_at = self._micros(timedelta(milliseconds=10 * number))
        columns = {} if seen.state is None else dict(states[seen.state].columns)
        status, error_type, error = ("ok", None, None) if seen.failure is None else _FAILURES[seen.failure]
        if columns:
            uptime_s = round(seen.uptime_days * 86_400)
            columns |= {"host": name, "captured_at": started_at, "uptime_s": uptime_s}
            columns["booted_at"] = started_at - uptime_s * 1_000_000
        self._outcomes[status] += 1
        attempts = 2 if status == "timeout" else 1
        key = {"run_id": self.run_id, "target": name}
        ending = {"status": status, "error_type": error_type, "error": error}
        row = {
            **columns,
            **key,
            **ending,
            "kind": "ssh",
            "source": f"root@{name}",
            "labels": {"rack": f"r{number // 40:04}", "role": ("web", "db", "batch")[number % 3]},
            "attempts": attempts,
            "started_at": started_at,
            "duration_ms": 900 + number % 700,
        }
        self._writers["targets"].add({column: [value] for column, value in row.items()})
        for attempt in range(1, attempts + 1):
            row = {**key, **ending, "attempt": attempt, "node": "collector-1", "started_at": started_at}
            row["duration_ms"] = 900 + number % 700
            self._writers["attempts"].add({column: [value] for column, value in row.items()})

    def _micros(self, after: timedelta = timedelta()) -> int:
        return round((self._started_at + after).timestamp() * 1_000_000)

    def _add_lot(self, lot: list[tuple[str, State]]) -> None:
        """Add the rows of some hosts: their states', with their names, addresses and items."""
        if not lot:
            return
        self._seed += 2
        addresses = self._superblock_addresses([len(one.tables["superblocks"]) for _, one in lot])
        for name in ("superblocks", "list_lrus", "memcgs"):
            parts = [one.tables[name] for _, one in lot]
            table = pa.concat_tables(parts)
            if name == "superblocks":
                table = _with(table, address=_unsigned(addresses))
            if name == "list_lrus":
                table = self._list_lrus(table, addresses, lot)
            targets = pa.chunked_array(
                [pa.repeat(target, len(one)) for (target, _), one in zip(lot, parts, strict=True)]
            )
            run_ids = pa.chunked_array([pa.repeat(self.run_id, len(table))])
            arrow = schema.tables()[name].arrow
            columns = {"run_id": run_ids, "target": targets, **{key: table[key] for key in table.column_names}}
            self._writers[name].add_table(pa.Table.from_arrays([columns[key] for key in arrow.names], schema=arrow))

    def _superblock_addresses(self, counts: list[int]) -> pa.Array:
        """Return an address for each superblock of each host, as int64.

        Slabs lie anywhere, no two of a host in one place; those in use at a time are filled in no order.
        """
        slabs = [-(-count // SLAB_SUPERBLOCKS) for count in counts]
        apart = 1 << max(slabs).bit_length()
        anywhere = pc.floor(pc.multiply(pc.random(sum(slabs), initializer=self._seed), _SLABS // apart))
        places = pa.array([place * 5 % apart for count in slabs for place in range(count)])
        slab = pc.multiply(pc.add(pc.multiply(pc.cast(anywhere, pa.int64()), apart), places), _SLAB_BYTES)
        within = pa.array([n for count in counts for n in range(count)])
        first = pa.chunked_array(
            [pa.repeat(start, count) for start, count in zip(_starts(slabs), counts, strict=True)]
        ).combine_chunks()
        number = pc.divide(within, SLAB_SUPERBLOCKS)
        place = pc.multiply(pc.subtract(within, pc.multiply(number, SLAB_SUPERBLOCKS)), SUPERBLOCK_BYTES)
        ordered = pc.add(pc.add(pc.take(slab, pc.add(first, number)), place), _DIRECT_MAP)
        window = pc.add(pc.multiply(first, 2.0), pc.floor(pc.divide(within, 1.0 * _FILLED_AT_A_TIME)))
        shuffled = pc.sort_indices(pc.add(window, pc.random(len(within), initializer=self._seed + 1)))
        return pc.take(ordered, shuffled)

    def _list_lrus(self, table: pa.Table, addresses: pa.Array, lot: list[tuple[str, State]]) -> pa.Table:
        counts = [len(one.tables["superblocks"]) for _, one in lot]
        numbers = pa.chunked_array(
            [pc.add(one.tables["list_lrus"]["superblock"].combine_chunks(), start)
             for (_, one), start in zip(lot, _starts(counts), strict=True)]
        )  # fmt: skip
        superblocks = pc.take(addresses, numbers)
        share = pc.add(pc.random(len(table), initializer=self._seed), 0.5)
        root = _scaled(table["root_items"], share)
        memcg = pc.max_element_wise(_scaled(table["memcg_items"], share), table["memcgs_with_items"])
        return _with(
            table,
            address=_unsigned(pc.add(table["address"], pc.fill_null(superblocks, 0))),
            superblock=_unsigned(superblocks),
            root_items=root,
            memcg_items=memcg,
            items=pc.add(root, memcg),
        )

    def _add_run(self) -> None:
        statuses = schema.tables()["targets"].by_name["status"].values or ()
        row = {
            "run_id": self.run_id,
            "audit": self._fleet.audit,
            "started_at": self._micros(),
            "finished_at": self._micros(timedelta(hours=1)),
            "revision_of": None,
            "complete": True,
            "targets": self._fleet.hosts,
            "good": sum(self._outcomes[status] for status in GOOD),
            **{f"status_{status}": self._outcomes[status] for status in statuses},
            "tool_version": __version__,
            "schema_version": schema.VERSION,
            "model_version": cost.MODEL_VERSION,
        }
        self._writers["runs"].add({name: [value] for name, value in row.items()})

    def _manifest(self, rows: dict[str, int]) -> Manifest:
        paths = {name: self._path(name) for name in rows}
        return Manifest(
            directory=self._directory,
            run_id=self.run_id,
            audit=self._fleet.audit,
            started_at=self._started_at,
            finished_at=self._started_at + timedelta(hours=1),
            revision_of=None,
            complete=True,
            targets=self._fleet.hosts,
            outcomes=dict(sorted(self._outcomes.items())),
            versions={"tool": __version__, "schema": schema.VERSION, "model": cost.MODEL_VERSION},
            files=tuple(
                File(name, path.name, rows[name], path.stat().st_size, sha256(path)) for name, path in paths.items()
            ),
        )


def _starts(counts: list[int]) -> Iterator[int]:
    start = 0
    for count in counts:
        yield start
        start += count


def _with(table: pa.Table, **columns: Any) -> pa.Table:
    for name, column in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table


def _unsigned(addresses: Any) -> Any:
    """Return int64 as the uint64 of the same bits."""
    return addresses.cast(pa.uint64(), safe=False)


def _scaled(counts: Any, share: Any) -> Any:
    return pc.cast(pc.floor(pc.multiply(counts, share)), pa.int64())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fleet", description="Generate a fleet's warehouse.")
    parser.add_argument("directory", type=Path, help="the warehouse; must not have these runs")
    for name, default in (("hosts", 1_000), ("lists", 2_000), ("runs", 5), ("days", 7), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default {default}")
    args = vars(parser.parse_args())
    write(args.pop("directory"), Fleet(**args))


if __name__ == "__main__":
    main()
