"""The model of newer kernels, compared with these kernels, with published figures and with sums by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pipeline.collector import snapshot
from pipeline.collector.model import cost, target_kernels, upgrade
from pipeline.collector.model.target_kernels import KERNELS
from pipeline.collector.walk import percpu, slab, totals
from tests.collector.conftest import CORES, Core, with_cores

BY_NAME = {core.name: core for core in CORES}
# These kernels run one shape: the same mounts and memcgs (tests/lab/shapes.py).
EAGER, LAZY = BY_NAME["deb510-n2"], [BY_NAME["deb61-n2"], BY_NAME["deb7-n2"]]


def machine(nodes: int, **facts: Any) -> upgrade.Machine:
    """A Machine with x86_64's sizes of which only some facts are known."""
    unknown = dict.fromkeys(upgrade.Machine._fields)
    facts = {"sizes": cost.x86_64(nodes), "possible_nodes": nodes, "online_memcgs": 1, "dying_memcgs": 0, **facts}
    facts = {"has_psi": True, "has_perf_events": True, "is_cgroup_v1": False, **facts}
    return upgrade.Machine(**{**unknown, **facts})


def predicted_bytes(part: str, kernel: str, machine: upgrade.Machine) -> int:
    return upgrade.predict(machine, KERNELS[kernel])[part].upgraded_bytes


def part_rows(audit: snapshot.Snapshot) -> dict[str, dict[str, Any]]:
    """The rows of memcg_memory by part."""
    table = audit.memcg_memory
    return {row["part"]: row for row in (dict(zip(table.columns, values, strict=True)) for values in table.rows)}


def target_name(core: Core) -> str:
    """The kernel to upgrade to that a core is of, or an empty text."""
    match = re.search(r"version (\d+\.\d+)\..*-cloud-amd64 ", core.truth("version"))
    return match[1] if match and match[1] in KERNELS else ""


@pytest.mark.parametrize("part", ["shrinker_info", "memcg_structs", "memcg_percpu"])
@with_cores(lambda core: bool(target_name(core)))
def test_the_model_of_a_kernel_has_the_bytes_that_are_counted_on_it(core: Core, part: str) -> None:
    prog = core.kernel.prog
    nodes = len(core.target["possible_nodes"])
    facts = machine(
        nodes,
        sizes=cost.x86_64(core.target["nr_node_ids"])._replace(kmalloc=slab.kmalloc_sizes(prog)),
        percpu_units=totals.percpu_units(prog),
        online_memcgs=core.target["online_memcgs"] + 1,
        dying_memcgs=core.target["dying_memcgs"],
        shrinker_ids=prog["shrinker_nr_max"].value_(),
    )
    counted_bytes = part_rows(core.snapshot)[part]["held_bytes"]
    assert predicted_bytes(part, target_name(core), facts) == counted_bytes


@pytest.mark.parametrize("lazy", LAZY, ids=lambda core: core.name)
def test_an_older_kernel_predicts_what_a_newer_one_holds_for_the_same_work(lazy: Core) -> None:
    predicted = part_rows(snapshot.take(EAGER.kernel, target=target_name(lazy)))
    counted = part_rows(lazy.snapshot)
    for part in ("shrinker_info", "memcg_structs"):
        assert predicted[part]["upgraded_bytes"] == counted[part]["held_bytes"]
    # The kernels can have a different number of possible CPUs on one machine.
    units, lazy_units = totals.percpu_units(EAGER.kernel.prog), totals.percpu_units(lazy.kernel.prog)
    assert predicted["memcg_percpu"]["upgraded_bytes"] * lazy_units == counted["memcg_percpu"]["held_bytes"] * units


def test_the_list_lrus_of_an_eager_kernel_are_those_of_the_estimate(eager_core: Core) -> None:
    assert eager_core.target["target_kernel"] == "6.12"
    row = part_rows(eager_core.snapshot)["list_lru"]
    assert row["upgraded_bytes"] == sum(lru["lazy_bytes"] for lru in eager_core.rows("list_lrus"))
    assert row["basis"].startswith("exact; upgraded: lazy_bytes with list_lru_memcg of ")


def test_entries_of_a_lazy_kernel_have_another_size_on_the_next() -> None:
    """list_lru_memcg of two nodes: 16 + 2 * 24 in kmalloc-64 on v6.1, 16 + 2 * 32 in kmalloc-96 on v7.2."""
    core = BY_NAME["deb61-n2"]
    entries = sum(lru["list_lru_one_objects"] for lru in core.rows("list_lrus"))
    row = part_rows(snapshot.take(core.kernel, target="7.2"))["list_lru"]
    assert row["upgraded_bytes"] == row["held_bytes"] + entries * (96 - 64)


