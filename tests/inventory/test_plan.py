"""`pipeline.inventory.plan`: every target is in one batch, batches are small, and `live:` is the driver's machine."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from pipeline.inventory import Target, plan
from pipeline.inventory.plan import LOCAL_NODE, Node

A = Node("a" * 56, "alpha", "10.0.0.1")
B = Node("b" * 56, "beta", "10.0.0.2")
TWIN = Node("c" * 56, "beta", "10.0.0.3")


def places(*planned_targets: Target, nodes: Sequence[Node] = ()) -> dict[str, str | None]:
    """Return the node of each target, or the reason why it is unreachable, by name."""
    result = plan.make_plan(planned_targets, 2, nodes)
    assert result.target_count == sum(len(batch.targets) for batch in result.batches) + len(result.unreachable)
    locations = {target.name: batch.node for batch in result.batches for target in batch.targets}
    return locations | {missing.target.name: missing.reason for missing in result.unreachable}


def ray(node: str, name: str | None = None) -> Target:
    return Target(name or node, "ray", f"ray:{node}")


def targets(count: int, kind: str = "vmcore") -> list[Target]:
    """Return `count` targets of a kind."""
    return [Target(f"{kind}{number}", kind, f"/{number}") for number in range(count)]


@pytest.mark.parametrize("count", [0, 1, 6, 31, 500, 100_000])
@pytest.mark.parametrize("parallel", [1, 2, 64])
def test_every_target_is_in_one_batch(count, parallel):
    result = plan.make_plan(targets(count), parallel)
    assert [target for batch in result.batches for target in batch.targets] == targets(count)
    assert result.target_count == count
    assert result.parallel == parallel


def test_few_targets_are_not_bundled_so_that_all_slots_work():
    assert [len(batch.targets) for batch in plan.make_plan(targets(6), 2).batches] == [1] * 6


def test_many_targets_are_bundled_but_not_so_many_that_one_slot_works_alone_at_the_end():
    sizes = [len(batch.targets) for batch in plan.make_plan(targets(10_000), 4).batches]
    assert max(sizes) == 16
    assert len(sizes) >= 16 * 4


def test_live_and_guests_are_placed_here_and_cores_and_what_goes_over_ssh_anywhere():
    kinds = ("vmcore", "live", "qmp", "ssh")
    locations = places(*(Target(kind, kind, "/x") for kind in kinds), Target("far", "vmcore", "/x", via="ssh:h"))
    assert locations == {"vmcore": None, "live": LOCAL_NODE, "qmp": LOCAL_NODE, "ssh": None, "far": None}


@pytest.mark.parametrize("difference", ["a host name", "a machine-id"])
def test_live_is_the_machine_that_it_was_first_planned_on(difference, tmp_path, monkeypatch):
    machine_id = tmp_path / "machine-id"
    monkeypatch.setattr(plan, "_MACHINE_ID", machine_id)
    monkeypatch.setattr(plan.socket, "gethostname", lambda: "web1")
    machine_id.write_text("0123456789abcdef0123456789abcdef\n")
    (batch,) = plan.make_plan([Target("web", "live", "live:")], 1).batches
    assert batch.node == LOCAL_NODE
    assert "0123456789ab" not in str(batch)
    assert places(*batch.targets) == {"web": LOCAL_NODE}
    if difference == "a host name":
        monkeypatch.setattr(plan.socket, "gethostname", lambda: "web2")
    else:
        machine_id.write_text("fedcba9876543210fedcba9876543210\n")
    (reason,) = places(*batch.targets).values()
    assert re.fullmatch(
        r"live: is web1 \(id \w{12}\), where the run began, but this is web[12] \(id \w{12}\); resume the run there",
        reason,
    )


def test_a_machine_without_an_id_is_known_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_MACHINE_ID", tmp_path / "machine-id")
    (batch,) = plan.make_plan([Target("web", "live", "live:")], 1).batches
    assert places(*batch.targets) == {"web": LOCAL_NODE}


@pytest.mark.parametrize("name", [A.node_id, A.host, A.ip])
def test_a_node_is_found_by_all_its_names(name):
    guest = Target("guest", "qmp", "/run/a.sock", via=f"ray:{name}")
    core = Target("core", "vmcore", "/core", via=f"ray:{name}")
    assert places(ray(name), guest, core, nodes=[A, B]) == {name: A.node_id, "guest": A.node_id, "core": A.node_id}


def test_a_node_that_is_not_there_or_not_one_makes_its_targets_unreachable():
    locations = places(ray("gone"), ray("beta"), ray(A.ip), nodes=[A, B, TWIN])
    assert locations["gone"] == "gone is not in the Ray cluster, which has alpha, beta, beta"
    ids = f"{B.node_id}, {TWIN.node_id}"
    assert locations["beta"] == f"2 nodes of the Ray cluster are called beta; use the id of one: {ids}"
    assert locations[A.ip] == A.node_id
    assert "--address" in str(places(ray("gone"))["gone"])


def test_a_large_cluster_is_not_listed_whole():
    nodes = [Node(str(number), f"node{number}", f"10.0.0.{number}") for number in range(10, 40)]
    reason = places(ray("gone"), nodes=nodes)["gone"]
    assert reason == "gone is not in the Ray cluster, which has node10, node11, node12, node13, node14 and 25 more"


def test_every_node_is_a_target_called_by_what_only_it_is_called():
    assert places(ray("*"), nodes=[A, B, TWIN]) == {"alpha": A.node_id, B.ip: B.node_id, TWIN.ip: TWIN.node_id}
    (batch,) = plan.make_plan([Target("ray:*", "ray", "ray:*", labels={"role": "db"})], 2, [A]).batches
    assert batch.targets == (Target("alpha", "ray", "ray:alpha", labels={"role": "db"}),)
    same_machine = [node._replace(ip="127.0.0.1", host="here") for node in (A, B)]
    assert places(ray("*"), nodes=same_machine) == {node.node_id: node.node_id for node in (A, B)}


def test_every_node_leaves_out_those_that_another_target_names_and_takes_no_name():
    locations = places(ray("*"), ray(A.ip, "mine"), Target("beta", "ssh", "ssh:beta"), nodes=[A, B])
    assert locations == {"mine": A.node_id, "beta": None, "ray:beta": B.node_id}


def test_every_node_of_no_cluster_is_unreachable():
    assert "no Ray cluster" in str(places(ray("*"))["*"])


def test_batches_over_ssh_are_apart_and_as_small_as_their_own_slots_want():
    hosts = [Target(f"h{n}", "ssh", f"ssh:h{n}") for n in range(1000)]
    result = plan.make_plan([*targets(1000), *hosts, Target("far", "vmcore", "/c", via="ssh:h")], 2, ssh_parallel=32)
    for batch in result.batches:
        assert {target.kind == "ssh" or target.via is not None for target in batch.targets} == {batch.over_ssh}
    assert max(len(batch.targets) for batch in result.batches if not batch.over_ssh) == 16
    assert max(len(batch.targets) for batch in result.batches if batch.over_ssh) == 1
    assert (result.parallel, result.ssh_parallel) == (2, 32)


def test_no_more_targets_are_collected_at_a_time_than_there_are():
    some = [*targets(3), *targets(9, "ssh")]
    for parallel, ssh_parallel, concurrency in ((64, 32, (3, 9)), (2, 4, (2, 4))):
        run_plan = plan.make_plan(some, parallel, ssh_parallel=ssh_parallel)
        assert (run_plan.concurrency(over_ssh=False), run_plan.concurrency(over_ssh=True)) == concurrency
    assert plan.make_plan([], 4).concurrency(over_ssh=False) == 0


def test_the_text_says_of_every_target_what_it_is_and_from_where_by_which_means():
    result = plan.make_plan(
        [
            Target("core", "vmcore", "/core", labels={"rack": "r1", "role": "db"}),
            Target("far", "vmcore", "/c", via="ssh:root@h:22", become=True, python="/usr/bin/python3.9"),
            Target("evil\n\x1b[31m", "ssh", "ssh:h", timeout_s=30),
            ray("*"),
            ray("gone"),
        ],
        2,
        [A, B],
    )
    lines = list(plan.lines(result, [A, B], 600))
    cells = [line.split("  ") for line in lines]
    rows = {row[0]: [cell.strip() for cell in row[1:] if cell.strip()] for row in cells}
    assert rows["core"] == ["vmcore", "/core", "600 s", "2", "any node"]
    assert rows["far"] == ["vmcore", "/c", "ssh:root@h:22", "sudo -n /usr/bin/python3.9", "600 s", "any node"]
    assert rows[r"evil\n\x1b[31m"] == ["ssh", "ssh:h", "python3", "30 s", "any node"]
    assert rows["alpha"] == ["ray", "ray:alpha", "600 s", "node alpha"]
    assert rows["gone"][-1] == "unreachable: gone is not in the Ray cluster, which has alpha, beta"
    assert lines[-1] == "6 targets: 3 ray, 1 ssh, 2 vmcore; 2 at a time and 32 over ssh; 1 unreachable"


def test_without_a_cluster_everything_is_here():
    local_nodes = [plan.this_machine()]
    result = plan.make_plan([*targets(1), ray("*"), ray(local_nodes[0].host, "mine")], 2, local_nodes)
    assert not result.unreachable
    assert {line.rpartition("  ")[2] for line in plan.lines(result, local_nodes, 600) if "600 s" in line} == {"here"}


def test_a_sample_has_a_target_of_each_kind_from_each_node_and_none_twice():
    hosts = [Target(f"h{number}", "ssh", f"ssh:h{number}") for number in range(9)]
    cores = [Target(f"far{number}", "vmcore", "/c", via=f"ssh:h{number}") for number in range(9)]
    result = plan.make_plan([*targets(1), *hosts, *cores, *targets(5, "qmp"), ray("alpha"), ray("gone")], 2, [A, B])
    sample = plan.sample(result, [A, B])
    checks = [(batch.node, target.name) for batch in sample.batches for target in batch.targets]
    a, b = A.node_id, B.node_id
    assert sorted(checks) == sorted(
        [(a, "vmcore0"), (a, "h0"), (b, "h1"), (a, "far0"), (b, "far1"), (LOCAL_NODE, "qmp0"), (a, "alpha")]
    )
    assert {batch.over_ssh for batch in sample.batches if batch.targets[0].name in ("h0", "far1")} == {True}
    assert not sample.unreachable
