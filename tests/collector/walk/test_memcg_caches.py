"""Slab caches of memcgs before v5.9, in memory laid out by hand, and free slots compared with drgn on a real kernel."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from drgn.helpers.linux.cpumask import for_each_online_cpu
from drgn.helpers.linux.percpu import per_cpu_ptr
from drgn.helpers.linux.slab import for_each_slab_cache, slab_cache_usage

from pipeline.collector.access import kernel
from pipeline.collector.status import CollectError
from pipeline.collector.walk import memcg_caches, slub
from pipeline.collector.walk.held import Held
from tests.collector.conftest import CORES
from tests.collector.made import ByteOrder, SyntheticKernel

KDUMP = next(core for core in CORES if core.name == "deb510-kdump")

# Of include/linux/mm_types.h, include/linux/slub_def.h and mm/slab.h, with only the members that are read.
STRUCTS = """
typedef struct { long counter; } atomic_long_t;
struct cpumask { unsigned long bits[1]; };
struct page {
    unsigned long flags;
    union {
        struct list_head lru;
        struct { struct page *next; int pages; int pobjects; };
        struct { unsigned long compound_head; unsigned char compound_dtor; unsigned char compound_order; };
    };
    struct kmem_cache *slab_cache;
    void *freelist;
    union {
        unsigned long counters;
        struct { unsigned int inuse:16; unsigned int objects:15; unsigned int frozen:1; };
    };
    unsigned long rest[2];
};
struct kmem_cache_cpu { void **freelist; unsigned long tid; struct page *page; struct page *partial; };
struct kmem_cache_node {
    unsigned int list_lock; unsigned long nr_partial; struct list_head partial; atomic_long_t nr_slabs;
    atomic_long_t total_objects;
};
struct kmem_cache_order_objects { unsigned int x; };
struct kobject { char *name; struct list_head entry; struct kernfs_node *sd; };
struct kernfs_elem_dir { unsigned long subdirs; struct rb_root children; };
struct kernfs_node { struct kernfs_node *parent; struct rb_node rb; struct kernfs_elem_dir dir; };
struct percpu_ref { unsigned long count; unsigned long percpu_count_ptr; };
"""
# struct memcg_cache_params, by the commit that made it so.
PARAMS = {
    # ("slab: embed memcg_cache_params to kmem_cache") (in v4.0)
    "f7ce3190c4a3": """bool is_root_cache; struct list_head list; union { struct memcg_cache_array *memcg_caches;
        struct { struct mem_cgroup *memcg; struct kmem_cache *root_cache; }; };""",
    # ("slab: reorganize memcg_cache_params") (in v4.11)
    "9eeadc8b6e8c": """struct kmem_cache *root_cache; union { struct memcg_cache_array *memcg_caches;
        struct { struct mem_cgroup *memcg; struct list_head children_node; }; };""",
    # ("mm: memcg/slab: rework non-root kmem_cache lifecycle management") (in v5.3)
    "f0a3a24b532d": """struct kmem_cache *root_cache; union { struct memcg_cache_array *memcg_caches;
        struct { struct mem_cgroup *memcg; struct list_head children_node; struct percpu_ref refcnt; }; };""",
}
CACHE = """
struct memcg_cache_params {{ {params} }};
struct kmem_cache {{
    struct kmem_cache_cpu *cpu_slab; unsigned long flags; unsigned int size; unsigned int object_size;
    unsigned int offset;
    struct kmem_cache_order_objects oo; const char *name; struct list_head list; struct kobject kobj;
    struct memcg_cache_params memcg_params; {random} struct kmem_cache_node *node[2];
}};
"""
RANDOM = 0x1234567890ABCDEF
ONLINE, DYING, GONE = 0xFFFF888001000000, 0xFFFF888001001000, 0xFFFF888001002000
MEMCGS = [
    SimpleNamespace(address=ONLINE, online=True, cache_id=3),
    SimpleNamespace(address=DYING, online=False, cache_id=None),
]
SIZE, SLOTS, LINK_OFFSET = 192, 21, 64


class Machine:
    """A kernel with two nodes, three possible CPUs, two of them online, and one root cache."""

    def __init__(self, params: str = "f0a3a24b532d", coding: str = "none", byte_order: ByteOrder = "little") -> None:
        self.coding = coding
        declarations = STRUCTS + CACHE.format(
            params=PARAMS[params], random="" if coding == "none" else "unsigned long random;"
        )
        self.kernel = made = SyntheticKernel(declarations, byte_order=byte_order)
        self.has_root_mark, self.has_refcnt = "is_root_cache" in PARAMS[params], "refcnt" in PARAMS[params]
        made.variable("__cpu_possible_mask", "struct cpumask", 0b111)
        made.variable("__cpu_online_mask", "struct cpumask", 0b011)
        made.variable("nr_cpu_ids", "unsigned int", 3)
        made.variable("pcpu_nr_units", "int", 4)  # one is padding
        made.variable("nr_node_ids", "unsigned int", 2)
        self.offsets = [made.compound(1) - self.percpu(0) for _ in range(3)]
        made.words(made.variable("__per_cpu_offset", "unsigned long [3]"), *self.offsets)
        self.head = self.tail = made.variable("slab_caches", "struct list_head")
        made.words(self.head, self.head)
        # Objects of these have other sizes than their structs.
        for name, size in (("kmem_cache", 512), ("kmem_cache_node", 64), ("kernfs_node", 128)):
            made.cache(name, size)
        for size in (16, 32, 64, 2048):
            made.cache(f"kmalloc-{size}", size)
        self.percpu_used = 0
        self.root = self.link(made.cache("dentry", SIZE), 0, 0)

    @staticmethod
    def percpu(used: int) -> int:
        return 0x20000 + used

    def link(self, cache: int, root: int, memcg: int) -> int:
        """Put a cache at the end of the kernel's list."""
        made = self.kernel
        link = cache + made.prog.type("struct kmem_cache").member("list").bit_offset // 8
        made.words(self.tail, link)
        self.tail = made.words(link, self.head)
        made.put(cache, "struct kmem_cache", memcg_params__root_cache=root, memcg_params__memcg=memcg)
        if self.has_root_mark and not root:
            made.put(cache, "struct kmem_cache", memcg_params__is_root_cache=1, memcg_params__root_cache=ONLINE)
        return cache

    def child(self, memcg: int, dead: bool = False, directory: bool = False) -> int:
        """Add a child without slabs, as memcg_create_kmem_cache() does."""
        made = self.kernel
        cache = self.link(made.slab("kmem_cache"), self.root, memcg)
        cpu_slab, self.percpu_used = self.percpu(self.percpu_used), self.percpu_used + 32
        made.put(cache, "struct kmem_cache", cpu_slab=cpu_slab, size=SIZE, object_size=SIZE, offset=LINK_OFFSET)
        made.put(cache, "struct kmem_cache", oo__x=SLOTS, name=made.slab("kmalloc-32"))
        if self.coding != "none":
            made.put(cache, "struct kmem_cache", random=RANDOM)
        if self.has_refcnt:
            made.put(cache, "struct kmem_cache", memcg_params__refcnt__percpu_count_ptr=0x7000 + (3 if dead else 0))
        nodes = cache + made.prog.type("struct kmem_cache").member("node").bit_offset // 8
        for nid in range(2):
            node = made.slab("kmem_cache_node")
            made.words(nodes + 8 * nid, node)
            made.put(node, "struct kmem_cache_node", partial__next=node + 16)
        if directory:
            files = [made.slab("kernfs_node") for _ in range(4)]
            made.put(cache, "struct kmem_cache", kobj__name=made.slab("kmalloc-16"), kobj__sd=files[0])
            rb = [address + 8 for address in files]
            made.put(files[0], "struct kernfs_node", dir__children__rb_node=rb[1])
            made.put(files[1], "struct kernfs_node", rb__rb_left=rb[2], rb__rb_right=rb[3])
        return cache

    def slab(self, cache: int, nid: int, inuse: int) -> tuple[int, int]:
        """Add a slab to a child's node, on no list yet; return its ``struct page *`` and its address."""
        made = self.kernel
        page, address = made._pages(1)
        made.put(page, "struct page", flags=1 << 9, slab_cache=cache)
        made.put(page, "struct page", counters=self.counters(inuse))
        node = self.node(cache, nid)
        slabs, objects = made.prog.read_word(node + 32) + 1, made.prog.read_word(node + 40) + SLOTS
        made.words(node + 32, slabs, objects)
        return page, address

    def counters(self, inuse: int) -> int:
        if self.kernel.byte_order == "little":
            return inuse | SLOTS << 16
        return inuse << 48 | SLOTS << 33

    def node(self, cache: int, nid: int) -> int:
        made = self.kernel
        return made.prog.read_word(cache + made.prog.type("struct kmem_cache").member("node").bit_offset // 8 + 8 * nid)

    def put_on_node(self, cache: int, nid: int, *pages: int) -> None:
        """Make slabs the partial list of a node; a page's link is at 8."""
        head = self.node(cache, nid) + 16
        links = [page + 8 for page in pages]
        for link, following in zip((head, *links), (*links, head), strict=True):
            self.kernel.words(link, following)

    def cpu(self, cache: int, cpu: int) -> int:
        return self.kernel.prog.read_word(cache) + self.offsets[cpu]

    def free_list(self, address: int, slots: tuple[int, ...]) -> int:
        """Link slots of a slab as a free list, coded as freelist_ptr() does, and return its first slot."""
        addresses = [address + slot * SIZE for slot in slots]
        for slot, following in zip(addresses, (*addresses[1:], 0), strict=True):
            self.link_slot(slot, following)
        return addresses[0]

    def link_slot(self, slot: int, following: int) -> None:
        link = slot + LINK_OFFSET
        swapped = int.from_bytes(link.to_bytes(8, "little"), "big")
        mask = {"none": 0, "plain": RANDOM ^ link, "swab": RANDOM ^ swapped}[self.coding]
        self.kernel.words(link, following ^ mask)


def busy(machine: Machine, cache: int) -> None:
    """Give a child 5 slabs with 105 slots, of which 62 are free: 20 + 16 on node 1, 9 + 4 of CPU 0, 13 of CPU 1."""
    machine.slab(cache, 0, SLOTS)  # full
    machine.put_on_node(cache, 1, machine.slab(cache, 1, 1)[0], machine.slab(cache, 1, 5)[0])
    page, address = machine.slab(cache, 0, SLOTS - 4)  # 4 were freed by another CPU
    partial, _ = machine.slab(cache, 0, 8)
    free_list = machine.free_list(address, (20, 3, 7, 5, 0, 1, 2, 4, 6))
    machine.kernel.words(machine.cpu(cache, 0), free_list, 0, page)
    machine.kernel.words(machine.cpu(cache, 1), 0, 0, 0, partial)


@pytest.mark.parametrize("byte_order", ["little", "big"])
@pytest.mark.parametrize("coding", ["none", "plain", "swab"])
def test_free_slots_are_on_lists_of_nodes_and_cpus(coding: str, byte_order: ByteOrder) -> None:
    machine = Machine(coding=coding, byte_order=byte_order)
    cache, idle = machine.child(ONLINE), machine.child(ONLINE)
    busy(machine, cache)
    usage, modelled = slub.usage(machine.kernel.prog, [cache, idle])
    assert usage[cache][1:] == (5, 5 * SLOTS, 20 + 16 + 9 + 4 + 13, 4096, SLOTS)
    assert usage[idle][1:4] == (0, 0, 0)
    assert not modelled


def test_of_many_free_lists_a_sample_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slub, "_MAX_FREE_LISTS", 2)
    machine = Machine()
    caches = [machine.child(ONLINE) for _ in range(4)]
    for cache in caches:
        busy(machine, cache)
    usage, modelled = slub.usage(machine.kernel.prog, caches)
    assert sum(usage[cache].free_slots for cache in caches) == 4 * 62
    assert modelled == ["one in 2 of the free lists of CPUs was read"]


