"""Every number of an audit, compared with the guest's own files and with the slow reference walk with DWARF."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from tests.collector.conftest import CORES, has_reference, with_cores

# "radix_tree_node ... 584" in each guest's /proc/slabinfo: 576 bytes of struct xa_node and SLUB's free pointer.
XA_NODE_SLAB_BYTES = 584


def by_address(rows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {row["address"]: row for row in rows}


@has_reference
def test_superblocks_are_those_of_the_reference(core) -> None:
    rows = by_address(core.rows("superblocks"))
    reference = by_address(core.reference["superblocks"])
    assert rows.keys() == reference.keys()
    for address, sb in reference.items():
        assert {column: rows[address][column] for column in ("s_id", "s_dev", "s_flags")} == {
            column: sb[column] for column in ("s_id", "s_dev", "s_flags")
        }
        assert rows[address]["fstype"].split(".")[0] == sb["fstype"]


def test_mounted_superblocks_are_those_of_proc_mounts(core) -> None:
    """Every filesystem in the guest's mountinfo is a superblock with that device and mountpoint."""
    mountpoints_by_device = {}
    for line in core.truth("mountinfo").splitlines():
        fields = line.split()
        major, minor = map(int, fields[2].split(":"))
        if fields[3] == "/":
            mountpoints_by_device.setdefault(major << 20 | minor, set()).add(fields[4])
    sb_by_device = {sb["s_dev"]: sb for sb in core.rows("superblocks")}
    assert mountpoints_by_device.keys() <= sb_by_device.keys()
    for s_dev, mountpoints in mountpoints_by_device.items():
        assert not sb_by_device[s_dev]["kernel_internal"]
        assert sb_by_device[s_dev]["mounts"] >= len(mountpoints)
        assert sb_by_device[s_dev]["mountpoint"] in mountpoints


def test_what_nobody_mounted_is_internal(core) -> None:
    internal = {sb["fstype"] for sb in core.rows("superblocks") if sb["kernel_internal"]}
    assert {"sockfs", "pipefs", "anon_inodefs", "bdev"} <= internal | {"bdev"}
    assert "ext4" not in internal


@has_reference
def test_memcgs_are_those_of_the_reference(core) -> None:
    rows = {memcg["path"]: memcg for memcg in core.rows("memcgs")}
    reference = {memcg["path"]: memcg for memcg in core.reference["memcgs"]}
    assert rows.keys() == reference.keys()
    for path, memcg in reference.items():
        assert rows[path]["css_id"] == memcg["css_id"]
        assert rows[path]["memcg_id"] == memcg["memcg_id"]
        assert rows[path]["state"] == ("online" if memcg["online"] else "dying")
        has_lists = memcg["online"] and memcg["cache_id"] >= 0
        assert rows[path]["cache_id"] == (memcg["cache_id"] if has_lists else None)


@has_reference
def test_items_belong_to_the_memcgs_of_the_reference(core) -> None:
    """Items by index, summed over all list_lrus. The index is kmemcg_id up to v5.17, and memcg->id.id later."""
    items: Counter[int] = Counter()
    lists: Counter[int] = Counter()
    for lru in core.reference["list_lrus"]:
        for index, count in lru["memcg_items"].items():
            items[int(index)] += count
            lists[int(index)] += 1
    for memcg in core.rows("memcgs"):
        assert memcg["items"] == items.pop(memcg["cache_id"], 0), memcg["path"]
        assert memcg["lists_with_items"] == lists.pop(memcg["cache_id"], 0), memcg["path"]
    assert not items


def test_parents_are_those_of_the_paths(core) -> None:
    memcg_by_path = {memcg["path"]: memcg for memcg in core.rows("memcgs")}
    for path, memcg in memcg_by_path.items():
        parent_path = path.rpartition("/")[0] or "/"
        assert memcg["parent"] == (None if path == "/" else memcg_by_path[parent_path]["css_id"])


