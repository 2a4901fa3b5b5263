"""Each step of the advice has its price in bytes, worked out by hand from the hosts' list_lrus."""

from __future__ import annotations

import json

import pytest

from pipeline.report import advice
from pipeline.report.model import build_report
from tests.report.test_report import render
from tests.warehouse.outcomes import STARTED_AT, dying_pages, failure, memcg_part, ok, publish, session, table

LISTS_PER_HOST = 2 * 40 + 1
OBJECT_BYTES = 4 * 24574 * 32
ARRAY_BYTES = 4 * 64
LAZY_BYTES = 64 + 584


def host(target, **cells):
    """Return an eager host with 40 superblocks, 4 nodes and 24574 ids, and so 81 list_lrus."""
    outcome = ok(target, mounts=40, nodes=4, cache_ids=24574)
    outcome["row"] |= {"lazy_basis": "charged", **cells}
    return outcome


def lazy_host(target, **columns):
    outcome = ok(target)
    outcome["row"] |= {
        "lazy_basis": None,
        "target_kernel": None,
        "kernel_release": "6.1.0-50-cloud-amd64",
        "memcg_nr_cache_ids": None,
        **columns,
    }
    table = outcome["tables"]["list_lrus"]
    for row in table["rows"]:
        cells = dict(zip(table["columns"], row, strict=True))
        cells |= dict.fromkeys(
            ("list_lru_one_bytes", "pointer_array_bytes", "lazy_object_bytes", "lazy_xa_node_bytes"), 0
        )
        cells["lazy_bytes"] = cells["node_array_bytes"]
        row[:] = cells.values()
    return outcome


def set_parts(outcome, **cells_by_part):
    """Set parts of what memory cgroups cost on a host, each by the arguments of `memcg_part`."""
    parts = outcome["tables"]["memcg_memory"]
    rows = [row for row in parts["rows"] if row[0] not in cells_by_part]
    parts["rows"] = rows + [[*memcg_part(part, **cells).values()] for part, cells in cells_by_part.items()]
    return outcome


def steps(root, *outcomes):
    publish(root, *outcomes)
    return {step.action: step for step in advice.steps(build_report(session(root)))}


def test_a_lazy_kernel_frees_the_waste_and_the_fleets_own_are_named(tmp_path):
    step = steps(tmp_path, host("web-1"), host("web-2"), lazy_host("new-1"))["lazy_kernel"]
    assert step.frees_bytes == 2 * LISTS_PER_HOST * (OBJECT_BYTES + ARRAY_BYTES - LAZY_BYTES)
    assert "Reboot 2 hosts" in step.text
    assert step.text.endswith(" 1 host of this run already runs one: 6.1.0-50-cloud-amd64.")
    assert "at least" not in step.text


@pytest.mark.parametrize(
    ("releases", "sentence"),
    [
        (["6.1"], "4 hosts of this run already run one: 6.12 and 6.1."),
        (["6.1", "7.2"], "5 hosts of this run already run one: 6.12, 6.1 and 7.2."),
        (["6.1", "7.2", "7.3"], "6 hosts of this run already run one: 6.12, 6.1, 7.2 and 1 other."),
        (["6.1", "7.2", "7.3", "7.4"], "7 hosts of this run already run one: 6.12, 6.1, 7.2 and 2 others."),
    ],
)
def test_lazy_releases_are_named_the_commonest_first(tmp_path, releases, sentence):
    common_hosts = [lazy_host(f"common-{n}", kernel_release="6.12") for n in range(3)]
    older_core = lazy_host("older", host="common-0", kernel_release="6.12", captured_at=STARTED_AT - 1)
    rare_hosts = [lazy_host(f"new-{release}", kernel_release=release) for release in releases]
    step = steps(tmp_path, host("web-1"), *common_hosts, older_core, *rare_hosts)["lazy_kernel"]
    assert step.text.endswith(f" {sentence}")


def test_a_lazy_kernel_takes_back_what_its_other_parts_cost(tmp_path):
    outcome = set_parts(
        host("web-1"),
        percpu_left={"left_bytes": 2**20, "upgraded_bytes": 2**19},
        memcg_structs={"online_bytes": 2**20, "upgraded_bytes": 2**22},
    )
    # In MiB: list_lrus free 242.95 of 243.02 and per-CPU memory 0.5; structs take 3, shrinker_info 3072 - 192 bytes.
    step = steps(tmp_path, outcome)["lazy_kernel"]
    assert step.frees_bytes == LISTS_PER_HOST * (OBJECT_BYTES + ARRAY_BYTES - LAZY_BYTES)
    assert "With all else that memory cgroups cost, an upgrade to Linux 6.12 frees 243 MiB" in step.text
    assert "frees 243 MiB and takes 3.00 MiB: net 240 MiB." in step.text
    assert "shrinker_info" not in step.text  # below 1 % of what is freed


