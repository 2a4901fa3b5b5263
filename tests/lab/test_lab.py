"""The whole lab: boot a kernel and take its core. Slow; needs QEMU, and a mirror or $LAB_DEBS."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.bundle import KDUMPS, VMCORES
from tests.lab.shapes import BUNDLED_SHAPES, SHAPES, Shape


def test_every_bundled_shape_has_its_core_and_no_other_is_there() -> None:
    reduced = {path.parent.name for path in VMCORES.glob("*/vmcore")}
    as_written = {path.parent.name for path in KDUMPS.glob("*/vmcore.xz")}
    assert reduced == {shape.name for shape in BUNDLED_SHAPES if not shape.dump}
    assert as_written == {shape.name for shape in BUNDLED_SHAPES if shape.dump}


@pytest.mark.parametrize("shape", BUNDLED_SHAPES, ids=lambda shape: shape.name)
def test_bundled_core_was_made_from_the_shape_as_it_is_now(shape: Shape) -> None:
    assert ((KDUMPS if shape.dump else VMCORES) / shape.name / "truth/shape").read_text() == shape.assignments()


@pytest.mark.lab
def test_a_shape_boots_and_its_guest_is_in_that_state(tmp_path: Path) -> None:
    shape = SHAPES["deb510-n1"]
    subprocess.run([sys.executable, "-m", "tests.lab", "boot", shape.name, "-o", tmp_path], check=True)
    stat = dict(line.split() for line in (tmp_path / "truth/cgroup.stat").read_text().splitlines())
    memcgs_per_tree = 1 + shape.nested[0] * (1 + shape.nested[1])
    assert int(stat["nr_descendants"]) == shape.kept * memcgs_per_tree
    assert int(stat["nr_dying_descendants"]) == shape.dying
    assert (tmp_path / "truth/mounts").read_text().count(" tmpfs ") == shape.tmpfs + 1
    assert (tmp_path / "vmcore").stat().st_size > shape.memory_mb << 20
