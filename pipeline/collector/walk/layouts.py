"""Which of its layouts a kernel's list_lrus have, told from struct members and never from a version.

====================== =============== =====================================================================
layout                 mainline        members
====================== =============== =====================================================================
``none``               up to v3.19     no memcg lists; also later kernels without CONFIG_MEMCG_KMEM
``array``              v4.0 - v4.16    list_lru_node.memcg_lrus -> pointers for every id, no header
``array_rcu``          v4.17 - v5.17   the same behind an rcu_head (0c7c1bed7e13)
``mlrus``              no release      list_lru.mlrus -> pointers for every id to list_lru_per_memcg, which has
                                       a list_lru_one a node (6a6b7b77cc0f)
``mlrus_lazy``         no release      the same on first use, with an rcu_head in each (5abc1e37afa0)
``xarray``             v5.18 - v6.12   list_lru.xa -> list_lru_memcg, on first use (bbca91cca9a9)
``xarray_lock``        v6.13 -         the same with a lock in each list_lru_one (fb56fdf8b9a2)
``ext_mlrus``          UEK7            these three in a struct of their own, list_lru.ext: Oracle's 5.15 has the
``ext_mlrus_lazy``                     series of v5.18 and keeps the size of struct list_lru
``ext_xarray``
====================== =============== =====================================================================
"""

from drgn import sizeof

from ..access.memory import has_member

EAGER = ("array", "array_rcu", "mlrus", "ext_mlrus")
LAZY = ("mlrus_lazy", "ext_mlrus_lazy", "xarray", "xarray_lock", "ext_xarray")


def detect(prog):
    """Return the layout.

    :raises LookupError: the kernel's types lack struct list_lru.
    """
    # UEK7 keeps list_lru.node, in a union with ext, and list_lru_node.memcg_lrus as empty shells.
    ext = "ext_" if has_member(prog.type("struct list_lru"), "ext") else ""
    holder = holder_type(prog)
    if has_member(holder, "xa"):
        lock = not ext and has_member(prog.type("struct list_lru_one"), "lock")
        return "xarray_lock" if lock else ext + "xarray"
    if has_member(holder, "mlrus"):
        lazy = has_member(prog.type("struct list_lru_per_memcg"), "rcu")
        return ext + ("mlrus_lazy" if lazy else "mlrus")
    if has_member(prog.type("struct list_lru_node"), "memcg_lrus"):
        return "array_rcu" if sizeof(prog.type("struct list_lru_memcg")) else "array"
    return "none"


def holder_type(prog):
    """Return the struct that has ``node`` and what leads to the memcgs' lists: UEK7's list_lru_ext, or list_lru."""
    list_lru = prog.type("struct list_lru")
    return prog.type("struct list_lru_ext") if has_member(list_lru, "ext") else list_lru
