"""The slab caches that each memcg has of its own, and the arrays with a pointer to one of them for every memcg id.

Since commit 9855609bde03 ("mm: memcg/slab: use a single set of kmem_caches for all accounted allocations") (in v5.9)
there are neither. Before that, each memcg has a copy, a child, of each slab cache whose objects are charged to it, so
that a slab has objects of one memcg only. A child costs its free slots, its structs and its per-CPU memory.
"""

from collections import Counter, namedtuple

from drgn import Object, sizeof

from ..access.memory import Members, check_range, has_member
from ..status import CollectError
from . import slab, slub, totals
from .held import Held

_PARAMS = "memcg_params."
_POINTER_BYTES = 8
_PERCPU_REF_DEAD = 1 << 1
_SLAB_RECLAIM_ACCOUNT = 0x00020000
# Bounds the files of a slab cache in sysfs: a kernel has 30 to 50.
_MAX_FILES = 256


class Count(namedtuple("Count", "held percpu_held basis active_objects shared_bytes")):
    """What the children cost.

    held: Held: free slots and structs, as far as the kernel counts them as unreclaimable slab. percpu_held: Held of
    their per-CPU memory, None where the number of its units cannot be read. basis: how exact held is, and the bytes of
    free slots in reclaimable slab. active_objects: objects that are charged to a memcg. shared_bytes: unreclaimable
    slab that the same objects take besides their own bytes in shared caches whose slabs are full.
    """

    __slots__ = ()


def owners(prog):
    """Return the children: dict of address to (address of the root cache, address of the memcg)."""
    caches = _caches(prog, memcg=_PARAMS + "memcg")
    return {address: (fields.root_cache, fields.memcg) for address, fields in caches if not _is_root(fields)}


def root_caches(prog, caches):
    """Return those of some slab caches that are no children: set of addresses."""
    if not _has_children(prog):
        return set(caches)
    members = Members(prog, "struct kmem_cache", **_root_paths(prog))
    return {cache for cache, fields in members.read_each(prog, caches).items() if _is_root(fields)}


def count(prog, memcgs):
    """Return the Count of all children, or None on a kernel without them.

    :param memcgs: list of Memcg.
    :raises LookupError, CollectError: as for slub.usage().
    """
    if not _has_children(prog):
        return None
    children = dict(_children(prog))
    usages, modelled = slub.usage(prog, children)
    struct_bytes = _struct_bytes(prog, children, usages)
    is_online = {memcg.address: memcg.online for memcg in memcgs}
    held_bytes, states, active_objects = Counter(), Counter(), Counter()
    reclaimable_bytes = 0
    for address, child in children.items():
        usage = usages[address]
        active = usage.slots - usage.free_slots
        size = check_range(1, child.size, usage.slab_bytes, "kmem_cache.size")
        # commit fb2f2b0adb98 ("mm: memcg/slab: reparent memcg kmem_caches on cgroup removal") (in v5.3): the memcg that
        # this one was made for is gone, and another one has it.
        state = None if getattr(child, "refcnt", 0) & _PERCPU_REF_DEAD else is_online.get(child.memcg)
        slabs_bytes = usage.slabs * usage.slab_bytes
        free_bytes = slabs_bytes - check_range(0, active * size, slabs_bytes, "the bytes of objects of a slab cache")
        is_reclaimable = bool(child.flags & _SLAB_RECLAIM_ACCOUNT)
        reclaimable_bytes += free_bytes * is_reclaimable
        held_bytes[state] += struct_bytes[address] + free_bytes * (not is_reclaimable)
        states[state] += 1
        active_objects[child.root_cache, size, usage.slab_bytes, usage.slab_slots, is_reclaimable] += active
    basis = "modelled: " + ", ".join(modelled) if modelled else "exact"
    percpu_bytes = _percpu_bytes(prog)
    return Count(
        _by_state(held_bytes),
        None if percpu_bytes is None else _by_state({state: n * percpu_bytes for state, n in states.items()}),
        "%s; without %d bytes of free slots in reclaimable slab" % (basis, reclaimable_bytes),
        sum(active_objects.values()),
        sum(_shared_bytes(active, *key[1:]) for key, active in active_objects.items()),
    )


def _by_state(sizes):
    """Return the Held of bytes by whether a memcg is online, None for no memcg."""
    return Held(sizes.get(True, 0), sizes.get(False, 0), sizes.get(None, 0))