@with_cores(lambda core: core.is_eager and core.has_truth("reference.json"), "eager_core")
def test_the_low_bound_by_hand(eager_core) -> None:
    """The memcgs with items and their ancestors have an object each, and xarray nodes for their ids."""
    core = eager_core
    memcg_by_cache_id = {memcg["cache_id"]: memcg for memcg in core.reference["memcgs"] if memcg["online"]}
    id_by_path = {memcg["path"]: memcg["memcg_id"] for memcg in core.reference["memcgs"]}
    size = core.kmalloc(16 + 24 * core.target["nr_node_ids"])
    rows = by_address(core.rows("list_lrus"))
    nested_lrus = 0
    for lru in core.reference["list_lrus"]:
        paths = set()
        for index in lru["memcg_items"]:
            parts = memcg_by_cache_id[int(index)]["path"].split("/")
            paths |= {"/".join(parts[:n]) for n in range(2, len(parts) + 1)}
        nested_lrus += len(paths) > len(lru["memcg_items"])
        entries = {id_by_path[path] for path in paths}
        xa_nodes = len({i >> 6 for i in entries}) if entries else 0
        xa_nodes += len({i >> 12 for i in entries}) if max(entries, default=0) >= 64 else 0
        expected_bytes = lru["node_array_bytes"] + len(entries) * size + xa_nodes * XA_NODE_SLAB_BYTES
        assert rows[lru["address"]]["lazy_low_bytes"] == expected_bytes
    assert nested_lrus or core.name != "deb510-n1", "the shape has nested memcgs"


def test_memcgs_are_those_of_cgroup_stat(core) -> None:
    stat = dict(line.split() for line in core.truth("cgroup.stat").splitlines())
    assert core.target["online_memcgs"] == int(stat["nr_descendants"])
    assert core.target["dying_memcgs"] == int(stat["nr_dying_descendants"])


@has_reference
def test_list_lrus_hold_what_the_reference_counts(core) -> None:
    rows = by_address(core.rows("list_lrus"))
    reference = by_address(core.reference["list_lrus"])
    assert rows.keys() == reference.keys()
    for address, lru in reference.items():
        row = rows[address]
        assert (row["superblock"], row["memcg_aware"]) == (lru["superblock"], lru["memcg_aware"])
        assert row["node_array_bytes"] == lru["node_array_bytes"]
        assert row["pointer_array_bytes"] == sum(lru["arrays_bytes"])
        assert row["list_lru_one_objects"] == lru["objects"]
        assert row["list_lru_one_bytes"] == sum(c["objects"] * c["size"] for c in lru["object_caches"].values())
        assert row["xa_node_bytes"] == lru["xa_nodes"] * XA_NODE_SLAB_BYTES
        assert row["root_items"] == lru["root_items"]
        assert row["memcg_items"] == sum(lru["memcg_items"].values())
        assert row["memcgs_with_items"] == len(lru["memcg_items"])
        # The reference has both: its own count as `items`, and the kernel's count as `nr_items`.
        assert row["items"] == lru["items"] == lru["nr_items"]
        assert row["nodes"] == (len(lru["arrays_bytes"]) if core.is_eager else core.target["nr_node_ids"])
        if core.is_eager:
            assert row["cache_ids"] * row["nodes"] == lru["objects"]
        else:
            size = next((c["size"] for c in lru["object_caches"].values()), 0)
            assert row["lazy_empty_bytes"] == (lru["objects"] - len(lru["memcg_items"])) * size


@with_cores(lambda core: core.has_truth("reference.json") and core.name != "deb510-offline")
def test_usage_of_the_slab_cache_is_the_references(core) -> None:
    """The reference has drgn's counts of active objects and slabs in the full core with DWARF.

    drgn follows the NULL kmem_cache_node of an offline node; there test_crash_agrees compares.
    """
    usage = core.reference["slab_usage"][core.target["slab_cache"]]
    assert core.target["slab_cache_active_objects"] == usage["active_objects"]
    pages = re.search(rf"^{core.target['slab_cache']} .* (\d+) : tunables", core.truth("slabinfo"), re.MULTILINE)
    assert core.target["slab_cache_bytes"] == usage["slabs"] * int(pages[1]) * core.target["page_bytes"]


