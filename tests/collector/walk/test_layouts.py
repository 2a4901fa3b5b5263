"""Every layout of list_lru, most of them of kernels that no package boots: each built in memory as that kernel's
mm/list_lru.c builds it, with the bytes worked out here by hand from its allocations.

The machine: nr_node_ids is 4; node 1 is a hole, node 3 is possible but not online. With arrays there are 4 ids, of
which two are online memcgs'; with an xarray the two ids need three xa_nodes.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections import Counter
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from drgn import Program

from pipeline.collector import snapshot
from pipeline.collector.access import kallsyms
from pipeline.collector.access.kernel import open_kernel
from pipeline.collector.status import CollectError
from pipeline.collector.walk import layouts, list_lrus, superblocks
from pipeline.collector.walk.list_lrus import Found, ListLru
from tests.collector.conftest import CORES
from tests.collector.made import MODULE, MadeKernel

NODES = range(4)
POSSIBLE = (0, 2, 3)

# Members that came on their own: nr_items with v4.13, shrinker_id with v4.19, memcg_aware with v5.2, and each of them
# to some stable or vendor kernel before. In the declarations they are comments.
OPTIONAL = ("memcg_aware", "nr_items", "shrinker_id")

ONE = "struct list_lru_one { struct list_head list; long nr_items; };"
# fmt: off
LAYOUTS = {
    # v4.0, 60d3fd32a7a9
    "array": ONE + """
    struct list_lru_memcg { struct list_lru_one *lru[0]; };
    struct list_lru_node { unsigned int lock; struct list_lru_one lru; struct list_lru_memcg *memcg_lrus;
        /*nr_items: long nr_items;*/ } __aligned(64);
    struct list_lru { struct list_lru_node *node; struct list_head list;
        /*shrinker_id: int shrinker_id;*/ /*memcg_aware: bool memcg_aware;*/ };""",
    # v4.17, 0c7c1bed7e13
    "array_rcu": ONE + """
    struct callback_head { struct callback_head *next; void *func; };
    struct list_lru_memcg { struct callback_head rcu; struct list_lru_one *lru[0]; };
    struct list_lru_node { unsigned int lock; struct list_lru_one lru; struct list_lru_memcg *memcg_lrus;
        /*nr_items: long nr_items;*/ } __aligned(64);
    struct list_lru { struct list_lru_node *node; struct list_head list;
        /*shrinker_id: int shrinker_id;*/ /*memcg_aware: bool memcg_aware;*/ };""",
    # 6a6b7b77cc0f
    "mlrus": ONE + """
    struct callback_head { struct callback_head *next; void *func; };
    struct list_lru_per_memcg { struct list_lru_one node[0]; };
    struct list_lru_memcg { struct callback_head rcu; struct list_lru_per_memcg *mlru[]; };
    struct list_lru_node { unsigned int lock; struct list_lru_one lru; /*nr_items: long nr_items;*/ } __aligned(64);
    struct list_lru { struct list_lru_node *node; struct list_head list;
        /*shrinker_id: int shrinker_id;*/ /*memcg_aware: bool memcg_aware;*/ struct list_lru_memcg *mlrus; };""",
    # 5abc1e37afa0
    "mlrus_lazy": ONE + """
    struct callback_head { struct callback_head *next; void *func; };
    struct list_lru_per_memcg { struct callback_head rcu; struct list_lru_one node[]; };
    struct list_lru_memcg { struct callback_head rcu; struct list_lru_per_memcg *mlru[]; };
    struct list_lru_node { unsigned int lock; struct list_lru_one lru; /*nr_items: long nr_items;*/ } __aligned(64);
    struct list_lru { struct list_lru_node *node; struct list_head list;
        /*shrinker_id: int shrinker_id;*/ /*memcg_aware: bool memcg_aware;*/ unsigned int lock;
        struct list_lru_memcg *mlrus; };""",
    # v5.18, bbca91cca9a9, d70110704d2d
    "xarray": ONE + """
    struct callback_head { struct callback_head *next; void *func; };
    struct xarray { unsigned int xa_lock; unsigned int xa_flags; void *xa_head; };
    struct xa_node { unsigned char shift; unsigned char offset; unsigned char count; unsigned char nr_values;
        struct xa_node *parent; struct xarray *array; struct list_head private_list; void *slots[64];
        unsigned long tags[3]; };
    struct list_lru_memcg { struct callback_head rcu; struct list_lru_one node[]; };
    struct list_lru_node { unsigned int lock; struct list_lru_one lru; /*nr_items: long nr_items;*/ } __aligned(64);
    struct list_lru { struct list_lru_node *node; struct list_head list;
        /*shrinker_id: int shrinker_id;*/ /*memcg_aware: bool memcg_aware;*/ struct xarray xa; };""",
    # v6.13, fb56fdf8b9a2
    "xarray_lock": """
    typedef struct { long counter; } atomic_long_t;
    struct list_lru_one { struct list_head list; long nr_items; unsigned int lock; };
    struct callback_head { struct callback_head *next; void *func; };
    struct xarray { unsigned int xa_lock; unsigned int xa_flags; void *xa_head; };
    struct xa_node { unsigned char shift; unsigned char offset; unsigned char count; unsigned char nr_values;
        struct xa_node *parent; struct xarray *array; struct list_head private_list; void *slots[64];
        unsigned long tags[3]; };
    struct list_lru_memcg { struct callback_head rcu; struct list_lru_one node[]; };
    struct list_lru_node { struct list_lru_one lru; /*nr_items: atomic_long_t nr_items;*/ } __aligned(64);
    struct list_lru { struct list_lru_node *node; struct list_head list;
        /*shrinker_id: int shrinker_id;*/ /*memcg_aware: bool memcg_aware;*/ struct xarray xa; };""",
}


def ext(layout: str, holds: str) -> str:
    """UEK7's: UEK_KABI_REPLACE(struct list_lru_node *node, struct list_lru_ext *ext) and a deprecated memcg_lrus."""
    declarations = LAYOUTS[layout].replace("struct list_lru_one lru;", "struct list_lru_one lru; void *memcg_lrus;")
    return declarations[: declarations.index("struct list_lru {")] + f"""
    struct list_lru_ext {{ struct list_lru_node *node; {holds} }};
    struct list_lru {{ union {{ struct list_lru_ext *ext; struct {{ struct list_lru_node *node; }}; }};
        struct list_head list; /*shrinker_id: int shrinker_id;*/ /*memcg_aware: bool memcg_aware;*/ }};"""


