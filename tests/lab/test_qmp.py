"""An audit of a running guest over QEMU's monitor gives the same rows as its core; and the errors of this way."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import zlib
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
from tests.lab.bundle import INCIDENTAL_COLUMNS
from tests.lab.shapes import SHAPES

pytestmark = pytest.mark.lab

CHANGING_COLUMNS = {
    *INCIDENTAL_COLUMNS,
    "captured_at",
    "uptime_s",
    "slab_cache_active_objects",
    "slab_cache_bytes",
    "slab_unreclaimable_bytes",
    "slab_reclaimable_bytes",
    "notes",
}
"""Columns of targets with times, or that an idle kernel changes slightly; notes say that the guest ran."""
RAN_ON = "charged objects were counted while the kernel ran: some can be missing"
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
"""Audits of a running guest that must agree with its core: of the collector, and of the runner."""
MAX_ROUNDS = 5
"""Rounds of audits of a guest whose kernel changes by itself during a round."""


class Guest:
    """A guest's audits while it ran idle, its core, and its own report.

    :ivar results: results of the audits by test.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: dict[str, Any] = {}

    def audit_while_still(self, work: Path) -> None:
        """Audit until all audits have the same tables as one of the stopped guest, whose core is taken next."""
        for _ in range(MAX_ROUNDS):
            with Monitor(work / "qmp") as monitor:
                monitor.call("cont")
            self.run_audits(work)
            with Monitor(work / "qmp") as monitor:
                monitor.call("stop")
            if self.is_unchanged(f"qmp:{work / 'audit'}"):
                return

    def is_unchanged(self, source: str) -> bool:
        """Whether the stopped guest has the tables of each audit of HOWS and WAYS."""
        plain_tables, charged_tables = tables(audit(source)), tables(audit(source, "--charged"))
        matches = [tables(self.results[how]) == (charged_tables if how == "charged" else plain_tables) for how in HOWS]
        return all(matches) and all(self.results[way]["tables"] == plain_tables for way in WAYS if way in self.results)

    def run_audits(self, work: Path) -> None:
        socket = work / "audit"
        source = f"qmp:{socket}"
        self.results["plain"] = audit(source)
        self.results["charged"] = audit(source, "--charged")
        self.results["no ptrace"] = audit(source, "--no-charged", prefix=NO_PTRACE)
        note = save_note(work)
        self.results["vmcoreinfo"] = audit(source, "--vmcoreinfo", note)
        self.results["another boot"] = audit(source, "--vmcoreinfo", note_of_another_boot(note))
        max_reads = self.results["plain"].columns["reads"] // 2
        self.results["too many reads"] = audit(source, "--max-reads", str(max_reads))
        target = Target("guest", "qmp", str(socket))
        self.results["runner"] = runner.run(target, 1, runner.Limits())
        if SSHD is not None:
            self.results["over ssh"] = over_ssh(target, work)
        start = time.monotonic()
        with Monitor(socket):
            self.results["busy"] = audit(source)
            self.results["busy_s"] = time.monotonic() - start
        self.results["free again"] = audit(source)
        with Monitor(socket) as monitor:
            self.results["status"] = monitor.call("query-status")["status"]


def over_ssh(target: Target, work: Path) -> dict[str, Any]:
    """Collect a target over ssh to this machine."""
    client = Client(work / "client")
    with Server(work / "server") as server:
        client.trust(server)
        via = f"ssh:{USER}@127.0.0.1:{server.port}"
        remote_target = replace(target, via=via, python=sys.executable, ssh_config=str(client.config))
        result = runner.run(remote_target, 1, runner.Limits())
    shutil.rmtree(work / "client")
    shutil.rmtree(work / "server")
    return result


def save_note(work: Path) -> Path:
    """Have QEMU write the guest's VMCOREINFO note to a file; the guest's report has its address and size."""
    # Other files follow the archive.
    archive = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress((work / "report").read_bytes())
    address_and_size = subprocess.check_output(["tar", "-xO", "./vmcoreinfo"], input=archive)
    address, size = (int(number, 16) for number in address_and_size.split())
    with Monitor(work / "qmp") as monitor:
        monitor.call("pmemsave", val=address, size=size, filename=str(work / "note"))
    return work / "note"


