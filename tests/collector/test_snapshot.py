"""Every number of an audit against what the guest said of itself and what a slow reference walk with DWARF counted."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from tests.collector.conftest import CORES

# "radix_tree_node ... 584" in each guest's /proc/slabinfo: 576 of struct xa_node and SLUB's free pointer behind it.
XA_NODE_SLAB_BYTES = 584


def by_address(rows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {row["address"]: row for row in rows}


def test_superblocks_are_those_of_the_reference(core) -> None:
    found = by_address(core.rows("superblocks"))
    wanted = by_address(core.reference["superblocks"])
    assert found.keys() == wanted.keys()
    for address, sb in wanted.items():
        assert {column: found[address][column] for column in ("s_id", "s_dev", "s_flags")} == {
            column: sb[column] for column in ("s_id", "s_dev", "s_flags")
        }
        assert found[address]["fstype"].split(".")[0] == sb["fstype"]


def test_mounted_superblocks_are_those_of_proc_mounts(core) -> None:
    """Every filesystem of the guest's mountinfo in any namespace is a superblock with that device and mountpoint."""
    mounted = {}
    for line in core.truth("mountinfo").splitlines():
        fields = line.split()
        major, minor = map(int, fields[2].split(":"))
        if fields[3] == "/":
            mounted.setdefault(major << 20 | minor, set()).add(fields[4])
    found = {sb["s_dev"]: sb for sb in core.rows("superblocks")}
    assert mounted.keys() <= found.keys()
    for s_dev, mountpoints in mounted.items():
        assert not found[s_dev]["kernel_internal"]
        assert found[s_dev]["mounts"] >= len(mountpoints)
        assert found[s_dev]["mountpoint"] in mountpoints


def test_what_nobody_mounted_is_internal(core) -> None:
    internal = {sb["fstype"] for sb in core.rows("superblocks") if sb["kernel_internal"]}
    assert {"sockfs", "pipefs", "anon_inodefs", "bdev"} <= internal | {"bdev"}
    assert "ext4" not in internal


def test_memcgs_are_those_of_the_reference(core) -> None:
    found = {memcg["path"]: memcg for memcg in core.rows("memcgs")}
    wanted = {memcg["path"]: memcg for memcg in core.reference["memcgs"]}
    assert found.keys() == wanted.keys()
    for path, memcg in wanted.items():
        assert found[path]["css_id"] == memcg["css_id"]
        assert found[path]["memcg_id"] == memcg["memcg_id"]
        assert found[path]["state"] == ("online" if memcg["online"] else "dying")
        has_lists = memcg["online"] and memcg["cache_id"] >= 0
        assert found[path]["cache_id"] == (memcg["cache_id"] if has_lists else None)


def test_items_belong_to_the_memcgs_of_the_reference(core) -> None:
    """The lists' items by index, summed over all list_lrus: kmemcg_id up to v5.17, memcg->id.id later the same."""
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
    by_path = {memcg["path"]: memcg for memcg in core.rows("memcgs")}
    for path, memcg in by_path.items():
        above = path.rpartition("/")[0] or "/"
        assert memcg["parent"] == (None if path == "/" else by_path[above]["css_id"])


def test_the_low_bound_by_hand(eager_core) -> None:
    """Memcgs with items and their ancestors: an object each, and xarray nodes over their ids."""
    core = eager_core
    online = {memcg["cache_id"]: memcg for memcg in core.reference["memcgs"] if memcg["online"]}
    ids = {memcg["path"]: memcg["memcg_id"] for memcg in core.reference["memcgs"]}
    size = core.kmalloc(16 + 24 * core.target["nr_node_ids"])
    found = by_address(core.rows("list_lrus"))
    nested = 0
    for lru in core.reference["list_lrus"]:
        paths = set()
        for index in lru["memcg_items"]:
            parts = online[int(index)]["path"].split("/")
            paths |= {"/".join(parts[:n]) for n in range(2, len(parts) + 1)}
        nested += len(paths) > len(lru["memcg_items"])
        entries = {ids[path] for path in paths}
        xa_nodes = len({i >> 6 for i in entries}) if entries else 0
        xa_nodes += len({i >> 12 for i in entries}) if max(entries, default=0) >= 64 else 0
        wanted = lru["node_array_bytes"] + len(entries) * size + xa_nodes * XA_NODE_SLAB_BYTES
        assert found[lru["address"]]["lazy_low_bytes"] == wanted
    assert nested or core.name != "deb510-n1", "the shape has nested memcgs"


def test_memcgs_are_those_of_cgroup_stat(core) -> None:
    stat = dict(line.split() for line in core.truth("cgroup.stat").splitlines())
    assert core.target["online_memcgs"] == int(stat["nr_descendants"])
    assert core.target["dying_memcgs"] == int(stat["nr_dying_descendants"])


