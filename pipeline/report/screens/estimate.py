"""The cost model as a calculator: the waste of a server of a given shape, next to the commit message's figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pipeline.collector.model import cost
from pipeline.common.text import human_bytes

# Lazy kernels by the first release of their layout: their releases, and sizeof(struct list_lru_one) on x86_64.
_LAYOUTS = {"5.18": ("v5.18-6.12", 24), "6.13": ("v6.13+", 32)}


@dataclass(frozen=True)
class Estimate:
    """The bytes that all list_lrus of the superblocks hold. Columns are as in ``host_waste`` and ``lazy_savings``.

    bytes_a_list is the commit message's figure for one list_lru. lazy_high_bytes and wasted_bytes are None if the
    number of memcgs is not given.
    """

    superblocks: int
    nr_node_ids: int
    memcg_nr_cache_ids: int
    online_memcgs: int | None
    bytes_a_list: int
    formula_bytes: int
    list_lru_one_bytes: int
    pointer_array_bytes: int
    node_array_bytes: int
    list_lru_bytes: int
    lazy_target: str
    lazy_high_bytes: int | None
    wasted_bytes: int | None

    def as_dict(self) -> dict[str, int | str | None]:
        """Return the figures by name."""
        return asdict(self)


def estimate(
    superblocks: int,
    nodes: int,
    cache_ids: int,
    online_memcgs: int | None = None,
    target_layout: str = "5.18",
) -> Estimate:
    """Apply the cost model to a server with x86_64's sizes and two list_lrus per superblock.

    :param nodes: NUMA nodes, all of them possible and numbered from 0.
    :param cache_ids: memcg_nr_cache_ids.
    :param online_memcgs: memcgs besides the root, at most cache_ids. lazy_high_bytes is an upper bound: each memcg has
        an entry in every list, and the memcgs' ids are spread over all ids, which takes the most xarray nodes.
    :param target_layout: the lazy kernel: ``5.18``, or ``6.13``, whose list_lru_one has a lock since commit
        fb56fdf8b9a2 ("mm/list_lru: split the lock to per-cgroup scope") (in v6.13).
    """
    sizes = cost.x86_64(nodes)
    lazy_target, list_lru_one = _LAYOUTS[target_layout]
    lists = 2 * superblocks
    node_array, pointer_arrays, objects = (lists * part for part in cost.eager_bytes(sizes, nodes, cache_ids))
    total = node_array + pointer_arrays + objects
    lazy = None
    if online_memcgs is not None:
        ids = [1 + i * cache_ids // online_memcgs for i in range(online_memcgs)]
        lazy = lists * sum(cost.lazy_bytes(sizes._replace(list_lru_one=list_lru_one), ids))
    return Estimate(
        superblocks=superblocks,
        nr_node_ids=nodes,
        memcg_nr_cache_ids=cache_ids,
        online_memcgs=online_memcgs,
        bytes_a_list=nodes * cache_ids * cost.FORMULA_OBJECT_BYTES,
        formula_bytes=cost.formula_bytes(superblocks, nodes, cache_ids),
        list_lru_one_bytes=objects,
        pointer_array_bytes=pointer_arrays,
        node_array_bytes=node_array,
        list_lru_bytes=total,
        lazy_target=lazy_target,
        lazy_high_bytes=lazy,
        wasted_bytes=None if lazy is None else total - lazy,
    )


def text(figures: Estimate) -> str:
    """Return the figures for a terminal: first the commit message's, then the actual cost."""
    f = figures
    lines = [
        f"{f.superblocks} superblocks, {f.nr_node_ids} NUMA nodes, memcg_nr_cache_ids {f.memcg_nr_cache_ids}; "
        "x86_64, 4 KiB pages",
        "",
        "The commit message of 5abc1e37afa0 counts",
        _line("a list", f.bytes_a_list, f"{f.nr_node_ids} nodes * {f.memcg_nr_cache_ids} ids * 32 bytes"),
        _line("all lists", f.formula_bytes, f"2 * {f.superblocks} superblocks * {f.bytes_a_list}"),
        "",
        "As the kernel allocates it",
        _line("list_lru_one", f.list_lru_one_bytes, "kmalloc-32"),
        _line(
            "pointer arrays",
            f.pointer_array_bytes,
            "16 + 8 * ids for each list and node, rounded up by kmalloc()",
        ),
        _line("node arrays", f.node_array_bytes, "64 * nodes for each list"),
        _line("list_lru_bytes", f.list_lru_bytes, human_bytes(f.list_lru_bytes)),
    ]
    if f.lazy_high_bytes is not None and f.wasted_bytes is not None:
        lines += [
            "",
            f"A kernel with lazy allocation ({f.lazy_target}), if each of {f.online_memcgs} memcgs uses every list",
            _line("lazy_high_bytes", f.lazy_high_bytes, human_bytes(f.lazy_high_bytes)),
            _line("wasted_bytes", f.wasted_bytes, f"at least {human_bytes(f.wasted_bytes)}"),
        ]
    return "\n".join(lines) + "\n"


def _line(name: str, count: int, remark: str) -> str:
    return f"  {name:<16}{count:>22,}  {remark}"