LAYOUTS["ext_mlrus"] = ext("mlrus", "struct list_lru_memcg *mlrus;")
LAYOUTS["ext_mlrus_lazy"] = ext("mlrus_lazy", "unsigned int lock; struct list_lru_memcg *mlrus;")
LAYOUTS["ext_xarray"] = ext("xarray", "struct xarray xa;")
# fmt: on

# What the kernel asks kmalloc() for, 4 ids and 4 nodes, and the cache that it comes from: pointer array, object.
CACHES = {
    "array": ("kmalloc-32", "kmalloc-32"),  # 8 * 4; sizeof(struct list_lru_one) = 24
    "array_rcu": ("kmalloc-64", "kmalloc-32"),  # 16 + 8 * 4; 24
    "mlrus": ("kmalloc-64", "kmalloc-96"),  # 16 + 8 * 4; 24 * 4
    "mlrus_lazy": ("kmalloc-64", "kmalloc-128"),  # 16 + 8 * 4; 16 + 24 * 4
    "xarray": (None, "kmalloc-128"),  # 16 + 24 * 4
    "xarray_lock": (None, "kmalloc-192"),  # 16 + 32 * 4
    "ext_mlrus": ("kmalloc-64", "kmalloc-96"),
    "ext_mlrus_lazy": ("kmalloc-64", "kmalloc-128"),
    "ext_xarray": (None, "kmalloc-128"),
}
ROOT = None

Items = Mapping[tuple[int, int | None], int]
"""Of a list_lru: node and id, or ROOT, to the items on that list."""


