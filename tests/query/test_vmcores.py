"""Views over real cores have rows, add up to the byte, and agree with the guests' own figures."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from pipeline.fanout import runner
from pipeline.inventory import Target
from pipeline.query import views
from tests.query.conftest import CORES_STARTED_AT, VMCORES
from tests.warehouse.outcomes import publish, session

CORES = sorted(path.parent.name for path in VMCORES.glob("*/vmcore"))
LAZY_CORES = ["deb61-n2", "deb612-n4", "deb7-n2"]
VIEWS = [name for name, text in views.statements().items() if "CREATE VIEW" in text]
# Views without rows for one run of these cores, none of which is a copy of another.
EMPTY_VIEWS = ("core_copies", "growth", "upgrades")
# The server in the core `bytedance`, by hand: 1905 list_lrus, a node array of 256 each, and on each of 4 nodes an array
# of 16 + 8 * 24574 bytes, in 2^18, and 24574 list_lru_one of kmalloc-32.
SERVER_BYTES = 1905 * (256 + 4 * (2**18 + 24_574 * 32))


def truth(core: str, name: str) -> str:
    return (VMCORES / core / "truth" / name).read_text()


@pytest.fixture(scope="module", params=["parquet", "arrow"])
def db(cores_root, request):
    return session(cores_root, is_confined=request.param == "arrow")


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_has_rows(db, view):
    rows = db.rows(f"FROM {view}")
    assert bool(rows) == (view not in EMPTY_VIEWS)


@pytest.mark.parametrize("view", [name.removesuffix("_at") for name in views.statements() if name.endswith("_at")])
def test_a_view_is_its_macro_for_the_newest_run(db, view):
    if view in VIEWS:
        assert db.rows(f"FROM {view}") == db.rows(f"FROM {view}_at(newest_run_id())")


@pytest.mark.parametrize(
    "breakdown", ["superblock_waste", "fstype_waste", "cgroup_waste", "kernel_waste", "label_waste"]
)
def test_a_breakdown_sums_to_what_all_machines_hold_and_waste(db, breakdown):
    sums = "sum(list_lru_bytes)::BIGINT AS held, sum(lazy_bytes)::BIGINT AS lazy, sum(wasted_bytes)::BIGINT AS wasted"
    (fleet,) = db.rows(f"SELECT {sums} FROM host_waste")
    assert fleet["held"] > SERVER_BYTES
    assert db.rows(f"SELECT {sums} FROM {breakdown}") == [fleet]


@pytest.mark.parametrize("breakdown", ["superblock_waste", "fstype_waste", "cgroup_waste"])
def test_a_breakdown_of_a_machine_sums_to_what_it_holds_and_wastes(db, breakdown):
    columns = ("list_lru_bytes", "lazy_bytes", "wasted_bytes")
    sums = ", ".join(f"sum({column})::BIGINT AS {column}" for column in columns)
    machines = db.rows(f"SELECT target, {', '.join(columns)} FROM host_waste ORDER BY target")
    assert len(machines) == len(CORES)
    assert db.rows(f"SELECT target, {sums} FROM {breakdown} GROUP BY target ORDER BY target") == machines


def test_the_parts_of_the_waste_sum_to_it(db):
    waste = db.rows("SELECT target, wasted_bytes FROM host_waste ORDER BY target")
    for view, parts in (
        ("lazy_savings", "saves_objects_bytes + saves_transpose_bytes + saves_xarray_bytes"),
        ("id_bloat", "dead_ids_bytes + online_but_empty_bytes + in_use_bytes"),
    ):
        assert db.rows(f"SELECT target, {parts} AS wasted_bytes FROM {view} ORDER BY target") == waste


def test_the_id_of_a_core_has_its_crash_time_and_size_and_no_other_core_has_it(db):
    rows = db.rows("SELECT target, core_id, epoch(captured_at)::BIGINT AS crashed_s FROM targets WHERE status = 'ok'")
    assert len({row["core_id"] for row in rows}) == len(CORES)
    for row in rows:
        crash_time, size, crc = row["core_id"].split("-")
        assert int(crash_time, 16) == row["crashed_s"]
        assert int(size, 16) == (VMCORES / row["target"]).stat().st_size
        assert len(crc) == 8


def test_the_server_comes_first_with_its_bytes(db):
    server = db.rows("FROM host_waste")[0]
    assert (server["rank"], server["target"], server["list_lru_bytes"]) == (1, "bytedance/vmcore", SERVER_BYTES)
    assert server["formula_bytes"] == 2 * 952 * 4 * 24_574 * 32


@pytest.mark.parametrize("core", [core for core in CORES if core != "bytedance"])
def test_superblocks_are_those_of_the_reference_walk(db, core):
    superblock_counts = Counter(row["fstype"] for row in json.loads(truth(core, "reference.json"))["superblocks"])
    rows = db.rows(
        "SELECT fstype, superblocks FROM fstype_waste WHERE target = $core AND fstype IS NOT NULL",
        {"core": f"{core}/vmcore"},
    )
    assert {row["fstype"]: row["superblocks"] for row in rows} == superblock_counts


@pytest.mark.parametrize("core", CORES)
def test_dying_cgroups_are_those_that_the_guest_counted(db, core):
    stat = dict(line.split() for line in truth(core, "cgroup.stat").splitlines())
    (row,) = db.rows("FROM dying_cgroups WHERE target = $core", {"core": f"{core}/vmcore"})
    assert row["dying_memcgs"] == int(stat["nr_dying_descendants"])
    assert row["dying_children"] <= row["dying_memcgs"]
    assert (row["path"] is None) == (row["dying_memcgs"] == 0)


def test_lazy_kernels_are_those_since_5_18(db):
    releases = {core: truth(core, "version").split()[2] for core in CORES}
    lazy_cores = [
        core for core, release in releases.items() if tuple(map(int, re.findall(r"\d+", release)[:2])) >= (5, 18)
    ]
    assert lazy_cores == LAZY_CORES
    rows = {row["kernel_release"]: row for row in db.rows("FROM lazy_kernels")}
    assert rows.keys() == {releases[core] for core in LAZY_CORES}
    assert all(row["saved_bytes"] == row["eager_bytes"] - row["list_lru_bytes"] > 0 for row in rows.values())


def test_nodes_that_are_not_there_have_half_of_what_two_hold(db):
    """55 list_lrus of 46 ids: 46 * 32 bytes of objects and 16 + 8 * 46 bytes of pointers, in 512, on each node."""
    assert (truth("deb510-offline", "nodes_possible"), truth("deb510-offline", "nodes_online")) == ("0-1\n", "0\n")
    rows = {row["target"]: row["offline_node_bytes"] for row in db.rows("FROM offline_nodes")}
    assert rows.pop("deb510-offline/vmcore") == 55 * (46 * 32 + 512)
    assert len(rows) == len(CORES) - len(LAZY_CORES) - 1
    assert set(rows.values()) == {0}


def test_a_doubling_under_way_costs_what_is_still_to_come(db):
    """From 766 to 1534 ids, on 2 nodes: arrays of 8192 bytes become 16384."""
    list_lrus = json.loads(truth("deb510-growing", "reference.json"))["list_lrus"]
    left = [lru for lru in list_lrus if lru["objects"] == 2 * 766]
    assert len(left) + sum(lru["objects"] == 2 * 1534 for lru in list_lrus) == len(list_lrus) > len(left) > 0
    (growth,) = db.rows("FROM next_doubling WHERE target = 'deb510-growing/vmcore'")
    assert (growth["next_cache_ids"], growth["ids_left"]) == (1534, 0)
    assert db.rows("SELECT growing_to_cache_ids FROM targets WHERE target = 'deb510-growing/vmcore'") == [
        {"growing_to_cache_ids": 1534}
    ]
    assert growth["next_bytes"] == len(left) * 2 * ((1534 - 766) * 32 + 16384 - 8192)


def test_the_server_after_its_next_growth_and_after_a_reboot(db):
    """24574 ids grow to 49150, of 16 + 8 * 49150 bytes in 2^19; its 480 memcgs fit into 766, of 8192 bytes."""
    (growth,) = db.rows("FROM next_doubling WHERE target = 'bytedance/vmcore'")
    assert growth["next_cache_ids"] == 49_150
    assert growth["next_bytes"] == 1905 * 4 * ((49_150 - 24_574) * 32 + 2**19 - 2**18)
    (reboot,) = db.rows("FROM reboot_savings WHERE target = 'bytedance/vmcore'")
    assert (reboot["online_ids"], reboot["booted_cache_ids"]) == (480, 766)
    assert reboot["reboot_saves_bytes"] == 1905 * 4 * ((24_574 - 766) * 32 + 2**18 - 8192)


def test_a_plan_takes_the_server_first_and_the_next_for_one_byte_more(db):
    ranking = db.rows("SELECT target, wasted_bytes FROM host_waste ORDER BY rank")
    required_bytes = ranking[0]["wasted_bytes"]
    plan = db.rows("FROM upgrade_plan($bytes)", {"bytes": required_bytes})
    assert [row["target"] for row in plan] == ["bytedance/vmcore"]
    plan = db.rows("FROM upgrade_plan($bytes)", {"bytes": required_bytes + 1})
    assert [row["target"] for row in plan] == [row["target"] for row in ranking[:2]]
    full_plan = db.rows("FROM upgrade_plan(1000000000000)")
    assert [row["target"] for row in full_plan] == [row["target"] for row in ranking if row["wasted_bytes"] > 0]
    assert full_plan[-1]["left_bytes"] == 10**12 - sum(row["wasted_bytes"] for row in ranking)


def test_the_superblocks_of_one_machine_that_cost_most(db):
    rows = db.rows("FROM top_superblocks('bytedance/vmcore', 20)")
    assert len({row["superblock"] for row in rows}) == 20
    assert {row["list_lru_bytes"] for row in rows} == {SERVER_BYTES // 1905 * 2}


def test_a_label_has_its_failed_targets_and_those_without_it(db):
    rows = {row["value"]: row for row in db.rows("FROM label_waste")}
    assert {row["label"] for row in rows.values()} == {"nodes"}
    failed_row = rows["readme"]
    assert (failed_row["targets"], failed_row["hosts"], failed_row["list_lru_bytes"]) == (1, 0, 0)
    assert (rows[None]["targets"], rows[None]["hosts"], rows[None]["list_lru_bytes"]) == (1, 1, SERVER_BYTES)
    assert rows["n4"]["targets"] == len([core for core in CORES if core.endswith("-n4")])


def test_what_failed_is_missing(db):
    (row,) = db.rows("FROM missing")
    assert (row["target"], row["status"], row["last_ok_run_id"]) == ("readme", "bad_core", None)


def test_an_upgrade_frees_what_was_predicted_of_it(attempts, tmp_path):
    """5.10 and 6.1 booted and did the same work; the second holds less by the saving predicted of the first.

    The second mounted one superblock more.
    """
    for day, core in enumerate(("deb510-n2", "deb61-n2", "deb61-n2")):
        outcome = runner.outcome(Target("db-1", "vmcore", f"/cores/{core}"), [attempts[core]])
        publish(tmp_path, outcome, audit="fleet", started_at=CORES_STARTED_AT + day * 86_400_000_000)
    (upgrade,) = session(tmp_path).rows("FROM upgrades")
    assert (upgrade["from_layout"], upgrade["to_layout"]) == ("array_rcu", "xarray")
    assert (upgrade["rebooted"], upgrade["comparable"], upgrade["superblocks_delta"]) == (True, True, 1)
    assert upgrade["freed_bytes"] == pytest.approx(upgrade["predicted_saves_bytes"], rel=0.01)
    assert upgrade["predicted_saves_bytes"] > 4_000_000
    unchanged_kernel = session(tmp_path).rows("FROM growth")[1]
    assert (unchanged_kernel["rebooted"], unchanged_kernel["list_lru_bytes_delta"]) == (False, 0)
