"""Each step of the advice has its price: the bytes are worked out by hand from what the hosts hold."""

from __future__ import annotations

import pytest

from pipeline import report
from pipeline.report import advice
from tests.warehouse.outcomes import STARTED_AT, failed, ok, publish, session

LISTS = 2 * 40 + 1
OBJECTS = 4 * 24574 * 32
ARRAYS = 4 * 64
LAZY = 64 + 584


def host(target, **cells):
    """40 superblocks, 4 nodes, 24574 ids: 81 list_lrus."""
    made = ok(target, mounts=40, nodes=4, cache_ids=24574)
    made["row"] |= {"lazy_basis": "charged", **cells}
    return made


def lazy(target):
    made = ok(target)
    made["row"] |= {"lazy_basis": None, "kernel_release": "6.1.0-50-cloud-amd64", "memcg_nr_cache_ids": None}
    sent = made["tables"]["list_lrus"]
    for row in sent["rows"]:
        cells = dict(zip(sent["columns"], row, strict=True))
        cells |= dict.fromkeys(
            ("list_lru_one_bytes", "pointer_array_bytes", "lazy_object_bytes", "lazy_xa_node_bytes"), 0
        )
        cells["lazy_bytes"] = cells["node_array_bytes"]
        row[:] = cells.values()
    return made


def steps(root, *outcomes):
    publish(root, *outcomes)
    return {step.action: step for step in advice.steps(report.build(session(root)))}


def test_a_lazy_kernel_frees_the_waste_and_the_fleets_own_are_named(tmp_path):
    found = steps(tmp_path, host("web-1"), host("web-2"), lazy("new-1"))["lazy_kernel"]
    assert found.frees_bytes == 2 * LISTS * (OBJECTS + ARRAYS - LAZY)
    assert "Reboot 2 hosts" in found.text
    assert "1 host of this run already runs one: 6.1.0-50-cloud-amd64." in found.text
    assert "at least" not in found.text


def test_the_few_hosts_with_nine_tenths_of_it_are_counted(tmp_path):
    small = [ok(f"small-{n}", cache_ids=382) for n in range(20)]
    assert "the worst 2 alone" in steps(tmp_path, host("web-1"), host("web-2"), *small)["lazy_kernel"].text


def test_where_charged_objects_were_not_read_it_frees_at_least_so_much(tmp_path):
    assert "frees at least" in steps(tmp_path, host("web-1", lazy_basis="online"))["lazy_kernel"].text


def test_without_kmem_accounting_only_the_node_arrays_remain(tmp_path):
    assert steps(tmp_path, host("web-1"))["nokmem"].frees_bytes == LISTS * (OBJECTS + ARRAYS)


def test_unmounting_gives_back_two_list_lrus_a_filesystem(tmp_path):
    found = steps(tmp_path, host("web-1"))["mounts"]
    each = 2 * (OBJECTS + 2 * ARRAYS)
    assert found.frees_bytes == 20 * each
    assert "20 overlay filesystems on 1 host hold 120 MiB, each of the 20 on web-1 6.00 MiB" in found.text
    assert round(each / 2**20, 2) == 6.00


def test_ids_of_no_online_cgroup_are_counted_and_their_price_is_a_reboot(tmp_path):
    found = steps(tmp_path, host("web-1"))["churn"]
    # After a boot there are 4 ids on each of 4 nodes; kmalloc-64 holds 16 bytes and 4 pointers.
    assert found.frees_bytes == LISTS * (OBJECTS - 4 * 4 * 32 + ARRAYS - 4 * 64)
    assert "24,573 ids on 1 host belong to no online cgroup" in found.text
    assert "below / on web-1: 1 of its children are dying" in found.text


@pytest.mark.parametrize("outcomes", [[lazy("new-1")], [failed("web-1")]])
def test_where_nothing_is_wasted_there_is_no_advice(tmp_path, outcomes):
    assert steps(tmp_path, *outcomes) == {}


def test_cores_of_one_host_are_one_host_and_machines_of_one_name_are_not(tmp_path):
    older = {"host": "db", "captured_at": STARTED_AT - 1}
    found = steps(tmp_path, host("db/2", host="db"), host("db/1", **older), host("db/0", **older))
    alone = steps(tmp_path / "alone", host("db/2"))
    assert {action: step.frees_bytes for action, step in found.items()} == {
        action: step.frees_bytes for action, step in alone.items()
    }
    assert "Reboot 1 host " in found["lazy_kernel"].text
    assert found["mounts"].text == alone["mounts"].text
    same_name = [host(name, host="localhost", kind="ssh") for name in ("web-1", "web-2")]
    assert "Reboot 2 hosts " in steps(tmp_path / "ssh", *same_name)["lazy_kernel"].text


def test_names_are_harmless(tmp_path):
    made = host("web\x1b[2J\n1")
    assert all(step.text.isprintable() for step in steps(tmp_path, made).values())