class Machine:
    """A kernel of one layout, to which list_lrus are added."""

    def __init__(self, layout: str, members: tuple[str, ...] = OPTIONAL, ids: int = 4, page_bytes: int = 4096) -> None:
        self.layout, self.members, self.ids = layout, members, ids
        structs = re.sub(r"/\*(\w+): (.*?)\*/", lambda found: found[2] * (found[1] in members), LAYOUTS[layout])
        structs += """
        struct super_block { struct list_head s_list; struct list_lru s_dentry_lru; struct list_lru s_inode_lru; };"""
        self.kernel = kernel = MadeKernel(structs, page_bytes)
        for size in (16, 32, 64, 96, 128, 192, 256, 512):
            kernel.cache(f"kmalloc-{size}", size)
        kernel.variable("radix_tree_node_cachep", "struct kmem_cache *", kernel.cache("radix_tree_node", 584))
        kernel.variable("nr_node_ids", "unsigned int", 4)
        kernel.variable("node_states", "nodemask_t [6]", 0b1101)
        self.online = (3, 70)
        if "xarray" not in layout:
            kernel.variable("memcg_nr_cache_ids", "int", ids)
            self.online = (0, 2) if ids else ()
        # 3eef11279ba5, v5.16, renamed it.
        self.tail = kernel.variable(
            "list_lrus" if layout.startswith("array") else "memcg_list_lrus", "struct list_head"
        )
        self.head = self.tail
        self.sbs: list[Any] = []

    def pointer_array(self) -> int:
        """Where a pointer array comes from; a test with other than 4 ids replaces this."""
        cache, _ = CACHES[self.layout]
        assert cache
        return self.kernel.slab(cache)

    def superblock(self) -> tuple[int, int]:
        """A superblock, of which only the list_lrus count; their addresses."""
        at = self.kernel.slab("kmalloc-512")
        self.sbs.append(SimpleNamespace(address=at, root=1))
        size = self.kernel.prog.type("struct list_lru").size
        return at + 16, at + 16 + size

    def list_lru(self, at: int, items: Items | None = None, aware: bool = True, used: tuple[int, ...] = ()) -> int:
        """__list_lru_init(), and what is on the lists.

        :param used: the ids whose memcgs ever had an item, where the kernel is lazy.
        """
        kernel, items = self.kernel, items or {}
        node = kernel.slab("kmalloc-256")  # kcalloc(nr_node_ids, sizeof(*lru->node)): 4 * 64
        for nid in NODES:
            here = {memcg: count for (on, memcg), count in items.items() if on == nid}
            kernel.put(node + 64 * nid, "struct list_lru_node", lru__nr_items=here.get(ROOT, 0))
            if "nr_items" in self.members:
                path = "nr_items__counter" if self.layout == "xarray_lock" else "nr_items"
                kernel.put(node + 64 * nid, "struct list_lru_node", **{path: sum(here.values())})
        if "memcg_aware" in self.members:
            kernel.put(at, "struct list_lru", memcg_aware=aware)
        holder, struct_name = at, "struct list_lru"
        if self.layout.startswith("ext_"):
            holder, struct_name = kernel.slab("kmalloc-32"), "struct list_lru_ext"
            kernel.put(at, "struct list_lru", ext=holder)
        kernel.put(holder, struct_name, node=node)
        # list_lru_register(): a link is the member `list`, behind one pointer.
        kernel.words(self.tail, at + 8)
        self.tail = kernel.words(at + 8, self.head)
        if aware and self.layout.startswith("array"):
            self.arrays_of_nodes(node, items)
        elif aware and "mlrus" in self.layout:
            kernel.put(holder, struct_name, mlrus=self.array_of_memcgs(items, used))
        elif aware and used:
            xa = kernel.prog.type(struct_name).member("xa").bit_offset // 8
            kernel.put(holder, struct_name, xa__xa_head=self.xarray(holder + xa, items, used))
        return node

    def arrays_of_nodes(self, node: int, items: Items) -> None:
        """memcg_init_list_lru_node(): for_each_node() is over the possible ones."""
        for nid in POSSIBLE:
            array = self.pointer_array()
            self.kernel.put(node + 64 * nid, "struct list_lru_node", memcg_lrus=array)
            ones = [self.kernel.slab("kmalloc-32") for _ in range(self.ids)]
            if ones:
                self.kernel.words(array + (16 if self.layout == "array_rcu" else 0), *ones)
            for memcg, one in enumerate(ones):
                self.kernel.put(one, "struct list_lru_one", nr_items=items.get((nid, memcg), 0))

    def array_of_memcgs(self, items: Items, used: tuple[int, ...]) -> int:
        """memcg_init_list_lru(): the lazy kernel leaves the slots NULL until memcg_list_lru_alloc()."""
        array = self.pointer_array()
        ids = used if self.layout.endswith("lazy") else range(self.ids)
        for memcg in ids:
            self.kernel.words(array + 16 + 8 * memcg, self.per_memcg(memcg, items))
        return array

    def per_memcg(self, memcg: int, items: Items) -> int:
        """The object of a memcg: for every node a struct list_lru_one of 24 or 32 bytes, behind an rcu_head or not."""
        at = self.kernel.slab(CACHES[self.layout][1])
        first = 0 if self.layout.endswith("mlrus") else 16
        for nid in NODES:
            one = at + first + (32 if self.layout == "xarray_lock" else 24) * nid
            left_behind = 0 if nid in POSSIBLE else 1 << 40  # kmalloc() and for_each_node()
            self.kernel.put(one, "struct list_lru_one", nr_items=items.get((nid, memcg), left_behind))
        return at

    def xarray(self, xa: int, items: Items, used: tuple[int, ...]) -> int:
        """xas_create() for ids below 64, or below 4096; returns xa_head, a node's address with the low bits 10."""

        def node(shift: int, slots: Mapping[int, int]) -> int:
            at = self.kernel.slab("radix_tree_node")
            self.kernel.put(at, "struct xa_node", shift=shift, array=xa, count=len(slots))
            first = self.kernel.prog.type("struct xa_node").member("slots").bit_offset // 8
            for slot, entry in slots.items():
                self.kernel.words(at + first + 8 * slot, entry)
            return at + 2

        chunks: dict[int, dict[int, int]] = {}
        for memcg in used:
            chunks.setdefault(memcg >> 6, {})[memcg & 63] = self.per_memcg(memcg, items)
        leaves = {chunk: node(0, slots) for chunk, slots in chunks.items()}
        return leaves[0] if set(leaves) == {0} else node(6, leaves)

    def walk(self, verify: bool = False) -> tuple[Found, dict[int, ListLru]]:
        prog = self.kernel.prog
        for sb in self.sbs:
            size = prog.type("struct list_lru").size
            links = [prog.read_word(sb.address + 16 + 8 + size * i) for i in range(2)]
            sb.lru_links = dict(zip(superblocks.LRUS, links, strict=True))
        memcgs = [SimpleNamespace(cache_id=memcg) for memcg in (None, *self.online)]
        found = list_lrus.walk(prog, layouts.detect(prog), self.sbs, memcgs, verify=verify)
        return found, {lru.address: lru for lru in found.list_lrus}


