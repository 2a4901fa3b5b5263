"""The structs that the kernel allocates for each memcg: its own, its cgroup's, and what they point to.

Not counted: kernfs nodes, dentries and inodes of the cgroup's directory, the structs of other controllers, per-CPU
memory, thresholds and events, which a process adds, and an obj_cgroup that a removed memcg has left to its parent. The
cgroup of the root memcg is part of its hierarchy's cgroup_root.
"""

from collections import namedtuple

from drgn import TypeKind, sizeof

from ..access.memory import has_member, member_type
from . import memcgs, slab
from .held import Held

# Pointers to what mem_cgroup_alloc(), cgroup_create() and the functions that they call always allocate:
# - percpu_ref.data since commit 2b0d3d3e4fcf ("percpu_ref: reduce memory footprint of percpu_ref in fast path") (in
#   v5.10), in css, obj_cgroup and cgroup_bpf;
# - vmstats since commit 410f8e82689e ("memcg: extract memcg_vmstats from struct mem_cgroup") (in v6.1);
# - lruvec_stats since commit 70a64b7919cb ("memcg: dynamically allocate lruvec_stats") (in v6.10);
# - psi, unless it is disabled, since commit 5f69a6577bc3 ("psi: dont alloc memory for psi by default") (in v6.0).
# Where they are not allocated, the members are missing, structs or arrays.
_POINTERS = {
    "struct mem_cgroup": ("css.refcnt.data", "vmstats"),
    "struct mem_cgroup_per_node": ("lruvec_stats",),
    "struct cgroup": ("self.refcnt.data", "bpf.refcnt.data", "psi"),
    "struct obj_cgroup": ("refcnt.data",),
}
# The obj_cgroup of a memcg, and since commit 01b9da291c49 ("mm: memcontrol: convert objcg to be per-memcg per-node
# type") (in v7.1) of each of its nodes. orig_objcg outlives the removal of the memcg, since commit 675d6c9b59e3 ("mm:
# kmem: make memcg keep a reference to the original objcg") (in v6.8).
_OBJCG_NAMES = ("orig_objcg", "objcg")
# For memcgs.Pointers.
POINTERS = {name: paths + _OBJCG_NAMES for name, paths in _POINTERS.items()}


Count = namedtuple("Count", "held addresses")
"""The Held of all structs, and the address of each."""


def count(prog, memcg_list, pointers=None):
    """Return the Count of a kernel. Each struct is counted; its bytes are those of an object of its slab cache.

    Objects of one kind are measured by a sample.

    :param pointers: memcgs.Pointers with POINTERS, for an audit that needs others of the same structs.
    :raises CollectError: ``bad_core``: objects of one kind differ in size, or are smaller than their struct.
    """
    pointers = pointers or memcgs.Pointers(prog, POINTERS)
    nodes = memcgs.node_structs(prog, memcg_list, pointers)
    # A memcg that was disabled for a cgroup and the one that was enabled again have one cgroup: it is the online one's.
    online_last = sorted(memcg_list, key=lambda memcg: memcg.online)
    structs = {
        "struct mem_cgroup": {memcg.address: memcg for memcg in memcg_list},
        "struct mem_cgroup_per_node": {node: memcg for memcg in memcg_list for node in nodes[memcg]},
        "struct cgroup": {memcg.cgroup: memcg for memcg in online_last if memcg.parent},
        "struct obj_cgroup": {},
    }
    held_bytes = dict.fromkeys(memcg_list, 0)
    kinds = [(name, structs[name]) for name in ("struct mem_cgroup", "struct mem_cgroup_per_node")]
    kinds += [("struct cgroup", owners) for owners in _by_level(structs["struct cgroup"], memcg_list)]
    for name in _POINTERS:
        for target_name, targets in _follow(prog, pointers, name, structs[name]):
            if target_name in structs:
                structs[target_name].update(targets)
            kinds.append((target_name, targets))
    sizes = slab.uniform_bytes(prog, [(list(owners), sizeof(prog.type(name))) for name, owners in kinds])
    for object_bytes, (_, owners) in zip(sizes, kinds):
        for memcg in owners.values():
            held_bytes[memcg] += object_bytes
    return Count(Held.of_memcgs(held_bytes), [address for _, owners in kinds for address in owners])


def _by_level(cgroups, memcg_list):
    """Return a dict of cgroup to Memcg for each level: a cgroup has its ancestors at its end, and so its size.

    A memcg is as deep as its cgroup, whose parent has the memory controller, too.
    """
    levels, groups = {None: -1}, {}
    for memcg in memcg_list:
        levels[memcg] = levels[memcg.parent] + 1
    for cgroup, memcg in cgroups.items():
        groups.setdefault(levels[memcg], {})[cgroup] = memcg
    return groups.values()


def _follow(prog, pointers, struct_name, owners):
    """Return a pair for each pointer of many structs: the type name, and the Memcgs by address, of what it points to.

    :param owners: dict of the address of each struct to its Memcg.
    """
    if not owners:
        return []
    struct_type = prog.type(struct_name)
    paths = [path for path in _POINTERS[struct_name] if _target(struct_type, path)]
    paths += [name for name in _OBJCG_NAMES if _target(struct_type, name)][:1]
    if not paths:
        return []
    targets = [(_target(struct_type, path), {}) for path in paths]
    for address, addresses in pointers.each(struct_name, owners, paths):
        for (_, memcgs_by_address), target in zip(targets, addresses):
            if target:
                memcgs_by_address[target] = owners[address]
    return targets


def _target(struct_type, path):
    """Return the name of the type that a member points to, or None if it is missing or no pointer."""
    if not has_member(struct_type, path):
        return None
    found_type = member_type(struct_type, path)
    return found_type.type.type_name() if found_type.kind is TypeKind.POINTER else None
