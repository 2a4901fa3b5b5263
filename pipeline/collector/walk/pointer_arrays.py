"""The arrays with a pointer for every memcg id: their sizes, and how far a doubling of the ids has come.

A new memcg that finds no free id makes memcg_alloc_cache_id() double the ids (v4.0 to v5.17).
memcg_update_all_list_lrus() goes along the kernel's list of list_lrus and from node to node. On each it allocates a
longer array with an object for every new id, and replaces the old array. memcg_nr_cache_ids follows at the end. If an
allocation fails, the new objects are freed again. The longer arrays stay, with dangling pointers to these objects.
"""

from drgn import FaultError, sizeof
from drgn.helpers.linux.mm import in_direct_map

from ..access.memory import Members, check_range, has_member, read, read_each, words
from ..model.cost import next_cache_ids
from ..status import CollectError
from . import slab
from .memcgs import MEM_CGROUP_ID_MAX

_ZERO_SIZE_PTR = 16
_POINTER_BYTES = 8
# Last objects of an array that are looked at. Some of the freed objects at the end of an array are in use again, but
# hardly this many in a row as empty list_lru_ones.
_LAST_OBJECTS = 16


class PointerArrays:
    """All pointer arrays of a kernel.

    :param memcgs: list of Memcg.
    :ivar cache_ids: memcg_nr_cache_ids.
    :ivar online_ids: kmemcg_id of each online memcg that has one, ascending.
    :ivar growing_to: memcg_nr_cache_ids after the doubling that is under way, or None.
    """

    def __init__(self, prog, memcgs):
        self.prog = prog
        self.cache_ids = check_range(0, self._read_cache_ids(), MEM_CGROUP_ID_MAX, "memcg_nr_cache_ids")
        self.online_ids = sorted(memcg.cache_id for memcg in memcgs if memcg.cache_id is not None)
        if self.online_ids:
            check_range(0, self.online_ids[-1], self.cache_ids - 1, "the highest kmemcg_id")
        self.growing_to = None
        self._next_ids = next_cache_ids(self.cache_ids)
        self._header_bytes = sizeof(prog.type("struct list_lru_memcg"))
        self._list_lru_one = Members(
            prog, "struct list_lru_one", next="list.next", prev="list.prev", nr_items="nr_items"
        )
        self._allocators = slab.Allocators(prog)
        self._bytes_by_allocator = {}
        self._bytes_by_array = {}
        # Arrays with room for _next_ids while a doubling may be under way, and those of them that have the objects.
        self._longer_arrays = frozenset()
        self._grown_arrays = frozenset()

    def measure(self, arrays, list_lru_one_offsets):
        """Measure the arrays, all of them if they differ or may be growing, else a sample.

        :param arrays: addresses, in the order in which a doubling replaces the arrays.
        :param list_lru_one_offsets: of each list_lru_one in an object; empty if a new id gets no object.
        :raises CollectError: ``bad_core``: an array is free, or has no room for memcg_nr_cache_ids.
        """
        samples = self._samples(arrays)
        for array in samples[:1]:
            slab.allocation(self.prog, array, self._request_bytes(self.cache_ids))
        allocations = self._allocations(samples)
        for array, allocation in allocations.items():
            self._bytes_by_allocator.setdefault(self._allocators.of(array), allocation.allocated_bytes)
        is_locked = _is_write_locked(self.prog, "memcg_cache_ids_sem")
        if not is_locked and all(allocations[array].allocated_bytes == self.size_of(array) for array in allocations):
            return
        allocations = self._allocations(arrays)
        self._bytes_by_array = {array: allocations[array].allocated_bytes for array in allocations}
        # Only memcg_alloc_cache_id() locks the semaphore for writing.
        if is_locked is False or self._next_ids == self.cache_ids:
            return
        longer_arrays = [
            array
            for array in arrays
            if array in allocations and allocations[array].usable_bytes >= self._request_bytes(self._next_ids)
        ]
        self._longer_arrays = frozenset(longer_arrays)
        self._grown_arrays = frozenset(longer_arrays[: self._count_grown(longer_arrays, list_lru_one_offsets)])
        # A doubling needs all ids in use; without any effect it can also be over, but for the unlock.
        if self._grown_arrays or (is_locked and len(self.online_ids) == self.cache_ids):
            self.growing_to = self._next_ids

    def size_of(self, array):
        """Return the bytes of a pointer array."""
        if self._is_zero_size(array):
            return 0
        return self._bytes_by_array.get(array) or self._bytes_by_allocator[self._allocators.of(array)]

    def ids_of(self, array):
        """Return the number of ids for which a pointer array has objects."""
        return self._next_ids if array in self._grown_arrays else self.cache_ids

    def slots(self, array, count):
        """Return the first ``count`` pointers of a pointer array."""
        return self._slots(array, 0, count) if count else ()

    def entries(self, array, ids):
        """Return a pair (id, pointer) for each of the ids, which are ascending."""
        slots = self.slots(array, ids[-1] + 1 if ids else 0)
        return [(cache_id, slots[cache_id]) for cache_id in ids]

    def verify(self, array, list_lru_one_offsets):
        """Check a pointer array on its own: its size, and an object for every id.

        :raises CollectError: ``bad_core``: it differs from what the sample or the order of the arrays tells.
        """
        size = 0 if self._is_zero_size(array) else slab.allocation(self.prog, array)[0]
        ids = self.ids_of(array)
        empty_slots = self.slots(array, ids).count(0)
        is_grown = array in self._longer_arrays and self._has_new_objects(array, list_lru_one_offsets)
        if size != self.size_of(array) or empty_slots or is_grown != (ids != self.cache_ids):
            raise CollectError(
                "bad_core",
                "the pointer array at 0x%x has %d bytes and %d of %d slots empty; the sample has %d bytes"
                % (array, size, empty_slots, ids, self.size_of(array)),
            )

    def check_length(self):
        """Check that memcg_nr_cache_ids is still the same."""
        if self._read_cache_ids() != self.cache_ids:
            raise CollectError("bad_core", "memcg_nr_cache_ids grew during the walk")

    def _request_bytes(self, ids):
        return self._header_bytes + _POINTER_BYTES * ids

    def _read_cache_ids(self):
        return self.prog["memcg_nr_cache_ids"].value_()

    def _slots(self, array, first, count):
        address = array + self._header_bytes + _POINTER_BYTES * first
        return words(self.prog, read(self.prog, address, _POINTER_BYTES * count))

    def _is_zero_size(self, array):
        """Whether an array is what kmalloc(0) returns: without ids, and without the header."""
        return array == _ZERO_SIZE_PTR and not self._request_bytes(self.cache_ids)

    def _split(self, arrays):
        """Return the arrays from kmalloc() and those from vmalloc(), each in the order of ``arrays``."""
        arrays = [array for array in arrays if not self._is_zero_size(array)]
        return tuple(
            [array for array in arrays if self._allocators.of(array) == name] for name in ("kmalloc", "vmalloc")
        )

    def _samples(self, arrays):
        """Return the arrays that are measured on every kernel.

        A failed doubling leaves a run of longer arrays on the kernel's list, so a run that all samples miss is shorter
        than a 64th of it. A vmalloc() takes many reads, so of these only the first and the last are measured.
        """
        from_kmalloc, from_vmalloc = self._split(arrays)
        return slab.samples(from_kmalloc) + from_vmalloc[:1] + from_vmalloc[1:][-1:]

    def _allocations(self, arrays):
        """Return the slab.Allocation of each array but ZERO_SIZE_PTR: dict by address."""
        from_kmalloc, from_vmalloc = self._split(arrays)
        allocations = slab.direct_map_allocations(self.prog, from_kmalloc)
        allocations.update((array, slab.vmalloc_allocation(self.prog, array)) for array in from_vmalloc)
        for array, allocation in allocations.items():
            if allocation.usable_bytes < self._request_bytes(self.cache_ids):
                message = "the pointer array at 0x%x has %d bytes, too few for %d ids"
                raise CollectError("bad_core", message % (array, allocation.usable_bytes, self.cache_ids))
        return allocations

    def _count_grown(self, arrays, list_lru_one_offsets):
        """Return how many of the longer arrays this doubling has made: the first ones. The others are left over."""
        low, high = 0, len(arrays)
        while low < high:
            middle = (low + high) // 2
            if self._has_new_objects(arrays[middle], list_lru_one_offsets):
                low = middle + 1
            else:
                high = middle
        return low

    def _has_new_objects(self, array, list_lru_one_offsets):
        """Whether the objects at the end of a longer array are there, as memcg_init_list_lru_one() makes them."""
        if not list_lru_one_offsets:
            return True
        count = min(_LAST_OBJECTS, self._next_ids - self.cache_ids)
        objects = self._slots(array, self._next_ids - count, count)
        # The end of an array that has only room can contain anything.
        if not all(address % _POINTER_BYTES == 0 and in_direct_map(self.prog, address) for address in objects):
            return False
        list_addresses = [address + offset for address in objects for offset in list_lru_one_offsets]
        try:
            data = read_each(self.prog, list_addresses, self._list_lru_one.end)
        except FaultError:  # makedumpfile leaves out free pages
            return False
        info = slab.object_info(self.prog, objects[-1])
        is_allocated = info is not None and info.allocated is not False
        return is_allocated and all(
            self._list_lru_one.decode(data[address]) == (address, address, 0) for address in list_addresses
        )


