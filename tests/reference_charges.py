"""The memcgs with entries in a core's list_lrus, and the memcgs that own live objects of the superblocks.

The second, read on an eager kernel, predicts the first on a lazy one (v5.18 and later). Like tests/reference.py this is
slow and simple: with DWARF, one object at a time, and nothing from pipeline/.

    python -m tests.reference_charges VMCORE VMLINUX > charges.json
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from drgn import FaultError, Object, Program, cast, container_of
from drgn.helpers.linux.cgroup import cgroup_path, css_for_each_descendant_pre
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.mm import PageSlab, compound_head, for_each_page, page_to_virt
from drgn.helpers.linux.slab import find_slab_cache, slab_cache_for_each_allocated_object, slab_object_info
from drgn.helpers.linux.xarray import xa_for_each

from tests.reference import CSS_ONLINE, dumps, has_member, list_lrus, text, xarray_nodes

OBJCG_FLAGS = 7
"""Flags in the low bits of the pointer to a slab's vector of owners: MEMCG_DATA_OBJCGS and its neighbours."""


def read(prog: Program) -> dict[str, Any]:
    """Read rows of memcgs and list_lrus. css.id identifies a memcg; a set includes all ancestors but the root."""
    superblocks = list(list_for_each_entry("struct super_block", prog["super_blocks"].address_of_(), "s_list"))
    memcgs = list(memcg_rows(prog))
    memcg_by_address = {memcg["address"]: memcg for memcg in memcgs}
    parents = {memcg["css_id"]: memcg["parent"] for memcg in memcgs}
    css_ids = {memcg["memcg_id"]: memcg["css_id"] for memcg in memcgs if memcg["online"]}
    owners = Owners(prog)
    object_charges = charges(prog, superblocks, owners)
    lists = []
    for lru, owner in list_lrus(prog, superblocks):
        entries = None
        if has_member(lru, "xa"):
            entries = sorted(css_ids[index] for index, _ in xa_for_each(lru.xa.address_of_()))
        key = (owner["superblock"], owner["name"])
        owner_ids = {memcg_by_address[memcg]["css_id"] for memcg in object_charges[key]}
        lists.append(
            {
                "address": lru.value_(),
                **owner,
                "memcg_aware": bool(lru.memcg_aware),
                "entries": entries,
                "xa_nodes": None if entries is None else len(list(xarray_nodes(lru.xa.xa_head))),
                "charged": sorted(with_ancestors(owner_ids, parents)),
                "objects": sum(object_charges[key].values()),
            }
        )
    objects = owners.count_all_objects()
    for memcg in memcgs:
        memcg["owns"] = objects[memcg["address"]]
    return {
        "release": text(prog["init_uts_ns"].name.release),
        "superblocks": [superblock_row(prog, sb) for sb in superblocks],
        "memcgs": memcgs,
        "list_lrus": lists,
    }


def with_ancestors(css_ids: Iterable[int], parents: dict[int, int | None]) -> set[int]:
    """Add the ancestors without the root, since memcg_list_lru_alloc() makes entries for all of them."""
    closure: set[int] = set()
    for css_id in css_ids:
        ancestor: int | None = css_id
        while ancestor is not None and parents[ancestor] is not None:
            closure.add(ancestor)
            ancestor = parents[ancestor]
    return closure


def memcg_rows(prog: Program) -> Iterator[dict[str, Any]]:
    for css in css_for_each_descendant_pre(prog["root_mem_cgroup"].css.address_of_()):
        memcg = container_of(css, "struct mem_cgroup", "css")
        yield {
            "address": memcg.value_(),
            "css_id": css.id.value_(),
            "memcg_id": memcg.id.id.value_(),
            "path": cgroup_path(css.cgroup).decode(errors="backslashreplace"),
            "parent": css.parent.id.value_() if css.parent else None,
            "online": bool(css.flags & CSS_ONLINE),
        }


def superblock_row(prog: Program, sb: Object) -> dict[str, Any]:
    fstype = text(sb.s_type.name)
    init_proc = False
    if fstype == "proc":
        info = Object(prog, "struct proc_fs_info *", sb.s_fs_info.value_())
        init_proc = info.pid_ns == prog["init_pid_ns"].address_of_()
    return {
        "address": sb.value_(),
        "fstype": fstype,
        "s_id": text(sb.s_id),
        "s_dev": sb.s_dev.value_(),
        "kernel_mount": bool(sb.s_flags & (1 << 22)),
        "init_proc": init_proc,
        "root": sb == prog["init_task"].fs.root.mnt.mnt_sb,
        "init_user_ns": sb.s_user_ns == prog["init_user_ns"].address_of_(),
    }