def test_shrinker_info_after_the_upgrade_is_named_if_it_is_not_small(tmp_path):
    large, small = host("large"), host("small")
    for outcome, upgraded_bytes in ((large, 3 * 2**20), (small, 2 * 2**20)):  # of 243 MiB
        set_parts(
            outcome,
            list_lru={"left_bytes": 243 * 2**20, "upgraded_bytes": 0},
            shrinker_info={"upgraded_bytes": upgraded_bytes},
        )
    text = steps(tmp_path / "large", large)["lazy_kernel"].text
    assert "After the upgrade memcgs * mounts * nodes cost 3.00 MiB in shrinker_info." in text
    assert "shrinker_info" not in steps(tmp_path / "small", small)["lazy_kernel"].text


def test_the_net_is_a_bound_where_charged_objects_were_not_read_and_unknown_without_a_prediction(tmp_path):
    text = steps(tmp_path / "online", host("web-1", lazy_basis="online"))["lazy_kernel"].text
    assert "frees at least 243 MiB and takes at most 2.81 KiB: net at least 243 MiB." in text
    sampled = host("web-1", lazy_basis="sampled", lazy_error_bytes=3 << 20)
    assert ": net 243 MiB ± 3.00 MiB." in steps(tmp_path / "sampled", sampled)["lazy_kernel"].text
    costly = set_parts(host("web-1", lazy_basis="online"), memcg_structs={"upgraded_bytes": 2**30})
    assert ": net none known." in steps(tmp_path / "costly", costly)["lazy_kernel"].text
    costly_fleet = costly, host("web-2", lazy_basis="sampled", lazy_error_bytes=3 << 20)
    assert ": net none known." in steps(tmp_path / "costly fleet", *costly_fleet)["lazy_kernel"].text
    assert "net" not in steps(tmp_path / "old", host("web-1", target_kernel=None))["lazy_kernel"].text
    uncounted = set_parts(host("web-1"), memcg_percpu={"online_bytes": 1})
    text = steps(tmp_path / "some", host("web-2"), uncounted)["lazy_kernel"].text
    assert "Reboot 2 hosts" in text
    assert "an upgrade of 1 of them to Linux 6.12 frees 243 MiB" in text
    assert "net" not in steps(tmp_path / "uncounted", uncounted)["lazy_kernel"].text


def test_the_few_hosts_with_nine_tenths_of_it_are_counted(tmp_path):
    small_hosts = [ok(f"small-{n}", cache_ids=382) for n in range(20)]
    assert "the worst 2 alone" in steps(tmp_path, host("web-1"), host("web-2"), *small_hosts)["lazy_kernel"].text


def test_where_charged_objects_were_not_read_it_frees_at_least_so_much(tmp_path):
    assert "frees at least" in steps(tmp_path, host("web-1", lazy_basis="online"))["lazy_kernel"].text


def test_without_kmem_accounting_only_the_node_arrays_remain(tmp_path):
    assert steps(tmp_path, host("web-1"))["nokmem"].frees_bytes == LISTS_PER_HOST * (OBJECT_BYTES + ARRAY_BYTES)


def test_unmounting_gives_back_two_list_lrus_a_filesystem(tmp_path):
    step = steps(tmp_path, host("web-1"))["mounts"]
    superblock_bytes = 2 * (OBJECT_BYTES + 2 * ARRAY_BYTES)
    assert step.frees_bytes == 20 * superblock_bytes
    assert "20 overlay filesystems on 1 host hold 120 MiB, each of the 20 on web-1 6.00 MiB" in step.text
    assert round(superblock_bytes / 2**20, 2) == 6.00


def detach(outcome, *addresses):
    """Mark superblocks of an outcome as detached."""
    table = outcome["tables"]["superblocks"]
    index = table["columns"].index("detached")
    for row in table["rows"]:
        row[index] = row[0] in addresses
    return outcome


def test_what_holds_detached_filesystems_can_be_ended_and_unmounting_leaves_them_out(tmp_path):
    outcome = host("web-1")
    overlays = [row[0] for row in outcome["tables"]["superblocks"]["rows"] if row[1] == "overlay"]
    advice_steps = steps(tmp_path, detach(outcome, *overlays[:5]))
    superblock_bytes = 2 * (OBJECT_BYTES + 2 * ARRAY_BYTES)
    assert advice_steps["detached"].frees_bytes == 5 * superblock_bytes
    text = "End what holds 5 overlay filesystems that are unmounted but still in use on 1 host: frees 30.0 MiB at once."
    assert advice_steps["detached"].text.startswith(text)
    assert advice_steps["mounts"].frees_bytes == 20 * superblock_bytes  # the 20 of tmpfs; 15 of overlay are left
    assert "20 tmpfs filesystems on 1 host" in advice_steps["mounts"].text


