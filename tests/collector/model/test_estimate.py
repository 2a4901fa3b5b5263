"""The estimates, compared with the kernels that they estimate: entries on lazy ones, bytes on an eager one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.collector import snapshot
from pipeline.collector.model import estimate
from pipeline.collector.walk import charges, list_lrus, memcgs, superblocks
from tests.collector.conftest import CORES, Core, has_reference, with_cores

BY_NAME = {core.name: core for core in CORES}
# These kernels run one shape: the same mounts, memcgs and work (tests/lab/shapes.py).
EAGER, LAZY = BY_NAME["deb510-n2"], [BY_NAME["deb61-n2"], BY_NAME["deb7-n2"]]


def truth(core: Core) -> dict[str, Any]:
    """The output of tests/reference_charges.py, read with DWARF, one slab object at a time."""
    return json.loads(core.truth("charges.json"))


def scan(core: Core) -> tuple[charges.Charges, list[Any], list[Any]]:
    prog = core.kernel.prog
    sbs, cgroups = superblocks.walk(prog), memcgs.walk(prog)
    return charges.scan(prog, sbs, cgroups), sbs, cgroups


def with_ancestors(memcg: Any) -> set[int]:
    return {memcg.css_id} | with_ancestors(memcg.parent) if memcg.parent else set()


@with_cores(lambda core: core.has_truth("charges.json"))
def test_owners_of_charged_objects_are_those_of_the_reference(core) -> None:
    object_charges, _, _ = scan(core)
    pairs = 0
    for lru in truth(core)["list_lrus"]:
        owners = object_charges.by_list_lru.get(lru["address"], set())
        assert set().union(*map(with_ancestors, owners)) == set(lru["charged"]), lru
        pairs += len(lru["charged"])
    assert pairs > 15


def test_every_owner_of_a_charged_object_has_an_entry(lazy_core) -> None:
    """On a kernel that allocates entries lazily; so the estimate from charges is a lower bound."""
    for lru in truth(lazy_core)["list_lrus"]:
        assert set(lru["charged"]) <= set(lru["entries"])


def test_charged_rows_count_the_same_pairs(core) -> None:
    counts = [lru["memcgs_charged"] for lru in core.rows("list_lrus")]
    assert sum(counts) == sum(memcg["lists_charged"] for memcg in core.rows("memcgs"))
    if core.is_eager:
        assert core.target["lazy_basis"] == "charged"
    assert core.target["charged_scan_bytes"] > core.target["memory_bytes"] / core.target["page_bytes"] * 64


def test_the_expected_entries_are_those_of_the_lazy_kernel(lazy_core) -> None:
    """Entries and xarray nodes, estimated from the charges of a lazy kernel, agree with its own."""
    core = lazy_core
    object_charges, sbs, cgroups = scan(core)
    estimator = snapshot.lazy_estimate(core.kernel.prog, sbs, cgroups, object_charges, estimate.DEFAULT_TARGET)
    lrus = list_lrus.walk(core.kernel.prog, core.target["layout"], sbs, cgroups).list_lrus
    columns = [estimator.columns(lru) for lru in lrus]
    lru_by_address = {lru["address"]: lru for lru in truth(core)["list_lrus"]}
    entries = sum(len(lru["entries"]) for lru in lru_by_address.values())
    xa_nodes = sum(lru["xa_nodes"] for lru in lru_by_address.values())
    size = core.rows("list_lrus")[0]["list_lru_one_size"]
    assert sum(row["lazy_memcgs"] for row in columns) == pytest.approx(entries, rel=0.1)
    assert sum(row["lazy_xa_node_bytes"] for row in columns) == pytest.approx(xa_nodes * 584, rel=0.1)
    estimated_bytes = sum(row["lazy_object_bytes"] + row["lazy_xa_node_bytes"] for row in columns)
    assert estimated_bytes == pytest.approx(entries * size + xa_nodes * 584, rel=0.1)


@pytest.mark.parametrize(("lazy", "target"), list(zip(LAZY, estimate.TARGETS, strict=True)), ids=estimate.TARGETS)
def test_an_eager_kernel_predicts_what_a_lazy_one_holds_for_the_same_work(lazy: Core, target: str) -> None:
    """The node arrays are left out; they are the same on both kernels."""
    rows = snapshot.take(EAGER.kernel, target=target).list_lrus
    predicted_bytes = sum(
        row[rows.columns.index("lazy_bytes")] - row[rows.columns.index("node_array_bytes")] for row in rows.rows
    )
    actual_bytes = sum(lru["list_lru_one_bytes"] + lru["xa_node_bytes"] for lru in lazy.rows("list_lrus"))
    assert predicted_bytes == pytest.approx(actual_bytes, rel=0.1)


@pytest.mark.parametrize("lazy", LAZY, ids=lambda core: core.name)
def test_a_lazy_kernel_predicts_what_an_eager_one_holds_for_the_same_work(lazy: Core) -> None:
    """Both kernels had the same maximum of online memcgs, and all aware list_lrus of a kernel cost the same."""
    [actual_bytes] = {
        sum(lru[part] for part in ("list_lru_one_bytes", "pointer_array_bytes", "node_array_bytes"))
        for lru in EAGER.rows("list_lrus")
    }
    assert {lru["eager_bytes"] for lru in lazy.rows("list_lrus") if lru["memcg_aware"]} == {actual_bytes}


@has_reference
def test_a_mounts_owner_is_the_cgroup_of_whoever_has_it_mounted(core) -> None:
    """The reference has the cgroups of all tasks in a superblock's mount namespaces, from DWARF and drgn's helpers."""
    users = {sb["address"]: sb["users"] for sb in core.reference["superblocks"]}
    owners = {sb["address"]: sb["owner"] for sb in core.rows("superblocks")}
    assert {address: [owner] if owner else [] for address, owner in owners.items()} == users
    if core.name != "deb510-offline":
        assert any(owners.values()) == ("proc='0'" not in core.truth("shape"))


def test_who_makes_and_removes_cgroups_shows(core) -> None:
    """dir_rev counts the cgroups that the shape creates and removes in the root's directory; other files add a few."""
    shape = dict(line.split("=", 1) for line in core.truth("shape").replace("'", "").splitlines())
    created_memcgs, kept_memcgs, dying_memcgs = (int(shape[key]) for key in ("memcgs", "kept", "dying"))
    rows = {row["path"]: row for row in core.rows("memcgs")}
    if rows["/"]["dir_rev"] is None:
        # Before commit 895adbec302e ("kernfs: add a revision to identify directory node changes") (in v5.15).
        assert core.target["kernel_release"].startswith("5.10")
    else:
        assert 0 < rows["/"]["dir_rev"] - (created_memcgs + created_memcgs - kept_memcgs + 2 * dying_memcgs) < 100
    number_and_serial = sorted((int(path[2:]), row["serial_nr"]) for path, row in rows.items() if path[2:].isdigit())
    assert [serial_nr for _, serial_nr in number_and_serial] == sorted(row for _, row in number_and_serial)
    assert Counter(row["state"] for row in rows.values())["online"] > kept_memcgs