def put_long_list(machine: Machine, cache: int) -> None:
    """Put 10 slabs on a list of a child: the first 4 with 3 free slots each, the others with 1."""
    pages = [machine.slab(cache, 0, SLOTS - (3 if i < 4 else 1))[0] for i in range(10)]
    machine.put_on_node(cache, 0, *pages)
    machine.kernel.put(machine.node(cache, 0), "struct kmem_cache_node", nr_partial=len(pages))


def test_of_long_lists_the_first_slabs_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slub, "_MAX_STEPS", 4)
    machine = Machine()
    long, short = machine.child(ONLINE), machine.child(ONLINE)
    put_long_list(machine, long)
    busy(machine, short)
    usage, modelled = slub.usage(machine.kernel.prog, [long, short])
    assert (usage[long].free_slots, usage[short].free_slots) == (10 * 3, 62)
    assert modelled == ["4 slabs of each list were read"]


def test_of_many_slabs_on_lists_some_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slub, "_MAX_LISTED_SLABS", 5)
    machine = Machine()
    caches = [machine.child(ONLINE) for _ in range(2)]
    for cache in caches:
        put_long_list(machine, cache)
    usage, modelled = slub.usage(machine.kernel.prog, caches)
    assert [usage[cache].free_slots for cache in caches] == [30, 30]
    assert modelled == ["3 slabs of each list were read"]


