"""The cost model as a calculator: the waste of a server of a given shape, next to the commit message's figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pipeline.collector.model import cost, target_kernels, upgrade
from pipeline.collector.model.estimate import TARGETS
from pipeline.common.text import human_bytes


@dataclass(frozen=True)
class Estimate:
    """The bytes that all list_lrus of the superblocks hold. Columns are as in ``host_waste`` and ``lazy_savings``.

    bytes_a_list is the commit message's figure for one list_lru. shrinker_map_bytes and shrinker_info_bytes are what
    the memcgs have for the superblocks' shrinkers on v4.19 to v5.12, and on the target kernel. These two,
    lazy_high_bytes and wasted_bytes are None if the number of memcgs is not given.
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
    target_kernel: str
    shrinker_map_bytes: int | None
    shrinker_info_bytes: int | None

    def as_dict(self) -> dict[str, int | str | None]:
        """Return the figures by name."""
        return asdict(self)


def estimate(
    superblocks: int,
    nodes: int,
    cache_ids: int,
    online_memcgs: int | None = None,
    target: str = target_kernels.DEFAULT,
) -> Estimate:
    """Apply the cost model to a server with x86_64's sizes and two list_lrus per superblock.

    :param nodes: NUMA nodes, all of them possible and numbered from 0.
    :param cache_ids: memcg_nr_cache_ids.
    :param online_memcgs: memcgs besides the root, at most cache_ids. lazy_high_bytes is an upper bound: each memcg has
        an entry in every list, and the memcgs' ids are spread over all ids, which takes the most xarray nodes.
    :param target: the kernel to upgrade to, a name that target_kernels.named() knows.
    """
    sizes = cost.x86_64(nodes)
    target_kernel = target_kernels.named(target)
    lists = 2 * superblocks
    node_array, pointer_arrays, objects = (lists * part for part in cost.eager_bytes(sizes, nodes, cache_ids))
    total = node_array + pointer_arrays + objects
    lazy = shrinker_map = shrinker_info = None
    if online_memcgs is not None:
        ids = [1 + i * cache_ids // online_memcgs for i in range(online_memcgs)]
        lazy = lists * sum(cost.lazy_bytes(sizes._replace(list_lru_one=target_kernel.list_lru_one), ids))
        # A superblock is one shrinker. Since v5.13 the root memcg has arrays too.
        shrinker_map = online_memcgs * nodes * upgrade.shrinker_map_bytes(sizes, superblocks)
        shrinker_info = (online_memcgs + 1) * nodes * upgrade.shrinker_info_bytes(sizes, target_kernel, superblocks)
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
        lazy_target=TARGETS[target_kernel.lazy_layout][0],
        lazy_high_bytes=lazy,
        wasted_bytes=None if lazy is None else total - lazy,
        target_kernel=target_kernel.name,
        shrinker_map_bytes=shrinker_map,
        shrinker_info_bytes=shrinker_info,
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
    if f.shrinker_map_bytes is not None and f.shrinker_info_bytes is not None:
        lines += [
            "",
            f"What {f.online_memcgs} memcgs hold for the shrinkers of the superblocks",
            _line("shrinker_map", f.shrinker_map_bytes, f"v4.19 to v5.12: {human_bytes(f.shrinker_map_bytes)}"),
            _line("shrinker_info", f.shrinker_info_bytes, f"{f.target_kernel}: {human_bytes(f.shrinker_info_bytes)}"),
        ]
    return "\n".join(lines) + "\n"


def _line(name: str, count: int, remark: str) -> str:
    return f"  {name:<16}{count:>22,}  {remark}"
