"""Campaign: whole audits of damaged cores. No audit may hang, end without a status, or be `ok` with a wrong number.

Each case damages one thing that an audit of a bundled core reads: a field or a page in memory, or a block of the file
in one of its forms (kdump-compressed, flattened, ELF). Audits that are `ok` with other numbers than those of the
undamaged core are published, so that the checks of `sql/checks/` see them. Those that pass are compared with the
reference walk of `tests/fuzz/reference.py` over the same damaged memory.

    python -m tests.fuzz cores --seed 1 --cases 20000
    python -m tests.fuzz cores --seed 1 --only deb510-n2:memory:17

The second line repeats a case and prints all of it.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import query
from pipeline.collector import snapshot
from pipeline.collector.access import kernel
from pipeline.fanout.runner import child
from pipeline.inventory import Target
from tests import dumps
from tests.collector.conftest import CORES
from tests.fuzz import audits, reference
from tests.fuzz.audits import Audit
from tests.fuzz.mutations import PAGE_BYTES, Recording
from tests.lab.reduce import read_kdump
from tests.warehouse import outcomes

# Without the published server: its audit takes 2 s, and its reference walk minutes.
BY_NAME = {core.name: core for core in CORES if core.has_truth("reference.json") or core.name == "deb510-kdump"}
FORMS = ("kdump", "flattened", "elf")
CASES_PER_JOB = 50
FILE_PART = 0.15
"""Part of the cases that damage a file rather than memory."""

# Columns that describe the audit, not the kernel.
_UNCOMPARED = {"reads", "read_bytes", "peak_rss_bytes", "core_id"}
_CHARGED = {"memcgs_charged", "lists_charged"}
TABLES = ("targets", "superblocks", "list_lrus", "memcgs", "memcg_memory", "dying_memcg_pages")
_REFERENCE_TABLES = TABLES[:4]

SAME = "ok, the same numbers"
REJECTED = "rejected by the checks of the warehouse"
CONFIRMED = "ok, other numbers, and the reference walk has them too"
NOT_COMPARED = "ok, other numbers, none of which the reference walk has"
CONTRADICTED = "ok, but the reference walk has other numbers"


@dataclass
class Case:
    """A case that was run.

    :ivar name: that repeats it with --only.
    :ivar end: a status, or for `ok` one of the constants above.
    :ivar faults: of this program, each in a line.
    """

    name: str
    damage: str
    end: str
    faults: list[str]
    cell: tuple[str, str] | None = None
    cpu_s: float = 0.0
    peak_rss_bytes: int = 0
    audit: Audit | None = None
    reason: str | None = None


class Memory:
    """A core whose memory is damaged."""

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.seed = name, seed
        self.path = BY_NAME[name].path
        recorded = kernel.open_kernel(str(self.path))
        self.recording = Recording(recorded.prog, kernel.open_kernel(str(self.path)).prog, random.Random(seed))
        snapshot.take(recorded)
        self.slabs = sorted(page * PAGE_BYTES for page in self.recording.pages)
        self.kernel = kernel.open_kernel(str(self.path))
        self.cells = self.recording.cells(random.Random(f"{seed}:{name}"))
        self.undamaged = audits.audit(self.path, self.kernel)

    def cases(self, indexes: range) -> Iterator[tuple[Case, Callable[[], Any]]]:
        """Run cases; yield each with the reference's reading of what it damaged."""
        for index in indexes:
            rng = random.Random(f"{self.seed}:{self.name}:{index}")
            cell = self.cells[index % len(self.cells)]
            mutation = self.recording.mutation(*cell, rng)

            def damage(mutation: Any = mutation) -> None:
                mutation.apply(self.kernel.prog)

            def read(has_charges: bool, damage: Callable[[], None] = damage) -> Any:
                damage()
                return reference.tables(self.kernel.prog, self.slabs if has_charges else None)

            audit = audits.audit(self.path, self.kernel, damage)
            yield _case(f"{self.name}:memory:{index}", str(mutation), audit, cell), read


