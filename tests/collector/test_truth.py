"""Every core compared directly with its guest's own files, without a reference walk: slabs, ids, mounts."""

from __future__ import annotations

import re

import pytest

from pipeline.collector import snapshot
from pipeline.collector.access.kernel import open_kernel
from tests.collector.conftest import CORES
from tests.collector.made import overlay

XA_NODE = "radix_tree_node"
TOTALS = {
    "slab_unreclaimable_bytes": "SUnreclaim",
    "slab_reclaimable_bytes": "SReclaimable",
    "percpu_bytes": "Percpu",
}
"""Name in /proc/meminfo by column of targets."""


def test_lazy_objects_and_xarray_nodes_are_in_their_slab_caches(lazy_core) -> None:
    """There are at most as many as the guest's own count of active objects."""
    rows = lazy_core.rows("list_lrus")
    objects = sum(lru["list_lru_one_objects"] for lru in rows)
    assert objects == lazy_core.target["list_lru_one_in_cache"]
    assert 0 < objects <= lazy_core.slab_active(lazy_core.target["slab_cache"])
    xa_node_bytes = sum(lru["xa_node_bytes"] for lru in rows)
    assert 0 < xa_node_bytes <= lazy_core.slab_active(XA_NODE) * object_bytes(lazy_core, XA_NODE)


def test_what_list_lrus_hold_is_in_the_guests_slab_memory(core) -> None:
    columns = ("list_lru_one_bytes", "pointer_array_bytes", "node_array_bytes", "xa_node_bytes")
    list_lru_bytes = sum(lru[column] for lru in core.rows("list_lrus") for column in columns)
    assert list_lru_bytes < meminfo_bytes(core, "SUnreclaim") + meminfo_bytes(core, "SReclaimable")


@pytest.mark.parametrize(("column", "name"), TOTALS.items())
def test_a_total_is_the_guests_own(core, column: str, name: str) -> None:
    """To the kB: the guest runs no process after it has read them."""
    assert core.target[column] == meminfo_bytes(core, name)


def test_eager_objects_are_nearly_all_of_their_slab_cache(eager_core) -> None:
    """Also while the ids grow. In these guests other users have at most 11,000 objects of the cache."""
    active = eager_core.slab_active(eager_core.target["slab_cache"])
    assert 0 <= active - eager_core.target["list_lru_one_in_cache"] < 11_000


def test_a_core_taken_while_the_ids_grew_says_how_far() -> None:
    core = next(core for core in CORES if core.name == "deb510-growing")
    grown = sum(lru["objects"] == 2 * 1534 for lru in core.reference["list_lrus"])
    assert core.target["growing_to_cache_ids"] == 1534
    note = f"the ids were growing from 766 to 1534: {grown} of {len(core.reference['list_lrus'])} list_lrus have grown"
    assert core.target["notes"] == note
    assert core.target["consistency"] == "exact"


@pytest.mark.parametrize(
    ("ids", "note"),
    [(1000, "the others have another user, or are missing here"), (1534, None), (1600, "one of the two is wrong")],
)
def test_a_count_that_the_slab_cache_contradicts_is_noted(ids: int, note: str | None) -> None:
    """101 list_lrus on 4 nodes, with another memcg_nr_cache_ids than the 1534 for which there are objects."""
    core = next(core for core in CORES if core.name == "deb510-n4")
    opened_kernel = open_kernel(str(core.path))
    prog = opened_kernel.prog
    overlay(prog, prog["memcg_nr_cache_ids"].address_, ids.to_bytes(4, "little"))
    target = snapshot.take(opened_kernel).target
    columns = dict(zip(target.columns, target.rows[0], strict=True))
    active = columns["slab_cache_active_objects"]
    counted = f"kmalloc-32 has {active} active objects, {101 * 4 * ids} counted list_lru_ones: {note}"
    assert columns["notes"] == (note and counted)


def test_cache_ids_are_those_of_the_shape(eager_core) -> None:
    """memcg_nr_cache_ids doubles until it covers all memcgs that existed at the same time; the series starts at 4."""
    shape = core_shape(eager_core)
    nested_per_memcg = 0
    for children in reversed(shape["nested"].split()):
        nested_per_memcg = int(children) * (1 + nested_per_memcg)
    max_memcgs = int(shape["memcgs"]) + int(shape["kept"]) * nested_per_memcg
    ids = 4
    while ids < max_memcgs:
        ids = 2 * (ids + 1)
    assert eager_core.target["memcg_nr_cache_ids"] == ids


def test_every_cgroup_directory_is_a_memcg(core) -> None:
    """The cgroup tree is the output of `find` in the guest; a dying memcg has no directory."""
    directories = {
        line.split(" ", 1)[1].removeprefix("/sys/fs/cgroup") or "/" for line in core.truth("cgroup_dirs").splitlines()
    }
    online = {memcg["path"] for memcg in core.rows("memcgs") if memcg["state"] == "online"}
    assert online == directories


def test_superblocks_that_can_be_seen_are_the_mounts_of_all_namespaces(core) -> None:
    """Private superblocks too, such as the proc of a pid namespace. Type and device are those in mountinfo."""
    sb_by_device = {sb["s_dev"]: sb for sb in core.rows("superblocks")}
    mounted_devices = set()
    for truth in (core.directory / "truth").glob("mountinfo*"):
        for line in truth.read_text().splitlines():
            fields = line.split()
            major, minor = map(int, fields[2].split(":"))
            sb = sb_by_device[major << 20 | minor]
            assert sb["fstype"] == fields[fields.index("-") + 1]
            assert not sb["kernel_internal"]
            mounted_devices.add(sb["s_dev"])
    # On 7.2 a nullfs lies below the root filesystem; it is in no task's mountinfo.
    visible = {s_dev for s_dev, sb in sb_by_device.items() if not sb["kernel_internal"] and sb["fstype"] != "nullfs"}
    assert visible == mounted_devices


def test_shape_of_mounts_is_that_of_the_superblocks(core) -> None:
    shape = core_shape(core)
    fstypes = [sb["fstype"] for sb in core.rows("superblocks")]
    assert fstypes.count("ext4") == int(shape["ext4"])
    assert fstypes.count("overlay") == int(shape["overlay"])


def core_shape(core) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)='(.*)'$", core.truth("shape"), re.MULTILINE))


def object_bytes(core, cache: str) -> int:
    return int(re.search(rf"^{re.escape(cache)} +\d+ +\d+ +(\d+)", core.truth("slabinfo"), re.MULTILINE)[1])


def meminfo_bytes(core, name: str) -> int:
    return int(re.search(rf"^{name}: +(\d+) kB", core.truth("meminfo"), re.MULTILINE)[1]) << 10