def sizes(lru: ListLru) -> tuple[int, ...]:
    return (
        lru.nodes, lru.list_lru_one_objects, lru.list_lru_one_bytes, lru.pointer_array_bytes, lru.node_array_bytes,
        lru.xa_node_bytes,
    )  # fmt: skip


# Of a list_lru that two memcgs use, one that one uses, and one that none does: pointer arrays, or lists a memcg for the
# xarrays; objects; their bytes; bytes of pointer arrays, of the node array (with list_lru_ext), of xa_nodes.
SIZES = {
    "array": 3 * [(3, 12, 12 * 32, 3 * 32, 256, 0)],
    "array_rcu": 3 * [(3, 12, 12 * 32, 3 * 64, 256, 0)],
    "mlrus": 3 * [(1, 4, 4 * 96, 64, 256, 0)],
    "mlrus_lazy": [(1, 2, 2 * 128, 64, 256, 0), (1, 1, 128, 64, 256, 0), (1, 0, 0, 64, 256, 0)],
    "xarray": [(4, 2, 2 * 128, 0, 256, 3 * 584), (4, 1, 128, 0, 256, 584), (4, 0, 0, 0, 256, 0)],
    "xarray_lock": [(4, 2, 2 * 192, 0, 256, 3 * 584), (4, 1, 192, 0, 256, 584), (4, 0, 0, 0, 256, 0)],
    "ext_mlrus": 3 * [(1, 4, 4 * 96, 64, 288, 0)],
    "ext_mlrus_lazy": [(1, 2, 2 * 128, 64, 288, 0), (1, 1, 128, 64, 288, 0), (1, 0, 0, 64, 288, 0)],
    "ext_xarray": [(4, 2, 2 * 128, 0, 288, 3 * 584), (4, 1, 128, 0, 288, 584), (4, 0, 0, 0, 288, 0)],
}
COMBINATIONS = [tuple(some) for n in range(4) for some in itertools.combinations(OPTIONAL, n)]


