"""Which of its layouts a kernel's list_lrus have, told from struct members and never from a version.

====================== =============== =====================================================================
layout                 mainline        members
====================== =============== =====================================================================
``none``               up to v3.19     no memcg lists; also later kernels without CONFIG_MEMCG_KMEM
``array``              v4.0 - v4.16    list_lru_node.memcg_lrus -> pointers for every id, no header
``array_rcu``          v4.17 - v5.17   the same behind an rcu_head (0c7c1bed7e13)
``xarray``             v5.18 - v6.12   list_lru.xa -> list_lru_memcg, on first use (bbca91cca9a9, 5abc1e37afa0)
``xarray_lock``        v6.13 -         the same with a lock in each list_lru_one (fb56fdf8b9a2)
====================== =============== =====================================================================
"""

from drgn import sizeof

from .memory import has_member
from .status import CollectError

EAGER = ("array", "array_rcu")
LAZY = ("xarray", "xarray_lock")


def detect(prog):
    """Return the layout.

    :raises CollectError: ``no_types``: memcg-aware lists in a layout that this version does not know.
    """
    list_lru = prog.type("struct list_lru")
    for member in ("ext", "mlrus"):
        # UEK7's struct list_lru_ext, and the states between 6a6b7b77cc0f and bbca91cca9a9, in no mainline release.
        if has_member(list_lru, member):
            raise CollectError("no_types", "list_lru layout with list_lru.%s: this version does not know it" % member)
    if has_member(list_lru, "xa"):
        return "xarray_lock" if has_member(prog.type("struct list_lru_one"), "lock") else "xarray"
    if has_member(prog.type("struct list_lru_node"), "memcg_lrus"):
        return "array_rcu" if sizeof(prog.type("struct list_lru_memcg")) else "array"
    return "none"