class Owners:
    """The memcgs that slab objects are charged to (mm/slab.h, memcg_slab_post_alloc_hook())."""

    def __init__(self, prog: Program) -> None:
        self.prog = prog
        self.slabs: dict[int, Any] = {}
        self.memcgs: dict[int, int | None] = {}

    def memcg(self, cache: Object, address: int) -> int | None:
        """Address of the mem_cgroup that owns an object; None if the object is charged to none or to the root."""
        page = address & -self.prog["PAGE_SIZE"].value_()
        if page not in self.slabs:
            self.slabs[page] = self._vector(address)
        start, vector, stride = self.slabs[page]
        if not vector:
            return None
        slot = vector + (address - start) // cache.size.value_() * stride
        return self._memcg(self.prog.read_word(slot))

    def count_all_objects(self) -> Counter[int]:
        """Count all slab objects by their memcg's address. The kernel clears the owner of a freed object."""
        objects: Counter[int] = Counter()
        for page in for_each_page(self.prog):
            try:
                if not is_slab_head(page):
                    continue
                start = page_to_virt(page).value_()
            except FaultError:
                continue
            _, vector, stride = self._of_slab(start, slab_of(page))
            for index in range(slab_of(page).objects.value_() if vector else 0):
                memcg = self._memcg(self.prog.read_word(vector + index * stride))
                if memcg:
                    objects[memcg] += 1
        return objects

    def _memcg(self, objcg: int) -> int | None:
        if objcg not in self.memcgs:
            memcg = Object(self.prog, "struct obj_cgroup *", objcg).memcg if objcg else None
            self.memcgs[objcg] = memcg.value_() if memcg and memcg.css.parent else None
        return self.memcgs[objcg]

    def _vector(self, address: int) -> tuple[int, int, int]:
        slab = slab_object_info(self.prog, address).slab
        page = Object(self.prog, "struct page *", slab.value_())
        return self._of_slab(page_to_virt(page).value_(), slab)

    def _of_slab(self, start: int, slab: Object) -> tuple[int, int, int]:
        if has_member(slab, "obj_exts"):
            # Since commit 21c690a349ba ("mm: introduce slabobj_ext to support slab object extensions") (in v6.10).
            stride = self.prog.type("struct slabobj_ext").size
            if has_member(slab, "stride"):  # since v7.0
                stride = slab.stride.value_()
            return start, int(slab.obj_exts) & ~OBJCG_FLAGS, stride
        if has_member(slab, "memcg_data"):
            # Since commit bcfe06bf2622 ("mm: memcontrol: Use helpers to read page's memcg data") (in v5.11).
            return start, int(slab.memcg_data) & ~OBJCG_FLAGS, 8
        # Since commit 286e04b8ed7a ("mm: memcg/slab: allocate obj_cgroups for non-root slab pages") (in v5.9).
        return start, slab.obj_cgroups.value_() & ~OBJCG_FLAGS, 8


def is_slab_head(page: Object) -> bool:
    """Whether a page is the first of a slab; on v5.10 only that page has PG_slab."""
    return bool(PageSlab(page)) and compound_head(page) == page


def slab_of(page: Object) -> Object:
    """The page as struct slab, or before v5.17 the page, whose struct has the same members."""
    try:
        return cast("struct slab *", page)
    except LookupError:
        # Before commit d122019bf061 ("mm: Split slab into its own type") (in v5.17).
        return page


def charges(prog: Program, superblocks: list[Object], owners: Owners) -> dict[tuple[int | None, str], Counter[int]]:
    """Count each memcg's dentries and inodes by superblock, and its page cache nodes; memcgs by address."""
    counts: dict[tuple[int | None, str], Counter[int]] = defaultdict(Counter)
    sb_addresses = {sb.value_() for sb in superblocks}
    inodes = [
        inode.value_()
        for sb in superblocks
        for inode in list_for_each_entry("struct inode", sb.s_inodes.address_of_(), "i_sb_list")
    ]
    cache = find_slab_cache(prog, "dentry")
    for dentry in slab_cache_for_each_allocated_object(cache, "struct dentry"):
        sb = dentry.d_sb.value_()
        if sb not in sb_addresses:
            continue
        inode = dentry.d_inode
        if inode:
            inodes.append(inode.value_())
        memcg = owners.memcg(cache, dentry.value_())
        if memcg:
            counts[sb, "dentry"][memcg] += 1
    for cache, offset in inode_caches(prog, inodes):
        for start in slab_cache_for_each_allocated_object(cache, "char"):
            inode = Object(prog, "struct inode", address=start.value_() + offset)
            sb = inode.i_sb.value_()
            memcg = owners.memcg(cache, start.value_()) if sb in sb_addresses else None
            if memcg:
                counts[sb, "inode"][memcg] += 1
    cache = prog["radix_tree_node_cachep"]
    for node in slab_cache_for_each_allocated_object(cache, "struct xa_node"):
        memcg = owners.memcg(cache, node.value_())
        if memcg:
            counts[None, "shadow_nodes"][memcg] += 1
    return counts


def inode_caches(prog: Program, inodes: list[int]) -> list[tuple[Object, int]]:
    """The slab caches of the inodes, each with the offset of the inode in its objects."""
    cache_offsets: dict[int, tuple[Object, int]] = {}
    pages = set()
    for inode in inodes:
        if inode >> 12 in pages:
            continue
        pages.add(inode >> 12)
        info = slab_object_info(prog, inode)
        if info:
            offset = inode - info.address
            cache, first_offset = cache_offsets.setdefault(info.slab_cache.value_(), (info.slab_cache, offset))
            assert offset == first_offset, f"{text(cache.name)} has inodes at more than one offset"
    return list(cache_offsets.values())


def main() -> None:
    core, vmlinux = sys.argv[1:]
    prog = Program()
    prog.set_core_dump(core)
    prog.load_debug_info([vmlinux])
    sys.stdout.write(dumps(read(prog)))


if __name__ == "__main__":
    main()
