"""Dumps of a real guest whose QEMU does not know VMCOREINFO: every form has the rows of the guest itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.fanout.runner.frame import Failure, Snapshot
from tests.lab import boot, initramfs, kernels
from tests.lab.boot import Monitor
from tests.lab.shapes import SHAPES
from tests.lab.test_qmp import audit, note_of_another_boot, save_note

pytestmark = pytest.mark.lab

SHAPE = SHAPES["deb510-n1"]
CACHE_IDS = 190
"""memcg_nr_cache_ids of the shape: its memcgs, nested ones included, make the kernel double 94."""
READ = {
    "ELF": {"paging": False},
    "ELF with virtual addresses": {"paging": True},
    "kdump-zlib": {"paging": False, "format": "kdump-zlib"},
}
"""Arguments of dump-guest-memory by the form that it writes; a kdump is flattened."""


class Dumps:
    """A stopped guest's dumps by form, its audit through the monitor, and its VMCOREINFO."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.guest: Any = None
        self.files = {form: folder / form.replace(" ", "-") for form in READ}

    def write(self, work: Path) -> None:
        self.note = self.folder / "note"
        self.note.write_bytes(save_note(work).read_bytes())
        with Monitor(work / "qmp") as monitor:
            monitor.call("stop")
            for form, arguments in READ.items():
                monitor.call("dump-guest-memory", protocol=f"file:{self.files[form]}", **arguments)
            monitor.call("pmemsave", val=0, size=SHAPE.memory_mb << 20, filename=str(self.folder / "raw"))
            monitor.call("migrate", uri=f"exec:cat > {self.folder / 'stream'}")
            while (status := monitor.call("query-migrate")["status"]) != "completed":
                assert status in ("setup", "active", "device")
                time.sleep(0.1)
        self.guest = audit(f"qmp:{work / 'audit'}", "--charged", "--vmcoreinfo", self.note)


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> Dumps:
    dumps, work = Dumps(tmp_path_factory.mktemp("dumps")), tmp_path_factory.mktemp("work")
    kernel = kernels.debian_kernel(SHAPE.series)
    initramfs.pack(SHAPE, kernel, work / "initramfs")
    command = boot.qemu(SHAPE, kernel)
    device = command.index("vmcoreinfo")
    del command[device - 1 : device + 1]
    boot.run(command, work, work / "core", dumps.write)
    return dumps


@pytest.mark.parametrize("with_file", [False, True], ids=["found in memory", "from a file"])
@pytest.mark.parametrize("form", READ)
def test_every_form_has_the_rows_of_the_guest(dumps: Dumps, form: str, with_file: bool) -> None:
    core = audit(dumps.files[form], *(("--vmcoreinfo", dumps.note) if with_file else ()))
    assert isinstance(core, Snapshot), core
    assert isinstance(dumps.guest, Snapshot), dumps.guest
    assert core.tables == dumps.guest.tables
    assert (core.columns["host"], core.columns["memcg_nr_cache_ids"]) == (SHAPE.name, CACHE_IDS)
    assert core.columns["consistency"] == "exact"


@pytest.mark.parametrize("form", READ)
def test_vmcoreinfo_of_another_boot_is_a_mismatch(dumps: Dumps, form: str) -> None:
    failure = audit(dumps.files[form], "--vmcoreinfo", note_of_another_boot(dumps.note))
    assert isinstance(failure, Failure), failure
    assert failure.status == "mismatch"
    assert failure.error.endswith("/other is not of this boot")


@pytest.mark.parametrize(("name", "form"), [("stream", "a migration stream of QEMU"), ("raw", "a raw image of memory")])
def test_what_cannot_be_read_is_named(dumps: Dumps, name: str, form: str) -> None:
    failure = audit(dumps.folder / name)
    assert isinstance(failure, Failure), failure
    assert failure.status == "bad_core"
    assert f"{form}, which drgn does not read" in failure.error
    assert "dump-guest-memory" in failure.error
