"""Kdumps of guests that panic: in each form of makedumpfile, of each flavour of Debian's kernels, during an OOM."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest

from pipeline.collector import snapshot
from pipeline.collector.access import kernel
from pipeline.collector.status import CollectError
from tests import reference
from tests.campaign import IS_FULL, sample
from tests.collector import test_snapshot
from tests.collector.conftest import Core
from tests.lab import kdump, kernels
from tests.lab.bundle import audit
from tests.lab.reduce import FullCore
from tests.lab.shapes import SHAPES

pytestmark = pytest.mark.lab

FORMS = {
    "zlib": "makedumpfile -c -d 31 /proc/vmcore zlib",
    "lzo": "makedumpfile -l -d 31 /proc/vmcore lzo",
    "uncompressed": "makedumpfile -d 31 /proc/vmcore uncompressed",
    "all-pages": "makedumpfile -l -d 0 /proc/vmcore all-pages",
    "elf": "makedumpfile -E -d 31 /proc/vmcore elf",
    "copy": "cp /proc/vmcore copy",
}
"""Commands of the capture kernel that write a whole dump, by the name of its file."""


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with QEMU's core, and below kdump/ the dumps of one panic: two of FORMS and those that need a remedy."""
    folder = tmp_path_factory.mktemp("forms")
    commands = [
        *sample(list(FORMS.values()), 2),
        "makedumpfile -F -c -d 31 /proc/vmcore > flattened",
        "makedumpfile -c -d 31 --split /proc/vmcore part1 part2",
        "mkdir /small; mount -t tmpfs -o size=4m small /small; ! makedumpfile -c -d 31 /proc/vmcore /small/vmcore",
        "cp /small/vmcore incomplete",
    ]
    kdump.take_core(SHAPES["deb510-n1"], kernels.debian_kernel("5.10"), folder, "\n".join(commands))
    return folder


def test_each_form_has_the_rows_of_the_memory(forms: Path) -> None:
    rows = audit(forms / "vmcore")
    whole = [path for path in (forms / "kdump").iterdir() if path.name in FORMS]
    assert len(whole) >= 2
    for path in whole:
        assert audit(path) == rows, path.name


def test_a_flattened_dump_is_read_or_has_a_remedy(forms: Path) -> None:
    """makedumpfile leaves bytes of its stack behind the signature; libkdumpfile 0.5.5 opens the file if they are 0."""
    flattened, rearranged = forms / "kdump/flattened", forms / "rearranged"
    try:
        rows = audit(flattened)
    except CollectError as refusal:
        if "makedumpfile -R" not in str(refusal):
            raise
        with flattened.open("rb") as file:
            subprocess.run(["makedumpfile", "-R", rearranged], stdin=file, check=True, stdout=subprocess.DEVNULL)
        rows = audit(rearranged)
    assert rows == audit(forms / "vmcore")


def test_the_remedy_for_parts_makes_a_dump_with_the_rows_of_the_memory(forms: Path) -> None:
    with pytest.raises(CollectError, match="--split") as refusal:
        kernel.open_kernel(str(forms / "kdump/part2"))
    remedy = str(refusal.value)
    command = remedy[remedy.index("makedumpfile --reassemble") :].split()
    assert command.pop() == "NEW"
    subprocess.run([*command, forms / "joined"], check=True, stdout=subprocess.DEVNULL)
    assert audit(forms / "joined") == audit(forms / "vmcore")


def test_a_dump_for_which_the_disk_was_too_small_is_called_incomplete(forms: Path) -> None:
    with pytest.raises(CollectError, match="incomplete") as refusal:
        snapshot.take(kernel.open_kernel(str(forms / "kdump/incomplete")))
    assert refusal.value.status == "bad_core"


DIE_WHILE_IDS_DOUBLE = """
mkdir /fill
mount -t tmpfs -o size=100% fill /fill
until [ "$(awk '/^MemAvailable/ { print $2 }' /proc/meminfo)" -lt 8192 ]; do
    dd if=/dev/zero bs=1M count=1 >> /fill/zeros 2> /dev/null
done
echo 1 > /proc/sys/vm/panic_on_oom
mkdir $cgroups/one-more
"""
"""Leave 8 MB. The doubling from 190 to 382 ids needs 25 MB, so it ends in the OOM killer, which panics."""


def test_a_kernel_that_dies_while_its_ids_double(tmp_path: Path) -> None:
    shape = dataclasses.replace(
        SHAPES["deb510-n2"], memcgs=190, kept=190, tmpfs=600, ext4=0, overlay=0, users=0, files=0, proc=0, sockets=0
    )
    guest_kernel = kernels.debian_kernel("5.10", dwarf=True)
    assert guest_kernel.vmlinux
    kdump.take_core(shape, guest_kernel, tmp_path, panic=DIE_WHILE_IDS_DOUBLE)

    prog = FullCore(tmp_path / "vmcore").program()
    prog.load_debug_info([guest_kernel.vmlinux])
    assert prog["memcg_nr_cache_ids"].value_() == 190
    arrays_bytes = {
        lru["address"]: sum(lru["arrays_bytes"]) for lru in reference.read(prog)["list_lrus"] if lru["memcg_aware"]
    }
    assert len(set(arrays_bytes.values())) >= 2, "some list_lrus have larger arrays already"

    rows = audit(tmp_path / "kdump/vmcore")
    assert {
        lru["address"]: lru["pointer_array_bytes"] for lru in rows["list_lrus"] if lru["memcg_aware"]
    } == arrays_bytes
    assert rows["targets"][0]["growing_to_cache_ids"] == 382


@pytest.fixture(scope="module", params=sample(["generic", "rt"], 1))
def flavour(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Core:
    """The kdump of a guest with another flavour of Debian's 5.10, beside QEMU's core and the guest's report."""
    folder = tmp_path_factory.mktemp(request.param)
    shape = dataclasses.replace(SHAPES["deb510-n2"], flavour=request.param)
    guest_kernel = kernels.debian_kernel("5.10", flavour=request.param)
    kdump.take_core(shape, guest_kernel, folder, crash_mb=192)  # more drivers than a cloud kernel has
    core = Core(folder)
    core.path = folder / "kdump/vmcore"
    return core


def test_other_flavours_have_the_rows_of_the_memory_and_of_the_guest(flavour: Core) -> None:
    assert audit(flavour.path) == audit(flavour.directory / "vmcore")
    objects = sum(lru["list_lru_one_objects"] for lru in flavour.rows("list_lrus"))
    active = flavour.slab_active("kmalloc-32")
    assert 0.9 * active < objects < active
    test_snapshot.test_mounted_superblocks_are_those_of_proc_mounts(flavour)
    test_snapshot.test_memcgs_are_those_of_cgroup_stat(flavour)


@pytest.mark.skipif(not IS_FULL, reason="needs TEST_FULL=1, as the DWARF of a flavour is 400 MB")
def test_other_flavours_have_the_rows_of_the_reference(flavour: Core) -> None:
    guest_kernel = kernels.debian_kernel("5.10", dwarf=True, flavour=flavour.name.removesuffix("0"))
    prog = FullCore(flavour.directory / "vmcore").program()
    prog.load_debug_info([guest_kernel.vmlinux])
    (flavour.directory / "truth/reference.json").write_text(reference.dumps(reference.read(prog)))
    test_snapshot.test_superblocks_are_those_of_the_reference(flavour)
    test_snapshot.test_memcgs_are_those_of_the_reference(flavour)
    test_snapshot.test_list_lrus_hold_what_the_reference_counts(flavour)