@with_cores(lambda core: core.has_truth("crash.json"))
def test_crash_agrees(core) -> None:
    """crash has read the same full core: memcg_nr_cache_ids, superblocks, objects of the slab cache.

    crash 8.0.2 cannot open the other cores.
    """
    crash = core.crash
    assert core.target["memcg_nr_cache_ids"] == crash.get("memcg_nr_cache_ids")
    assert core.target["superblocks"] == crash["super_blocks"]
    # crash counts the objects on per-CPU partial slabs as free.
    allocated_objects = crash["caches"][core.target["slab_cache"]]["allocated"]
    assert core.target["slab_cache_active_objects"] == pytest.approx(allocated_objects, rel=0.05)


def test_list_lru_one_explains_its_slab_cache_in_slabinfo(eager_core) -> None:
    """Nearly all active objects in the guest's own count are list_lru_one, and there are not more list_lru_one.

    Others have up to 2,000: the kernel itself has some for each possible CPU, of which deb510-offline has 64.
    """
    core = eager_core
    objects = sum(lru["list_lru_one_objects"] for lru in core.rows("list_lrus"))
    active = core.slab_active(core.target["slab_cache"])
    assert objects == core.target["list_lru_one_in_cache"]
    assert 0 < active - objects < max(active * 0.2, 2_000)


def test_a_list_lru_one_takes_what_the_smallest_fitting_kmalloc_does(eager_core) -> None:
    """24 bytes take 32 on x86_64, and 128 on arm64, where kmalloc respects ARCH_DMA_MINALIGN before v6.5."""
    size = {"x86_64": 32, "aarch64": 128}[eager_core.truth("uname").split()[-2]]
    assert eager_core.kmalloc(24) == size
    assert eager_core.target["slab_cache"] == f"kmalloc-{size}"
    for lru in eager_core.rows("list_lrus"):
        assert lru["list_lru_one_size"] == size
        assert lru["list_lru_one_bytes"] == lru["list_lru_one_objects"] * size


def test_cache_ids_are_the_kernels_growth_series(eager_core) -> None:
    truth = eager_core.crash if eager_core.has_truth("crash.json") else eager_core.reference
    assert eager_core.target["memcg_nr_cache_ids"] == truth["memcg_nr_cache_ids"]
    assert eager_core.target["memcg_nr_cache_ids"] in [2 ** (n + 1) * 3 - 2 for n in range(1, 15)]
    assert eager_core.target["max_online_id"] < eager_core.target["memcg_nr_cache_ids"]


def test_nodes_memory_and_release_are_the_guests_own(core) -> None:
    assert core.target["possible_nodes"] == nodes(core.truth("nodes_possible"))
    assert core.target["online_nodes"] == nodes(core.truth("nodes_online"))
    mem_total_kb = int(core.truth("meminfo").split()[1])
    assert core.target["memory_bytes"] == pytest.approx(mem_total_kb * 1024, rel=0.03)
    assert core.target["kernel_release"] in core.truth("version")
    assert abs(core.target["captured_at"] / 1e6 - int(core.truth("date"))) < 300
    uptime_s = float(core.truth("uptime").split()[0])
    assert uptime_s - 2 <= core.target["uptime_s"] <= uptime_s + 60
    booted_s = core.target["captured_at"] / 1e6 - core.target["uptime_s"]
    assert core.target["booted_at"] / 1e6 == pytest.approx(booted_s, abs=1)


def nodes(text: str) -> list[int]:
    """Parse a list of nodes as sysfs prints it, for example 0-3."""
    nids: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        nids += range(int(first), int(last or first) + 1)
    return nids