@pytest.mark.parametrize("members", COMBINATIONS, ids="+".join)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_told_and_sized(layout: str, members: tuple[str, ...]) -> None:
    machine = Machine(layout, members)
    low, high = machine.online
    dentry, inode = machine.superblock()
    machine.list_lru(dentry, {(0, ROOT): 5, (2, ROOT): 1, (0, high): 7, (2, low): 2, (2, high): 4}, used=(low, high))
    machine.list_lru(inode, used=(low,))
    destroyed = machine.superblock()
    unaware, _ = machine.superblock()
    machine.list_lru(unaware, {(0, ROOT): 3, (2, ROOT): 1}, aware=False)
    unused = machine.kernel.variable("shadow_nodes", "struct list_lru")
    machine.list_lru(unused, {(0, ROOT): 9})

    found, lrus = machine.walk()

    assert found.layout == layout
    assert (layout in layouts.EAGER) is not (layout in layouts.LAZY)
    assert found.cache_ids == (None if "xarray" in layout else 4)
    assert found.object_cache.name.string_().decode() == CACHES[layout][1]
    assert not found.raced
    assert [sizes(lrus[at]) for at in (dentry, inode, unused)] == SIZES[layout]
    assert [lrus[at].memcg_aware for at in (dentry, inode, unused)] == [True] * 3
    assert (lrus[dentry].root_items, lrus[dentry].memcg_items) == (6, 13)
    assert lrus[dentry].items_by_id == {low: 2, high: 11}
    assert (lrus[inode].root_items, lrus[inode].items_by_id) == (0, {})
    assert (lrus[unused].root_items, lrus[unused].items_by_id) == (9, {})
    for at in destroyed:
        assert sizes(lrus[at]) == (0,) * 6
    # An xarray without entries and without memcg_aware, which no kernel has, could be of an aware list.
    told = "memcg_aware" in members or "xarray" not in layout
    assert lrus[unaware].memcg_aware is not told
    assert sizes(lrus[unaware])[1:] == (0, 0, 0, SIZES[layout][0][4], 0)
    assert (lrus[unaware].root_items, lrus[unaware].memcg_items) == (4, 0)


@pytest.mark.parametrize(
    ("layout", "pointer"),
    [(layout, "node") for layout in LAYOUTS] + [(layout, "mlrus") for layout in LAYOUTS if "mlrus" in layout],
)
def test_what_is_replaced_under_a_walk_gives_no_numbers(
    monkeypatch: pytest.MonkeyPatch, layout: str, pointer: str
) -> None:
    machine = Machine(layout)
    dentry, inode = machine.superblock()
    for at in (dentry, inode):
        machine.list_lru(at, used=machine.online)
    sbs = {sb.address: sb.root for sb in machine.sbs}
    monkeypatch.setattr(list_lrus, "is_running", lambda prog: True)
    monkeypatch.setattr(superblocks, "listed", lambda prog: sbs)
    found, lrus = machine.walk()
    assert (found.raced, found.gone) == ([], set())
    assert sizes(lrus[inode]) == SIZES[layout][0]

    def replaced(prog: Program) -> dict[int, int]:
        holder, struct_name = inode, "struct list_lru"
        if layout.startswith("ext_"):
            holder, struct_name = prog.read_word(inode), "struct list_lru_ext"
        machine.kernel.put(holder, struct_name, **{pointer: machine.kernel.slab("kmalloc-256")})
        return sbs

    monkeypatch.setattr(superblocks, "listed", replaced)
    with pytest.raises(CollectError, match="were replaced during the walk"):
        machine.walk()


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if "xarray" not in layout])
def test_a_list_of_memcgs_without_their_arrays_gives_no_numbers(layout: str) -> None:
    machine = Machine(layout)
    dentry, inode = machine.superblock()
    machine.list_lru(dentry, used=machine.online)
    machine.list_lru(inode, aware=False)
    machine.kernel.put(inode, "struct list_lru", memcg_aware=True)
    with pytest.raises(CollectError, match=f"list_lru 0x{inode:x} is memcg-aware and has no arrays"):
        machine.walk()