def test_list_lrus_hold_what_the_reference_counts(core) -> None:
    found = by_address(core.rows("list_lrus"))
    wanted = by_address(core.reference["list_lrus"])
    assert found.keys() == wanted.keys()
    for address, lru in wanted.items():
        row = found[address]
        assert (row["superblock"], row["memcg_aware"]) == (lru["superblock"], lru["memcg_aware"])
        assert row["node_array_bytes"] == lru["node_array_bytes"]
        assert row["pointer_array_bytes"] == sum(lru["arrays_bytes"])
        assert row["list_lru_one_objects"] == lru["objects"]
        assert row["list_lru_one_bytes"] == sum(c["objects"] * c["size"] for c in lru["object_caches"].values())
        assert row["xa_node_bytes"] == lru["xa_nodes"] * XA_NODE_SLAB_BYTES
        assert row["root_items"] == lru["root_items"]
        assert row["memcg_items"] == sum(lru["memcg_items"].values())
        assert row["memcgs_with_items"] == len(lru["memcg_items"])
        # The kernel's own sum in list_lru_node.nr_items, which the reference keeps apart from what it counted.
        assert row["items"] == lru["items"] == lru["nr_items"]
        assert row["nodes"] == (len(lru["arrays_bytes"]) if core.eager else core.target["nr_node_ids"])
        assert row["cache_ids"] == core.reference["memcg_nr_cache_ids"]
        if not core.eager:
            size = next((c["size"] for c in lru["object_caches"].values()), 0)
            assert row["lazy_empty_bytes"] == (lru["objects"] - len(lru["memcg_items"])) * size


def test_usage_of_the_slab_cache_is_the_references(core) -> None:
    """Active objects and slabs as drgn counts them in the full core with DWARF."""
    used = core.reference["slab_usage"][core.target["slab_cache"]]
    if used is None:
        pytest.skip("drgn follows the NULL kmem_cache_node of an offline node; test_crash_agrees compares")
    assert core.target["slab_cache_active_objects"] == used["active_objects"]
    pages = re.search(rf"^{core.target['slab_cache']} .* (\d+) : tunables", core.truth("slabinfo"), re.MULTILINE)
    assert core.target["slab_cache_bytes"] == used["slabs"] * int(pages[1]) * 4096


def test_crash_agrees(core) -> None:
    """crash read the same full core: memcg_nr_cache_ids, superblocks, objects of the slab cache."""
    if not core.has_truth("crash.json"):
        pytest.skip("crash 8.0.2 cannot open this kernel")
    crash = core.crash
    assert core.target["memcg_nr_cache_ids"] == crash.get("memcg_nr_cache_ids")
    assert core.target["superblocks"] == crash["super_blocks"]
    # crash takes objects on per-CPU partial slabs for free.
    allocated = crash["caches"][core.target["slab_cache"]]["allocated"]
    assert core.target["slab_cache_active_objects"] == pytest.approx(allocated, rel=0.05)


def test_list_lru_one_explains_its_slab_cache_in_slabinfo(eager_core) -> None:
    """The guest's own count of active objects: nearly all are list_lru_one, and never more."""
    core = eager_core
    objects = sum(lru["list_lru_one_objects"] for lru in core.rows("list_lrus"))
    active = core.slab_active(core.target["slab_cache"])
    assert objects == core.target["list_lru_one_in_cache"]
    assert active * 0.8 < objects < active


def test_a_list_lru_one_takes_what_the_smallest_fitting_kmalloc_does(eager_core) -> None:
    """24 bytes are 32 on x86_64, and 128 on arm64, whose ARCH_DMA_MINALIGN kmalloc keeps to before v6.5."""
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
    assert core.target["booted_at"] == core.target["captured_at"] - core.target["uptime_s"] * 10**6


def nodes(text: str) -> list[int]:
    """A list of nodes as sysfs prints it, such as 0-3."""
    found: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def test_lazy_bounds_hold_by_hand(eager_core) -> None:
    """The high bound of an aware list: the node array, an object for each memcg, 584-byte nodes over their ids."""
    core = eager_core
    online = [memcg for memcg in core.rows("memcgs") if memcg["state"] == "online" and memcg["path"] != "/"]
    ids = [memcg["memcg_id"] for memcg in online]
    size = core.kmalloc(16 + 24 * core.target["nr_node_ids"])
    # One to three levels of nodes with 64 slots, as the highest id needs.
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
        held = lru["list_lru_one_bytes"] + lru["node_array_bytes"] + lru["xa_node_bytes"]
        assert lru["lazy_low_bytes"] == lru["lazy_bytes"] == lru["lazy_high_bytes"] == held
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
    of_superblocks = [lru for lru in rows if lru["owner"] == "superblock"]
    assert (core.target["memcg_nr_cache_ids"], core.target["superblocks"]) == (24574, 952)
    assert {lru["list_lru_one_bytes"] for lru in of_superblocks} == {3_145_472}
    assert sum(lru["list_lru_one_bytes"] for lru in of_superblocks) == 5_988_978_688
    # shadow_nodes has its own; 196,608 bytes of pointers are a compound page of 256 KiB on each of 4 nodes
    assert sum(lru["list_lru_one_objects"] for lru in rows) == 1905 * 4 * 24574
    assert sum(lru["pointer_array_bytes"] for lru in rows) == 1905 * 4 * 262_144
    explained = 1905 * 4 * 24574 / core.slab_active("kmalloc-32")
    assert 0.9999 < explained < 1
    # Arrays over 8 KiB are in no slab cache, but in SUnreclaim; the difference is everybody else's slab.
    unreclaimable = 1024 * int(core.truth("meminfo").split("SUnreclaim:")[1].split()[0])
    held = sum(lru["list_lru_one_bytes"] + lru["pointer_array_bytes"] for lru in rows)
    assert 0.98 < held / unreclaimable < 1