class File:
    """A core whose file is damaged, in one of its forms."""

    def __init__(self, name: str, form: str, seed: int, directory: Path) -> None:
        self.name, self.form, self.seed = name, form, seed
        self.path = directory / f"{name}.{form}"
        core = BY_NAME[name].path
        for system_map in core.parent.glob("System.map-*"):
            (directory / system_map.name).symlink_to(system_map)
        if form == "elf":
            read_kdump(core).write_elf(self.path)
        else:
            dump = core.read_bytes()
            self.path.write_bytes(dumps.flatten(dump) if form == "flattened" else dump)
        self.content = self.path.read_bytes()
        recorded = kernel.open_kernel(str(self.path))
        recording = Recording(recorded.prog, kernel.open_kernel(str(self.path)).prog, random.Random(seed))
        snapshot.take(recorded)
        self.slabs = sorted(page * PAGE_BYTES for page in recording.pages)
        self.undamaged = audits.audit(self.path, None)

    def cases(self, indexes: range) -> Iterator[tuple[Case, Callable[[], Any]]]:
        for index in indexes:
            rng = random.Random(f"{self.seed}:{self.name}:{self.form}:{index}")
            kind, patches = _file_damage(self.content, rng)
            with self._patched(patches):
                audit = audits.audit(self.path, None)

            def read(has_charges: bool, patches: dict[int, bytes] = patches) -> Any:
                with self._patched(patches):
                    prog = kernel.open_kernel(str(self.path)).prog
                    return reference.tables(prog, self.slabs if has_charges else None)

            places = ", ".join(f"{len(data)} bytes at {offset:#x}" for offset, data in patches.items())
            yield _case(f"{self.name}:{self.form}:{index}", f"{kind} ({places})", audit, None), read

    @contextlib.contextmanager
    def _patched(self, patches: dict[int, bytes]) -> Iterator[None]:
        with self.path.open("r+b", buffering=0) as file:
            for offset, data in patches.items():
                file.seek(offset)
                file.write(data)
            try:
                yield
            finally:
                for offset, data in patches.items():
                    file.seek(offset)
                    file.write(self.content[offset : offset + len(data)])


def _file_damage(content: bytes, rng: random.Random) -> tuple[str, dict[int, bytes]]:
    """Return a kind of damage, and the new bytes by their offset; half of the damage is in the headers."""
    blocks = len(content) // PAGE_BYTES
    block = rng.randrange(min(blocks, 4) if rng.random() < 0.5 else blocks) * PAGE_BYTES
    other = rng.randrange(blocks) * PAGE_BYTES
    kind = rng.choice(("zero block", "swapped blocks", "bit", "zero word", "ones", "huge word", "random word"))
    if kind == "zero block":
        return kind, {block: bytes(PAGE_BYTES)}
    if kind == "swapped blocks":
        return kind, {block: content[other : other + PAGE_BYTES], other: content[block : block + PAGE_BYTES]}
    # Most of a header's words are zero.
    used = [offset for offset in range(block, block + PAGE_BYTES, 4) if any(content[offset : offset + 4])]
    offset = rng.choice(used or [block])
    size = rng.choice((1, 2, 4, 8))
    value = int.from_bytes(content[offset : offset + size], "little")
    values = {
        "bit": value ^ 1 << rng.randrange(8 * size),
        "zero word": 0,
        "ones": -1,
        "huge word": (1 << 8 * size - 1) - 1,
        "random word": rng.getrandbits(8 * size),
    }
    return kind, {offset: (values[kind] & (1 << 8 * size) - 1).to_bytes(size, "little")}


def _case(name: str, damage: str, audit: Audit, cell: tuple[str, str] | None) -> Case:
    faults = [audit.defect] if audit.defect else []
    return Case(name, damage, audit.status, faults, cell, audit.cpu_s, audit.peak_rss_bytes, audit)


def run_job(job: tuple[str, str, int, range]) -> list[Case]:
    """Run some cases of one core in one form."""
    name, form, seed, indexes = job
    with tempfile.TemporaryDirectory() as directory:
        core = Memory(name, seed) if form == "memory" else File(name, form, seed, Path(directory))
        assert core.undamaged.status == "ok", core.undamaged.error
        results, changed = [], []
        for case, read in core.cases(indexes):
            results.append(case)
            if case.end in ("ok", "unsupported"):
                columns = changed_columns(core.undamaged, case.audit)
                case.end = NOT_COMPARED if columns else SAME
                if columns:
                    changed.append((case, read, columns))
        rejections = publish(Path(directory), [case for case, _, _ in changed])
        for case, read, columns in changed:
            if case.name in rejections:
                case.end, case.reason = REJECTED, rejections[case.name]
            else:
                judge(case, read, columns)
    for case in results:
        case.reason = case.reason or case.audit.error
        case.audit = None if len(indexes) > 1 else case.audit
    return results


def changed_columns(undamaged: Audit, audit: Audit) -> set[str]:
    """Return the columns, with their tables, in which an audit differs from that of the undamaged core."""
    columns = set()
    for table in TABLES:
        rows, undamaged_rows = audit.rows(table), undamaged.rows(table)
        if len(rows) != len(undamaged_rows):
            columns.add(f"{table}: rows")
        for row, undamaged_row in zip(rows, undamaged_rows, strict=False):
            columns |= {f"{table}.{name}" for name in row if row[name] != undamaged_row.get(name)}
    return {column for column in columns if column.partition(".")[2] not in _UNCOMPARED}


def publish(directory: Path, cases: list[Case]) -> dict[str, str]:
    """Publish audits as one run, as a driver does; return the reason of each that became `bad_output`."""
    if not cases:
        return {}
    made = []
    for case in cases:
        audit = case.audit
        attempt = child.result(1, "node", 0, 0, audit.status, None, audit.error, audit.columns, audit.tables)
        made.append(child.outcome(Target(case.name, "vmcore", "/vmcore"), [attempt]))
    outcomes.publish(directory / "warehouse", *made, check=query.check)
    session = outcomes.session(directory / "warehouse")
    rows = session.rows("SELECT target, error FROM targets WHERE status = 'bad_output'")
    return {row["target"]: row["error"] for row in rows}


