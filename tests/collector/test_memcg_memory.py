"""What memcgs cost, by the state of the memcgs: each part adds up, and what no memcg has is left."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from drgn import FaultError

from pipeline.collector import memcg_memory, snapshot
from pipeline.collector.access import kernel
from pipeline.collector.status import CollectError
from pipeline.collector.walk import shrinker_infos
from pipeline.collector.walk.held import Held
from tests.collector.conftest import Core, with_cores
from tests.collector.walk.machine import Machine


def part(core: Core, name: str) -> dict[str, Any]:
    return next(row for row in core.rows("memcg_memory") if row["part"] == name)


def test_no_part_is_missing(core: Core) -> None:
    assert {"list_lru", "shrinker_info", "memcg_structs"} <= {row["part"] for row in core.rows("memcg_memory")}
    assert "is not counted" not in (core.target["notes"] or "")


def test_states_add_up(core: Core) -> None:
    for row in core.rows("memcg_memory"):
        states = [row["online_bytes"], row["dying_bytes"], row["left_bytes"]]
        assert sum(states) == row["held_bytes"]
        assert min(states) >= 0


def test_list_lrus_are_those_of_their_table(core: Core) -> None:
    columns = ("list_lru_one_bytes", "pointer_array_bytes", "node_array_bytes", "xa_node_bytes")
    held_bytes = sum(lru[column] for lru in core.rows("list_lrus") for column in columns)
    assert part(core, "list_lru")["held_bytes"] == held_bytes


@with_cores(lambda core: core.is_eager and core.has_truth("reference.json") and core.name != "deb510-growing")
def test_what_removed_memcgs_leave_on_an_eager_kernel(core: Core) -> None:
    """An object for each list_lru, node and id, and the id's 8 bytes of each pointer array, rounded down an array."""
    online_ids = {memcg["cache_id"] for memcg in core.reference["memcgs"] if memcg["online"]} - {None, -1}
    ids = core.reference["memcg_nr_cache_ids"]
    left_ids = ids - len(online_ids)
    aware_lrus = [lru for lru in core.rows("list_lrus") if lru["memcg_aware"]]
    objects = len(aware_lrus) * len(core.reference["possible_nodes"]) * left_ids
    object_bytes = core.rows("list_lrus")[0]["list_lru_one_size"]
    array_bytes = sum(lru["pointer_array_bytes"] * left_ids // ids for lru in aware_lrus)
    row = part(core, "list_lru")
    assert row["left_bytes"] == objects * object_bytes + array_bytes
    assert row["dying_bytes"] == 0


def test_a_lazy_kernel_leaves_nothing(lazy_core: Core) -> None:
    row = part(lazy_core, "list_lru")
    assert (row["online_bytes"], row["dying_bytes"], row["left_bytes"]) == (row["held_bytes"], 0, 0)


def memcgs(online: tuple[int, ...], dying: tuple[int, ...] = ()) -> list[Any]:
    """The root, and memcgs by their kmemcg_id and id.id; a dying one has no kmemcg_id of its own."""
    root = SimpleNamespace(online=True, cache_id=None, memcg_id=1)
    return [
        root,
        *(SimpleNamespace(online=True, cache_id=memcg_id, memcg_id=memcg_id) for memcg_id in online),
        *(SimpleNamespace(online=False, cache_id=None, memcg_id=memcg_id) for memcg_id in dying),
    ]


def test_entries_of_a_lazy_kernel_by_the_state_of_their_memcg() -> None:
    """Five entries of kmalloc-128 and three xa_nodes: two entries are online, one is dying, two are no memcg's."""
    machine = Machine("xarray")
    lru, other = machine.superblock()
    machine.list_lru(lru, used_ids=(3, 5, 70, 71, 72))
    machine.list_lru(other)
    findings, _ = machine.walk()
    by_entry = 5 * 128 + 3 * 584
    dying, left = by_entry // 5, by_entry * 2 // 5
    expected = Held(2 * 256 + by_entry - dying - left, dying, left)
    assert memcg_memory._list_lrus(findings, memcgs((3, 70), (71,))) == expected


@pytest.mark.parametrize("layout", ["array", "array_rcu", "mlrus"])
def test_objects_of_an_eager_kernel_by_the_state_of_their_memcg(layout: str) -> None:
    """Four ids, of which 0 and 2 are an online memcg's: half of the objects and of the pointer arrays is left."""
    machine = Machine(layout)
    lru, other = machine.superblock()
    machine.list_lru(lru)
    machine.list_lru(other, memcg_aware=False)
    findings, by_address = machine.walk()
    node_bytes = by_address[lru].node_array_bytes + by_address[other].node_array_bytes
    by_id = by_address[lru].total_bytes - by_address[lru].node_array_bytes
    assert node_bytes == 2 * 256
    assert memcg_memory._list_lrus(findings, memcgs((0, 2), (7,))) == Held(node_bytes + by_id // 2, 0, by_id // 2)


def audit_parts(core: Core) -> tuple[dict[str, dict[str, Any]], str]:
    """The rows of a new audit by part, and its notes."""
    audit = snapshot.take(kernel.open_kernel(str(core.path)))
    rows = [dict(zip(audit.memcg_memory.columns, row, strict=True)) for row in audit.memcg_memory.rows]
    (target,) = audit.target.rows
    return {row["part"]: row for row in rows}, target[audit.target.columns.index("notes")] or ""


@pytest.mark.parametrize("error", [ZeroDivisionError("oo is 0"), struct.error("too short"), LookupError("no member")])
@with_cores(lambda core: core.name == "deb510-n2")
def test_a_part_that_fails_leaves_the_others(core: Core, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrinker_infos, "count", Mock(side_effect=error))
    parts, notes = audit_parts(core)
    assert parts.keys() == {row["part"] for row in core.rows("memcg_memory")} - {"shrinker_info", "memcg_slab_left"}
    assert f"shrinker_info is not counted: {error}" in notes.replace("'", "")
    assert "memcg_slab_left is not counted: shrinker_info is not" in notes


@with_cores(lambda core: core.name == "deb510-n2")
def test_a_part_of_a_running_kernel_is_tried_again(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([CollectError("bad_core", "freed"), FaultError("freed", 0)])

    def count(*args: Any) -> Any:
        for error in counts:
            raise error
        return real_count(*args)

    real_count = shrinker_infos.count
    monkeypatch.setattr(shrinker_infos, "count", count)
    monkeypatch.setattr(memcg_memory, "is_running", lambda prog: True)
    parts, notes = audit_parts(core)
    assert parts["shrinker_info"] == part(core, "shrinker_info")
    assert "is not counted" not in notes


@with_cores(lambda core: core.name == "deb510-n2")
def test_memcgs_that_change_while_they_are_walked_again_end_no_audit(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened_kernel = kernel.open_kernel(str(core.path))
    memcg_list = memcg_memory.memcgs.walk(opened_kernel.prog)
    monkeypatch.setattr(shrinker_infos, "count", Mock(side_effect=FaultError("freed", 0)))
    monkeypatch.setattr(memcg_memory, "is_running", lambda prog: True)
    errors = [CollectError("bad_core", "a list does not end"), FaultError("freed", 0)]
    monkeypatch.setattr(memcg_memory.memcgs, "walk", Mock(side_effect=[memcg_list, *errors, *errors]))
    audit = snapshot.take(opened_kernel)
    assert "percpu_left" in {row[audit.memcg_memory.columns.index("part")] for row in audit.memcg_memory.rows}


@with_cores(lambda core: core.name == "deb510-n2")
def test_ids_of_superblocks_that_are_gone_are_not_predicted(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a reboot ids are needed for the superblocks that are there: on this core there were never more."""
    real_count = shrinker_infos.count
    monkeypatch.setattr(shrinker_infos, "count", lambda *args: real_count(*args)._replace(ids=20_000))
    parts, _ = audit_parts(core)
    assert parts["shrinker_info"]["upgraded_bytes"] == part(core, "shrinker_info")["upgraded_bytes"] > 0
