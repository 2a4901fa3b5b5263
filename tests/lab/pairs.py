"""The same work on an eager and a lazy kernel: what the upgrade gives back, predicted and measured.

Measured is the difference of SUnreclaim and Percpu in the guests' own /proc/meminfo, with each slab cache shrunk and no
memcg dying. Predicted is the net of the table memcg_memory in the audit of the eager kernel. Their difference, the
residual, has four lines that no audit can know:

    kernels     two kernels differ also where no memcg was removed: the residual of the control, a guest that creates
                only the memcgs that the other keeps. Mounts, files and tasks are the same.
    per-CPU     which pages of per-CPU chunks stay depends on the order in which memcgs are removed
    slabs       the same for slabs with structs of memcgs
    free slots  of other slabs: those in the guests' own /proc/slabinfo that no audit counts

The rest is the error of the prediction.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.fanout.runner import frame
from tests.lab import boot
from tests.lab.bundle import step
from tests.lab.kernels import Kernel
from tests.lab.reduce import PAGE
from tests.lab.shapes import SHAPES, Shape

EAGER = "5.10"
LAZY = {"6.1": "6.1", "6.12": "6.12", "7": "7.2"}
"""The value of --target-kernel by lazy series."""
LARGE = "no slab cache"
"""kmalloc() above 8 KiB: pages that meminfo counts as slab and that no row of slabinfo has."""
FREE = "free slots"
PERCPU = "Percpu"
PERCPU_LEFT = "percpu_left"
SLAB_LEFT = "memcg_slab_left"

PAIRS = {
    # Arrays of 3070 pointers on each of four nodes; they are not slab objects.
    "ids": Shape("ids", EAGER, nodes=4, possible_cpus=8, memory_mb=1536, memcgs=3000, kept=50,
                 tmpfs=400, users=6, files=4),
    "mounts": Shape("mounts", EAGER, nodes=1, memory_mb=1024, memcgs=1500, kept=40, tmpfs=1500, users=6, files=4),
    # Entries of many memcgs, also nested ones, on filesystems with and without a disk; sockets.
    "work": Shape("work", EAGER, nodes=2, memory_mb=1024, memcgs=3000, kept=60, nested=(2, 1),
                  tmpfs=200, ext4=6, overlay=6, users=60, files=40, proc=6, sockets=20),
    # Per-CPU memory, most of which an eager kernel before v5.14 does not give back.
    "cpus": Shape("cpus", EAGER, nodes=1, possible_cpus=64, memory_mb=1536, memcgs=3000, kept=50, tmpfs=20),
}  # fmt: skip
LARGEST = "bytedance"
"""The commit message's server, 10 GB. It runs only on request, on one lazy kernel."""

KernelOfSeries = Callable[[str], Kernel]


@dataclass(frozen=True)
class Guest:
    """A guest at rest: its own report, and the audit of its core."""

    lines: Counter[str]
    """SUnreclaim and Percpu by line: the active objects of each unreclaimable slab cache, FREE, LARGE and PERCPU."""
    held: Counter[str]
    """Bytes by part of memcg_memory."""
    upgraded: dict[str, Counter[str]]
    """The prediction for each of some target kernels, by part."""


@dataclass(frozen=True)
class Comparison:
    """Two guests with the same work; or the difference of two comparisons."""

    lines: Counter[str]
    """Measured: the eager guest's lines less the lazy guest's."""
    predicted: Counter[str]
    """Predicted, by part."""
    errors: Counter[str]
    """By part, what is predicted less what the lazy kernel's audit counts."""

    @classmethod
    def of(cls, eager: Guest, lazy: Guest, target: str) -> Comparison:
        upgraded = eager.upgraded[target]
        eager_parts, lazy_parts = (Counter({part: guest.held[part] for part in upgraded}) for guest in (eager, lazy))
        return cls(less(eager.lines, lazy.lines), less(eager_parts, upgraded), less(upgraded, lazy_parts))

    def __sub__(self, other: Comparison) -> Comparison:
        return Comparison(
            less(self.lines, other.lines), less(self.predicted, other.predicted), less(self.errors, other.errors)
        )

    @property
    def residual_bytes(self) -> int:
        return self.lines.total() - self.predicted.total()

    @property
    def free_bytes(self) -> int:
        """Free slots besides those that the audits of both guests count."""
        return self.lines[FREE] - self.predicted[SLAB_LEFT] - self.errors[SLAB_LEFT]

    @property
    def rest_bytes(self) -> int:
        """The residual but for three lines: per-CPU, slabs and free slots."""
        return self.residual_bytes - self.errors[PERCPU_LEFT] - self.errors[SLAB_LEFT] - self.free_bytes

    def __str__(self) -> str:
        return "; ".join(
            f"{name} {', '.join(f'{line} {size / 1e6:+.2f}' for line, size in largest(sizes))}"
            for name, sizes in (("predicted", self.predicted), ("errors", self.errors), ("measured", self.lines))
        )