def judge(case: Case, read: Callable[[bool], Any], columns: set[str]) -> None:
    """Compare the numbers of an audit that is `ok` with the reference's."""
    has_charges = any("charged" in column for column in columns)
    tables = audits.as_json(lambda: read(has_charges))
    if isinstance(tables, str):
        case.end, case.faults = CONTRADICTED, [f"{case.end}: {tables}"]
        return
    audited = {table: case.audit.rows(table) for table in _REFERENCE_TABLES}
    contradictions = reference.contradictions(audited, tables)
    if case.audit.columns["consistency"] == "raced":
        # It says that the kernel's two counts of items differ, and why.
        contradictions = [text for text in contradictions if not text.startswith("list_lrus.items ")]
    if contradictions:
        case.end, case.faults = CONTRADICTED, contradictions
    elif any(name in row for name, row in _cells(tables, columns)):
        case.end = CONFIRMED


def _cells(tables: dict[str, list[dict[str, Any]]], columns: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for column in columns:
        table, _, name = column.partition(".")
        for row in tables.get(table, ())[:1]:
            yield name, row


def jobs(seed: int, cases: int) -> list[tuple[str, str, int, range]]:
    """Divide the cases among cores and forms."""
    plan = []
    for number, name in enumerate(BY_NAME):
        count = cases // len(BY_NAME) + (number < cases % len(BY_NAME))
        in_files = round(count * FILE_PART)
        form = FORMS[(seed + number) % len(FORMS)]
        parts = {"memory": count - in_files, form: in_files}
        if in_files >= len(FORMS):
            parts = {"memory": count - in_files} | {form: in_files // len(FORMS) for form in FORMS}
        for form, total in parts.items():
            plan += [
                (name, form, seed, range(start, min(start + CASES_PER_JOB, total)))
                for start in range(0, total, CASES_PER_JOB)
            ]
    random.Random(seed).shuffle(plan)
    return plan


def report(cases: list[Case]) -> str:
    """Summarize a campaign: its ends, its faults by their cause, and what it reached."""
    ends = Counter(case.end for case in cases)
    lines = [f"{len(cases)} audits of damaged cores:"]
    for end, count in ends.most_common():
        example = next(case for case in cases if case.end == end)
        lines.append(f"{count:8} {end}, such as {example.name} {example.damage}: {example.reason}"[:300])
    cells = {(case.name.partition(":")[0], *case.cell) for case in cases if case.cell}
    places = {(core, place) for core, place, _ in cells}
    lines.append(f"{len(cells)} pairs of a place and a kind of damage, {len(places)} places")
    slowest = max(cases, key=lambda case: case.cpu_s)
    largest = max(cases, key=lambda case: case.peak_rss_bytes)
    lines.append(f"slowest: {slowest.cpu_s:.1f} s of CPU time ({slowest.name})")
    lines.append(f"largest: {largest.peak_rss_bytes >> 20} MiB resident ({largest.name})")
    by_cause: dict[str, list[Case]] = {}
    for case in cases:
        for fault in case.faults[:1]:
            by_cause.setdefault(_cause(case, fault), []).append(case)
    lines.append(f"{len(by_cause)} distinct faults")
    for cause, faulty in sorted(by_cause.items(), key=lambda item: -len(item[1])):
        lines.append(f"{len(faulty):8} {cause}")
        lines += [f"{'':9}{case.name} {case.damage}: {case.faults[0]}"[:400] for case in faulty[:3]]
    return "\n".join(lines)


def _cause(case: Case, fault: str) -> str:
    if case.end == CONTRADICTED:
        place = case.damage.partition(":")[0] if case.cell is None else case.cell[0].partition("+")[0]
        return f"contradicted: {fault.partition(' of ')[0].partition(':')[0]}, damaged: {place}"
    return fault


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz cores", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--only", metavar="CORE:FORM:INDEX", help="repeat one case")
    args = parser.parse_args(arguments)
    if args.only:
        name, form, index = args.only.split(":")
        (case,) = run_job((name, form, args.seed, range(int(index), int(index) + 1)))
        print(case.damage, case.end, case.audit.error, *case.faults, sep="\n")
        return bool(case.faults)
    cases = run(args.seed, args.cases, args.jobs)
    print(f"seed {args.seed}")
    print(report(cases))
    return any(case.faults for case in cases)


def run(seed: int, count: int, processes: int) -> list[Case]:
    """Run a campaign, with its progress on stderr if that is a terminal."""
    plan = jobs(seed, count)
    cases: list[Case] = []
    with multiprocessing.get_context("fork").Pool(processes, maxtasksperchild=1) as pool:
        for number, results in enumerate(pool.imap_unordered(run_job, plan), 1):
            cases += results
            if sys.stderr.isatty():
                print(f"\r{len(cases)} of {count} cases, {number} of {len(plan)} jobs", end="", file=sys.stderr)
    return cases


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
