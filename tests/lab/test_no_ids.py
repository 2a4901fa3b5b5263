"""Audits of kernels with memcgs, but without memcg lists and ids, because of their command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.collector import snapshot
from pipeline.collector.access import kernel
from tests.lab import kernels, scripted
from tests.lab.shapes import SHAPES

pytestmark = pytest.mark.lab

MAKE_MEMCGS = """
mount -t cgroup2 cgroup2 /sys/fs/cgroup
if echo +memory > /sys/fs/cgroup/cgroup.subtree_control; then mkdir /sys/fs/cgroup/a /sys/fs/cgroup/b; fi
grep '^nr_descendants' /sys/fs/cgroup/cgroup.stat
"""


@pytest.mark.parametrize(
    ("series", "command_line", "layout", "memcg_aware", "memcgs"),
    [
        ("5.10", "cgroup_disable=memory", "array_rcu", True, 0),
        ("5.10", "cgroup.memory=nokmem", "array_rcu", True, 2),
        # Since v6.7 a list_lru without memcg lists is not memcg-aware.
        ("6.12", "cgroup.memory=nokmem", "xarray", False, 2),
    ],
)
def test_without_ids_a_kernel_is_audited(
    tmp_path: Path, series: str, command_line: str, layout: str, memcg_aware: bool, memcgs: int
) -> None:
    core, report = scripted.take_core(
        SHAPES["deb61-n2"], kernels.debian_kernel(series), tmp_path, MAKE_MEMCGS, command_line
    )
    assert report.split() == ["nr_descendants", str(memcgs)]

    audit = snapshot.take(kernel.open_kernel(str(core)))

    def rows(table: snapshot.Table) -> list[dict[str, Any]]:
        return [dict(zip(table.columns, row, strict=True)) for row in table.rows]

    (target,) = rows(audit.target)
    assert audit.unsupported_reason is None
    assert (target["layout"], target["online_memcgs"], target["consistency"]) == (layout, memcgs, "exact")
    assert target["memcg_nr_cache_ids"] == (0 if series == "5.10" else None)
    list_lrus = rows(audit.list_lrus)
    assert len(list_lrus) >= 2 * target["superblocks"] > 0
    assert sum(lru["items"] for lru in list_lrus) > 0
    for lru in list_lrus:
        assert lru["memcg_aware"] is memcg_aware
        assert (lru["list_lru_one_objects"], lru["xa_node_bytes"], lru["memcg_items"]) == (0, 0, 0)
        # kvmalloc(sizeof(struct rcu_head)) on each of two nodes; kcalloc(2, 64).
        assert lru["pointer_array_bytes"] == (2 * 16 if series == "5.10" else 0)
        assert lru["lazy_bytes"] == lru["lazy_high_bytes"] == lru["node_array_bytes"] == 128
