"""Bulk reads of many ``struct xarray`` together, level by level (include/linux/xarray.h)."""

from drgn import offsetof, sizeof

from ..access.memory import Members, read_each, words
from ..status import CollectError

_POINTER_BYTES = 8
_XA_INDEX_BITS = 16
"""Bits of the indices: they are ids up to 65535."""
# Lowest value of a pointer, and of an internal entry that is a node: lower internal entries are XA_ZERO_ENTRY,
# XA_RETRY_ENTRY and siblings (xa_is_node()).
_XA_MIN_POINTER = 4096


def chunk_shift(prog):
    """Return XA_CHUNK_SHIFT: 4 with CONFIG_BASE_SMALL, else 6."""
    return (_slots(prog).length - 1).bit_length()


def _slots(prog):
    """Return the type of a node's slots. Before v4.20 there are only radix trees, of nodes with as many slots."""
    try:
        node_type = prog.type("struct xa_node")
    except LookupError:
        node_type = prog.type("struct radix_tree_node")
    return node_type.member("slots").type


class Xarrays:
    """Reader of xarrays of pointers with indices up to 65535."""

    def __init__(self, prog):
        self._prog = prog
        node_type = prog.type("struct xa_node")
        self._node = Members(prog, node_type, shift="shift", array="array")
        self._node_bytes = sizeof(node_type)
        self._slots_offset = offsetof(node_type, "slots")
        self._chunk_shift = chunk_shift(prog)
        self._slots_end = self._slots_offset + (_POINTER_BYTES << self._chunk_shift)
        # Shifts that a root node can have.
        self._root_shifts = range(0, _XA_INDEX_BITS, self._chunk_shift)

    def read(self, heads):
        """Read the entries of xarrays.

        :param heads: address of each ``struct xarray`` to its ``xa_head``.
        :return: two dicts by xarray: its entries, pairs (index, pointer), and the number of its ``struct xa_node``.
        :raises CollectError: ``bad_core``: a node belongs to another xarray, or an entry is not a pointer.
        """
        entries = {xa: [] for xa in heads}
        node_counts = dict.fromkeys(heads, 0)
        # For each entry: its xarray, the index of its slot, the shift of its node (None for xa_head), the entry.
        level = [(xa, 0, None, entry) for xa, entry in heads.items()]
        while level:
            nodes = []
            for xa, index, shift, entry in level:
                if entry & 3 == 2:
                    if entry > _XA_MIN_POINTER:
                        nodes.append((xa, index, shift, entry - 2))
                elif entry:
                    if shift or entry & 7 or entry < _XA_MIN_POINTER:
                        raise _broken(xa)
                    entries[xa].append((index, entry))
            data = read_each(self._prog, [address for _, _, _, address in nodes], self._node_bytes)
            level = []
            for xa, index, parent_shift, address in nodes:
                node = self._node.decode(data[address])
                # A node that was freed and reused belongs to another xarray; a broken pointer leads to any memory.
                shifts = self._root_shifts if parent_shift is None else (parent_shift - self._chunk_shift,)
                if node.array != xa or node.shift not in shifts:
                    raise _broken(xa)
                node_counts[xa] += 1
                slots = words(self._prog, data[address][self._slots_offset : self._slots_end])
                level += [(xa, index + (i << node.shift), node.shift, entry) for i, entry in enumerate(slots) if entry]
        return entries, node_counts


def _broken(xa):
    return CollectError("bad_core", "the xarray at 0x%x is broken" % xa)