def less(sizes: Counter[str], others: Counter[str]) -> Counter[str]:
    difference = Counter(sizes)
    difference.subtract(others)
    return difference


def largest(sizes: Counter[str]) -> list[tuple[str, int]]:
    return sorted(sizes.items(), key=lambda line: -abs(line[1]))[:12]


def control(shape: Shape) -> Shape:
    return dataclasses.replace(shape, name=f"{shape.name}-control", memcgs=shape.kept)


def run(shape: Shape, kernel: Kernel) -> Guest:
    """Boot a shape, read the guest's report, audit its core, and remove the core."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        boot.take_core(shape, kernel, folder)
        targets = LAZY.values() if shape.series == EAGER else ()
        guest = read(folder, targets)
    step(f"{shape.name} on {shape.series}: {guest.lines.total() / 1e6:.2f} MB")
    return guest


def read(folder: Path, targets: Iterable[str]) -> Guest:
    """Read the report and audit the core in a folder."""
    rows = memcg_memory(folder / "vmcore")
    upgraded = {
        target: Counter(
            {
                row["part"]: row["upgraded_bytes"]
                for row in memcg_memory(folder / "vmcore", "--target-kernel", target)
                if row["upgraded_bytes"] is not None
            }
        )
        for target in targets
    }
    return Guest(slab_lines(folder / "truth"), Counter({row["part"]: row["held_bytes"] for row in rows}), upgraded)


def memcg_memory(core: Path, *options: str) -> list[dict[str, Any]]:
    """The rows of the table memcg_memory of an audit."""
    command = [sys.executable, "-m", "pipeline.collector", core, *options]
    audit = frame.parse(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    assert isinstance(audit, frame.Snapshot), audit
    assert audit.columns["dying_memcgs"] == 0
    table = audit.tables["memcg_memory"]
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def slab_lines(truth: Path) -> Counter[str]:
    """The lines of a guest's SUnreclaim and Percpu; their sum is both of them."""
    meminfo = dict(re.findall(r"^(\w+): +(\d+) kB", (truth / "meminfo").read_text(), re.MULTILINE))
    reclaimable = (truth / "reclaimable").read_text().split()
    lines = Counter({PERCPU: int(meminfo["Percpu"]) << 10})
    slab_bytes = 0
    for row in (truth / "slabinfo").read_text().splitlines()[2:]:
        name, *fields = row.split()
        if name not in reclaimable:
            lines[name] = int(fields[0]) * int(fields[2])
            slab_bytes += int(fields[4]) * int(fields[13]) * PAGE
            lines[FREE] += int(fields[4]) * int(fields[13]) * PAGE - lines[name]
    lines[LARGE] = (int(meminfo["SUnreclaim"]) << 10) - slab_bytes
    return lines


def guests(shape: Shape, series: str, kernel_of: KernelOfSeries) -> tuple[Guest, Guest]:
    """Boot a shape and its control on a series."""
    shape = dataclasses.replace(shape, series=series)
    return run(shape, kernel_of(series)), run(control(shape), kernel_of(series))


def compare(eager: tuple[Guest, Guest], lazy: tuple[Guest, Guest], series: str) -> tuple[Comparison, Comparison]:
    """Compare the guests of a shape, and those of its control, on an eager and a lazy series."""
    big, small = (Comparison.of(*pair, LAZY[series]) for pair in zip(eager, lazy, strict=True))
    return big, small


COLUMNS = (
    *("pair", "5.10 against", "predicted", "measured", "residual"),
    *("kernels", "per-CPU", "slabs", "free slots", "rest", "%"),
)


def table(names: list[str], kernel_of: KernelOfSeries) -> Iterator[str]:
    """Yield the lines of a Markdown table of all pairs in MB, and below it the lines of each comparison."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|---" * len(COLUMNS) + "|"
    notes = []
    for name in names:
        shape = PAIRS.get(name) or SHAPES[name]
        eager = guests(shape, EAGER, kernel_of)
        for series in LAZY if name in PAIRS else list(LAZY)[:1]:
            big, small = compare(eager, guests(shape, series, kernel_of), series)
            removed = big - small
            sizes = [big.predicted.total(), big.lines.total(), big.residual_bytes, small.residual_bytes]
            sizes += [removed.errors[PERCPU_LEFT], removed.errors[SLAB_LEFT], removed.free_bytes, removed.rest_bytes]
            cells = " | ".join(f"{size / 1e6:.2f}" for size in sizes)
            yield f"| {name} | {series} | {cells} | {100 * sizes[-1] / sizes[0]:+.3f} |"
            notes += [f"{name} {series}: {big}", f"{name} {series}, control: {small}"]
    yield ""
    yield from notes
