"""A warehouse of a generated fleet: repeated audits of hosts that grow, reboot, are upgraded or fail.

    python -m tests.bench.fleet DIRECTORY --hosts 20000 --lists 2000 --runs 5

The same arguments give the same rows. Each host is in one of 72 states (`states`), with its own addresses and items.
The warehouse's writer writes the files, and manifests list them, so that every reader accepts the warehouse.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import __version__
from pipeline.collector.model import cost
from pipeline.warehouse import schema
from pipeline.warehouse.outcome import HOST_TABLES
from pipeline.warehouse.parquet import ROW_GROUP_ROWS, TableWriter, sha256
from pipeline.warehouse.runs import MANIFEST, File, Manifest
from pipeline.warehouse.store import local_folder
from tests.bench.states import State, shapes, state

# struct super_block is allocated from kmalloc-2k, whose slabs have 16 objects.
_SUPERBLOCK_BYTES = 2_048
_SUPERBLOCKS_PER_SLAB = 16
# Start of the direct mapping on x86_64 with four-level page tables, as an int64.
_DIRECT_MAP = 0xFFFF_8880_0000_0000 - 2**64
_SLAB_BYTES = _SUPERBLOCKS_PER_SLAB * _SUPERBLOCK_BYTES
# Slabs in 256 GiB of memory.
_SLABS = 2**23
# Superblocks of the slabs that are filled at the same time: each CPU takes objects from its own slab in a random order.
_SHUFFLED_SUPERBLOCKS = 4 * _SUPERBLOCKS_PER_SLAB
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
    """The size of a fleet: its hosts, the mean number of list_lrus per host, its runs, and the days between runs."""

    hosts: int
    lists: int
    runs: int
    days: int = 7
    audit: str = "fleet"
    seed: int = 1


class Observation(NamedTuple):
    """A host in one run: the number of its state or else of its failure, and the days since its boot."""

    state: int | None
    failure: int | None
    uptime_days: float


def write(root: Path, fleet: Fleet) -> None:
    """Write the runs of a fleet into a warehouse."""
    states, kinds = _states(fleet)
    histories = [_history(fleet, host, kinds) for host in range(fleet.hosts)]

    def write_run(number: int) -> None:
        _Run(root, fleet, number).write(states, (history[number] for history in histories))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write_run, range(fleet.runs)))


def _states(fleet: Fleet) -> tuple[list[State], list[tuple[list[int], list[int]]]]:
    """Return all states, and for each kind of host the numbers of its growth states and of its upgrade states."""
    states: list[State] = []
    kinds = []
    for growth, upgrade in shapes(fleet.lists // 2):
        numbers = []
        for part in (growth, upgrade):
            numbers.append(list(range(len(states), len(states) + len(part))))
            states += [state(shape, fleet.seed + number) for shape, number in zip(part, numbers[-1], strict=True)]
        kinds.append((numbers[0], numbers[1]))
    return states, kinds


def _history(fleet: Fleet, host: int, kinds: list[tuple[list[int], list[int]]]) -> list[Observation]:
    """Return the observations of a host, one per run. It grows; a reboot frees its ids; an upgrade is permanent."""
    chance = random.Random(fleet.seed * 1_000_003 + host)
    growth, upgrade = chance.choice(kinds)
    is_lazy = chance.random() < 0.15
    step = chance.randrange(len(growth))
    uptime_days = 200 * chance.random()
    observations = []
    for _ in range(fleet.runs):
        state_number = upgrade[step % len(upgrade)] if is_lazy else growth[step]
        if chance.random() < 0.02:
            observations.append(Observation(None, chance.randrange(len(_FAILURES)), uptime_days))
        else:
            observations.append(Observation(state_number, None, uptime_days))
        uptime_days += fleet.days
        event = chance.random() * 7 / fleet.days
        if event < 0.03:
            is_lazy, step, uptime_days = True, 0, chance.random() * fleet.days
        elif event < 0.1:
            step, uptime_days = 0, chance.random() * fleet.days
        elif event < 0.3:
            step = min(step + 1, len(growth) - 1)
    return observations


class _Run:
    """Writes one run of the fleet."""

    def __init__(self, root: Path, fleet: Fleet, number: int) -> None:
        self._fleet = fleet
        self._seed = fleet.seed * 1_000_000 + number * 10_007
        self._started_at = datetime(2025, 1, 1, 3, tzinfo=UTC) + timedelta(days=number * fleet.days)
        self.run_id = f"{self._started_at:%Y%m%dT%H%M%SZ}-{number:08x}"
        self._directory = root / "runs" / self.run_id
        self._outcomes: Counter[str] = Counter()

    def write(self, states: list[State], hosts: Iterable[Observation]) -> None:
        """Write the tables and the manifest of the run."""
        self._directory.mkdir(parents=True)
        with ExitStack() as stack:
            self._writers = {
                name: stack.enter_context(TableWriter(self._path(name), table))
                for name, table in schema.tables().items()
            }
            batch: list[tuple[str, State]] = []
            for number, observation in enumerate(hosts):
                name = f"host-{number:06}.example"
                self._add_target(name, number, observation, states)
                if observation.state is not None:
                    batch.append((name, states[observation.state]))
                if sum(len(host.tables["list_lrus"]) for _, host in batch) >= ROW_GROUP_ROWS:
                    self._add_hosts(batch)
                    batch = []
            self._add_hosts(batch)
            manifest = self._manifest()
            self._writers["runs"].add({name: [value] for name, value in manifest.row().items()})
        files = [
            File(name, path.name, writer.rows, path.stat().st_size, sha256(path))
            for name, writer in self._writers.items()
            for path in [self._path(name)]
        ]
        (self._directory / MANIFEST).write_text(replace(manifest, files=tuple(files)).text(), encoding="utf-8")

    def _path(self, table: str) -> Path:
        return self._directory / f"{table}-00000.parquet"

    def _add_target(self, name: str, number: int, observation: Observation, states: list[State]) -> None:
        started_at = self._micros(timedelta(milliseconds=10 * number))
        columns = {} if observation.state is None else dict(states[observation.state].columns)
        failure = ("ok", None, None) if observation.failure is None else _FAILURES[observation.failure]
        status, error_type, error = failure
        if columns:
            uptime_s = round(observation.uptime_days * 86_400)
            columns |= {"host": name, "captured_at": started_at, "uptime_s": uptime_s}
            columns["booted_at"] = started_at - uptime_s * 1_000_000
        self._outcomes[status] += 1
        attempts = 2 if status == "timeout" else 1
        key = {"run_id": self.run_id, "target": name}
        result = {"status": status, "error_type": error_type, "error": error}
        row = {
            **columns,
            **key,
            **result,
            "kind": "ssh",
            "source": f"root@{name}",
            "labels": {"rack": f"r{number // 40:04}", "role": ("web", "db", "batch")[number % 3]},
            "attempts": attempts,
            "started_at": started_at,
            "duration_ms": 900 + number % 700,
        }
        self._writers["targets"].add({column: [value] for column, value in row.items()})
        for attempt in range(1, attempts + 1):
            row = {**key, **result, "attempt": attempt, "node": "collector-1", "started_at": started_at}
            row["duration_ms"] = 900 + number % 700
            self._writers["attempts"].add({column: [value] for column, value in row.items()})

    def _micros(self, offset: timedelta = timedelta()) -> int:
        """Return a time after the start of the run in microseconds since the epoch."""
        return round((self._started_at + offset).timestamp() * 1_000_000)

    def _add_hosts(self, hosts: list[tuple[str, State]]) -> None:
        """Add the rows of hosts: those of their states, with the names, addresses and items of each host."""
        if not hosts:
            return
        self._seed += 2
        addresses = self._superblock_addresses([len(host.tables["superblocks"]) for _, host in hosts])
        for name in HOST_TABLES:
            parts = [host.tables[name] for _, host in hosts]
            table = pa.concat_tables(parts)
            if name == "superblocks":
                table = _replace_columns(table, address=_as_uint64(addresses))
            if name == "list_lrus":
                table = self._list_lrus(table, addresses, hosts)
            targets = pa.chunked_array(
                [pa.repeat(target, len(part)) for (target, _), part in zip(hosts, parts, strict=True)]
            )
            run_ids = pa.chunked_array([pa.repeat(self.run_id, len(table))])
            declared = schema.tables()[name]
            columns = {"run_id": run_ids, "target": targets, **{key: table[key] for key in table.column_names}}
            rows = pa.Table.from_arrays([columns[key] for key in declared.arrow.names], schema=declared.arrow)
            self._writers[name].add_table(rows.sort_by(declared.order) if "address" in declared.by_name else rows)

    def _superblock_addresses(self, counts: list[int]) -> pa.Array:
        """Return an address for each superblock of each host, as int64.

        The slabs of a host are in random, different places of its memory. Superblocks are in the order of the slabs,
        but shuffled among those that are filled at the same time.
        """
        slab_counts = [-(-count // _SUPERBLOCKS_PER_SLAB) for count in counts]
        # Memory is divided into regions. The slabs of a host have different positions in their random regions.
        region_slabs = 1 << max(slab_counts).bit_length()
        random_slabs = pc.random(sum(slab_counts), initializer=self._seed)
        regions = pc.cast(pc.floor(pc.multiply(random_slabs, _SLABS // region_slabs)), pa.int64())
        positions = pa.array([slab * 5 % region_slabs for count in slab_counts for slab in range(count)])
        slab_offsets = pc.multiply(pc.add(pc.multiply(regions, region_slabs), positions), _SLAB_BYTES)
        index = pa.array([n for count in counts for n in range(count)])
        first_slab = pa.chunked_array(
            [pa.repeat(start, count) for start, count in zip(_starts(slab_counts), counts, strict=True)]
        ).combine_chunks()
        slab = pc.divide(index, _SUPERBLOCKS_PER_SLAB)
        offset = pc.multiply(pc.subtract(index, pc.multiply(slab, _SUPERBLOCKS_PER_SLAB)), _SUPERBLOCK_BYTES)
        addresses = pc.add(pc.add(pc.take(slab_offsets, pc.add(first_slab, slab)), offset), _DIRECT_MAP)
        window = pc.add(pc.multiply(first_slab, 2.0), pc.floor(pc.divide(index, 1.0 * _SHUFFLED_SUPERBLOCKS)))
        order = pc.sort_indices(pc.add(window, pc.random(len(index), initializer=self._seed + 1)))
        return pc.take(addresses, order)

    def _list_lrus(self, table: pa.Table, addresses: pa.Array, hosts: list[tuple[str, State]]) -> pa.Table:
        counts = [len(host.tables["superblocks"]) for _, host in hosts]
        numbers = pa.chunked_array(
            [pc.add(host.tables["list_lrus"]["superblock"].combine_chunks(), start)
             for (_, host), start in zip(hosts, _starts(counts), strict=True)]
        )  # fmt: skip
        superblocks = pc.take(addresses, numbers)
        factor = pc.add(pc.random(len(table), initializer=self._seed), 0.5)
        root_items = _scale(table["root_items"], factor)
        memcg_items = pc.max_element_wise(_scale(table["memcg_items"], factor), table["memcgs_with_items"])
        return _replace_columns(
            table,
            address=_as_uint64(pc.add(table["address"], pc.fill_null(superblocks, 0))),
            superblock=_as_uint64(superblocks),
            root_items=root_items,
            memcg_items=memcg_items,
            items=pc.add(root_items, memcg_items),
        )

    def _manifest(self) -> Manifest:
        """Return the manifest of the run without its files."""
        versions = {"tool": __version__, "schema": schema.VERSION, "model": cost.MODEL_VERSION, "inventory": None}
        return Manifest(
            directory=local_folder(self._directory),
            run_id=self.run_id,
            audit=self._fleet.audit,
            started_at=self._started_at,
            finished_at=self._started_at + timedelta(hours=1),
            revision_of=None,
            complete=True,
            targets=self._fleet.hosts,
            outcomes=dict(sorted(self._outcomes.items())),
            versions=versions,
            files=(),
        )


def _starts(counts: list[int]) -> Iterator[int]:
    """Yield the sum of all counts before each."""
    start = 0
    for count in counts:
        yield start
        start += count


def _replace_columns(table: pa.Table, **columns: Any) -> pa.Table:
    for name, column in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table


def _as_uint64(addresses: Any) -> Any:
    """Reinterpret int64 as uint64."""
    return addresses.cast(pa.uint64(), safe=False)


def _scale(counts: Any, factor: Any) -> Any:
    return pc.cast(pc.floor(pc.multiply(counts, factor)), pa.int64())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fleet", description="Generate a fleet's warehouse.")
    parser.add_argument("directory", type=Path, help="the warehouse, which must not have these runs")
    for name, default in (("hosts", 1_000), ("lists", 2_000), ("runs", 5), ("days", 7), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default {default}")
    args = vars(parser.parse_args())
    write(args.pop("directory"), Fleet(**args))


if __name__ == "__main__":
    main()