@pytest.mark.parametrize("name", ["deb612-n4", "deb7-n2"])
def test_a_kernel_that_is_not_older_has_no_prediction(name: str) -> None:
    core = BY_NAME[name]
    assert core.target["target_kernel"] is None
    assert {row["upgraded_bytes"] for row in core.rows("memcg_memory")} == {None}


@pytest.mark.parametrize(
    ("memcgs", "superblocks", "v5_10", "v6_1", "v6_12"),
    [(2_000, 5_000, 4e6, 262e6, 328e6), (10_000, 70_000, 0.33e9, 21.0e9, 22.7e9)],
    ids=["2,000 memcgs", "10,000 containers with 7 mounts (LKML 2021-04-05)"],
)
def test_shrinker_info_grows_with_memcgs_and_mounts(
    memcgs: int, superblocks: int, v5_10: float, v6_1: float, v6_12: float
) -> None:
    """For 2 nodes. Above 8 KiB an array is a power of two of pages, so 70,000 ids with 8 bytes and a bit take 1 MiB."""
    facts = machine(2, online_memcgs=memcgs, shrinker_ids=superblocks)
    map_bytes = memcgs * 2 * upgrade.shrinker_map_bytes(facts.sizes, superblocks)
    assert map_bytes == pytest.approx(v5_10, rel=0.03)
    for kernel, expected_bytes in {"6.1": v6_1, "6.6": v6_1, "6.12": v6_12, "7.2": v6_12}.items():
        assert predicted_bytes("shrinker_info", kernel, facts) == pytest.approx(expected_bytes, rel=0.003), kernel


@pytest.mark.parametrize(
    ("ids", "v5_10", "v6_1", "v6_12"),
    [
        (1, 32, 1024, 32 + 1024),  # 16 + 8; 32 + 8 * 64 + 8; 24 + 8, 520
        (64, 32, 1024, 32 + 1024),
        (65, 32, 2048, 64 + 2 * 1024),  # 32 + 2 * 520; 24 + 2 * 8, kmalloc-64
        (957, 192, 8192, 192 + 15 * 1024),  # 16 + 15 * 8; 32 + 15 * 520, 24 + 15 * 8
        (1024, 192, 16384, 192 + 16 * 1024),  # 32 + 16 * 520 = 8352: above 8 KiB pages, 2^2
    ],
)
def test_the_arrays_of_a_memcg_and_node_by_hand(ids: int, v5_10: int, v6_1: int, v6_12: int) -> None:
    sizes = cost.x86_64(1)
    assert upgrade.shrinker_map_bytes(sizes, ids) == v5_10
    assert upgrade.shrinker_info_bytes(sizes, KERNELS["6.1"], ids) == v6_1
    assert upgrade.shrinker_info_bytes(sizes, KERNELS["6.12"], ids) == v6_12


def test_the_structs_of_v6_12_by_hand() -> None:
    """The root, two memcgs and a dying one on one node."""
    facts = machine(1, online_memcgs=3, dying_memcgs=1)
    # mem_cgroup, memcg_vmstats, mem_cgroup_per_node, lruvec_stats
    memcg_bytes = 2048 + 2048 + 2048 + 1024
    # cgroup, psi_group, percpu_ref_data of css and cgroup; obj_cgroup and its percpu_ref_data
    cgroup_bytes = 4096 + 1024 + 2 * 64 + 64 + 64
    assert predicted_bytes("memcg_structs", "6.12", facts) == 4 * memcg_bytes + 3 * cgroup_bytes + 2 * 64


def test_a_kernel_without_psi_takes_no_psi_group() -> None:
    """The root and two memcgs on one node, for two CPUs."""
    with_psi = machine(1, online_memcgs=3, percpu_units=2)
    without = with_psi._replace(has_psi=False)
    for part, saved_bytes in {"memcg_structs": 2 * 1024, "memcg_percpu": 2 * 2 * 128}.items():
        assert predicted_bytes(part, "6.12", with_psi) - predicted_bytes(part, "6.12", without) == saved_bytes
    assert upgrade.predict(without, KERNELS["6.12"])["memcg_percpu"].rule.endswith("for 1 nodes, PSI off")