def entries(core: Core, change: Callable[[list[Any], list[Any]], object]) -> tuple[int, int]:
    """Expected entries, and bytes of the high bound, of an eager core whose superblocks and memcgs `change` edits."""
    prog = core.kernel.prog
    object_charges, sbs, cgroups = scan(core)
    change(sbs, cgroups)
    lrus = list_lrus.walk(prog, core.target["layout"], sbs, memcgs.walk(prog), object_charges.by_list_lru).list_lrus
    estimator = snapshot.lazy_estimate(prog, sbs, cgroups, object_charges, estimate.DEFAULT_TARGET)
    rows = [estimator.columns(lru) for lru in lrus]
    return sum(row["lazy_memcgs"] for row in rows), sum(row["lazy_high_bytes"] for row in rows)


def test_a_containers_own_run_is_not_the_hosts() -> None:
    """/run of another mount namespace is looked up only by the tasks in that namespace."""
    core = BY_NAME["deb510-n4"]

    def move_to_run(sbs: list[Any], cgroups: list[Any]) -> None:
        for sb in sbs:
            if sb.fstype == b"tmpfs" and sb.mountpoint and sb.mountpoint.startswith(b"/m/"):
                sb.mountpoint, sb.namespaces = b"/run", {0xFFFF888000000000}

    expected_entries, _ = entries(core, lambda sbs, cgroups: None)
    assert entries(core, move_to_run)[0] == expected_entries


def test_memcgs_without_an_id_would_have_entries_on_a_lazy_kernel() -> None:
    """Up to v4.5 only memcgs with a limit for kernel memory have ids; v5.18 charges all memcgs."""
    core = BY_NAME["deb510-n2"]

    paths_with_items = {row["path"].encode() for row in core.rows("memcgs") if row["items"]}

    def remove_ids(sbs: list[Any], cgroups: list[Any]) -> None:
        for memcg in cgroups:
            memcg.cache_id = memcg.cache_id if memcg.path in paths_with_items else None

    _, high_bytes = entries(core, lambda sbs, cgroups: None)
    assert entries(core, remove_ids)[1] == high_bytes
