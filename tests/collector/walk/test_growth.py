"""A doubling of memcg_nr_cache_ids that is under way, or that failed, in memory as mm/list_lru.c leaves it.

The ids grow from 4 to 2 * (4 + 1) = 10. A pointer array of layout array_rcu grows from 16 + 8 * 4 = 48 bytes, which
take 64, to 16 + 8 * 10 = 96. A list_lru has an array on each of 3 nodes, and a list_lru_one takes 32 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from pipeline.collector.status import CollectError
from pipeline.collector.walk.list_lrus import Findings, ListLru
from pipeline.collector.walk.pointer_arrays import PointerArrays
from tests.collector.walk.machine import NODES, POSSIBLE, Machine

ATOMICS = "typedef struct { int counter; } atomic_t;"
ATOMIC_LONG = "typedef struct { long counter; } atomic_long_t;"
SEMAPHORE = ATOMIC_LONG + "struct rw_semaphore { atomic_long_t count; atomic_long_t owner; };"
WRITER_LOCKED = 1

OLD = (64 * 3, 12, 12 * 32, 4)  # bytes of arrays, objects, their bytes, ids
GROWN = (96 * 3, 30, 30 * 32, 10)
LEFT_OVER = (96 * 3, 12, 12 * 32, 4)


class GrowingMachine(Machine):
    """A kernel with memcg_cache_ids_sem, all of whose ids are in use."""

    def __init__(
        self, layout: str = "array_rcu", ids: int = 4, is_locked: bool = True, semaphore: str = SEMAPHORE
    ) -> None:
        super().__init__(layout, ids=ids, declarations=semaphore)
        self.kernel.variable("memcg_cache_ids_sem", "struct rw_semaphore", WRITER_LOCKED if is_locked else 0)
        self.online = tuple(range(ids))
        self.nodes: dict[int, int] = {}
        self.new_objects: dict[int, list[int]] = {}

    @property
    def header_bytes(self) -> int:
        return 0 if self.layout == "array" else 16

    def add(self, count: int) -> list[int]:
        """Add list_lrus, the first at the head of the kernel's list."""
        addresses = [address for _ in range(-(-count // 2)) for address in self.superblock()][:count]
        self.nodes.update((address, self.list_lru(address)) for address in addresses)
        return addresses

    def grow(self, address: int, nids: Sequence[int] = POSSIBLE, array: Callable[[], int] | None = None) -> None:
        """Do as memcg_update_list_lru_node() on some nodes of a list_lru.

        :param array: allocates the new array, by default from the slab cache that fits.
        """
        kernel, new_ids = self.kernel, max(4, 2 * (self.ids + 1))
        for nid in nids:
            node = self.nodes[address] + 64 * nid
            member = kernel.prog.type("struct list_lru_node").member("memcg_lrus").bit_offset // 8
            old = kernel.prog.read_word(node + member)
            new = array() if array else kernel.slab("kmalloc-64" if new_ids == 4 else "kmalloc-96")
            pointers = [kernel.prog.read_word(old + self.header_bytes + 8 * i) for i in range(self.ids)]
            objects = [self.empty_list() for _ in range(new_ids - self.ids)]
            kernel.words(new + self.header_bytes, *pointers, *objects)
            kernel.put(node, "struct list_lru_node", memcg_lrus=new)
            self.new_objects.setdefault(address, []).extend(objects)

    def empty_list(self) -> int:
        """Allocate a list_lru_one as memcg_init_list_lru_node() does."""
        address = self.kernel.slab("kmalloc-32")
        return self.kernel.words(address, address, address, 0)

    def cancel(self, address: int) -> None:
        """Do as memcg_cancel_update_list_lru_node(): free the new objects, last one first, and keep the array.

        A free object has SLUB's pointer to the next one in its middle: commit 3202fa62fb43 ("slub: relocate freelist
        pointer to middle of object") (in v5.7).
        """
        for freed in reversed(self.new_objects.pop(address)):
            self.kernel.words(freed + 16, 0x5EED5EED5EED5EED)
            self.kernel.free_slots["kmalloc-32"].insert(0, freed)


def sizes(lru: ListLru) -> tuple[int | None, ...]:
    return lru.pointer_array_bytes, lru.list_lru_one_objects, lru.list_lru_one_bytes, lru.cache_ids


def walk(machine: GrowingMachine, verify: bool = False) -> tuple[Findings, list[tuple[int | None, ...]]]:
    findings, lrus = machine.walk(verify)
    assert not findings.race_notes
    return findings, [sizes(lrus[address]) for address in machine.nodes]


@pytest.mark.parametrize("grown", range(7))
@pytest.mark.parametrize("verify", [False, True])
def test_each_list_lru_is_counted_as_far_as_the_doubling_has_come(grown: int, verify: bool) -> None:
    machine = GrowingMachine()
    for address in machine.add(6)[:grown]:
        machine.grow(address)
    findings, rows = walk(machine, verify)
    assert rows == grown * [GROWN] + (6 - grown) * [OLD]
    assert (findings.cache_ids, findings.growing_to) == (4, 10)


@pytest.mark.parametrize(
    ("nids", "expected"),
    [((0,), (96 + 64 + 64, 10 + 4 + 4, 18 * 32, 4)), ((0, 2), (96 + 96 + 64, 10 + 10 + 4, 24 * 32, 4))],
)
def test_the_border_is_between_two_nodes_of_a_list_lru(nids: tuple[int, ...], expected: tuple[int, ...]) -> None:
    machine = GrowingMachine()
    first, second, _ = machine.add(3)
    machine.grow(first)
    machine.grow(second, nids)
    assert walk(machine)[1] == [GROWN, expected, OLD]


def test_list_lrus_that_are_not_memcg_aware_are_passed_over() -> None:
    machine = GrowingMachine()
    (first,) = machine.add(1)
    unaware, _ = machine.superblock()
    machine.list_lru(unaware, memcg_aware=False)
    second, _ = machine.add(2)
    machine.grow(first)
    machine.grow(second)
    assert walk(machine)[1] == [GROWN, GROWN, OLD]


def test_a_failed_doubling_leaves_longer_arrays_without_objects() -> None:
    """Newer list_lrus are in front of those that the doubling had reached."""
    machine = GrowingMachine(is_locked=False)
    lrus = machine.add(6)
    for address in lrus[2:4]:
        machine.grow(address)
        machine.cancel(address)
    findings, rows = walk(machine, verify=True)
    assert rows == [OLD, OLD, LEFT_OVER, LEFT_OVER, OLD, OLD]
    assert findings.growing_to is None


@pytest.mark.parametrize("again", range(5))
def test_a_doubling_after_a_failed_one(again: int) -> None:
    """The objects that the failed doubling freed are in use again by the list_lrus that have grown since."""
    machine = GrowingMachine()
    lrus = machine.add(6)
    for address in lrus[:4]:
        machine.grow(address)
    for address in reversed(lrus[:4]):
        machine.cancel(address)
    for address in lrus[:again]:
        machine.grow(address)
    findings, rows = walk(machine)
    assert rows == again * [GROWN] + (4 - again) * [LEFT_OVER] + 2 * [OLD]
    assert findings.growing_to == 10


def test_a_doubling_that_is_being_undone() -> None:
    machine = GrowingMachine()
    lrus = machine.add(6)
    for address in lrus[:4]:
        machine.grow(address)
    for address in lrus[2:4]:
        machine.cancel(address)
    assert walk(machine)[1] == [GROWN, GROWN, LEFT_OVER, LEFT_OVER, OLD, OLD]


def test_arrays_of_kmalloc_and_of_vmalloc_grow() -> None:
    """From 1534 to 3070 ids: 12,288 and 24,576 bytes take 4 and 8 contiguous pages, or 3 and 6 of vmalloc's."""
    machine = GrowingMachine(ids=1534)
    kernel = machine.kernel
    old_arrays = iter([kernel.compound(4), kernel.vmalloc(3), kernel.compound(4), *(kernel.vmalloc(3) for _ in "123")])
    machine.pointer_array = lambda: next(old_arrays)  # type: ignore[method-assign]
    first, _ = machine.add(2)
    new_arrays = iter([kernel.vmalloc(6), kernel.compound(8)])
    machine.grow(first, (0, 2), lambda: next(new_arrays))
    _, rows = walk(machine, verify=True)
    objects = 3070 + 3070 + 1534
    assert rows == [
        (6 * 4096 + 8 * 4096 + 4 * 4096, objects, objects * 32, 1534),
        (3 * 3 * 4096, 3 * 1534, 3 * 1534 * 32, 1534),
    ]


@pytest.mark.parametrize(("layout", "cache", "old_bytes"), [("array", None, 0), ("array_rcu", "kmalloc-16", 16)])
def test_the_first_growth_is_from_0_to_4_ids(layout: str, cache: str | None, old_bytes: int) -> None:
    """Without ids kmalloc(0) is ZERO_SIZE_PTR, and kvmalloc(16 + 8 * 0) takes 16 bytes."""
    machine = GrowingMachine(layout, ids=0)
    machine.pointer_array = lambda: machine.kernel.slab(cache) if cache else 16  # type: ignore[method-assign]
    first, second, _ = machine.add(3)
    for address, nids in ((first, POSSIBLE), (second, (0,))):
        machine.grow(address, nids, lambda: machine.kernel.slab("kmalloc-64" if cache else "kmalloc-32"))
    new_bytes = 64 if cache else 32  # 16 + 8 * 4; 8 * 4
    findings, rows = walk(machine)
    assert rows == [
        (3 * new_bytes, 12, 12 * 32, 4),
        (new_bytes + 2 * old_bytes, 4, 4 * 32, 0),
        (3 * old_bytes, 0, 0, 0),
    ]
    assert (findings.cache_ids, findings.growing_to) == (0, 4)


def test_arrays_of_both_lengths_in_one_slab_cache_are_told_by_their_objects() -> None:
    """arm64 before v6.5 has no kmalloc cache below 128. The end of a shorter array can contain anything."""
    machine = GrowingMachine()
    kernel = machine.kernel
    for name in ("kmalloc-64", "kmalloc-96"):
        kernel.caches[name], kernel.free_slots[name] = kernel.caches["kmalloc-128"], kernel.free_slots["kmalloc-128"]

    def dirty_array() -> int:
        return kernel.words(kernel.slab("kmalloc-128"), *16 * [0x6B6B6B6B6B6B6B6B])

    machine.pointer_array = dirty_array  # type: ignore[method-assign]
    first, _ = machine.add(2)
    machine.grow(first)
    assert walk(machine)[1] == [(3 * 128, 30, 30 * 32, 10), (3 * 128, 12, 12 * 32, 4)]


@pytest.mark.parametrize(
    ("semaphore", "unlocked", "locked"),
    [
        (SEMAPHORE, 5 << 8, 1),  # v5.3: RWSEM_READER_BIAS, RWSEM_WRITER_LOCKED
        (ATOMIC_LONG + "struct rw_semaphore { atomic_long_t count; };", 5, 0xFFFFFFFF00000001),  # v4.8
        ("struct rw_semaphore { long count; };", 5, 0xFFFFFFFF00000001),
        # PREEMPT_RT: READER_BIAS, WRITER_BIAS.
        (ATOMICS + "struct rw_semaphore { atomic_t readers; };", 0x80000005, 0x40000000),
        (
            ATOMICS + "struct rwbase_rt { atomic_t readers; }; struct rw_semaphore { struct rwbase_rt rwbase; };",
            0x80000005,
            0x40000000,
        ),
    ],
    ids=["v5.3", "v4.8", "v4.0", "rt-patch", "rt"],
)
def test_the_semaphore_tells_a_doubling_from_the_remains_of_a_failed_one(
    semaphore: str, unlocked: int, locked: int
) -> None:
    for count, first_row, growing_to in ((unlocked, LEFT_OVER, None), (locked, GROWN, 10)):
        machine = GrowingMachine(semaphore=semaphore)
        _, address = machine.kernel.variables["memcg_cache_ids_sem"]
        machine.kernel.words(address, count)
        first, _ = machine.add(2)
        machine.grow(first)
        findings, rows = walk(machine)
        assert rows == [first_row, OLD]
        assert findings.growing_to == growing_to


def test_without_the_semaphore_the_objects_tell() -> None:
    machine = GrowingMachine()
    del machine.kernel.variables["memcg_cache_ids_sem"]
    first, second, _ = machine.add(3)
    machine.grow(first)
    machine.grow(second)
    machine.cancel(second)
    findings, rows = walk(machine)
    assert rows == [GROWN, LEFT_OVER, OLD]
    assert findings.growing_to == 10


def test_a_doubling_is_over_when_ids_are_free() -> None:
    """memcg_alloc_cache_id() publishes the new number of ids before it unlocks the semaphore."""
    machine = GrowingMachine()
    machine.add(2)
    machine.online = (0, 1, 2)
    findings, rows = walk(machine)
    assert rows == [OLD, OLD]
    assert findings.growing_to is None


def test_a_failed_doubling_is_noticed_on_a_long_list() -> None:
    """4 of 100 list_lrus have longer arrays, neither the first nor the last."""
    machine = GrowingMachine(is_locked=False)
    lrus = machine.add(100)
    for address in lrus[30:34]:
        machine.grow(address)
        machine.cancel(address)
    assert walk(machine)[1] == 30 * [OLD] + 4 * [LEFT_OVER] + 66 * [OLD]


def test_verification_looks_at_the_objects_of_every_array_that_has_grown() -> None:
    machine = GrowingMachine()
    lrus = machine.add(6)
    for address in lrus[:5]:
        machine.grow(address)
    kernel = machine.kernel
    damaged = machine.new_objects[lrus[0]][5]  # the last one of node 0
    kernel.words(damaged, 0, 0, 0)
    assert walk(machine)[1] == 5 * [GROWN] + [OLD]
    with pytest.raises(CollectError, match="the pointer array at 0x"):
        walk(machine, verify=True)


@pytest.mark.parametrize("layout", ["mlrus", "mlrus_lazy", "ext_mlrus", "ext_mlrus_lazy"])
def test_the_one_array_of_a_list_lru_grows(layout: str) -> None:
    """From 64 to 96 bytes. An object has a list for each of 4 nodes; a lazy kernel makes none for a new id."""
    machine = GrowingMachine(layout)
    kernel = machine.kernel
    first, second = machine.superblock()
    for address in (first, second):
        machine.list_lru(address, used_ids=(0, 2))
    holder, struct_name = first, "struct list_lru"
    if layout.startswith("ext_"):
        holder, struct_name = kernel.prog.read_word(first), "struct list_lru_ext"
    member = kernel.prog.type(struct_name).member("mlrus").bit_offset // 8
    old = kernel.prog.read_word(holder + member)
    new = kernel.write(kernel.slab("kmalloc-96"), kernel.prog.read(old, 16 + 8 * 4) + bytes(8 * 6))
    if not layout.endswith("lazy"):
        for slot in range(4, 10):
            address = kernel.slab("kmalloc-96")
            for nid in NODES:  # init_one_lru()
                kernel.words(address + 24 * nid, address + 24 * nid, address + 24 * nid, 0)
            kernel.words(new + 16 + 8 * slot, address)
    kernel.put(holder, struct_name, mlrus=new)
    findings, lrus = machine.walk()
    assert findings.growing_to == 10
    objects = (2, 2) if layout.endswith("lazy") else (10, 4)
    assert [lrus[address].list_lru_one_objects for address in (first, second)] == list(objects)
    assert [lrus[address].pointer_array_bytes for address in (first, second)] == [96, 64]
    assert [lrus[address].cache_ids for address in (first, second)] == [10, 4]


def test_a_kernel_that_is_not_growing_costs_few_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as many pointer arrays take no more reads: a sample of them is measured."""
    measure = PointerArrays.measure
    reads = []

    def count_reads(arrays: PointerArrays, *arguments: object) -> None:
        start = machine.kernel.reads
        measure(arrays, *arguments)
        reads.append(machine.kernel.reads - start)

    monkeypatch.setattr(PointerArrays, "measure", count_reads)
    for list_lrus in (150, 300):
        machine = GrowingMachine(is_locked=False)
        machine.add(list_lrus)
        machine.walk()
    assert reads[1] <= reads[0] < 150