def _is_write_locked(prog, name):
    """Whether a writer has locked a ``struct rw_semaphore`` or waits for it; None if the kernel does not show it."""
    try:
        semaphore = prog[name].read_()
    except (LookupError, FaultError):
        return None
    # With PREEMPT_RT: commit 42254105dfe8 ("locking/rwsem: Add rtmutex based R/W semaphore implementation") (in v5.15),
    # before that a patch. A writer takes the bias, the lowest int, away from the number of readers.
    if has_member(semaphore.type_, "rwbase"):
        return semaphore.rwbase.readers.counter.value_() >= 0
    if has_member(semaphore.type_, "readers"):
        return semaphore.readers.counter.value_() >= 0
    # Since commit 94a9717b3c40 ("locking/rwsem: Make rwsem->owner an atomic_long_t") (in v5.3). The release also has
    # commit 64489e78004c ("locking/rwsem: Implement a new locking scheme"): bit 0 is RWSEM_WRITER_LOCKED.
    if has_member(semaphore.type_, "owner.counter"):
        return bool(semaphore.count.counter.value_() & 1)
    # Before commit 8ee62b1870be ("locking/rwsem: Convert sem->count to 'atomic_long_t'") (in v4.8) it is a long.
    count = semaphore.count.counter if has_member(semaphore.type_, "count.counter") else semaphore.count
    return count.value_() < 0
