"""The contents of many ``struct xarray`` at once, level by level, in bulk reads (include/linux/xarray.h)."""

import struct

from drgn import offsetof, sizeof

from ..access.memory import Members, read_each
from ..status import CollectError

_XA_CHUNK_SHIFT = 6
_XA_CHUNK_SIZE = 1 << _XA_CHUNK_SHIFT
# An xarray of ids up to 65535 has at most three levels.
_XA_ROOT_SHIFTS = (0, _XA_CHUNK_SHIFT, 2 * _XA_CHUNK_SHIFT)
# Pointers below are no pointers, internal entries below no nodes (xa_is_node(), XA_ZERO_ENTRY, XA_RETRY_ENTRY).
_XA_LOWEST_POINTER = 4096


class Xarrays:
    """Reads xarrays of pointers with indices up to 65535."""

    def __init__(self, prog):
        self._prog = prog
        node_type = prog.type("struct xa_node")
        self._node = Members(prog, node_type, shift="shift", array="array")
        self._node_bytes = sizeof(node_type)
        self._slots_offset = offsetof(node_type, "slots")

    def read(self, heads):
        """Return by xarray its entries, pairs (index, pointer), and the number of its ``struct xa_node``.

        :param heads: address of each ``struct xarray`` to its ``xa_head``.
        :raises CollectError: ``bad_core``: a node is another xarray's, or an entry no pointer.
        """
        entries = {xa: [] for xa in heads}
        counts = dict.fromkeys(heads, 0)
        # Of each entry: whose, the index of its slot, the shift of its node (None: xa_head), the entry.
        level = [(xa, 0, None, entry) for xa, entry in heads.items()]
        while level:
            nodes = []
            for xa, index, shift, entry in level:
                if entry & 3 == 2:
                    if entry > _XA_LOWEST_POINTER:
                        nodes.append((xa, index, shift, entry - 2))
                elif entry:
                    if shift or entry & 7 or entry < _XA_LOWEST_POINTER:
                        raise _broken(xa)
                    entries[xa].append((index, entry))
            data = read_each(self._prog, [address for _, _, _, address in nodes], self._node_bytes)
            level = []
            for xa, index, above, address in nodes:
                node = self._node.decode(data[address])
                # A node that is freed and used again, or a broken pointer, belongs to another array.
                shifts = _XA_ROOT_SHIFTS if above is None else (above - _XA_CHUNK_SHIFT,)
                if node.array != xa or node.shift not in shifts:
                    raise _broken(xa)
                counts[xa] += 1
                slots = struct.unpack_from("%dQ" % _XA_CHUNK_SIZE, data[address], self._slots_offset)
                level += [(xa, index + (i << node.shift), node.shift, entry) for i, entry in enumerate(slots) if entry]
        return entries, counts


def _broken(xa):
    return CollectError("bad_core", "the xarray at 0x%x is broken" % xa)