def test_the_host_with_most_detached_filesystems_is_named(tmp_path):
    outcomes = [host("web-1"), host("web-2")]
    addresses = [row[0] for row in outcomes[0]["tables"]["superblocks"]["rows"]]
    step = steps(tmp_path, detach(outcomes[0], addresses[0]), detach(outcomes[1], *addresses[:3]))["detached"]
    assert (
        "4 filesystems that are unmounted but still in use on 2 hosts, 3 of them on web-2: frees 24.0 MiB" in step.text
    )
    assert "detached" not in steps(tmp_path / "without", host("web-1"))


def keep_dying(outcome, *rows):
    """Let pages keep the dying memcg of an outcome, whose structs take 3,000 bytes."""
    outcome["tables"]["dying_memcg_pages"] = table(rows)
    return set_parts(outcome, memcg_structs={"dying_bytes": 3000})


def test_the_directory_whose_page_cache_keeps_removed_cgroups_is_named(tmp_path):
    logs = [{**dying_pages("file", pages=pages, path=f"/var/log/\x1b/{pages}"), "inode": pages} for pages in (20, 30)]
    other = [dying_pages("file", pages=40, path="/etc/x"), dying_pages("file", pages=40, path="/gone", deleted=True)]
    step = steps(tmp_path, keep_dying(host("web-1"), *logs, *other), host("web-2"))["dying"]
    assert step.frees_bytes == 3000 + 64  # shrinker_info: outcomes.ok()
    assert step.text == (
        "Free the page cache that keeps removed cgroups: 520 KiB of files is charged to cgroups that are gone, on 1 "
        "host with up to 1 such cgroup. The largest part is of /var/log/\\x1b/ on web-1, 200 KiB in 2 files: write it "
        "back and drop its cache. Linux 7.1 and newer frees such cgroups by itself."
    )


def test_a_file_of_a_tmpfs_that_keeps_a_removed_cgroup_can_be_deleted(tmp_path):
    step = steps(tmp_path, keep_dying(lazy_host("new-1"), dying_pages("shmem", pages=1, path="/run/x")))["dying"]
    assert "The largest part is of /run/x on new-1, 4.00 KiB: delete what is not needed." in step.text


def test_what_has_a_deleted_file_open_keeps_removed_cgroups(tmp_path):
    outcome = keep_dying(host("web-1"), dying_pages("file", pages=1, path="/tmp/x", deleted=True))
    text = "of /tmp/x on web-1, 4.00 KiB: it is deleted, end what still has it open or mapped (lsof +L1)."
    assert text in steps(tmp_path, outcome)["dying"].text


def test_memory_that_is_no_page_cache_cannot_be_dropped(tmp_path):
    assert "dying" not in steps(tmp_path, keep_dying(host("web-1"), dying_pages("anonymous", pages=9)))


def test_what_holds_detached_filesystems_of_a_lazy_kernel_can_be_ended_too(tmp_path):
    outcome = lazy_host("new-1")
    address = outcome["tables"]["superblocks"]["rows"][0][0]
    (step,) = steps(tmp_path, detach(outcome, address)).values()
    assert step.action == "detached"
    assert step.frees_bytes == 2 * 64  # a node array of one node for each of two list_lrus


def test_ids_of_no_online_cgroup_are_counted_and_their_price_is_a_reboot(tmp_path):
    step = steps(tmp_path, host("web-1"))["churn"]
    # After a boot there are 4 ids on each of 4 nodes; kmalloc-64 holds 16 bytes and 4 pointers.
    assert step.frees_bytes == LISTS_PER_HOST * (OBJECT_BYTES - 4 * 4 * 32 + ARRAY_BYTES - 4 * 64)
    assert "24,573 ids on 1 host belong to no online cgroup" in step.text
    assert "below / on web-1: 1 of its children is dying" in step.text


def test_churn_is_looked_for_where_dead_ids_cost_most(tmp_path):
    small_host = ok("small", cache_ids=382)
    assert "on web-1: 1 of its children is dying" in steps(tmp_path, small_host, host("web-1"))["churn"].text
    quiet_host = host("web-1")
    quiet_host["tables"]["memcgs"]["rows"].pop()
    assert "Most cgroups" not in steps(tmp_path / "quiet", small_host, quiet_host)["churn"].text


@pytest.mark.parametrize("outcomes", [[lazy_host("new-1")], [failure("web-1")]])
def test_where_nothing_is_wasted_there_is_no_advice(tmp_path, outcomes):
    assert steps(tmp_path, *outcomes) == {}


