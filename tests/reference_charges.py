"""Which memcgs a core's list_lrus have entries for, and which memcgs own live objects of their superblocks.

On a lazy kernel (v5.18 and later) the first is what the second predicts on an eager one. Read like tests/reference.py,
the slow and plain way: with DWARF, one object at a time, nothing from pipeline/.

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
"""Low bits of the pointer to a slab's vector of owners: MEMCG_DATA_OBJCGS and its neighbours."""


def read(prog: Program) -> dict[str, Any]:
    """Rows of memcgs and list_lrus; a memcg is told by css.id, and sets of them are closed over their ancestors."""
    superblocks = list(list_for_each_entry("struct super_block", prog["super_blocks"].address_of_(), "s_list"))
    memcgs = list(rows_of_memcgs(prog))
    by_address = {memcg["address"]: memcg for memcg in memcgs}
    parents = {memcg["css_id"]: memcg["parent"] for memcg in memcgs}
    css_ids = {memcg["memcg_id"]: memcg["css_id"] for memcg in memcgs if memcg["online"]}
    owners = Owners(prog)
    charged = charges(prog, superblocks, owners)
    lists = []
    for lru, owner in list_lrus(prog, superblocks):
        entries = None
        if has_member(lru, "xa"):
            entries = sorted(css_ids[index] for index, _ in xa_for_each(lru.xa.address_of_()))
        key = (owner["superblock"], owner["name"])
        own = {by_address[memcg]["css_id"] for memcg in charged[key]}
        lists.append(
            {
                "address": lru.value_(),
                **owner,
                "memcg_aware": bool(lru.memcg_aware),
                "entries": entries,
                "xa_nodes": None if entries is None else len(list(xarray_nodes(lru.xa.xa_head))),
                "charged": sorted(closed(own, parents)),
                "objects": sum(charged[key].values()),
            }
        )
    objects = owners.everything()
    for memcg in memcgs:
        memcg["owns"] = objects[memcg["address"]]
    return {
        "release": text(prog["init_uts_ns"].name.release),
        "superblocks": [row_of_superblock(prog, sb) for sb in superblocks],
        "memcgs": memcgs,
        "list_lrus": lists,
    }


def closed(css_ids: Iterable[int], parents: dict[int, int | None]) -> set[int]:
    """With their ancestors and without the root: memcg_list_lru_alloc() makes entries for all of them."""
    found: set[int] = set()
    for css_id in css_ids:
        at: int | None = css_id
        while at is not None and parents[at] is not None:
            found.add(at)
            at = parents[at]
    return found


def rows_of_memcgs(prog: Program) -> Iterator[dict[str, Any]]:
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


def row_of_superblock(prog: Program, sb: Object) -> dict[str, Any]:
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
    """The memcg that a slab object is charged to (mm/slab.h, memcg_slab_post_alloc_hook())."""

    def __init__(self, prog: Program) -> None:
        self.prog = prog
        self.slabs: dict[int, Any] = {}
        self.memcgs: dict[int, int | None] = {}

    def memcg(self, cache: Object, address: int) -> int | None:
        """Address of the owning mem_cgroup, None for an object that is charged to none or to the root."""
        page = address & -self.prog["PAGE_SIZE"].value_()
        if page not in self.slabs:
            self.slabs[page] = self._vector(address)
        start, vector, stride = self.slabs[page]
        if not vector:
            return None
        at = vector + (address - start) // cache.size.value_() * stride
        return self._memcg(self.prog.read_word(at))

    def everything(self) -> Counter[int]:
        """How many slab objects of any kind each memcg owns, by its address; the kernel clears a freed one's owner."""
        found: Counter[int] = Counter()
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
                    found[memcg] += 1
        return found

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
        if has_member(slab, "obj_exts"):  # v6.10 (21c690a349ba)
            stride = self.prog.type("struct slabobj_ext").size
            if has_member(slab, "stride"):  # v7.0
                stride = slab.stride.value_()
            return start, int(slab.obj_exts) & ~OBJCG_FLAGS, stride
        if has_member(slab, "memcg_data"):  # v5.11 (bcfe06bf2622)
            return start, int(slab.memcg_data) & ~OBJCG_FLAGS, 8
        return start, slab.obj_cgroups.value_() & ~OBJCG_FLAGS, 8  # v5.9 (286e04b8ed7a)


def is_slab_head(page: Object) -> bool:
    """A slab's first page: on v5.10 PG_slab is only in it."""
    return bool(PageSlab(page)) and compound_head(page) == page


def slab_of(page: Object) -> Object:
    """struct slab since v5.17 (d122019bf061), before that a part of struct page."""
    try:
        return cast("struct slab *", page)
    except LookupError:
        return page


def charges(prog: Program, superblocks: list[Object], owners: Owners) -> dict[tuple[int | None, str], Counter[int]]:
    """How many dentries and inodes of each superblock, and page cache nodes, each memcg owns by its address."""
    found: dict[tuple[int | None, str], Counter[int]] = defaultdict(Counter)
    known = {sb.value_() for sb in superblocks}
    inodes = [
        inode.value_()
        for sb in superblocks
        for inode in list_for_each_entry("struct inode", sb.s_inodes.address_of_(), "i_sb_list")
    ]
    cache = find_slab_cache(prog, "dentry")
    for dentry in slab_cache_for_each_allocated_object(cache, "struct dentry"):
        sb = dentry.d_sb.value_()
        if sb not in known:
            continue
        inode = dentry.d_inode
        if inode:
            inodes.append(inode.value_())
        memcg = owners.memcg(cache, dentry.value_())
        if memcg:
            found[sb, "dentry"][memcg] += 1
    for cache, offset in inode_caches(prog, inodes):
        for start in slab_cache_for_each_allocated_object(cache, "char"):
            inode = Object(prog, "struct inode", address=start.value_() + offset)
            sb = inode.i_sb.value_()
            memcg = owners.memcg(cache, start.value_()) if sb in known else None
            if memcg:
                found[sb, "inode"][memcg] += 1
    cache = prog["radix_tree_node_cachep"]
    for node in slab_cache_for_each_allocated_object(cache, "struct xa_node"):
        memcg = owners.memcg(cache, node.value_())
        if memcg:
            found[None, "shadow_nodes"][memcg] += 1
    return found


def inode_caches(prog: Program, inodes: list[int]) -> list[tuple[Object, int]]:
    """The slab caches that hold these inodes, each with the offset of the inode in its objects."""
    found: dict[int, tuple[Object, int]] = {}
    pages = set()
    for inode in inodes:
        if inode >> 12 in pages:
            continue
        pages.add(inode >> 12)
        info = slab_object_info(prog, inode)
        if info:
            offset = inode - info.address
            cache, before = found.setdefault(info.slab_cache.value_(), (info.slab_cache, offset))
            assert offset == before, f"{text(cache.name)} holds inodes at more than one offset"
    return list(found.values())


def main() -> None:
    core, vmlinux = sys.argv[1:]
    prog = Program()
    prog.set_core_dump(core)
    prog.load_debug_info([vmlinux])
    sys.stdout.write(dumps(read(prog)))


if __name__ == "__main__":
    main()