@pytest.mark.parametrize(
    ("layout", "cache", "array_bytes"),
    [
        ("array", None, 0),  # kmalloc(0) is ZERO_SIZE_PTR
        ("array_rcu", "kmalloc-16", 3 * 16),  # kvmalloc(16 + 8 * 0)
        ("mlrus", "kmalloc-16", 16),
        ("mlrus_lazy", "kmalloc-16", 16),
        ("ext_mlrus", "kmalloc-16", 16),
    ],
)
def test_without_ids_there_are_arrays_of_no_pointers(layout: str, cache: str | None, array_bytes: int) -> None:
    """As booted with cgroup_disable=memory or cgroup.memory=nokmem, or before the first memcg."""
    machine = Machine(layout, ids=0)
    machine.pointer_array = lambda: machine.kernel.slab(cache) if cache else 16  # type: ignore[method-assign]
    dentry, inode = machine.superblock()
    for at in (dentry, inode):
        machine.list_lru(at, {(0, ROOT): 3, (2, ROOT): 4})
    found, lrus = machine.walk()
    assert (found.cache_ids, found.object_bytes, found.raced) == (0, None, [])
    for at in (dentry, inode):
        assert lrus[at].memcg_aware
        assert (lrus[at].list_lru_one_objects, lrus[at].list_lru_one_bytes) == (0, 0)
        assert lrus[at].pointer_array_bytes == array_bytes
        assert (lrus[at].root_items, lrus[at].memcg_items) == (7, 0)


def test_every_array_can_be_looked_at_rather_than_a_sample() -> None:
    """An eager kernel has an object in every slot of every array, and arrays of one size."""
    machine = Machine("array_rcu")
    given = [machine.kernel.slab("kmalloc-64") for _ in range(6)]
    arrays = iter(given)
    machine.pointer_array = lambda: next(arrays)  # type: ignore[method-assign]
    for lru in machine.superblock():
        machine.list_lru(lru)
    machine.walk(verify=True)
    prog = machine.kernel.prog
    prog.add_memory_segment(given[-1] + 16 + 8, 8, lambda address, count, offset, physical: bytes(count))
    machine.walk()
    with pytest.raises(CollectError, match=f"array at {given[-1]:#x} has 64 bytes and 1 of 4 slots empty"):
        machine.walk(verify=True)


def test_arrays_that_vmalloc_had_to_give_cost_their_pages() -> None:
    """1534 ids: 16 + 8 * 1534 = 12,288 bytes, 4 contiguous pages or, where there were none, 3 of vmalloc's."""
    machine = Machine("array_rcu", ids=1534)
    kernel = machine.kernel
    dentry, inode = machine.superblock()
    given = iter([kernel.compound(4), kernel.vmalloc(3), kernel.vmalloc(3), *(kernel.compound(4) for _ in range(3))])
    machine.pointer_array = lambda: next(given)  # type: ignore[method-assign]
    machine.list_lru(dentry, {(2, 2): 9})
    machine.list_lru(inode)
    _, lrus = machine.walk()
    assert sizes(lrus[dentry]) == (3, 4602, 147_264, 16384 + 2 * 12288, 256, 0)
    assert sizes(lrus[inode]) == (3, 4602, 147_264, 3 * 16384, 256, 0)
    assert lrus[dentry].items_by_id == {2: 9}


def test_pages_of_64_kib_and_objects_of_128_bytes() -> None:
    """arm64 before v6.5 has no kmalloc cache below 128. 24574 ids: 16 + 8 * 24574 = 196,608 bytes are 3 pages, 4 where
    they are contiguous.
    """
    machine = Machine("array_rcu", ids=24574, page_bytes=65536)
    kernel = machine.kernel
    kernel.caches["kmalloc-32"] = kernel.caches["kmalloc-128"]
    given = iter([kernel.compound(4), kernel.vmalloc(3), kernel.compound(4)])
    machine.pointer_array = lambda: next(given)  # type: ignore[method-assign]
    dentry, _ = machine.superblock()
    machine.list_lru(dentry)
    _, lrus = machine.walk()
    assert sizes(lrus[dentry]) == (3, 73_722, 9_436_416, 2 * 262_144 + 196_608, 256, 0)


