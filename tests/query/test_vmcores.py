"""Every view answers on real cores, adds up to the byte, and says what the guests said of themselves."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from pipeline.fanout import runner
from pipeline.inventory import Target
from pipeline.query import views
from tests.query.conftest import NEWER_THAN_ANY_KEPT, VMCORES
from tests.warehouse.outcomes import publish, session

CORES = sorted(path.parent.name for path in VMCORES.glob("*/vmcore"))
LAZY = ["deb61-n2", "deb612-n4", "deb7-n2"]
VIEWS = [name for name, text in views.statements().items() if "CREATE VIEW" in text]
OF_SEVERAL_RUNS = ("growth", "upgrades")
# The server in the core `bytedance`, by hand: 1905 list_lrus, a node array of 256 each, and on each of 4 nodes an array
# of 16 + 8 * 24574 bytes, in 2^18, and 24574 list_lru_one of kmalloc-32.
SERVER_BYTES = 1905 * (256 + 4 * (2**18 + 24_574 * 32))


def truth(core: str, name: str) -> str:
    return (VMCORES / core / "truth" / name).read_text()


@pytest.fixture(scope="module", params=["parquet", "arrow"])
def reading(bundled, request):
    return session(bundled, confined=request.param == "arrow")


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_has_rows(reading, view):
    found = reading.rows(f"FROM {view}")
    assert bool(found) == (view not in OF_SEVERAL_RUNS)


@pytest.mark.parametrize("view", [name.removesuffix("_at") for name in views.statements() if name.endswith("_at")])
def test_a_view_is_its_macro_for_the_newest_run(reading, view):
    if view in VIEWS:
        assert reading.rows(f"FROM {view}") == reading.rows(f"FROM {view}_at((SELECT run_id FROM newest_run))")


@pytest.mark.parametrize(
    "breakdown", ["superblock_waste", "fstype_waste", "cgroup_waste", "kernel_waste", "label_waste"]
)
def test_a_breakdown_sums_to_what_all_machines_hold_and_waste(reading, breakdown):
    sums = "sum(list_lru_bytes)::BIGINT AS held, sum(lazy_bytes)::BIGINT AS lazy, sum(wasted_bytes)::BIGINT AS wasted"
    (fleet,) = reading.rows(f"SELECT {sums} FROM host_waste")
    assert fleet["held"] > SERVER_BYTES
    assert reading.rows(f"SELECT {sums} FROM {breakdown}") == [fleet]


@pytest.mark.parametrize("breakdown", ["superblock_waste", "fstype_waste", "cgroup_waste"])
def test_a_breakdown_of_a_machine_sums_to_what_it_holds_and_wastes(reading, breakdown):
    columns = ("list_lru_bytes", "lazy_bytes", "wasted_bytes")
    summed = ", ".join(f"sum({column})::BIGINT AS {column}" for column in columns)
    machines = reading.rows(f"SELECT target, {', '.join(columns)} FROM host_waste ORDER BY target")
    assert len(machines) == len(CORES)
    assert reading.rows(f"SELECT target, {summed} FROM {breakdown} GROUP BY target ORDER BY target") == machines


def test_the_parts_of_the_waste_sum_to_it(reading):
    wasted = reading.rows("SELECT target, wasted_bytes FROM host_waste ORDER BY target")
    for view, parts in (
        ("lazy_savings", "saves_objects_bytes + saves_transpose_bytes + saves_xarray_bytes"),
        ("id_bloat", "dead_ids_bytes + online_but_empty_bytes + in_use_bytes"),
    ):
        assert reading.rows(f"SELECT target, {parts} AS wasted_bytes FROM {view} ORDER BY target") == wasted


def test_the_server_comes_first_with_its_bytes(reading):
    first = reading.rows("FROM host_waste")[0]
    assert (first["rank"], first["target"], first["list_lru_bytes"]) == (1, "bytedance/vmcore", SERVER_BYTES)
    assert first["formula_bytes"] == 2 * 952 * 4 * 24_574 * 32


@pytest.mark.parametrize("core", [core for core in CORES if core != "bytedance"])
def test_superblocks_are_those_of_the_reference_walk(reading, core):
    expected = Counter(row["fstype"] for row in json.loads(truth(core, "reference.json"))["superblocks"])
    found = reading.rows(
        "SELECT fstype, superblocks FROM fstype_waste WHERE target = $core AND fstype IS NOT NULL",
        {"core": f"{core}/vmcore"},
    )
    assert {row["fstype"]: row["superblocks"] for row in found} == expected


@pytest.mark.parametrize("core", CORES)
def test_dying_cgroups_are_those_that_the_guest_counted(reading, core):
    stat = dict(line.split() for line in truth(core, "cgroup.stat").splitlines())
    (found,) = reading.rows("FROM dying_cgroups WHERE target = $core", {"core": f"{core}/vmcore"})
    assert found["dying_memcgs"] == int(stat["nr_dying_descendants"])
    assert found["dying_children"] <= found["dying_memcgs"]
    assert (found["path"] is None) == (found["dying_memcgs"] == 0)


def test_lazy_kernels_are_those_since_5_18(reading):
    releases = {core: truth(core, "version").split()[2] for core in CORES}
    lazy = [core for core, release in releases.items() if tuple(map(int, re.findall(r"\d+", release)[:2])) >= (5, 18)]
    assert lazy == LAZY
    found = {row["kernel_release"]: row for row in reading.rows("FROM lazy_kernels")}
    assert found.keys() == {releases[core] for core in LAZY}
    assert all(row["saved_bytes"] == row["eager_bytes"] - row["list_lru_bytes"] > 0 for row in found.values())


def test_nodes_that_are_not_there_have_half_of_what_two_hold(reading):
    """55 list_lrus of 46 ids: 46 * 32 bytes of objects and 16 + 8 * 46 bytes of pointers, in 512, on each node."""
    assert (truth("deb510-offline", "nodes_possible"), truth("deb510-offline", "nodes_online")) == ("0-1\n", "0\n")
    found = {row["target"]: row["offline_node_bytes"] for row in reading.rows("FROM offline_nodes")}
    assert found.pop("deb510-offline/vmcore") == 55 * (46 * 32 + 512)
    assert len(found) == len(CORES) - len(LAZY) - 1
    assert set(found.values()) == {0}


def test_the_server_after_its_next_growth_and_after_a_reboot(reading):
    """24574 ids grow to 49150, of 16 + 8 * 49150 bytes in 2^19; its 480 memcgs fit into 766, of 8192 bytes."""
    (grown,) = reading.rows("FROM next_doubling WHERE target = 'bytedance/vmcore'")
    assert grown["next_cache_ids"] == 49_150
    assert grown["next_bytes"] == 1905 * 4 * ((49_150 - 24_574) * 32 + 2**19 - 2**18)
    (booted,) = reading.rows("FROM reboot_savings WHERE target = 'bytedance/vmcore'")
    assert (booted["online_ids"], booted["booted_cache_ids"]) == (480, 766)
    assert booted["reboot_saves_bytes"] == 1905 * 4 * ((24_574 - 766) * 32 + 2**18 - 8192)


def test_a_plan_takes_the_server_first_and_the_next_for_one_byte_more(reading):
    ranked = reading.rows("SELECT target, wasted_bytes FROM host_waste ORDER BY rank")
    enough = ranked[0]["wasted_bytes"]
    plan = reading.rows("FROM upgrade_plan($bytes)", {"bytes": enough})
    assert [row["target"] for row in plan] == ["bytedance/vmcore"]
    plan = reading.rows("FROM upgrade_plan($bytes)", {"bytes": enough + 1})
    assert [row["target"] for row in plan] == [row["target"] for row in ranked[:2]]
    everything = reading.rows("FROM upgrade_plan(1000000000000)")
    assert [row["target"] for row in everything] == [row["target"] for row in ranked if row["wasted_bytes"] > 0]
    assert everything[-1]["left_bytes"] == 10**12 - sum(row["wasted_bytes"] for row in ranked)


def test_the_superblocks_of_one_machine_that_cost_most(reading):
    found = reading.rows("FROM top_superblocks('bytedance/vmcore', 20)")
    assert len({row["superblock"] for row in found}) == 20
    assert {row["list_lru_bytes"] for row in found} == {SERVER_BYTES // 1905 * 2}


def test_a_label_has_its_failed_targets_and_those_without_it(reading):
    rows = {row["value"]: row for row in reading.rows("FROM label_waste")}
    assert {row["label"] for row in rows.values()} == {"nodes"}
    failed = rows["readme"]
    assert (failed["targets"], failed["hosts"], failed["list_lru_bytes"]) == (1, 0, 0)
    assert (rows[None]["targets"], rows[None]["hosts"], rows[None]["list_lru_bytes"]) == (1, 1, SERVER_BYTES)
    assert rows["n4"]["targets"] == len([core for core in CORES if core.endswith("-n4")])


def test_what_failed_is_missing(reading):
    (found,) = reading.rows("FROM missing")
    assert (found["target"], found["status"], found["last_ok_run_id"]) == ("readme", "bad_core", None)


def test_an_upgrade_frees_what_was_predicted_of_it(attempts, tmp_path):
    """5.10 and 6.1 booted to do the same work: what was predicted of the first, the second holds less.

    The second mounted one superblock more.
    """
    for day, core in enumerate(("deb510-n2", "deb61-n2", "deb61-n2")):
        outcome = runner.outcome(Target("db-1", "vmcore", f"/cores/{core}"), [attempts[core]])
        publish(tmp_path, outcome, audit="fleet", started_at=NEWER_THAN_ANY_KEPT + day * 86_400_000_000)
    (upgrade,) = session(tmp_path).rows("FROM upgrades")
    assert (upgrade["from_layout"], upgrade["to_layout"]) == ("array_rcu", "xarray")
    assert (upgrade["rebooted"], upgrade["comparable"], upgrade["superblocks_delta"]) == (True, True, 1)
    assert upgrade["freed_bytes"] == pytest.approx(upgrade["predicted_saves_bytes"], rel=0.01)
    assert upgrade["predicted_saves_bytes"] > 4_000_000
    same = session(tmp_path).rows("FROM growth")[1]
    assert (same["rebooted"], same["list_lru_bytes_delta"]) == (False, 0)
