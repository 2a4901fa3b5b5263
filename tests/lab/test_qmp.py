"""A running guest audited over QEMU's monitor, from outside, and from its core: the same rows; and what goes wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.fanout import runner
from pipeline.fanout.runner import frame
from pipeline.fanout.runner.frame import Failure, Snapshot
from pipeline.inventory import Target
from tests.fanout.transports.sshd import SSHD, USER, Client, Server
from tests.lab import boot, initramfs, kernels
from tests.lab.boot import Monitor
from tests.lab.bundle import COSTS
from tests.lab.shapes import SHAPES

pytestmark = pytest.mark.lab

CHANGING = {*COSTS, "captured_at", "uptime_s", "slab_cache_active_objects", "slab_cache_bytes", "notes"}
"""Columns of targets that have the time, or that an idle kernel changes by a few; notes say that the guest ran."""
LOWER_BOUND = "charged objects were counted while the kernel ran: a lower bound"
ROOT = Path(__file__).parents[2]
COUNT_IMPORTS = "from pipeline.collector import budget, snapshot; print(budget.reads()[0])"
NO_PTRACE = ("setpriv", "--bounding-set", "-sys_ptrace")


def audit(source: Path | str, *options: object, prefix: tuple[str, ...] = ()) -> Snapshot | Failure:
    command = [*prefix, sys.executable, "-m", "pipeline.collector", source, *options]
    return frame.parse(subprocess.run(command, capture_output=True, timeout=120).stdout)


def tables(outcome: Snapshot | Failure) -> dict[str, Any] | None:
    return outcome.tables if isinstance(outcome, Snapshot) else None


HOWS = ("plain", "charged", "no ptrace", "vmcoreinfo", "free again")
WAYS = ("runner", "over ssh")
"""Audits of a running guest that its core has to agree with: the collector's own, and those of the runner."""
LOOKS = 5
"""How often a guest is looked at whose kernel did something on its own meanwhile."""


class Guest:
    """What was seen of a guest while it ran, its core, and what it said of itself.

    seen: by test; each is done while the guest is idle.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: dict[str, Any] = {}

    def look_while_still(self, work: Path) -> None:
        """Look until all audits' tables are also those of the guest stopped, of which the core is then taken."""
        for _ in range(LOOKS):
            with Monitor(work / "qmp") as monitor:
                monitor.call("cont")
            self.look(work)
            with Monitor(work / "qmp") as monitor:
                monitor.call("stop")
            if self.is_as_seen(f"qmp:{work / 'audit'}"):
                return

    def is_as_seen(self, source: str) -> bool:
        """Whether the guest, stopped now, is as each audit that is compared found it."""
        plain, charged = tables(audit(source)), tables(audit(source, "--charged"))
        seen = [tables(self.seen[how]) == (charged if how == "charged" else plain) for how in HOWS]
        return all(seen) and all(self.seen[way]["tables"] == plain for way in WAYS if way in self.seen)

    def look(self, work: Path) -> None:
        socket = work / "audit"
        source = f"qmp:{socket}"
        self.seen["plain"] = audit(source)
        self.seen["charged"] = audit(source, "--charged")
        self.seen["no ptrace"] = audit(source, "--no-charged", prefix=NO_PTRACE)
        note = save_note(work)
        self.seen["vmcoreinfo"] = audit(source, "--vmcoreinfo", note)
        self.seen["another boot"] = audit(source, "--vmcoreinfo", of_another_boot(note))
        limit = self.seen["plain"].columns["reads"] // 2
        self.seen["too many reads"] = audit(source, "--max-reads", str(limit))
        target = Target("guest", "qmp", str(socket))
        self.seen["runner"] = runner.run(target, 1, runner.Limits())
        if SSHD is not None:
            self.seen["over ssh"] = over_ssh(target, work)
        start = time.monotonic()
        with Monitor(socket):
            self.seen["busy"] = audit(source)
            self.seen["busy_s"] = time.monotonic() - start
        self.seen["free again"] = audit(source)
        with Monitor(socket) as monitor:
            self.seen["status"] = monitor.call("query-status")["status"]


def over_ssh(target: Target, work: Path) -> dict[str, Any]:
    """Collect a target over ssh, on this machine."""
    client = Client(work / "client")
    with Server(work / "server") as server:
        client.trust(server)
        via = f"ssh:{USER}@127.0.0.1:{server.port}"
        there = replace(target, via=via, python=sys.executable, ssh_config=str(client.config))
        result = runner.run(there, 1, runner.Limits())
    shutil.rmtree(work / "client")
    shutil.rmtree(work / "server")
    return result


