"""Cores of a guest that creates and removes memcgs and mounts, taken at any moment: a core cannot be read again.

Each figure is compared with the slow reference walk with DWARF. That follows the same pointers, so drgn's slab helpers
then say whether what was counted is allocated.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from drgn import Object, Program
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.nodemask import for_each_node_state
from drgn.helpers.linux.slab import find_slab_cache, slab_cache_for_each_allocated_object
from drgn.helpers.linux.xarray import xa_for_each

from pipeline.collector import snapshot
from pipeline.collector.access import kernel
from tests import reference
from tests.campaign import IS_FULL, SEED
from tests.lab import boot, kernels
from tests.lab.shapes import Shape

pytestmark = pytest.mark.lab

CORES = 40 if IS_FULL else 6
STATE = {"nodes": 2, "memory_mb": 256, "memcgs": 60, "kept": 20, "tmpfs": 12, "ext4": 1, "users": 4, "files": 4}
SUMS = {
    "node_array_bytes": lambda lru: lru["node_array_bytes"],
    "pointer_array_bytes": lambda lru: sum(lru["arrays_bytes"]),
    "list_lru_one_objects": lambda lru: lru["objects"],
    "list_lru_one_bytes": lambda lru: sum(cache["objects"] * cache["size"] for cache in lru["object_caches"].values()),
}
"""Columns of the table list_lrus, as sums of the reference's figures."""


@pytest.mark.parametrize("series", ["5.10", "6.1"])
def test_a_core_of_any_moment_counts_what_is_allocated(series: str, tmp_path: Path) -> None:
    guest_kernel = kernels.debian_kernel(series, dwarf=True)
    moments: Counter[str] = Counter()
    pauses = random.Random(SEED)

    def take_cores(work: Path) -> None:
        core = tmp_path / "moment"
        for _ in range(CORES):
            time.sleep(pauses.uniform(0.05, 1))  # any moment is right
            with boot.Monitor(work / "qmp") as monitor:
                monitor.call("stop")
                monitor.call("dump-guest-memory", paging=False, protocol=f"file:{core}")
                monitor.call("cont")
            prog = Program()
            prog.set_core_dump(core)
            prog.load_debug_info([guest_kernel.vmlinux])
            moments.update(check(snapshot.take(kernel.open_kernel(str(core))), prog))
            core.unlink()

    boot.take_core(Shape("moments", series, **STATE), guest_kernel, tmp_path, churn=True, idle_action=take_cores)
    print(series, dict(moments))
    assert moments["cores"] == CORES


def check(audit: snapshot.Snapshot, prog: Program) -> Counter[str]:
    """Compare an audit with a core; return what the core has of changes that were under way."""
    (target,), rows = table(audit.target), {row["address"]: row for row in table(audit.list_lrus)}
    moments = Counter(cores=1)
    own_list = prog["memcg_list_lrus" if "memcg_list_lrus" in prog else "list_lrus"].address_of_()
    registered_lrus = list(list_for_each_entry("struct list_lru", own_list, "list"))
    superblocks = list_for_each_entry("struct super_block", prog["super_blocks"].address_of_(), "s_list")
    superblock_lrus = {sb.member_(name).address_ for sb in superblocks for name in ("s_dentry_lru", "s_inode_lru")}
    assert rows.keys() == superblock_lrus | {lru.value_() for lru in registered_lrus}
    walks = [reference.list_lru(lru, {}) for lru in registered_lrus]
    moments["growing"] += target["growing_to_cache_ids"] is not None
    objects: list[int] = []
    for lru, walk in zip(registered_lrus, walks, strict=True):
        row = rows.pop(lru.value_())
        assert {name: row[name] for name in SUMS} == {name: total(walk) for name, total in SUMS.items()}
        objects += list_objects(lru)
        moments["made"] += row["owner"] == "slab"  # not yet on super_blocks
    for row in rows.values():
        assert {row[name] for name in SUMS} == {0}
        moments["freed"] += bool(Object(prog, "struct list_lru *", row["address"]).node)
    cache = find_slab_cache(prog, target["slab_cache"])
    assert set(objects) <= {slot.value_() for slot in slab_cache_for_each_allocated_object(cache, "char")}
    assert len(objects) == target["list_lru_one_in_cache"]
    memcgs = {row["css_id"]: row for row in table(audit.memcgs)}
    for memcg in reference.memcgs(prog):
        row = memcgs.pop(memcg["css_id"])
        assert row["cache_id"] in (None, memcg["cache_id"])
        if memcg["online"] and row["state"] == "dying":
            moments["offlined"] += 1
    assert not memcgs
    assert moments["offlined"] <= 1, "cgroup_mutex"
    ids = Counter(row["cache_id"] for row in table(audit.memcgs) if row["cache_id"] is not None)
    assert max(ids.values()) == 1, "no two memcgs have the same lists"
    assert target["lazy_basis"] == ("charged" if "memcg_nr_cache_ids" in prog else None)
    return moments


def table(part: snapshot.Table) -> list[dict[str, Any]]:
    return [dict(zip(part.columns, row, strict=True)) for row in part.rows]


def list_objects(lru: Object) -> list[int]:
    """The addresses of all objects that a list_lru points to."""
    prog = lru.prog_
    if reference.has_member(lru, "xa"):
        return [entry.value_() for _, entry in xa_for_each(lru.xa.address_of_())]
    cache_ids = prog["memcg_nr_cache_ids"].value_()
    arrays = [lru.node[nid].memcg_lrus for nid in for_each_node_state(prog, prog["N_POSSIBLE"])]
    return [array.lru[cache_id].value_() for array in arrays for cache_id in range(cache_ids)]