def test_a_kernel_whose_types_have_no_lists_for_memcgs_is_unsupported() -> None:
    """v3.19, or one without CONFIG_MEMCG_KMEM: struct list_lru_node without memcg_lrus. Its superblocks are told."""
    core = CORES[0]
    opened = open_kernel(str(core.path))
    now = opened.prog.type("struct list_lru_node")
    members = [member for member in now.members if member.name != "memcg_lrus"]
    older = opened.prog.struct_type("list_lru_node", now.size, members)
    opened.prog.register_type_finder(
        "older", lambda prog, kinds, name, file: older if name == "list_lru_node" else None, enable_index=0
    )
    taken = snapshot.take(opened)
    assert taken.unsupported is not None
    assert "older than v4.0, or built without CONFIG_MEMCG" in taken.unsupported
    assert (taken.list_lrus.rows, taken.memcgs.rows) == ([], [])
    assert len(taken.superblocks.rows) == len(core.rows("superblocks")) > 0
    assert taken.target.rows[0][taken.target.columns.index("layout")] == "none"


def test_who_owns_a_list_lru_that_is_no_superblocks() -> None:
    machine = Machine("array_rcu")
    kernel = machine.kernel
    kernel.cache("xfs_buftarg", 384)
    buftarg = kernel.slab("xfs_buftarg"), kernel.slab("xfs_buftarg")
    inside_slab = buftarg[1] + 64
    shadow_nodes = kernel.variable("shadow_nodes", "struct list_lru")
    in_module = kernel.zero(MODULE + 0x2000, 256)
    beside_a_symbol, in_no_table = in_module + 64, in_module + 128
    strtab = kernel.write(MODULE + 0x1000, b"\0nfs4_xattr_cache_lru\0nfs4_xattr_cache\0__key.1\0")
    symtab = kernel.write(
        MODULE + 0x1800,  # Elf64_Sym: st_name, st_info, st_other, st_shndx, st_value, st_size
        struct.pack("<IBBHQQ", 0, 0, 0, 0, in_no_table, 0)
        + struct.pack("<IBBHQQ", 22, 1, 0, 9, beside_a_symbol - 8, 64)
        + struct.pack("<IBBHQQ", 1, 1, 0, 9, in_module, 32)
        + struct.pack("<IBBHQQ", 39, 1, 0, 9, in_module, 0),
    )
    kallsyms = kernel.put(MODULE + 0x100, "struct mod_kallsyms", symtab=symtab, num_symtab=4, strtab=strtab)
    unreadable = kernel.put(MODULE + 0x200, "struct module", kallsyms=0xFFFFFFFFC1000000)
    modules = kernel.variable("modules", "struct list_head", unreadable)
    nfsv4 = kernel.put(MODULE, "struct module", list__next=modules, kallsyms=kallsyms)
    kernel.put(unreadable, "struct module", list__next=nfsv4)
    for at in (inside_slab, shadow_nodes, in_module, beside_a_symbol, in_no_table):
        machine.list_lru(at)
    _, lrus = machine.walk()
    assert {at: (lru.owner, lru.name) for at, lru in lrus.items()} == {
        inside_slab: ("slab", "xfs_buftarg+64"),
        shadow_nodes: ("symbol", "shadow_nodes"),
        in_module: ("symbol", "nfs4_xattr_cache_lru"),
        beside_a_symbol: ("unknown", None),
        in_no_table: ("unknown", None),
    }


def test_list_lrus_that_nobody_is_known_to_own_are_counted_and_noted() -> None:
    """A real core, of which no symbol can be looked up by its address."""
    core = CORES[0]
    opened = open_kernel(str(core.path))
    find = kallsyms.load(opened.prog, ())
    opened.prog.register_symbol_finder(
        "by name", lambda prog, name, address, one: [] if address is not None else find(prog, name, None, one)
    )
    opened.prog.set_enabled_symbol_finders(["by name"])
    taken = snapshot.take(opened)
    columns = taken.list_lrus.columns
    owners = Counter(row[columns.index("owner")] for row in taken.list_lrus.rows)
    assert owners == {"superblock": 2 * len(taken.superblocks.rows), "unknown": 1}
    assert taken.target.rows[0][taken.target.columns.index("notes")] == "list_lrus of an unknown owner: 1"
    bytes_of = columns.index("list_lru_one_bytes")
    known = core.snapshot.list_lrus
    assert sum(row[bytes_of] for row in taken.list_lrus.rows) == sum(row[bytes_of] for row in known.rows)
