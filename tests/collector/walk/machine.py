"""A synthetic kernel with list_lrus of one layout, laid out in memory as that kernel's mm/list_lru.c allocates them.

nr_node_ids is 4; node 1 is a hole, and node 3 is possible but not online. Kernels with arrays have 4 ids, of which two
belong to online memcgs. With an xarray the two online ids need three xa_nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from pipeline.collector.walk import layouts, list_lrus, superblocks
from pipeline.collector.walk.list_lrus import Findings, ListLru
from tests.collector.made import ByteOrder, SyntheticKernel
from tests.collector.walk.structs import ALL_MEMBERS, LAYOUTS, Members

NODES = range(4)
POSSIBLE = (0, 2, 3)
ROOT = None

# The slab caches of a pointer array and of an object, by the size that the kernel requests for 4 ids and 4 nodes.
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

Items = Mapping[tuple[int, int | None], int]
"""The items on each list of a list_lru, by node and id, or by node and ROOT."""


class Machine:
    """A kernel of one layout, to which list_lrus are added."""

    def __init__(
        self,
        layout: str,
        members: Members = ALL_MEMBERS,
        ids: int = 4,
        page_bytes: int = 4096,
        byte_order: ByteOrder = "little",
        declarations: str = "",
    ) -> None:
        self.layout, self.members, self.ids = layout, members, ids
        structs = (
            LAYOUTS[layout](members)
            + declarations
            + """
        struct super_block { struct list_head s_list; struct list_lru s_dentry_lru; struct list_lru s_inode_lru; };"""
        )
        self.kernel = kernel = SyntheticKernel(structs, page_bytes, byte_order)
        for size in (16, 32, 64, 96, 128, 192, 256, 512):
            kernel.cache(f"kmalloc-{size}", size)
        kernel.variable("radix_tree_node_cachep", "struct kmem_cache *", kernel.cache("radix_tree_node", 584))
        kernel.variable("nr_node_ids", "unsigned int", 4)
        kernel.variable("node_states", "nodemask_t [6]", 0b1101)
        self.online = (3, 70)
        if "xarray" not in layout:
            kernel.variable("memcg_nr_cache_ids", "int", ids)
            self.online = (0, 2) if ids else ()
        # commit 3eef11279ba5 ("mm: list_lru: only add memcg-aware lrus to the global lru list") (in v5.16) renamed it.
        self.tail = kernel.variable(
            "list_lrus" if layout.startswith("array") else "memcg_list_lrus", "struct list_head"
        )
        self.head = self.tail
        self.sbs: list[Any] = []

    def pointer_array(self) -> int:
        """Allocate a pointer array for 4 ids. A test with another number of ids replaces this method."""
        cache, _ = CACHES[self.layout]
        assert cache
        return self.kernel.slab(cache)

    def superblock(self) -> tuple[int, int]:
        """Add a superblock with only its list_lrus, and return their addresses."""
        address = self.kernel.slab("kmalloc-512")
        self.sbs.append(SimpleNamespace(address=address, root=1))
        dentry_lru = address + self.kernel.prog.type("struct list_head").size
        return dentry_lru, dentry_lru + self.kernel.prog.type("struct list_lru").size

    def list_lru(
        self, address: int, items: Items | None = None, memcg_aware: bool = True, used_ids: tuple[int, ...] = ()
    ) -> int:
        """Initialize a list_lru as __list_lru_init() does, and put items on its lists.

        :param used_ids: on a lazy kernel, the ids of the memcgs that ever had an item.
        """
        kernel, items = self.kernel, items or {}
        node = kernel.slab("kmalloc-256")  # kcalloc(nr_node_ids, sizeof(*lru->node)): 4 * 64
        for nid in NODES:
            node_items = {memcg: count for (item_nid, memcg), count in items.items() if item_nid == nid}
            kernel.put(node + 64 * nid, "struct list_lru_node", lru__nr_items=node_items.get(ROOT, 0))
            if self.members.nr_items:
                path = "nr_items__counter" if self.layout == "xarray_lock" else "nr_items"
                kernel.put(node + 64 * nid, "struct list_lru_node", **{path: sum(node_items.values())})
        if self.members.memcg_aware:
            kernel.put(address, "struct list_lru", memcg_aware=memcg_aware)
        holder, struct_name = address, "struct list_lru"
        if self.layout.startswith("ext_"):
            holder, struct_name = kernel.slab("kmalloc-32"), "struct list_lru_ext"
            kernel.put(address, "struct list_lru", ext=holder)
        kernel.put(holder, struct_name, node=node)
        # list_lru_register(): the link is the member `list`, which follows one pointer.
        kernel.words(self.tail, address + 8)
        self.tail = kernel.words(address + 8, self.head)
        if memcg_aware and self.layout.startswith("array"):
            self.arrays_of_nodes(node, items)
        elif memcg_aware and "mlrus" in self.layout:
            kernel.put(holder, struct_name, mlrus=self.array_of_memcgs(items, used_ids))
        elif memcg_aware and used_ids:
            xa = kernel.prog.type(struct_name).member("xa").bit_offset // 8
            kernel.put(holder, struct_name, xa__xa_head=self.xarray(holder + xa, items, used_ids))
        return node

    def arrays_of_nodes(self, node: int, items: Items) -> None:
        """Allocate as memcg_init_list_lru_node() does; its for_each_node() visits the possible nodes."""
        for nid in POSSIBLE:
            array = self.pointer_array()
            self.kernel.put(node + 64 * nid, "struct list_lru_node", memcg_lrus=array)
            objects = [self.kernel.slab("kmalloc-32") for _ in range(self.ids)]
            if objects:
                self.kernel.words(array + (16 if self.layout == "array_rcu" else 0), *objects)
            for memcg, address in enumerate(objects):
                self.kernel.put(address, "struct list_lru_one", nr_items=items.get((nid, memcg), 0))

    def array_of_memcgs(self, items: Items, used_ids: tuple[int, ...]) -> int:
        """Allocate as memcg_init_list_lru() does. On a lazy kernel a slot is NULL until memcg_list_lru_alloc()."""
        array = self.pointer_array()
        ids = used_ids if self.layout.endswith("lazy") else range(self.ids)
        for memcg in ids:
            self.kernel.words(array + 16 + 8 * memcg, self.per_memcg(memcg, items))
        return array

    def per_memcg(self, memcg: int, items: Items) -> int:
        """Allocate a memcg's object: an optional rcu_head, then 24 or 32 bytes of list_lru_one for each node."""
        address = self.kernel.slab(CACHES[self.layout][1])
        first = 0 if self.layout.endswith("mlrus") else 16
        for nid in NODES:
            list_lru_one = address + first + (32 if self.layout == "xarray_lock" else 24) * nid
            # for_each_node() does not initialize the list_lru_one of an impossible node.
            garbage = 0 if nid in POSSIBLE else 1 << 40
            self.kernel.put(list_lru_one, "struct list_lru_one", nr_items=items.get((nid, memcg), garbage))
        return address

    def xarray(self, xa: int, items: Items, used_ids: tuple[int, ...]) -> int:
        """Build the nodes as xas_create() does for ids below 4096; return xa_head, a node with the low bits 10."""

        def node(shift: int, slots: Mapping[int, int]) -> int:
            address = self.kernel.slab("radix_tree_node")
            self.kernel.put(address, "struct xa_node", shift=shift, array=xa, count=len(slots))
            first = self.kernel.prog.type("struct xa_node").member("slots").bit_offset // 8
            for slot, entry in slots.items():
                self.kernel.words(address + first + 8 * slot, entry)
            return address + 2

        chunks: dict[int, dict[int, int]] = {}
        for memcg in used_ids:
            chunks.setdefault(memcg >> 6, {})[memcg & 63] = self.per_memcg(memcg, items)
        leaves = {chunk: node(0, slots) for chunk, slots in chunks.items()}
        return leaves[0] if set(leaves) == {0} else node(6, leaves)

    def walk(self, verify: bool = False) -> tuple[Findings, dict[int, ListLru]]:
        prog = self.kernel.prog
        for sb in self.sbs:
            size = prog.type("struct list_lru").size
            links = [prog.read_word(sb.address + 16 + 8 + size * i) for i in range(2)]
            sb.lru_links = dict(zip(superblocks.LRUS, links, strict=True))
        memcgs = [SimpleNamespace(cache_id=memcg) for memcg in (None, *self.online)]
        findings = list_lrus.walk(prog, layouts.detect(prog), self.sbs, memcgs, verify=verify)
        return findings, {lru.address: lru for lru in findings.list_lrus}
