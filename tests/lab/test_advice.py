"""A report's advice and forecast, applied: a 5.10 guest unmounts, boots without kmem accounting, reboots, or doubles
its ids.

The bytes are a difference in differences: a guest that created many memcgs minus one that created few, so that the
other costs of a mount or an accounted object cancel out. A reboot and a doubling are a single difference.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import query, warehouse
from pipeline.report.model import Report, build_report
from tests.lab import kernels, scripted
from tests.lab.pairs import FREE, PERCPU, slab_lines
from tests.lab.shapes import Shape

pytestmark = pytest.mark.lab

KEPT_MEMCGS, MOUNTS = 20, 300
MACHINE = Shape("advised", "5.10", nodes=2, memory_mb=896, memcgs=0, kept=0)
SCRIPT = """
mount -t cgroup2 cgroup2 $cgroups
echo +memory > $cgroups/cgroup.subtree_control
cd $cgroups
seq {memcgs} | sed 's/^/c/' | xargs mkdir
seq {removed} | sed 's/^/c/' | xargs -r rmdir
while ! grep -q '^nr_dying_descendants 0' cgroup.stat; do sleep 1; done
for i in $(seq {mounts}); do mkdir -p /m/$i; mount -t tmpfs t$i /m/$i; done
save_counters() {{
    sleep 1
    shrink_slabs
    mkdir /run/truth/$1
    cat /proc/sys/vm/stat_refresh > /dev/null
    cat /proc/slabinfo > /run/truth/$1/slabinfo
    cat /proc/meminfo > /run/truth/$1/meminfo
    reclaimable_caches > /run/truth/$1/reclaimable
}}
save_counters before
if {unmount}; then
    for i in $(seq {mounts}); do umount /m/$i; done
    save_counters after
fi
"""


class Guests:
    """Guests that created many or few memcgs, and their reports; each guest boots once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder_by_options: dict[tuple[int, bool, str], Path] = {}
        self.report_by_memcgs: dict[int, Report] = {}

    def boot(self, memcgs: int, *, unmount: bool = False, command_line: str = "") -> Path:
        options = (memcgs, unmount, command_line)
        if options not in self.folder_by_options:
            script = SCRIPT.format(
                memcgs=memcgs, removed=memcgs - KEPT_MEMCGS, mounts=MOUNTS, unmount="true" if unmount else "false"
            )
            folder = self.folder / str(len(self.folder_by_options))
            scripted.take_core(MACHINE, kernels.debian_kernel("5.10"), folder, script, command_line)
            self.folder_by_options[options] = folder
        return self.folder_by_options[options]

    def advice(self, memcgs: int) -> dict[str, Any]:
        return self.report(memcgs).advice

    def report(self, memcgs: int) -> Report:
        if memcgs not in self.report_by_memcgs:
            root = self.folder / f"warehouse-{memcgs}"
            command = [sys.executable, "-m", "pipeline", "run", self.boot(memcgs) / "vmcore", "-w", root, "--quiet"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            self.report_by_memcgs[memcgs] = build_report(query.Session(warehouse.tables(root)))
        return self.report_by_memcgs[memcgs]


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Guests:
    return Guests(tmp_path_factory.mktemp("guests"))


def total_slab_bytes(guest: Path, moment: str = "before") -> int:
    lines = slab_lines(guest / "truth" / moment)
    return lines.total() - lines[FREE] - lines[PERCPU]


def difference(measure: Callable[[int], int]) -> int:
    """The measure with many memcgs (3070 ids) minus that with few (22 ids)."""
    return measure(1600) - measure(KEPT_MEMCGS)


def test_unmounting_gives_back_what_the_advice_says(guests: Guests) -> None:
    def freed_bytes(memcgs: int) -> int:
        guest = guests.boot(memcgs, unmount=True)
        return total_slab_bytes(guest) - total_slab_bytes(guest, "after")

    assert guests.advice(1600)["mounts"]["superblocks"] >= MOUNTS
    advised_bytes = difference(lambda memcgs: guests.advice(memcgs)["mounts"]["list_lru_bytes"])
    assert advised_bytes > 100e6
    assert difference(freed_bytes) == pytest.approx(advised_bytes, rel=0.01)


def test_without_kmem_accounting_a_boot_saves_what_the_advice_says(guests: Guests) -> None:
    def saved_bytes(memcgs: int) -> int:
        nokmem_guest = guests.boot(memcgs, command_line="cgroup.memory=nokmem")
        return total_slab_bytes(guests.boot(memcgs)) - total_slab_bytes(nokmem_guest)

    advised_bytes = difference(lambda memcgs: guests.advice(memcgs)["nokmem_bytes"])
    assert advised_bytes > 100e6
    assert difference(saved_bytes) == pytest.approx(advised_bytes, rel=0.01)


def test_a_reboot_frees_what_the_advice_says_until_the_ids_have_grown_again(guests: Guests) -> None:
    """A guest with only the kept memcgs stands for the rebooted one."""
    advised_bytes = guests.advice(1600)["reboot_bytes"]
    assert advised_bytes > 100e6
    freed_bytes = total_slab_bytes(guests.boot(1600)) - total_slab_bytes(guests.boot(KEPT_MEMCGS))
    assert freed_bytes == pytest.approx(advised_bytes, rel=0.01)
    report = guests.report(KEPT_MEMCGS)
    assert report.host_waste["memcg_nr_cache_ids"].to_pylist() == [22]
    assert report.advice["reboot_bytes"] == 0


def test_the_next_doubling_costs_what_is_expected(guests: Guests) -> None:
    (doubling,) = guests.report(1600).doublings.to_pylist()
    assert (doubling["memcg_nr_cache_ids"], doubling["next_cache_ids"]) == (3070, 6142)
    assert doubling["next_bytes"] > 100e6
    growth_bytes = total_slab_bytes(guests.boot(3100)) - total_slab_bytes(guests.boot(1600))
    assert growth_bytes == pytest.approx(doubling["next_bytes"], rel=0.01)
