"""What a report advises and expects, done: a 5.10 guest unmounts, boots without kmem accounting, boots anew, doubles
its ids.

By difference in differences: a guest with many memcgs made less one with few, so that what else a mount or an
accounted object costs is in both. A boot and a doubling are one difference.
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
from tests.lab.pairs import slab_bytes
from tests.lab.shapes import Shape

pytestmark = pytest.mark.lab

KEPT, MOUNTS = 20, 300
MACHINE = Shape("advised", "5.10", nodes=2, memory_mb=896, memcgs=0, kept=0)
SCRIPT = """
mount -t cgroup2 cgroup2 $cgroups
echo +memory > $cgroups/cgroup.subtree_control
cd $cgroups
seq {memcgs} | sed 's/^/c/' | xargs mkdir
seq {removed} | sed 's/^/c/' | xargs -r rmdir
while ! grep -q '^nr_dying_descendants 0' cgroup.stat; do sleep 1; done
for i in $(seq {mounts}); do mkdir -p /m/$i; mount -t tmpfs t$i /m/$i; done
said() {{
    sleep 1
    shrink_slabs
    mkdir /run/truth/$1
    cat /proc/sys/vm/stat_refresh > /dev/null
    cat /proc/slabinfo > /run/truth/$1/slabinfo
    cat /proc/meminfo > /run/truth/$1/meminfo
}}
said before
if {unmount}; then
    for i in $(seq {mounts}); do umount /m/$i; done
    said after
fi
"""


class Guests:
    """Guests with many memcgs made and with few: what each holds, gives back, and is advised."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.booted: dict[tuple[int, bool, str], Path] = {}
        self.known: dict[int, Report] = {}

    def boot(self, memcgs: int, *, unmount: bool = False, command_line: str = "") -> Path:
        key = (memcgs, unmount, command_line)
        if key not in self.booted:
            script = SCRIPT.format(
                memcgs=memcgs, removed=memcgs - KEPT, mounts=MOUNTS, unmount="true" if unmount else "false"
            )
            to = self.folder / str(len(self.booted))
            scripted.take_core(MACHINE, kernels.of("5.10"), to, script, command_line)
            self.booted[key] = to
        return self.booted[key]

    def advised(self, memcgs: int) -> dict[str, Any]:
        return self.report(memcgs).advice

    def report(self, memcgs: int) -> Report:
        if memcgs not in self.known:
            root = self.folder / f"warehouse-{memcgs}"
            command = [sys.executable, "-m", "pipeline", "run", self.boot(memcgs) / "vmcore", "-w", root, "--quiet"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            self.known[memcgs] = build_report(query.Session(warehouse.tables(root)))
        return self.known[memcgs]


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Guests:
    return Guests(tmp_path_factory.mktemp("guests"))


def held(guest: Path, when: str = "before") -> int:
    return sum(slab_bytes(guest / "truth" / when).values())


def difference(of: Callable[[int], int]) -> int:
    """What many memcgs make of it: 3070 ids, less what few do: 22."""
    return of(1600) - of(KEPT)


def test_unmounting_gives_back_what_the_advice_says(guests: Guests) -> None:
    def given_back(memcgs: int) -> int:
        guest = guests.boot(memcgs, unmount=True)
        return held(guest) - held(guest, "after")

    assert guests.advised(1600)["mounts"]["superblocks"] >= MOUNTS
    promised = difference(lambda memcgs: guests.advised(memcgs)["mounts"]["list_lru_bytes"])
    assert promised > 100e6
    assert difference(given_back) == pytest.approx(promised, rel=0.01)


def test_without_kmem_accounting_a_boot_saves_what_the_advice_says(guests: Guests) -> None:
    def saved(memcgs: int) -> int:
        return held(guests.boot(memcgs)) - held(guests.boot(memcgs, command_line="cgroup.memory=nokmem"))

    promised = difference(lambda memcgs: guests.advised(memcgs)["nokmem_bytes"])
    assert promised > 100e6
    assert difference(saved) == pytest.approx(promised, rel=0.01)


def test_a_reboot_frees_what_the_advice_says_until_the_ids_have_grown_again(guests: Guests) -> None:
    """A guest with the kept memcgs alone stands for the one that booted again."""
    promised = guests.advised(1600)["reboot_bytes"]
    assert promised > 100e6
    assert held(guests.boot(1600)) - held(guests.boot(KEPT)) == pytest.approx(promised, rel=0.01)
    booted = guests.report(KEPT)
    assert booted.host_waste["memcg_nr_cache_ids"].to_pylist() == [22]
    assert booted.advice["reboot_bytes"] == 0


def test_the_next_doubling_costs_what_is_expected(guests: Guests) -> None:
    (expected,) = guests.report(1600).doublings.to_pylist()
    assert (expected["memcg_nr_cache_ids"], expected["next_cache_ids"]) == (3070, 6142)
    assert expected["next_bytes"] > 100e6
    doubled = held(guests.boot(3100)) - held(guests.boot(1600))
    assert doubled == pytest.approx(expected["next_bytes"], rel=0.01)
