"""The same work on an eager and a lazy kernel: the difference of the slab memory, predicted and measured.

Two kernels' slabs differ by more than list_lrus. So each kernel boots a shape twice: one guest creates many memcgs and
keeps a few (big), the other creates only the memcgs that it keeps (control). Mounts, files and tasks are the same. Then

    (big - control on the eager kernel) - (big - control on the lazy kernel)

is the memory that grows with the ids of removed memcgs: the list_lrus' eager part. No memcg is dying, and every slab
cache is shrunk before the guest reads its own /proc/slabinfo and /proc/meminfo.
"""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.lab import boot
from tests.lab.bundle import step
from tests.lab.kernels import Kernel
from tests.lab.shapes import SHAPES, Shape

EAGER = "5.10"
LAZY = ("6.1", "6.12", "7")
LARGE = "no slab cache"
"""Key of kmalloc() above 8 KiB: pages that meminfo counts as slab and that no row of slabinfo has."""
COLUMNS = ("list_lru_bytes", "wasted_bytes", "lazy_low_bytes", "lazy_bytes", "lazy_high_bytes")

PAIRS = {
    # Arrays of 3070 pointers on each of two nodes; they are not slab objects.
    "ids": Shape("ids", EAGER, nodes=2, memory_mb=1024, memcgs=3000, kept=50, tmpfs=400, users=6, files=4),
    "mounts": Shape("mounts", EAGER, nodes=1, memory_mb=1024, memcgs=1500, kept=40, tmpfs=1500, users=6, files=4),
    # Entries of many memcgs, also nested ones, on filesystems with and without a disk; sockets.
    "work": Shape("work", EAGER, nodes=2, memory_mb=1024, memcgs=3000, kept=60, nested=(2, 1),
                  tmpfs=200, ext4=6, overlay=6, users=60, files=40, proc=6, sockets=20),
}  # fmt: skip
LARGEST = "bytedance"
"""The commit message's server, 10 GB. It runs only on request, on one lazy kernel."""

KernelOfSeries = Callable[[str], Kernel]


@dataclass(frozen=True)
class Bytes:
    """A guest's slabs at rest, by its own report, and the audit of its core; or a difference of two guests."""

    slab: Counter[str]
    """Bytes of the active objects by cache, and of LARGE."""
    audit: Counter[str]
    """The audit's values of COLUMNS."""

    def __sub__(self, other: Bytes) -> Bytes:
        slab, audit = Counter(self.slab), Counter(self.audit)
        slab.subtract(other.slab)
        audit.subtract(other.audit)
        return Bytes(slab, audit)

    def __str__(self) -> str:
        audit = ", ".join(f"{column} {size / 1e6:.2f} MB" for column, size in self.audit.items())
        largest = sorted(self.slab.items(), key=lambda cache: -abs(cache[1]))[:12]
        caches = ", ".join(f"{cache} {size / 1e6:+.2f}" for cache, size in largest)
        return f"{audit}; slab {self.measured_bytes / 1e6:.2f} MB: {caches}"

    @property
    def measured_bytes(self) -> int:
        return sum(self.slab.values())

    @property
    def predicted_bytes(self) -> int:
        """The waste of the eager kernel: on a lazy kernel wasted_bytes is 0."""
        return self.audit["wasted_bytes"]


def control(shape: Shape) -> Shape:
    return dataclasses.replace(shape, name=f"{shape.name}-control", memcgs=shape.kept)


def run(shape: Shape, kernel: Kernel) -> Bytes:
    """Boot a shape, read the guest's report, audit its core, and remove the core."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        boot.take_core(shape, kernel, folder)
        command = [sys.executable, "-m", "pipeline", "inspect", folder / "vmcore", "--json"]
        audit = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        assert audit["dying_memcgs"] == 0
        result = Bytes(slab_bytes(folder / "truth"), Counter({column: audit[column] for column in COLUMNS}))
    step(f"{shape.name} on {shape.series}: {result}")
    return result


def slab_bytes(truth: Path) -> Counter[str]:
    """Bytes of the active objects by cache, since free slots are noise; as LARGE what meminfo has beyond slabinfo."""
    active: Counter[str] = Counter()
    pages = 0
    for line in (truth / "slabinfo").read_text().splitlines()[2:]:
        name, *fields = line.split()
        active[name] = int(fields[0]) * int(fields[2])
        pages += int(fields[4]) * int(fields[13])
    meminfo = (truth / "meminfo").read_text()
    slab_total = sum(int(size) << 10 for size in re.findall(r"^(?:SUnreclaim|SReclaimable): +(\d+) kB", meminfo, re.M))
    active[LARGE] = slab_total - pages * 4096
    return active


def differences(shape: Shape, kernel_of: KernelOfSeries, lazy: tuple[str, ...] = LAZY) -> Iterator[tuple[str, Bytes]]:
    """For each lazy series, the eager kernel's difference minus the lazy kernel's."""
    eager = series_difference(shape, EAGER, kernel_of)
    for series in lazy:
        yield series, eager - series_difference(shape, series, kernel_of)


def series_difference(shape: Shape, series: str, kernel_of: KernelOfSeries) -> Bytes:
    """Big minus control on one kernel."""
    big = dataclasses.replace(shape, series=series)
    return run(big, kernel_of(series)) - run(control(big), kernel_of(series))


def table(names: list[str], kernel_of: KernelOfSeries) -> Iterator[str]:
    """Yield the lines of a Markdown table of all pairs, and below it the caches of each difference."""
    yield "| pair | 5.10 against | predicted MB | measured MB | residual MB | residual % |"
    yield "|---|---|---|---|---|---|"
    notes = []
    for name in names:
        shape = PAIRS.get(name) or SHAPES[name]
        for series, difference in differences(shape, kernel_of, LAZY if name in PAIRS else LAZY[:1]):
            predicted_bytes, measured_bytes = difference.predicted_bytes, difference.measured_bytes
            residual = measured_bytes - predicted_bytes
            yield (
                f"| {name} | {series} | {predicted_bytes / 1e6:.2f} | {measured_bytes / 1e6:.2f} "
                f"| {residual / 1e6:+.2f} | {100 * residual / predicted_bytes:+.2f} |"
            )
            notes.append(f"{name} {series}: {difference}")
    yield ""
    yield from notes