@pytest.mark.parametrize("params", PARAMS)
def test_children_by_the_state_of_their_memcg(params: str) -> None:
    """Free slots, the kmem_cache, two nodes and the name; per-CPU memory of four units."""
    machine = Machine(params)
    busy(machine, machine.child(ONLINE))
    machine.child(DYING)
    machine.child(GONE)
    count = memcg_caches.count(machine.kernel.prog, MEMCGS)
    assert count
    percpu_bytes = 4 * (32 + 8) if params == "f0a3a24b532d" else 4 * 32
    idle_bytes = 512 + 2 * 64 + 32
    assert count.held == Held(5 * 4096 - 43 * SIZE + idle_bytes, idle_bytes, idle_bytes)
    assert count.percpu_held == Held(percpu_bytes, percpu_bytes, percpu_bytes)
    assert (count.active_objects, count.basis) == (43, "exact; without 0 bytes of free slots in reclaimable slab")
    # 43 objects fill three shared slabs, each with a vector of 21 pointers.
    assert count.shared_bytes == 3 * (4096 + 8 * SLOTS) - 43 * SIZE


def test_free_slots_in_reclaimable_slab_are_left_out() -> None:
    """The structs, and on newer kernels the vectors of dentries, are unreclaimable."""
    machine = Machine()
    cache = machine.child(ONLINE)
    busy(machine, cache)
    machine.kernel.put(cache, "struct kmem_cache", flags=0x20000)
    count = memcg_caches.count(machine.kernel.prog, MEMCGS)
    assert count
    assert count.held == Held(512 + 2 * 64 + 32, 0, 0)
    assert count.basis == f"exact; without {5 * 4096 - 43 * SIZE} bytes of free slots in reclaimable slab"
    assert count.shared_bytes == 3 * 8 * SLOTS


