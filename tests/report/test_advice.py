"""Each step of the advice has its price: the bytes are worked out by hand from what the hosts hold."""

from __future__ import annotations

import json

import pytest

from pipeline.report import advice
from pipeline.report.model import build_report
from tests.report.test_report import rendered
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


def lazy(target, **known):
    made = ok(target)
    made["row"] |= {"lazy_basis": None, "kernel_release": "6.1.0-50-cloud-amd64", "memcg_nr_cache_ids": None, **known}
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
    return {step.action: step for step in advice.steps(build_report(session(root)))}


def test_a_lazy_kernel_frees_the_waste_and_the_fleets_own_are_named(tmp_path):
    found = steps(tmp_path, host("web-1"), host("web-2"), lazy("new-1"))["lazy_kernel"]
    assert found.frees_bytes == 2 * LISTS * (OBJECTS + ARRAYS - LAZY)
    assert "Reboot 2 hosts" in found.text
    assert found.text.endswith(" 1 host of this run already runs one: 6.1.0-50-cloud-amd64.")
    assert "at least" not in found.text


@pytest.mark.parametrize(
    ("releases", "said"),
    [
        (["6.1"], "4 hosts of this run already run one: 6.12 and 6.1."),
        (["6.1", "7.2"], "5 hosts of this run already run one: 6.12, 6.1 and 7.2."),
        (["6.1", "7.2", "7.3"], "6 hosts of this run already run one: 6.12, 6.1, 7.2 and 1 other."),
        (["6.1", "7.2", "7.3", "7.4"], "7 hosts of this run already run one: 6.12, 6.1, 7.2 and 2 others."),
    ],
)
def test_lazy_releases_are_named_the_commonest_first(tmp_path, releases, said):
    common = [lazy(f"common-{n}", kernel_release="6.12") for n in range(3)]
    older = lazy("older", host="common-0", kernel_release="6.12", captured_at=STARTED_AT - 1)
    rare = [lazy(f"new-{release}", kernel_release=release) for release in releases]
    assert steps(tmp_path, host("web-1"), *common, older, *rare)["lazy_kernel"].text.endswith(f" {said}")


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
    assert "below / on web-1: 1 of its children is dying" in found.text


def test_churn_is_looked_for_where_dead_ids_cost_most(tmp_path):
    small = ok("small", cache_ids=382)
    assert "on web-1: 1 of its children is dying" in steps(tmp_path, small, host("web-1"))["churn"].text
    quiet = host("web-1")
    quiet["tables"]["memcgs"]["rows"].pop()
    assert "Most cgroups" not in steps(tmp_path / "quiet", small, quiet)["churn"].text


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


@pytest.mark.parametrize("form", ["text", "markdown", "html"])
def test_sums_say_which_cores_the_advice_leaves_out(tmp_path, monkeypatch, form):
    monkeypatch.setenv("COLUMNS", "200")
    said = "These sums include {} of a host; what to do counts each host once."
    older = {"host": "db", "captured_at": STARTED_AT - 1}
    publish(tmp_path, host("db/2", host="db"), host("db/1", **older), host("db/0", **older), host("web"))
    assert said.format("2 older cores") in rendered(tmp_path, form)
    # The advice is silent, the sums are not: db was upgraded.
    publish(tmp_path / "upgraded", lazy("db/2", host="db"), host("db/1", **older))
    text = rendered(tmp_path / "upgraded", form)
    assert said.format("1 older core") in text
    assert "Reboot 1 host" not in text
    publish(tmp_path / "alone", host("db/2"), host("web"))
    assert "These sums" not in rendered(tmp_path / "alone", form)


def test_sums_name_hosts_apart_from_targets(tmp_path):
    older = {"host": "db", "captured_at": STARTED_AT - 1}
    publish(tmp_path, host("db/2", host="db"), host("db/1", **older))
    text = rendered(tmp_path, "text")
    assert "\n2 targets of 1 host waste " in text
    assert "Reboot 1 host " in text
    totals = json.loads(rendered(tmp_path, "json"))["totals"]
    assert (totals["hosts"], totals["machines"]) == (2, 1)


def test_names_are_harmless(tmp_path):
    made = host("web\x1b[2J\n1")
    assert all(step.text.isprintable() for step in steps(tmp_path, made).values())
