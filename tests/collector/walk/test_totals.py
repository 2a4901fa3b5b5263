"""The kernel's own totals: where the counters of slab pages are, by release."""

from __future__ import annotations

import pytest
from drgn import FindObjectFlags, Object, Program, TypeEnumerator

from pipeline.collector.walk import totals
from tests.collector.made import SyntheticKernel


@pytest.mark.parametrize(
    ("enum", "variable"),
    [("zone_stat_item", "vm_stat"), ("zone_stat_item", "vm_zone_stat"), ("node_stat_item", "vm_node_stat")],
    ids=["before v4.8", "before v4.13", "v4.13"],
)
def test_slab_pages_are_those_of_the_counter_that_the_enum_names(enum: str, variable: str) -> None:
    kernel = SyntheticKernel("typedef struct { long counter; } atomic_long_t;")
    items = ["NR_FREE_PAGES", "NR_SLAB_RECLAIMABLE", "NR_SLAB_UNRECLAIMABLE"]
    int_type = kernel.prog.type("unsigned int")
    enum_type = kernel.prog.enum_type(enum, int_type, [TypeEnumerator(name, i) for i, name in enumerate(items)])

    def find(prog: Program, name: str, flags: FindObjectFlags, filename: str | None) -> Object | None:
        return Object(prog, enum_type, value=items.index(name)) if name in items else None

    kernel.prog.register_object_finder("items", find, enable_index=0)
    kernel.words(kernel.variable(variable, "atomic_long_t [3]"), 9000, 20, 300)
    assert totals.read(kernel.prog, 300 * 4096) == totals.Totals(300 * 4096, 20 * 4096, None)
    # More than the memory: the counter is damaged.
    assert totals.read(kernel.prog, 299 * 4096) == totals.Totals(None, 20 * 4096, None)