def test_a_reparented_child_is_of_no_memcg() -> None:
    """Its memcg is the parent of the one that it was made for, and its percpu_ref is killed."""
    machine = Machine()
    machine.child(ONLINE, dead=True)
    count = memcg_caches.count(machine.kernel.prog, MEMCGS)
    assert count
    assert count.held == Held(0, 0, 512 + 2 * 64 + 32)
    assert count.percpu_held == Held(0, 0, 4 * 40)


def test_a_child_in_sysfs_has_a_directory_with_files() -> None:
    """A directory, three files, the name of the kobject, and the directory's copy of it."""
    counts = []
    for directories in ([False], [False, True]):
        machine = Machine()
        for directory in directories:
            machine.child(ONLINE, directory=directory)
        counts.append(memcg_caches.count(machine.kernel.prog, MEMCGS))
    plain, both = counts
    assert plain
    assert both
    assert both.held.total_bytes == 2 * plain.held.total_bytes + 4 * 128 + 2 * 16


def test_arrays_of_root_caches() -> None:
    """190 ids: kmalloc(16 + 8 * 190) is an object of 2048 bytes, vmalloc() takes pages; one memcg is online."""
    machine = Machine("9eeadc8b6e8c")
    made = machine.kernel
    made.variable("memcg_nr_cache_ids", "int", 190)
    made.put(machine.root, "struct kmem_cache", memcg_params__memcg_caches=made.slab("kmalloc-2048"))
    other = machine.link(made.slab("kmem_cache"), 0, 0)
    made.put(other, "struct kmem_cache", memcg_params__memcg_caches=made.vmalloc(2))
    machine.link(made.slab("kmem_cache"), 0, 0)  # created before the first memcg
    machine.child(ONLINE)
    left_bytes = (2048 + 8192) * 189 // 190
    assert memcg_caches.count_arrays(made.prog, MEMCGS) == Held(2048 + 8192 - left_bytes, 0, left_bytes)


def test_a_kernel_without_slab_caches_of_memcgs() -> None:
    prog = kernel.open_kernel(str(KDUMP.path)).prog
    assert memcg_caches.owners(prog) == {}
    assert memcg_caches.count(prog, []) is None
    assert memcg_caches.count_arrays(prog, []) is None


def test_a_list_of_slabs_that_does_not_end() -> None:
    machine = Machine()
    cache = machine.child(ONLINE)
    page, _ = machine.slab(cache, 0, 3)
    machine.put_on_node(cache, 0, page)
    machine.kernel.words(page + 8, page + 8)
    with pytest.raises(CollectError, match="more slabs on lists than in all"):
        slub.usage(machine.kernel.prog, [cache])


def test_a_slab_of_another_cache_on_a_list() -> None:
    machine = Machine()
    cache = machine.child(ONLINE)
    page, _ = machine.slab(cache, 0, 3)
    machine.put_on_node(cache, 0, page)
    machine.kernel.put(page, "struct page", slab_cache=machine.root)
    with pytest.raises(CollectError, match=f"the slab at 0x{page:x}, which is not its own"):
        slub.usage(machine.kernel.prog, [cache])


