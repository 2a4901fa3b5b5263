"""Small cores have exactly the pages that were read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import drgn
import pytest

from tests.lab import reduce
from tests.lab.bundle import VMCORES, audit
from tests.lab.reduce import SmallCore

CORES = sorted(VMCORES.glob("*/vmcore"))


@pytest.fixture(params=CORES, ids=lambda path: path.parent.name)
def kdump(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_a_kdump_core_is_read_back_as_it_was_written(kdump: Path, tmp_path: Path) -> None:
    reduce.read_kdump(kdump).write_kdump(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == kdump.read_bytes()


def test_elf_and_kdump_give_the_same_audit(kdump: Path, tmp_path: Path) -> None:
    reduce.read_kdump(kdump).write_elf(tmp_path / "elf")
    for system_map in kdump.parent.glob("System.map-*"):
        shutil.copy(system_map, tmp_path)
    assert audit(tmp_path / "elf") == audit(kdump)


@pytest.mark.parametrize("write", [SmallCore.write_elf, SmallCore.write_kdump])
def test_a_page_that_was_left_out_faults(write: Callable[[SmallCore, Path], None], tmp_path: Path) -> None:
    small = reduce.read_kdump(CORES[0])
    write(small, tmp_path / "core")
    prog = drgn.Program()
    prog.set_core_dump(tmp_path / "core")
    [(first, end), *_] = small.memory
    hole = next(frame for frame in range(first, end) if frame not in small.pages)
    frame = next(iter(small.pages))
    assert prog.read(frame * reduce.PAGE, reduce.PAGE, physical=True) == small.pages[frame]
    with pytest.raises(drgn.FaultError):
        prog.read(hole * reduce.PAGE, 8, physical=True)
    with pytest.raises(drgn.FaultError):
        prog.read(0, 8)


class TestFullCore:
    """A small core as ELF stands for a full core: the reader is the same."""

    def test_walk_leaves_just_the_pages_it_read(self, tmp_path: Path) -> None:
        small = reduce.read_kdump(CORES[0])
        small.write_elf(tmp_path / "core")
        full = reduce.FullCore(tmp_path / "core")
        release = int(dict(line.split(b"=") for line in full.vmcoreinfo.splitlines())[b"SYMBOL(init_uts_ns)"], 16)
        frames = full.frames_read_by(lambda prog: prog.read(release, 8))
        smaller = full.small(frames)
        smaller.write_kdump(tmp_path / "smaller")
        prog = drgn.Program()
        prog.set_core_dump(tmp_path / "smaller")
        assert prog.read(release, 8) == full.program().read(release, 8)
        assert len(frames) <= 6, "the page and the page tables above it"
        assert smaller.utsname == small.utsname