def save_note(work: Path) -> Path:
    """Have QEMU write the guest's VMCOREINFO note to a file, from where the guest says that it is."""
    report = work / "report"
    place = subprocess.check_output(["tar", "-xzOf", report, "./vmcoreinfo"], text=True)
    address, size = (int(number, 16) for number in place.split())
    with Monitor(work / "qmp") as monitor:
        monitor.call("pmemsave", val=address, size=size, filename=str(work / "note"))
    return work / "note"


def of_another_boot(note: Path) -> Path:
    """The note of a boot in which KASLR put the kernel 16 MB further up."""
    other = note.with_name("other")
    lines = note.read_bytes().split(b"\n")
    for i, line in enumerate(lines):
        if line.startswith(b"SYMBOL("):
            name, _, address = line.partition(b"=")
            lines[i] = b"%b=%x" % (name, int(address, 16) + (16 << 20))
    other.write_bytes(b"\n".join(lines))
    return other


@pytest.fixture(scope="module", params=["deb510-n2", "deb7-n2"])
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    shape = SHAPES[request.param]
    guest = Guest(tmp_path_factory.mktemp(request.param))
    boot.take_core(shape, kernels.of(shape.series), guest.folder, at_rest=guest.look_while_still)
    return guest


@pytest.mark.parametrize("how", HOWS)
def test_a_running_guest_and_its_core_agree_row_for_row(guest: Guest, how: str) -> None:
    charged = how == "charged"
    core = audit(guest.folder / "vmcore", "--charged" if charged else "--no-charged")
    running = guest.seen[how]
    assert isinstance(core, Snapshot), core
    assert isinstance(running, Snapshot), running
    assert running.columns["types_source"] == "btf"
    assert running.columns["notes"] == (LOWER_BOUND if charged else None)
    assert {**running.columns, **dict.fromkeys(CHANGING)} == {**core.columns, **dict.fromkeys(CHANGING)}
    assert running.tables == core.tables


@pytest.mark.parametrize("way", WAYS)
def test_the_runner_asks_for_the_same(guest: Guest, way: str) -> None:
    if way == "over ssh" and SSHD is None:
        pytest.skip("no sshd")
    result = guest.seen[way]
    assert result["attempt"]["status"] == "ok", result["attempt"]
    assert result["tables"] == guest.seen["plain"].tables


def test_a_busy_monitor_is_unreachable_in_5_s_with_remedies(guest: Guest) -> None:
    failure = guest.seen["busy"]
    assert failure.status == "unreachable"
    assert "monitor in use (libvirt?)" in failure.error
    for remedy in ("second -qmp", "virsh dump --memory-only", "ssh"):
        assert remedy in failure.error
    assert 5 <= guest.seen["busy_s"] < 10


def test_reads_of_a_guest_count_though_the_kernel_counts_none(guest: Guest) -> None:
    """Each list_lru takes several, and Python none of these."""
    columns = guest.seen["plain"].columns
    bare = subprocess.check_output([sys.executable, "-c", COUNT_IMPORTS], cwd=ROOT, text=True)
    assert columns["reads"] - int(bare) > 2 * columns["superblocks"]
    failure = guest.seen["too many reads"]
    assert (failure.status, failure.error_type) == ("over_budget", "OverBudget")


def test_vmcoreinfo_of_another_boot_is_a_mismatch(guest: Guest) -> None:
    failure = guest.seen["another boot"]
    assert failure.status == "mismatch"
    assert failure.error.endswith("/other is not of this boot of the guest")


def test_the_guest_runs_on(guest: Guest) -> None:
    assert guest.seen["status"] == "running"


@pytest.fixture(scope="module")
def without_device(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Audits of a guest whose QEMU has no vmcoreinfo device."""
    shape = SHAPES["deb510-n2"]
    work, seen = tmp_path_factory.mktemp("work"), {}
    kernel = kernels.of(shape.series)
    initramfs.pack(shape, kernel, work / "initramfs")
    command = boot.qemu(shape, kernel)
    device = command.index("vmcoreinfo")
    del command[device - 1 : device + 1]

    def look(work: Path) -> None:
        seen["without"] = audit(f"qmp:{work / 'audit'}")
        seen["with"] = audit(f"qmp:{work / 'audit'}", "--vmcoreinfo", save_note(work))

    boot.run(command, work, work / "core", look)
    return seen


def test_without_a_vmcoreinfo_device_there_are_no_types_and_the_remedies_are_named(without_device) -> None:
    failure = without_device["without"]
    assert failure.status == "no_types"
    for remedy in ("-device vmcoreinfo", "qemu_fw_cfg", "--vmcoreinfo FILE"):
        assert remedy in failure.error


def test_without_a_vmcoreinfo_device_a_file_serves(without_device) -> None:
    columns = without_device["with"].columns
    assert columns["host"] == "deb510-n2"
    assert columns["memcg_nr_cache_ids"] == 382
    assert columns["online_memcgs"] == SHAPES["deb510-n2"].kept
