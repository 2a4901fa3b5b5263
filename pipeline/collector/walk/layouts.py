"""The layout of a kernel's list_lrus, detected from struct members and never from a version.

====================== =============== =====================================================================
layout                 mainline        members
====================== =============== =====================================================================
``none``               up to v3.19     no lists for memcgs; also later kernels without CONFIG_MEMCG_KMEM
``array``              v4.0 - v4.16    list_lru_node.memcg_lrus -> array of pointers, one for every id
``array_rcu``          v4.17 - v5.17   the same with an rcu_head before the pointers [1]
``mlrus``              no release      list_lru.mlrus -> array of pointers, one for every id, to a
                                       list_lru_per_memcg with a list_lru_one for each node [2]
``mlrus_lazy``         no release      the same, allocated on first use, with an rcu_head in each [3]
``xarray``             v5.18 - v6.12   list_lru.xa -> list_lru_memcg, allocated on first use [4]
``xarray_lock``        v6.13 -         the same with a lock in each list_lru_one [5]
``ext_mlrus``          UEK7            as mlrus, mlrus_lazy and xarray, but in a separate struct, list_lru.ext:
``ext_mlrus_lazy``                     Oracle's 5.15 has the patch series of v5.18 and keeps the size of struct
``ext_xarray``                         list_lru
====================== =============== =====================================================================

1. commit 0c7c1bed7e13 ("mm: make counting of list_lru_one::nr_items lockless") (in v4.17)
2. commit 6a6b7b77cc0f ("mm: list_lru: transpose the array of per-node per-memcg lru lists") (in v5.18)
3. commit 5abc1e37afa0 ("mm: list_lru: allocate list_lru_one only when needed") (in v5.18)
4. commit bbca91cca9a9 ("mm: list_lru: replace linear array with xarray") (in v5.18)
5. commit fb56fdf8b9a2 ("mm/list_lru: split the lock to per-cgroup scope") (in v6.13)
"""

from drgn import sizeof

from ..access.memory import has_member

EAGER = ("array", "array_rcu", "mlrus", "ext_mlrus")
LAZY = ("mlrus_lazy", "ext_mlrus_lazy", "xarray", "xarray_lock", "ext_xarray")


def detect(prog):
    """Return the name of the layout.

    :raises LookupError: the kernel's types lack struct list_lru.
    """
    # UEK7 keeps the members list_lru.node (in a union with ext) and list_lru_node.memcg_lrus, but does not use them.
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
    """Return the struct with ``node`` and the pointer to the memcgs' lists: list_lru_ext on UEK7, else list_lru."""
    list_lru = prog.type("struct list_lru")
    return prog.type("struct list_lru_ext") if has_member(list_lru, "ext") else list_lru
