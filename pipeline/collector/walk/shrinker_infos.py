"""The arrays with an element for each memcg-aware shrinker, of every memcg and possible node.

A memcg-aware shrinker has an id; a superblock is one such shrinker. Each memcg has on each node a bitmap by these ids,
by which reclaim skips the shrinkers without objects of the memcg, and since v5.13 a counter for each id. A new highest
id lengthens the arrays of all memcgs. They never shrink.
"""

from collections import namedtuple

from drgn import sizeof

from ..access.memory import Members, check_range, has_member, read_each, words
from ..status import CollectError
from . import memcgs, slab
from .held import Held

_WORD_BYTES = 8
# The ids of a word of the bitmap, and of a struct shrinker_info_unit: SHRINKER_UNIT_BITS.
_WORD_BITS = 64
# Bounds a broken array: about as many superblocks can be mounted.
_MAX_IDS = 1 << 20
# The pointer in struct mem_cgroup_per_node: commit 0a4465d34028 ("mm, memcg: assign memcg-aware shrinkers bitmap to
# memcg") (in v4.19) has the older name, commit e4262c4f51d6 ("mm: memcontrol: rename shrinker_map to shrinker_info")
# (in v5.13) the newer one.
_NAMES = ("shrinker_info", "shrinker_map")
# For memcgs.Pointers.
POINTERS = {"struct mem_cgroup_per_node": _NAMES}


class Count(namedtuple("Count", "held ids addresses")):
    """All arrays.

    held: Held. ids: shrinker_nr_max, one more than the highest id so far, since v6.4 rounded up to 64. addresses: of
    each array and unit.
    """

    __slots__ = ()


def count(prog, memcg_list, pointers=None):
    """Return the Count of a kernel, or None if it has no such arrays.

    A memcg has them from when it is online until it is freed; the root has none before v5.13.

    :param pointers: memcgs.Pointers with POINTERS, for an audit that needs others of the same structs.
    :raises CollectError: ``bad_core``: an array is for an impossible number of ids.
    """
    node_type = prog.type("struct mem_cgroup_per_node")
    name = next((name for name in _NAMES if has_member(node_type, name)), None)
    if name is None:
        return None
    pointers = pointers or memcgs.Pointers(prog, POINTERS)
    nodes = memcgs.node_structs(prog, memcg_list, pointers)
    all_nodes = [node for memcg in memcg_list for node in nodes[memcg]]
    info_by_node = {node: info for node, (info,) in pointers.each("struct mem_cgroup_per_node", all_nodes, [name])}
    infos = {memcg: [info_by_node[node] for node in nodes[memcg]] for memcg in memcg_list}
    addresses = [info for info in info_by_node.values() if info]
    # The kernel lengthens all arrays before it raises shrinker_nr_max.
    ids = check_range(0, prog["shrinker_nr_max"].value_(), _MAX_IDS, "shrinker_nr_max")
    info_type = prog.type("struct memcg_shrinker_map" if name == "shrinker_map" else "struct shrinker_info")
    sizes = slab.allocated_bytes(prog, addresses, _end(sizeof(info_type), ids))
    all_units = []
    if has_member(info_type, "unit"):
        units = _units(prog, info_type, addresses, ids)
        all_units = [unit for info in addresses for unit in units[info]]
        (unit_bytes,) = slab.uniform_bytes(prog, [(all_units, sizeof(prog.type("struct shrinker_info_unit")))])
        sizes = {info: sizes[info] + len(units[info]) * unit_bytes for info in addresses}
    held_bytes = {memcg: sum(sizes[info] for info in infos[memcg] if info) for memcg in memcg_list}
    return Count(Held.of_memcgs(held_bytes), ids, addresses + all_units)


def _units(prog, info_type, infos, ids):
    """Return the addresses of the units of each ``struct shrinker_info``: dict by its address.

    The struct has units since commit 307bececcd12 ("mm: shrinker: add a secondary array for shrinker_info::{map,
    nr_deferred}") (in v6.7); before that, map and counters follow it in one allocation.

    :param ids: for which each has room at least.
    """
    members, header_bytes = Members(prog, info_type, ids="map_nr_max"), sizeof(info_type)
    units, infos_by_ids = {}, {ids: infos}
    while infos_by_ids:
        ids, group = infos_by_ids.popitem()
        for info, data in read_each(prog, group, _end(header_bytes, ids)).items():
            own_ids = members.decode(data).ids
            if not 0 <= own_ids <= _MAX_IDS:
                raise CollectError("bad_core", "the shrinker_info at 0x%x is for %d ids" % (info, own_ids))
            if own_ids > ids:
                infos_by_ids.setdefault(own_ids, []).append(info)
            else:
                units[info] = [unit for unit in words(prog, data[header_bytes : _end(header_bytes, own_ids)]) if unit]
    return units


def _end(header_bytes, ids):
    """Return the offset behind an array with a word for each _WORD_BITS ids."""
    return header_bytes + _WORD_BYTES * -(-ids // _WORD_BITS)