@pytest.mark.parametrize("coding", ["none", "swab"])
def test_a_free_list_that_leads_out_of_its_slab_or_around(coding: str) -> None:
    machine = Machine(coding=coding)
    cache = machine.child(ONLINE)
    page, address = machine.slab(cache, 0, SLOTS)
    machine.kernel.words(machine.cpu(cache, 0), machine.free_list(address, (1, 2)), 0, page)
    for slot in (1, SLOTS + 1):
        machine.link_slot(address + 2 * SIZE, address + slot * SIZE)
        with pytest.raises(CollectError, match="leads out of its slab"):
            slub.usage(machine.kernel.prog, [cache])


def test_lists_that_change_while_a_running_kernel_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """They end where they are broken: the 16 free slots of the second slab are missing, and those on the free list."""
    machine = Machine()
    cache = machine.child(ONLINE)
    busy(machine, cache)
    node = machine.node(cache, 1)
    second = machine.kernel.prog.read_word(machine.kernel.prog.read_word(node + 16))
    machine.kernel.put(second - 8, "struct page", slab_cache=machine.root)
    first = machine.kernel.prog.read_word(machine.cpu(cache, 0))
    machine.link_slot(first, first + 4096)
    with pytest.raises(CollectError):
        slub.usage(machine.kernel.prog, [cache])
    monkeypatch.setattr(slub, "is_running", lambda prog: True)
    usage, _ = slub.usage(machine.kernel.prog, [cache])
    assert usage[cache].free_slots == 62 - 16 - 9


@pytest.mark.parametrize(
    ("member", "value", "message"),
    [
        ("oo__x", 0, "slots of kmem_cache.oo"),
        ("oo__x", 64 << 16 | SLOTS, "order of kmem_cache.oo"),
        ("size", 0, "kmem_cache.size is 0"),
        ("size", 8192, "kmem_cache.size is 8192"),
    ],
)
def test_a_damaged_slab_cache(member: str, value: int, message: str) -> None:
    machine = Machine()
    cache = machine.child(ONLINE)
    busy(machine, cache)
    machine.kernel.put(cache, "struct kmem_cache", **{member: value})
    with pytest.raises(CollectError, match=message) as e:
        memcg_caches.count(machine.kernel.prog, MEMCGS)
    assert e.value.status == "bad_core"


@pytest.mark.parametrize("member", ["nr_slabs__counter", "total_objects__counter"])
@pytest.mark.parametrize("value", [-1, 1 << 62])
def test_a_damaged_count_of_slabs(member: str, value: int) -> None:
    machine = Machine()
    cache = machine.child(ONLINE)
    busy(machine, cache)
    machine.kernel.put(machine.node(cache, 0), "struct kmem_cache_node", **{member: value})
    with pytest.raises(CollectError, match=f"{member.partition('__')[0]} is {value}"):
        slub.usage(machine.kernel.prog, [cache])


def test_a_slab_with_more_objects_than_slots() -> None:
    machine = Machine()
    cache = machine.child(ONLINE)
    machine.put_on_node(cache, 0, machine.slab(cache, 0, SLOTS + 1)[0])
    with pytest.raises(CollectError, match="more objects than slots"):
        slub.usage(machine.kernel.prog, [cache])


def test_a_directory_that_does_not_end() -> None:
    machine = Machine()
    cache = machine.child(ONLINE, directory=True)
    made = machine.kernel
    directory = made.prog.read_word(cache + made.prog.type("struct kmem_cache").member("kobj").bit_offset // 8 + 24)
    made.put(directory, "struct kernfs_node", rb__rb_left=directory + 8, dir__children__rb_node=directory + 8)
    with pytest.raises(CollectError, match="more than 256 files"):
        memcg_caches.count(made.prog, MEMCGS)


def test_free_slots_of_a_real_kernel() -> None:
    """Those that drgn counts, and those of the slabs in use by CPUs that another CPU freed, which drgn leaves out."""
    prog = kernel.open_kernel(str(KDUMP.path)).prog
    caches = list(for_each_slab_cache(prog))
    usages, _ = slub.usage(prog, [cache.value_() for cache in caches])
    for cache in caches:
        expected = slab_cache_usage(cache)
        pages = [per_cpu_ptr(cache.cpu_slab, cpu).page for cpu in for_each_online_cpu(prog)]
        remote = sum(page.objects.value_() - page.inuse.value_() for page in pages if page)
        usage = usages[cache.value_()]
        assert (usage.slabs, usage.slots) == (expected.num_slabs, expected.num_objs)
        assert usage.free_slots == expected.free_objs + remote
