"""The bundled cores, each opened once and without debug info, and their kernels' own reports."""

from __future__ import annotations

import atexit
import json
import lzma
import re
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from pipeline.collector import snapshot
from pipeline.collector.access import kernel

VMCORES = Path(__file__).parents[1] / "vmcores"
KDUMPS = Path(__file__).parents[1] / "kdumps"


class Core:
    """A bundled core with its audit, the guest's own files, and the result of the reference walk with DWARF."""

    def __init__(self, directory: Path) -> None:
        self.name = directory.name
        self.directory = directory

    @cached_property
    def path(self) -> Path:
        """The core; one that is packed is unpacked until the end of the process."""
        packed = self.directory / "vmcore.xz"
        if not packed.exists():
            return self.directory / "vmcore"
        folder = tempfile.TemporaryDirectory()
        atexit.register(folder.cleanup)
        core = Path(folder.name) / "vmcore"
        core.write_bytes(lzma.decompress(packed.read_bytes()))
        return core

    @cached_property
    def kernel(self) -> kernel.Kernel:
        return kernel.open_kernel(str(self.path))

    @cached_property
    def snapshot(self) -> snapshot.Snapshot:
        return snapshot.take(self.kernel)

    def rows(self, table: str) -> list[dict[str, Any]]:
        columns, rows = next((t.columns, t.rows) for t in self.snapshot.tables if t.name == table)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    @cached_property
    def target(self) -> dict[str, Any]:
        return self.rows("targets")[0]

    def truth(self, name: str) -> str:
        return (self.directory / "truth" / name).read_text()

    @cached_property
    def reference(self) -> dict[str, Any]:
        return json.loads(self.truth("reference.json"))

    def has_truth(self, name: str) -> bool:
        return (self.directory / "truth" / name).exists()

    @cached_property
    def crash(self) -> dict[str, Any]:
        return json.loads(self.truth("crash.json"))

    def slab_active(self, cache: str) -> int:
        """Active objects of a cache in the guest's own /proc/slabinfo."""
        match = re.search(rf"^{re.escape(cache)} +(\d+)", self.truth("slabinfo"), re.MULTILINE)
        assert match, cache
        return int(match.group(1))

    def kmalloc(self, size: int) -> int:
        """Bytes that kmalloc() takes for an object of a size, by the caches in the guest's own /proc/slabinfo."""
        caches = re.findall(r"^kmalloc-(\d+)(k?) ", self.truth("slabinfo"), re.MULTILINE)
        return min(cache for cache in (int(n) << 10 * len(k) for n, k in caches) if cache >= size)

    @property
    def is_eager(self) -> bool:
        """Whether the kernel is older than commit 5abc1e37afa0 ("mm: list_lru: allocate list_lru_one only when needed")
        (in v5.18).
        """
        major, minor = re.findall(r"\d+", self.truth("version"))[:2]
        return (int(major), int(minor)) < (5, 18)


CORES = [Core(path.parent) for path in sorted([*VMCORES.glob("*/vmcore"), *KDUMPS.glob("*/vmcore.xz")])]


def with_cores(condition: Callable[[Core], bool], argument: str = "core") -> pytest.MarkDecorator:
    """Run a test with the cores for which a condition holds."""
    return pytest.mark.parametrize(argument, [*filter(condition, CORES)], ids=lambda core: core.name)


# The server is too large for the reference walk; crash and the guest's own files replace it.
has_reference = with_cores(lambda core: core.has_truth("reference.json"))


@pytest.fixture(params=CORES, ids=lambda core: core.name)
def core(request: pytest.FixtureRequest) -> Core:
    return request.param


@pytest.fixture(params=[core for core in CORES if core.is_eager], ids=lambda core: core.name)
def eager_core(request: pytest.FixtureRequest) -> Core:
    return request.param


@pytest.fixture(params=[core for core in CORES if not core.is_eager], ids=lambda core: core.name)
def lazy_core(request: pytest.FixtureRequest) -> Core:
    return request.param