def test_memcgs_of_cgroup_v1_have_no_perf_events_and_no_bpf() -> None:
    """Of the root and two memcgs perf_cgroup_info, and a percpu_ref of each cgroup_bpf and each perf_event css.

    The root's cgroup is not the static one, and has a cgroup_rstat_cpu of 64 bytes.
    """
    cgroup2 = machine(1, online_memcgs=3, percpu_units=2)
    v1 = cgroup2._replace(has_perf_events=False, is_cgroup_v1=True)
    for part, saved_bytes in {"memcg_structs": 2 * 64, "memcg_percpu": 2 * (3 * 32 + (3 + 2) * 8 - 64)}.items():
        assert predicted_bytes(part, "6.1", cgroup2) - predicted_bytes(part, "6.1", v1) == saved_bytes
        # Without CONFIG_MEMCG_V1 they have to move to cgroup2.
        assert upgrade.predict(v1, KERNELS["6.12"])[part] == upgrade.predict(cgroup2, KERNELS["6.12"])[part]
    assert upgrade.predict(v1, KERNELS["6.1"])["memcg_structs"].rule.endswith("for 1 nodes, cgroup v1")
    # A dying memcg has no cgroup_bpf any more.
    cgroup2, v1 = (memcgs._replace(dying_memcgs=5) for memcgs in (cgroup2, v1))
    saved_bytes = predicted_bytes("memcg_structs", "6.1", cgroup2) - predicted_bytes("memcg_structs", "6.1", v1)
    assert saved_bytes == 2 * 64


def test_objects_of_v7_2_are_in_caches_of_their_own() -> None:
    """Of the root alone: mem_cgroup 1664 + 8 and mem_cgroup_per_node 1920 in multiples of 64, not kmalloc-2k."""
    # memcg_vmstats, lruvec_stats, obj_cgroup and its percpu_ref_data
    assert predicted_bytes("memcg_structs", "7.2", machine(1)) == 1728 + 1920 + 2048 + 2048 + 64 + 64


def test_slabs_have_the_slots_that_the_kernels_own_have(core: Core) -> None:
    """In slabinfo, of kmalloc() and of the caches of memcgs: of machines with 2, 8 and 64 CPUs."""
    cpus = totals.present_cpus(core.kernel.prog)
    assert cpus
    for row in core.truth("slabinfo").splitlines()[2:]:
        name, _, _, slot_bytes, slots, *_ = row.split()
        if re.match(r"(kmalloc|dma-kmalloc)-|mem_cgroup", name):
            assert upgrade.slab_slots(int(slot_bytes), cpus, core.target["page_bytes"]) == int(slots), name