def test_cores_of_one_host_are_one_host_and_machines_of_one_name_are_not(tmp_path):
    older_core = {"host": "db", "captured_at": STARTED_AT - 1}
    advice_steps = steps(tmp_path, host("db/2", host="db"), host("db/1", **older_core), host("db/0", **older_core))
    single_host_steps = steps(tmp_path / "alone", host("db/2"))
    assert {action: step.frees_bytes for action, step in advice_steps.items()} == {
        action: step.frees_bytes for action, step in single_host_steps.items()
    }
    assert "Reboot 1 host " in advice_steps["lazy_kernel"].text
    assert advice_steps["mounts"].text == single_host_steps["mounts"].text
    same_name_hosts = [host(name, host="localhost", kind="ssh") for name in ("web-1", "web-2")]
    assert "Reboot 2 hosts " in steps(tmp_path / "ssh", *same_name_hosts)["lazy_kernel"].text


@pytest.mark.parametrize("form", ["text", "markdown", "html"])
def test_sums_say_which_cores_the_advice_leaves_out(tmp_path, monkeypatch, form):
    monkeypatch.setenv("COLUMNS", "200")
    sentence = "These sums include {} of a host; the advice counts each host once."
    older_core = {"host": "db", "captured_at": STARTED_AT - 1}
    publish(tmp_path, host("db/2", host="db"), host("db/1", **older_core), host("db/0", **older_core), host("web"))
    assert sentence.format("2 older cores") in render(tmp_path, form)
    # db was upgraded: the advice no longer counts it, the sums still include its older core.
    upgraded_host = lazy_host("db/2", host="db", possible_nodes=[0, 1, 2, 3])
    publish(tmp_path / "upgraded", upgraded_host, host("db/1", **older_core))
    text = render(tmp_path / "upgraded", form)
    assert sentence.format("1 older core") in text
    assert "Reboot 1 host" not in text
    publish(tmp_path / "alone", host("db/2"), host("web"))
    assert "These sums" not in render(tmp_path / "alone", form)


@pytest.mark.parametrize("form", ["text", "markdown", "html", "json"])
def test_a_machine_that_was_reached_in_two_ways_is_promised_once_and_both_are_named(tmp_path, monkeypatch, form):
    monkeypatch.setenv("COLUMNS", "200")
    boot = {"host": "db", "boot_id": "11111111-2222-4333-8444-555555555555"}
    publish(tmp_path, host("db-ssh", kind="ssh", **boot), host("db-qmp", kind="qmp", **boot), host("web"))
    text = render(tmp_path, form)
    assert "Reboot 2 hosts " in text
    if form == "json":
        content = json.loads(text)
        machine_bytes = LISTS_PER_HOST * (OBJECT_BYTES + ARRAY_BYTES - LAZY_BYTES)
        assert content["totals"]["machines_wasted_bytes"] == 2 * machine_bytes
        assert content["totals"]["wasted_bytes"] == 3 * machine_bytes
        assert content["machines"] == [
            {"target": "db-ssh", "host_name": "db", "machine_target": "db-qmp", "relation": "again"}
        ]
        return
    text = text.replace("\\", "").replace("&#39;", "'")
    assert "These sums include 1 further audit of a host; the advice counts each host once." in text
    assert "Without them 2 hosts waste 486 MiB." in text
    assert "db-ssh is db-qmp's host db, reached in another way." in text


@pytest.mark.parametrize("form", ["text", "markdown", "html"])
def test_machines_of_one_name_are_counted_and_named(tmp_path, monkeypatch, form):
    monkeypatch.setenv("COLUMNS", "200")
    older_core = {"host": "web", "captured_at": STARTED_AT - 1}
    newer_core = host("dc1", host="web")
    publish(tmp_path, newer_core, host("dc1-old", **older_core), host("dc2", host="web", memory_bytes=2**30))
    text = render(tmp_path, form).replace("\\", "").replace("&#39;", "'")
    assert "3 cores call themselves web and differ in memory (4.00 GiB, 1.00 GiB): counted as 2 machines." in text
    assert "dc1-old is taken for an older core of dc1's host web." in text
    assert "Reboot 2 hosts " in text


def test_sums_name_hosts_apart_from_targets(tmp_path):
    older_core = {"host": "db", "captured_at": STARTED_AT - 1}
    publish(tmp_path, host("db/2", host="db"), host("db/1", **older_core))
    text = render(tmp_path, "text")
    assert "\n2 targets of 1 host waste " in text
    assert "Reboot 1 host " in text
    totals = json.loads(render(tmp_path, "json"))["totals"]
    assert (totals["hosts"], totals["machines"]) == (2, 1)


def test_names_are_harmless(tmp_path):
    outcome = host("web\x1b[2J\n1")
    assert all(step.text.isprintable() for step in steps(tmp_path, outcome).values())