def test_lazy_bounds_hold_by_hand(eager_core) -> None:
    """High bound of an aware list: the node array, an object for each memcg, and 584-byte nodes for their ids."""
    core = eager_core
    online = [memcg for memcg in core.rows("memcgs") if memcg["state"] == "online" and memcg["path"] != "/"]
    ids = [memcg["memcg_id"] for memcg in online]
    size = core.kmalloc(16 + 24 * core.target["nr_node_ids"])
    # The highest id needs one to three levels of nodes with 64 slots.
    xa_nodes = len({i >> 6 for i in ids})
    xa_nodes += len({i >> 12 for i in ids}) if max(ids) >= 64 else 0
    xa_nodes += len({i >> 18 for i in ids}) if max(ids) >= 4096 else 0
    for lru in core.rows("list_lrus"):
        assert lru["lazy_high_bytes"] == lru["node_array_bytes"] + len(ids) * size + xa_nodes * 584
        assert lru["lazy_low_bytes"] <= lru["lazy_bytes"] <= lru["lazy_high_bytes"]
        if not lru["memcg_items"]:
            assert lru["lazy_low_bytes"] == lru["node_array_bytes"]


def test_a_lazy_kernel_wastes_nothing(lazy_core) -> None:
    for lru in lazy_core.rows("list_lrus"):
        total_bytes = lru["list_lru_one_bytes"] + lru["node_array_bytes"] + lru["xa_node_bytes"]
        assert lru["lazy_low_bytes"] == lru["lazy_bytes"] == lru["lazy_high_bytes"] == total_bytes
        assert lru["pointer_array_bytes"] == 0
        assert lru["lazy_empty_bytes"] <= lru["list_lru_one_bytes"]


def test_memcg_rows_add_up_to_the_lists(core) -> None:
    assert sum(memcg["items"] for memcg in core.rows("memcgs")) == sum(
        lru["memcg_items"] for lru in core.rows("list_lrus")
    )
    assert core.target["consistency"] == "exact"


def test_every_list_lru_has_an_owner(core) -> None:
    owners = Counter(lru["owner"] for lru in core.rows("list_lrus"))
    assert owners["superblock"] == 2 * core.target["superblocks"]
    assert owners["unknown"] == 0
    assert "shadow_nodes" in {lru["name"] for lru in core.rows("list_lrus") if lru["owner"] == "symbol"}


def test_the_server_of_the_commit_message() -> None:
    """5abc1e37afa0: 4 nodes, memcg_nr_cache_ids 24574, 952 superblocks; kmalloc-32 "> 6GB"; about 5.6 GB in lists."""
    core = next(core for core in CORES if core.name == "bytedance")
    rows = core.rows("list_lrus")
    superblock_lrus = [lru for lru in rows if lru["owner"] == "superblock"]
    assert (core.target["memcg_nr_cache_ids"], core.target["superblocks"]) == (24574, 952)
    assert {lru["list_lru_one_bytes"] for lru in superblock_lrus} == {3_145_472}
    assert sum(lru["list_lru_one_bytes"] for lru in superblock_lrus) == 5_988_978_688
    # 1904 lists and shadow_nodes; 196,608 bytes of pointers take a compound page of 256 KiB on each of 4 nodes.
    assert sum(lru["list_lru_one_objects"] for lru in rows) == 1905 * 4 * 24574
    assert sum(lru["pointer_array_bytes"] for lru in rows) == 1905 * 4 * 262_144
    share_in_cache = 1905 * 4 * 24574 / core.slab_active("kmalloc-32")
    assert 0.9999 < share_in_cache < 1
    # Arrays over 8 KiB are in SUnreclaim, but in no slab cache. The rest of SUnreclaim is the other slab memory.
    unreclaimable = 1024 * int(core.truth("meminfo").split("SUnreclaim:")[1].split()[0])
    list_lru_bytes = sum(lru["list_lru_one_bytes"] + lru["pointer_array_bytes"] for lru in rows)
    assert 0.98 < list_lru_bytes / unreclaimable < 1