# Structs of a memcg and their slots on v6.12 with one CPU: mem_cgroup and mem_cgroup_per_node in kmalloc-2k with 8,
# memcg_vmstats with 8, cgroup with 8 in kmalloc-4k, lruvec_stats and psi_group with 8, 5 small structs with 64.
@pytest.mark.parametrize(
    ("css_ids", "free_slots", "unit_slots"),
    [
        # 33 memcgs in a row, from the start of a slab of each: 66, 33 and 165 structs.
        (range(64, 97), {2048: 6 + 7, 4096: 7, 1024: 2 * 7, 64: 27}, 6),
        # One in each slab. With an offset of 5, 60 + 5 > 64: small ones of some lie in two slabs.
        (range(0, 64 * 40, 64), {2048: 40 * (6 + 7), 4096: 40 * 7, 1024: 40 * 2 * 7, 64: 40 * 59}, 40 * 6),
    ],
    ids=["without churn", "churn"],
)
def test_kept_memcgs_pin_slabs_as_far_as_their_ids_are_spread(
    css_ids: range, free_slots: dict[int, int], unit_slots: int
) -> None:
    memcgs = len(css_ids)
    facts = machine(1, online_memcgs=memcgs, css_ids=list(css_ids), present_cpus=1)
    expected_bytes = sum(slot_bytes * slots for slot_bytes, slots in free_slots.items())
    assert predicted_bytes("memcg_slab_left", "6.12", facts) == expected_bytes
    assert predicted_bytes("memcg_slab_left", "6.12", facts._replace(shrinker_ids=0)) == expected_bytes
    # The first unit of shrinker_info, beside psi_group in kmalloc-1k: two structs of a memcg in each of its slabs.
    with_unit = facts._replace(shrinker_ids=10)
    expected_bytes += 1024 * (unit_slots - free_slots[1024] // 2)
    assert predicted_bytes("memcg_slab_left", "6.12", with_unit) == expected_bytes
    # A second one is made when filesystems are mounted, and fills a free slot. So does the array of their pointers.
    with_units = facts._replace(shrinker_ids=65)
    expected_bytes -= 1024 * min(memcgs, unit_slots) + 64 * min(memcgs, free_slots[64])
    assert predicted_bytes("memcg_slab_left", "6.12", with_units) == expected_bytes


def test_each_node_has_slabs_of_its_own() -> None:
    """On v7.2: mem_cgroup_per_node, 17 in a slab, and lruvec_stats in kmalloc-cg-2k, the first node's with vmstats."""
    one, two = (machine(nodes, css_ids=[1], present_cpus=2, sizes=cost.x86_64(2)) for nodes in (1, 2))
    objcg_bytes = 64 * (64 - 2)
    more_bytes = predicted_bytes("memcg_slab_left", "7.2", two) - predicted_bytes("memcg_slab_left", "7.2", one)
    assert more_bytes == 16 * 1920 + 15 * 2048 + objcg_bytes


@pytest.mark.parametrize("lazy", LAZY, ids=lambda core: core.name)
def test_free_slots_of_slabs_are_about_those_that_are_counted(lazy: Core) -> None:
    predicted = part_rows(snapshot.take(EAGER.kernel, target=target_name(lazy)))["memcg_slab_left"]
    counted = part_rows(lazy.snapshot)["memcg_slab_left"]
    assert predicted["upgraded_bytes"] == pytest.approx(counted["held_bytes"], rel=0.15)


@pytest.mark.parametrize(
    ("partly_used_pages", "kept_pages"),
    [
        (1000, 0),
        (980, 20),  # less than a tenth is empty
        (900, 100),
        (50, 100),
    ],
)
def test_a_tenth_of_per_cpu_pages_stays_empty(partly_used_pages: int, kept_pages: int) -> None:
    """Of 1,000 pages. v6.12 needs half of the per-CPU memory for a memcg here, and so for what is beside it."""
    chunks = percpu.Chunks(1000 * 4096, partly_used_pages * 4096, partly_used_pages * 96)
    unit = predicted_bytes("memcg_percpu", "6.12", machine(1, percpu_units=1))
    facts = machine(1, percpu_units=1, percpu_chunks=chunks, memcg_percpu_bytes=2 * unit)
    assert 2 * predicted_bytes("percpu_left", "6.12", facts) == partly_used_pages * 4000 + kept_pages * 4096


def test_dying_memcgs_stay_until_v7_1() -> None:
    both = machine(2, online_memcgs=5, dying_memcgs=100, shrinker_ids=64, percpu_units=8)
    online = both._replace(dying_memcgs=0)
    for part in ("shrinker_info", "memcg_structs", "memcg_percpu"):
        assert predicted_bytes(part, "6.12", both) > predicted_bytes(part, "6.12", online)
        assert predicted_bytes(part, "7.2", both) == predicted_bytes(part, "7.2", online)
    assert upgrade.predict(both, KERNELS["6.12"])["shrinker_info"].rule.startswith("105 memcgs * 2 nodes")
    assert upgrade.predict(both, KERNELS["7.2"])["shrinker_info"].rule.startswith("5 online memcgs (dying ones end")


def test_what_is_not_known_is_not_predicted() -> None:
    for facts in (machine(1), machine(1, css_ids=[1]), machine(1, present_cpus=2)):
        assert upgrade.predict(facts, KERNELS["6.12"]).keys() == {"memcg_structs", "memcg_caches_arrays"}


def test_a_cache_of_a_broken_size_has_no_free_slots() -> None:
    assert [upgrade.slab_slots(slot_bytes, 2, 4096) for slot_bytes in (-8, 0, 1 << 40)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("release", "newer"),
    [
        ("4.18.0-553.el8_10.x86_64", ["6.1", "6.6", "6.12", "7.2"]),
        ("5.10.0-32-cloud-amd64", ["6.1", "6.6", "6.12", "7.2"]),
        ("6.1.0-50-cloud-amd64", ["6.6", "6.12", "7.2"]),
        ("6.8.0-45-generic", ["6.12", "7.2"]),
        ("6.12.117+deb13-cloud-amd64", ["7.2"]),
        ("6.18-rc1", ["7.2"]),
        ("7.2.12+deb14-cloud-amd64", []),
        ("unknown", []),
    ],
)
def test_only_a_newer_kernel_is_one_to_upgrade_to(release: str, newer: list[str]) -> None:
    assert [name for name, kernel in KERNELS.items() if kernel.is_newer_than(release)] == newer


def test_layouts_are_other_names_of_kernels() -> None:
    assert {layout: target_kernels.named(layout).name for layout in ("5.18", "6.13")} == {"5.18": "6.12", "6.13": "7.2"}
    assert [kernel.lazy_layout for kernel in KERNELS.values()] == ["5.18", "5.18", "5.18", "6.13"]