def count_arrays(prog, memcgs):
    """Return the Held of the arrays of all root caches, or None on a kernel without them.

    The share of an array's ids that no online memcg has is left.

    :param memcgs: list of Memcg.
    """
    if not _has_children(prog):
        return None
    caches = _caches(prog, array=_PARAMS + "memcg_caches")
    arrays = {fields.array for _, fields in caches if _is_root(fields) and fields.array}
    total_bytes = sum(slab.allocated_bytes(prog, list(arrays), _POINTER_BYTES).values())
    ids = prog["memcg_nr_cache_ids"].value_()
    online_ids = sum(memcg.cache_id is not None for memcg in memcgs)
    left_bytes = total_bytes * max(0, ids - online_ids) // ids if ids else 0
    return Held(total_bytes - left_bytes, 0, left_bytes)


def _has_children(prog):
    return has_member(prog.type("struct kmem_cache"), _PARAMS + "root_cache")


def _has_refcnt(prog):
    return has_member(prog.type("struct kmem_cache"), _PARAMS + "refcnt")


def _is_root(fields):
    return not fields.root_cache or bool(getattr(fields, "is_root_cache", False))


def _caches(prog, **paths):
    """Yield the address and the decoded members of each slab cache, of none on a kernel without children."""
    if not _has_children(prog):
        return ()
    return slab.caches(prog, **paths, **_root_paths(prog))


def _root_paths(prog):
    """Return the paths of the members that _is_root() needs."""
    paths = {"root_cache": _PARAMS + "root_cache"}
    # Before commit 9eeadc8b6e8c ("slab: reorganize memcg_cache_params") (in v4.11).
    if has_member(prog.type("struct kmem_cache"), _PARAMS + "is_root_cache"):
        paths["is_root_cache"] = _PARAMS + "is_root_cache"
    return paths


def _children(prog):
    """Yield the address and the fields of each child."""
    paths = {"size": "size", "flags": "flags", "name": "name", "directory": "kobj.sd", "directory_name": "kobj.name"}
    # Since commit f0a3a24b532d ("mm: memcg/slab: rework non-root kmem_cache lifecycle management") (in v5.3).
    if _has_refcnt(prog):
        paths["refcnt"] = _PARAMS + "refcnt.percpu_count_ptr"
    for address, fields in _caches(prog, memcg=_PARAMS + "memcg", **paths):
        if not _is_root(fields):
            yield address, fields


def _struct_bytes(prog, children, usages):
    """Return the bytes of the structs of each child: its kmem_cache, nodes and name, and its directory in sysfs.

    Structs of one kind are in one slab cache, and files of all children are the same: the first of each is measured.
    """
    if not children:
        return {}
    first = next(iter(children))
    node = next((node for usage in usages.values() for node in usage.nodes), 0)
    directory = next(filter(None, (child.directory for child in children.values())), 0)
    addresses = {first, node, directory}.union(*((child.name, child.directory_name) for child in children.values()))
    allocations = slab.direct_map_allocations(prog, addresses - {0})
    bytes_at = {address: allocation.allocated_bytes for address, allocation in allocations.items()}
    bytes_at[0] = 0
    directory_bytes = bytes_at[directory] * (1 + _count_files(prog, directory)) if directory else 0
    struct_bytes = {}
    for address, child in children.items():
        size = bytes_at[first] + bytes_at[node] * len(usages[address].nodes)
        size += bytes_at[child.name] + bytes_at[child.directory_name]
        # The directory has a copy of its name.
        size += directory_bytes + bytes_at[child.directory_name] if child.directory else 0
        struct_bytes[address] = size
    return struct_bytes


def _count_files(prog, directory):
    """Return the number of files in a directory of sysfs, a ``struct kernfs_node *``."""
    nodes = [Object(prog, "struct kernfs_node *", directory).dir.children.rb_node]
    for node in nodes:
        if node:
            nodes += [node.rb_left, node.rb_right]
        if len(nodes) > 2 * _MAX_FILES:
            raise CollectError("bad_core", "a slab cache has more than %d files in sysfs" % _MAX_FILES)
    return len(nodes) // 2


def _percpu_bytes(prog):
    """Return the per-CPU memory of one child in all units, or None where their number cannot be read."""
    units = totals.percpu_units(prog)
    unit_bytes = sizeof(prog.type("struct kmem_cache_cpu")) + (_POINTER_BYTES if _has_refcnt(prog) else 0)
    return None if units is None else units * unit_bytes


def _shared_bytes(objects, size, slab_bytes, slab_slots, is_reclaimable):
    """Return the object cgroup vectors of full slabs with objects, and what these slabs have besides the objects.

    A vector has a pointer for each slot: commit 286e04b8ed7a ("mm: memcg/slab: allocate obj_cgroups for non-root slab
    pages") (in v5.9). It is unreclaimable, as each kmalloc() without __GFP_RECLAIMABLE.
    """
    slabs = -(-objects // slab_slots)
    vector_bytes = slabs * slab_slots * _POINTER_BYTES
    return vector_bytes if is_reclaimable else vector_bytes + slabs * slab_bytes - objects * size
