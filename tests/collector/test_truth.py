"""Every core against what its guest said of itself, where no reference walk stands between: slabs, ids, mounts."""

from __future__ import annotations

import re

XA_NODE = "radix_tree_node"


def test_lazy_objects_and_xarray_nodes_are_in_their_slab_caches(lazy_core) -> None:
    """Never more than the guest's own count of active objects."""
    rows = lazy_core.rows("list_lrus")
    objects = sum(lru["list_lru_one_objects"] for lru in rows)
    assert objects == lazy_core.target["list_lru_one_in_cache"]
    assert 0 < objects <= lazy_core.slab_active(lazy_core.target["slab_cache"])
    xa_node_bytes = sum(lru["xa_node_bytes"] for lru in rows)
    assert 0 < xa_node_bytes <= lazy_core.slab_active(XA_NODE) * object_bytes(lazy_core, XA_NODE)


def test_what_list_lrus_hold_is_in_the_guests_slab_memory(core) -> None:
    meminfo = core.truth("meminfo")
    kilobytes = [
        int(re.search(rf"^{name}: +(\d+) kB", meminfo, re.MULTILINE)[1]) for name in ("SUnreclaim", "SReclaimable")
    ]
    columns = ("list_lru_one_bytes", "pointer_array_bytes", "node_array_bytes", "xa_node_bytes")
    held = sum(lru[column] for lru in core.rows("list_lrus") for column in columns)
    assert held < sum(kilobytes) << 10


def test_cache_ids_are_those_of_the_shape(eager_core) -> None:
    """memcg_nr_cache_ids doubles until it holds every memcg that was there at once; the series starts at 4."""
    shape = core_shape(eager_core)
    at_once = int(shape["memcgs"])
    nested = 0
    for children in reversed(shape["nested"].split()):
        nested = int(children) * (1 + nested)
    at_once += int(shape["kept"]) * nested
    ids = 4
    while ids < at_once:
        ids = 2 * (ids + 1)
    assert eager_core.target["memcg_nr_cache_ids"] == ids


def test_every_cgroup_directory_is_a_memcg(core) -> None:
    """The cgroup tree as `find` saw it; a dying memcg has no directory."""
    directories = {
        line.split(" ", 1)[1].removeprefix("/sys/fs/cgroup") or "/" for line in core.truth("cgroup_dirs").splitlines()
    }
    online = {memcg["path"] for memcg in core.rows("memcgs") if memcg["state"] == "online"}
    assert online == directories


def test_superblocks_that_can_be_seen_are_the_mounts_of_all_namespaces(core) -> None:
    """Also the private ones, such as the proc of a pid namespace; type and device are those in mountinfo."""
    found = {sb["s_dev"]: sb for sb in core.rows("superblocks")}
    seen = set()
    for truth in (core.directory / "truth").glob("mountinfo*"):
        for line in truth.read_text().splitlines():
            fields = line.split()
            major, minor = map(int, fields[2].split(":"))
            sb = found[major << 20 | minor]
            assert sb["fstype"] == fields[fields.index("-") + 1]
            assert not sb["kernel_internal"]
            seen.add(sb["s_dev"])
    # In 7.2 a nullfs lies below the root filesystem; no task's mountinfo reaches down to it.
    visible = {s_dev for s_dev, sb in found.items() if not sb["kernel_internal"] and sb["fstype"] != "nullfs"}
    assert visible == seen


def test_shape_of_mounts_is_that_of_the_superblocks(core) -> None:
    shape = core_shape(core)
    fstypes = [sb["fstype"] for sb in core.rows("superblocks")]
    assert fstypes.count("ext4") == int(shape["ext4"])
    assert fstypes.count("overlay") == int(shape["overlay"])


def core_shape(core) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)='(.*)'$", core.truth("shape"), re.MULTILINE))


def object_bytes(core, cache: str) -> int:
    return int(re.search(rf"^{re.escape(cache)} +\d+ +\d+ +(\d+)", core.truth("slabinfo"), re.MULTILINE)[1])