def note_of_another_boot(note: Path) -> Path:
    """The note of a boot in which KASLR put the kernel at an address 16 MB higher."""
    other_note = note.with_name("other")
    lines = note.read_bytes().split(b"\n")
    for i, line in enumerate(lines):
        if line.startswith(b"SYMBOL("):
            name, _, address = line.partition(b"=")
            lines[i] = b"%b=%x" % (name, int(address, 16) + (16 << 20))
    other_note.write_bytes(b"\n".join(lines))
    return other_note


@pytest.fixture(scope="module", params=["deb510-n2", "deb7-n2"])
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    shape = SHAPES[request.param]
    guest = Guest(tmp_path_factory.mktemp(request.param))
    boot.take_core(shape, kernels.debian_kernel(shape.series), guest.folder, idle_action=guest.audit_while_still)
    return guest


@pytest.mark.parametrize("how", HOWS)
def test_a_running_guest_and_its_core_agree_row_for_row(guest: Guest, how: str) -> None:
    scan_charges = how == "charged"
    core = audit(guest.folder / "vmcore", "--charged" if scan_charges else "--no-charged")
    live = guest.results[how]
    assert isinstance(core, Snapshot), core
    assert isinstance(live, Snapshot), live
    assert live.columns["types_source"] == "btf"
    assert live.columns["notes"] == (RAN_ON if scan_charges else None)
    assert {**live.columns, **dict.fromkeys(CHANGING_COLUMNS)} == {**core.columns, **dict.fromkeys(CHANGING_COLUMNS)}
    assert live.tables == core.tables


@pytest.mark.parametrize("way", WAYS)
def test_the_runner_asks_for_the_same(guest: Guest, way: str) -> None:
    if way == "over ssh" and SSHD is None:
        pytest.skip("needs sshd")
    result = guest.results[way]
    assert result["attempt"]["status"] == "ok", result["attempt"]
    assert result["tables"] == guest.results["plain"].tables


def test_a_busy_monitor_is_unreachable_in_5_s_with_remedies(guest: Guest) -> None:
    failure = guest.results["busy"]
    assert failure.status == "unreachable"
    assert "monitor in use (libvirt?)" in failure.error
    for remedy in ("second -qmp", "virsh dump --memory-only", "ssh"):
        assert remedy in failure.error
    assert 5 <= guest.results["busy_s"] < 10


def test_reads_of_a_guest_count_though_the_kernel_counts_none(guest: Guest) -> None:
    """Each list_lru takes several reads, which the kernel does not count. The reads of the imports are subtracted."""
    columns = guest.results["plain"].columns
    import_reads = subprocess.check_output([sys.executable, "-c", COUNT_IMPORTS], cwd=ROOT, text=True)
    assert columns["reads"] - int(import_reads) > 2 * columns["superblocks"]
    failure = guest.results["too many reads"]
    assert (failure.status, failure.error_type) == ("over_budget", "OverBudget")


def test_vmcoreinfo_of_another_boot_is_a_mismatch(guest: Guest) -> None:
    failure = guest.results["another boot"]
    assert failure.status == "mismatch"
    assert failure.error.endswith("/other is not of this boot")


def test_the_guest_runs_on(guest: Guest) -> None:
    assert guest.results["status"] == "running"


@pytest.fixture(scope="module")
def without_device(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Audits of a guest without a vmcoreinfo device in its QEMU, by whether the option --vmcoreinfo is used."""
    shape = SHAPES["deb510-n2"]
    work, results = tmp_path_factory.mktemp("work"), {}
    kernel = kernels.debian_kernel(shape.series)
    initramfs.pack(shape, kernel, work / "initramfs")
    command = boot.qemu(shape, kernel)
    device = command.index("vmcoreinfo")
    del command[device - 1 : device + 1]

    def run_audits(work: Path) -> None:
        results["without"] = audit(f"qmp:{work / 'audit'}")
        results["with"] = audit(f"qmp:{work / 'audit'}", "--vmcoreinfo", save_note(work))

    boot.run(command, work, work / "core", run_audits)
    return results


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
