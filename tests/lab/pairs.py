"""The same work on an eager and on a lazy kernel: does the slab memory differ by what the model says?

Two kernels' slabs differ by more than list_lrus, so each kernel boots a shape twice: with many memcgs made of which a
few are kept (big), and with only the kept ones ever made (control); mounts, files and tasks are the same. Then

    (big - control on the eager kernel) - (big - control on the lazy kernel)

has in it what grows with ids that came and went, which is the list_lrus' eager part. Nothing is dying, and every slab
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
"""kmalloc() above 8 KiB: pages that meminfo counts as slab and no row of slabinfo has."""
COLUMNS = ("list_lru_bytes", "wasted_bytes", "lazy_low_bytes", "lazy_bytes", "lazy_high_bytes")

PAIRS = {
    # Arrays of 3070 pointers, which are no slab objects, on each of two nodes.
    "ids": Shape("ids", EAGER, nodes=2, memory_mb=1024, memcgs=3000, kept=50, tmpfs=400, users=6, files=4),
    "mounts": Shape("mounts", EAGER, nodes=1, memory_mb=1024, memcgs=1500, kept=40, tmpfs=1500, users=6, files=4),
    # Entries of many memcgs, nested ones too, on filesystems with a disk and without; sockets.
    "work": Shape("work", EAGER, nodes=2, memory_mb=1024, memcgs=3000, kept=60, nested=(2, 1),
                  tmpfs=200, ext4=6, overlay=6, users=60, files=40, proc=6, sockets=20),
}  # fmt: skip
LARGEST = "bytedance"
"""The commit message's server, 10 GB: by hand, on one lazy kernel."""

Kernels = Callable[[str], Kernel]


@dataclass(frozen=True)
class Bytes:
    """What one guest said of its slabs at rest and what the audit of its core says, or a difference of such."""

    slab: Counter[str]
    """Active objects by cache at the cache's object size, and LARGE."""
    audit: Counter[str]
    """The audit's COLUMNS."""

    def __sub__(self, other: Bytes) -> Bytes:
        slab, audit = Counter(self.slab), Counter(self.audit)
        slab.subtract(other.slab)
        audit.subtract(other.audit)
        return Bytes(slab, audit)

    def __str__(self) -> str:
        audit = ", ".join(f"{column} {size / 1e6:.2f} MB" for column, size in self.audit.items())
        largest = sorted(self.slab.items(), key=lambda cache: -abs(cache[1]))[:12]
        caches = ", ".join(f"{cache} {size / 1e6:+.2f}" for cache, size in largest)
        return f"{audit}; slab {self.measured / 1e6:.2f} MB: {caches}"

    @property
    def measured(self) -> int:
        return sum(self.slab.values())

    @property
    def predicted(self) -> int:
        """Of the eager pair, that is: on a lazy kernel wasted_bytes are 0."""
        return self.audit["wasted_bytes"]


def control(shape: Shape) -> Shape:
    return dataclasses.replace(shape, name=f"{shape.name}-control", memcgs=shape.kept)


def run(shape: Shape, kernel: Kernel) -> Bytes:
    """Boot a shape, read the guest's report, audit its core; the core is not kept."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        boot.take_core(shape, kernel, folder)
        command = [sys.executable, "-m", "pipeline", "inspect", folder / "vmcore", "--json"]
        audit = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        assert audit["dying_memcgs"] == 0
        found = Bytes(slab_bytes(folder / "truth"), Counter({column: audit[column] for column in COLUMNS}))
    step(f"{shape.name} on {shape.series}: {found}")
    return found


def slab_bytes(truth: Path) -> Counter[str]:
    """By cache the bytes of its active objects; how full slabs are is noise. What meminfo has beyond slabinfo."""
    active: Counter[str] = Counter()
    pages = 0
    for line in (truth / "slabinfo").read_text().splitlines()[2:]:
        name, *fields = line.split()
        active[name] = int(fields[0]) * int(fields[2])
        pages += int(fields[4]) * int(fields[13])
    meminfo = (truth / "meminfo").read_text()
    whole = sum(int(size) << 10 for size in re.findall(r"^(?:SUnreclaim|SReclaimable): +(\d+) kB", meminfo, re.M))
    active[LARGE] = whole - pages * 4096
    return active


def differences(shape: Shape, kernels: Kernels, lazy: tuple[str, ...] = LAZY) -> Iterator[tuple[str, Bytes]]:
    """For each lazy series the eager pair's difference less the lazy pair's."""
    eager = of_series(shape, EAGER, kernels)
    for series in lazy:
        yield series, eager - of_series(shape, series, kernels)


def of_series(shape: Shape, series: str, kernels: Kernels) -> Bytes:
    """Big less control on one kernel."""
    big = dataclasses.replace(shape, series=series)
    return run(big, kernels(series)) - run(control(big), kernels(series))


def table(names: list[str], kernels: Kernels) -> Iterator[str]:
    """Lines of a Markdown table of all pairs, and below it the caches that make up each difference."""
    yield "| pair | 5.10 against | predicted MB | measured MB | residual MB | residual % |"
    yield "|---|---|---|---|---|---|"
    notes = []
    for name in names:
        shape = PAIRS.get(name) or SHAPES[name]
        for series, found in differences(shape, kernels, LAZY if name in PAIRS else LAZY[:1]):
            residual = found.measured - found.predicted
            yield (
                f"| {name} | {series} | {found.predicted / 1e6:.2f} | {found.measured / 1e6:.2f} "
                f"| {residual / 1e6:+.2f} | {100 * residual / found.predicted:+.2f} |"
            )
            notes.append(f"{name} {series}: {found}")
    yield ""
    yield from notes
