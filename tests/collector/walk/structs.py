"""The structs of every list_lru layout, as declared in the source of a kernel with that layout.

A layout is a function from the optional members of its kernels to C declarations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Members(NamedTuple):
    """Members that are independent of the layout; some stable and vendor kernels have them earlier.

    nr_items is new in v4.13, shrinker_id in v4.19, memcg_aware in v5.2.
    """

    memcg_aware: bool = True
    nr_items: bool = True
    shrinker_id: bool = True


ALL_MEMBERS = Members()

_LIST_LRU_ONE = "struct list_lru_one { struct list_head list; long nr_items; };"
_RCU_HEAD = "struct callback_head { struct callback_head *next; void *func; };"
_XARRAY = """
struct xarray { unsigned int xa_lock; unsigned int xa_flags; void *xa_head; };
struct xa_node { unsigned char shift; unsigned char offset; unsigned char count; unsigned char nr_values;
    struct xa_node *parent; struct xarray *array; struct list_head private_list; void *slots[64];
    unsigned long tags[3]; };
"""


def _list_lru_node(
    members: Members, *, prefix: str = "unsigned int lock;", suffix: str = "", count: str = "long"
) -> str:
    """Declare struct list_lru_node with the layout's own members before and after `lru`.

    :param count: the C type of nr_items.
    """
    nr_items = f"{count} nr_items;" if members.nr_items else ""
    return f"struct list_lru_node {{ {prefix} struct list_lru_one lru; {suffix} {nr_items} }} __aligned(64);"


def _list_lru(members: Members, *, node: str = "struct list_lru_node *node;", suffix: str = "") -> str:
    """Declare struct list_lru with the layout's own members after those that all layouts share."""
    shrinker_id = "int shrinker_id;" if members.shrinker_id else ""
    memcg_aware = "bool memcg_aware;" if members.memcg_aware else ""
    return f"struct list_lru {{ {node} struct list_head list; {shrinker_id} {memcg_aware} {suffix} }};"


def array(members: Members) -> str:
    """commit 60d3fd32a7a9 ("list_lru: introduce per-memcg lists") (in v4.0)"""
    return (
        _LIST_LRU_ONE
        + "struct list_lru_memcg { struct list_lru_one *lru[0]; };"
        + _list_lru_node(members, suffix="struct list_lru_memcg *memcg_lrus;")
        + _list_lru(members)
    )


def array_rcu(members: Members) -> str:
    """commit 0c7c1bed7e13 ("mm: make counting of list_lru_one::nr_items lockless") (in v4.17)"""
    return (
        _LIST_LRU_ONE
        + _RCU_HEAD
        + "struct list_lru_memcg { struct callback_head rcu; struct list_lru_one *lru[0]; };"
        + _list_lru_node(members, suffix="struct list_lru_memcg *memcg_lrus;")
        + _list_lru(members)
    )


_MLRUS = """
struct list_lru_per_memcg { struct list_lru_one node[0]; };
struct list_lru_memcg { struct callback_head rcu; struct list_lru_per_memcg *mlru[]; };
"""
_MLRUS_LAZY = """
struct list_lru_per_memcg { struct callback_head rcu; struct list_lru_one node[]; };
struct list_lru_memcg { struct callback_head rcu; struct list_lru_per_memcg *mlru[]; };
"""
_XARRAY_OBJECT = "struct list_lru_memcg { struct callback_head rcu; struct list_lru_one node[]; };"


def mlrus(members: Members) -> str:
    """commit 6a6b7b77cc0f ("mm: list_lru: transpose the array of per-node per-memcg lru lists") (in v5.18)"""
    own_members = "struct list_lru_memcg *mlrus;"
    return _LIST_LRU_ONE + _RCU_HEAD + _MLRUS + _list_lru_node(members) + _list_lru(members, suffix=own_members)


def mlrus_lazy(members: Members) -> str:
    """commit 5abc1e37afa0 ("mm: list_lru: allocate list_lru_one only when needed") (in v5.18)"""
    own_members = "unsigned int lock; struct list_lru_memcg *mlrus;"
    return _LIST_LRU_ONE + _RCU_HEAD + _MLRUS_LAZY + _list_lru_node(members) + _list_lru(members, suffix=own_members)


def xarray(members: Members) -> str:
    """commit bbca91cca9a9 ("mm: list_lru: replace linear array with xarray") (in v5.18)"""
    own_members = "struct xarray xa;"
    declarations = _LIST_LRU_ONE + _RCU_HEAD + _XARRAY + _XARRAY_OBJECT
    return declarations + _list_lru_node(members) + _list_lru(members, suffix=own_members)


def xarray_lock(members: Members) -> str:
    """commit fb56fdf8b9a2 ("mm/list_lru: split the lock to per-cgroup scope") (in v6.13)"""
    return (
        "typedef struct { long counter; } atomic_long_t;"
        + "struct list_lru_one { struct list_head list; long nr_items; unsigned int lock; };"
        + _RCU_HEAD
        + _XARRAY
        + _XARRAY_OBJECT
        + _list_lru_node(members, prefix="", count="atomic_long_t")
        + _list_lru(members, suffix="struct xarray xa;")
    )


def _in_ext(members: Members, objects: str, own_members: str) -> str:
    """Declare UEK7's structs: UEK_KABI_REPLACE(struct list_lru_node *node, struct list_lru_ext *ext), and a deprecated
    memcg_lrus.
    """
    return (
        _LIST_LRU_ONE
        + _RCU_HEAD
        + objects
        + _list_lru_node(members, suffix="void *memcg_lrus;")
        + f"struct list_lru_ext {{ struct list_lru_node *node; {own_members} }};"
        + _list_lru(members, node="union { struct list_lru_ext *ext; struct { struct list_lru_node *node; }; };")
    )


def ext_mlrus(members: Members) -> str:
    """UEK7 at commit 6a6b7b77cc0f of its series."""
    return _in_ext(members, _MLRUS, "struct list_lru_memcg *mlrus;")


def ext_mlrus_lazy(members: Members) -> str:
    """UEK7 at commit 5abc1e37afa0 of its series."""
    return _in_ext(members, _MLRUS_LAZY, "unsigned int lock; struct list_lru_memcg *mlrus;")


def ext_xarray(members: Members) -> str:
    """UEK7 at commit bbca91cca9a9 of its series, as it was released."""
    return _in_ext(members, _XARRAY + _XARRAY_OBJECT, "struct xarray xa;")


LAYOUTS: dict[str, Callable[[Members], str]] = {
    "array": array,
    "array_rcu": array_rcu,
    "mlrus": mlrus,
    "mlrus_lazy": mlrus_lazy,
    "xarray": xarray,
    "xarray_lock": xarray_lock,
    "ext_mlrus": ext_mlrus,
    "ext_mlrus_lazy": ext_mlrus_lazy,
    "ext_xarray": ext_xarray,
}
"""Function that declares the structs of a layout, by the layout's name in `layouts.detect()`."""
