"""Start, join and shutdown of Ray, and runs on it: one outcome per target, retries of lost work, and access control.

The function that a worker calls for a target is nested, so that Ray sends it by value: workers cannot import tests.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.fanout import cluster, driver, runner
from pipeline.fanout.runner import frame
from pipeline.fanout.workers import OUT_OF_MEMORY, PREEMPTED, LocalWorker, WorkerLost
from pipeline.inventory import Target, plan
from tests import processes

pytestmark = pytest.mark.usefixtures("embedded_ray")

ROOT = Path(__file__).resolve().parents[2]
PARALLEL = 2  # as many CPUs as the embedded Ray has


def targets(count: int) -> list[Target]:
    return [Target(f"t{number}", "vmcore", f"/{number}") for number in range(count)]


def run(some: list[Target], collect: driver.Collect, **options: Any) -> dict[str, dict[str, Any]]:
    """Run to the end and return the outcomes by target; assert that each arrives once."""
    outcomes: dict[str, dict[str, Any]] = {}

    def add(outcome: dict[str, Any]) -> None:
        assert outcome["target"] not in outcomes
        outcomes[outcome["target"]] = outcome

    driver.run(plan.make_plan(some, PARALLEL), on_outcome=add, collect=collect, **options)
    assert outcomes.keys() == {target.name for target in some}
    return outcomes


@pytest.fixture(params=["ray", "local"])
def workers(request: pytest.FixtureRequest) -> driver.Workers | None:
    """The connected Ray, or the process of the driver."""
    return LocalWorker() if request.param == "local" else None


def statuses(outcome: dict[str, Any]) -> list[str]:
    assert outcome["row"]["attempts"] == len(outcome["attempts"])
    assert outcome["row"]["status"] == outcome["attempts"][-1]["status"]
    assert [row["attempt"] for row in outcome["attempts"]] == list(range(1, len(outcome["attempts"]) + 1))
    return [row["status"] for row in outcome["attempts"]]


def with_status(status: Callable[[Target, int], str]) -> driver.Collect:
    """Return a `collect` without a child, whose status is that of the function."""

    def collect(target: Target, attempt: int, limits: runner.Limits) -> dict[str, Any]:
        return runner.result(attempt, "node", 1, 1, status(target, attempt))

    return collect


def dying_at(name: str, attempts: tuple[int, ...]) -> driver.Collect:
    """Return a `collect` that kills its worker while it collects a target."""

    def collect(target: Target, attempt: int, limits: runner.Limits) -> dict[str, Any]:
        if target.name == name and attempt in attempts:
            time.sleep(0.2)  # earlier attempts are in transit to the driver
            os.kill(os.getpid(), signal.SIGKILL)
        return runner.result(attempt, "node", 1, 1, "ok")

    return collect


# Outcomes


def test_five_hundred_targets_have_an_outcome_each():
    outcomes = run(targets(500), with_status(lambda target, attempt: "ok"))
    assert {tuple(statuses(outcome)) for outcome in outcomes.values()} == {("ok",)}


def test_more_batches_under_way_than_there_are_cpus_end_in_an_outcome_each():
    outcomes: list[str] = []
    collect = with_status(lambda target, attempt: "ok")
    driver.run(
        plan.make_plan(targets(200), parallel=100), on_outcome=lambda o: outcomes.append(o["target"]), collect=collect
    )
    assert sorted(outcomes) == sorted(target.name for target in targets(200))


def test_a_child_is_no_nicer_than_its_limits_say():
    def nice(target: Target, attempt: int, limits: runner.Limits) -> dict[str, Any]:
        return runner.result(attempt, str(os.nice(0)), 1, 1, "ok")

    (outcome,) = run(targets(1), nice).values()
    assert outcome["attempts"][0]["node"] == str(os.nice(0))


def test_a_core_with_a_known_digest_is_not_read():
    files = [Target(name, "vmcore", str(ROOT / name)) for name in ("README.md", "setup.cfg", "absent")]
    collect = with_status(lambda target, attempt: "ok")
    unknown = run(files, collect)
    assert {outcome["row"]["input_digest"] for outcome in unknown.values()} == {None}
    first = run(files, collect, known_digests={})
    digests = {name: outcome["row"]["input_digest"] for name, outcome in first.items()}
    assert digests["absent"] is None
    assert len(set(digests.values())) == 3
    second = run(files, collect, known_digests={**digests, "setup.cfg": digests["README.md"]})
    assert [name for name, outcome in second.items() if outcome.get("unchanged")] == ["README.md"]
    assert (second["README.md"]["attempts"], second["README.md"]["row"]["attempts"]) == ([], 0)
    for name in ("setup.cfg", "absent"):
        assert statuses(second[name]) == ["ok"]
        assert second[name]["row"]["input_digest"] == digests[name]


def test_a_core_that_is_exchanged_while_it_is_read_has_no_digest(tmp_path):
    link = tmp_path / "core"
    link.symlink_to(ROOT / "setup.cfg")

    def exchange(target: Target, attempt: int, limits: runner.Limits) -> dict[str, Any]:
        os.symlink(ROOT / "README.md", tmp_path / "new")
        os.rename(tmp_path / "new", target.source)
        return runner.result(attempt, "node", 1, 1, "ok")

    target = Target("t", "vmcore", str(link))
    assert run([target], exchange, known_digests={})["t"]["row"]["input_digest"] is None
    collect = with_status(lambda target, attempt: "ok")
    assert run([target], collect, known_digests={})["t"]["row"]["input_digest"] is not None


def test_unchanged_cores_are_counted_apart_from_failures():
    files = [Target(name, "vmcore", str(ROOT / name)) for name in ("README.md", "setup.cfg")]
    first = run(files, with_status(lambda target, attempt: "ok"), known_digests={})
    digest = first["README.md"]["row"]["input_digest"]
    updates: list[tuple[int, dict[str, int]]] = []
    progress = types.SimpleNamespace(update=lambda done_count, counts: updates.append((done_count, dict(counts))))
    collect = with_status(lambda target, attempt: "bad_core")
    run(files, collect, known_digests={"README.md": digest}, progress=progress)
    assert updates[-1] == (2, {"unchanged": 1, "bad_core": 1})


def test_outcomes_arrive_one_by_one_before_the_run_is_over():
    def slow(target: Target, attempt: int, limits: runner.Limits) -> dict[str, Any]:
        time.sleep(0.3)
        return runner.result(attempt, "node", 1, 1, "ok")

    arrival_times: list[float] = []
    batch = plan.Batch(tuple(targets(3)))
    driver.run(plan.Plan((batch,), 1), on_outcome=lambda outcome: arrival_times.append(time.monotonic()), collect=slow)
    assert [later - earlier > 0.2 for earlier, later in itertools.pairwise(arrival_times)] == [True, True]


def test_real_children_are_run_for_cores_anywhere_and_live_here(tmp_path, workers):
    script = tmp_path / "child"
    script.write_text(
        f"#!{sys.executable}\n"
        "import json, sys\n"
        'print("list-lru-audit snapshot 1")\n'
        'print(json.dumps({"table": "targets", "columns": ["host"], "rows": [[sys.argv[-1]]]}))\n'
        'print(\'{"end": {"targets": 1}}\')\n'
    )
    script.chmod(0o755)
    core = tmp_path / "core"
    core.touch()
    some = [
        Target("core", "vmcore", str(core), python=str(script)),
        Target("here", "live", "live:", python=str(script)),
        Target("gone", "vmcore", f"{tmp_path}/gone", python=str(script)),
    ]
    outcomes = run(some, runner.run, workers=workers)
    assert {name: (o["row"]["status"], o["row"].get("host")) for name, o in outcomes.items()} == {
        "core": ("ok", str(core)),
        "here": ("ok", "live:"),
        "gone": ("unreachable", None),
    }
    assert outcomes["here"]["attempts"][0]["node"] == os.uname().nodename


def test_large_outcomes_do_not_pile_up_in_the_driver():
    def large(target: Target, attempt: int, limits: runner.Limits) -> dict[str, Any]:
        return runner.result(
            attempt, "node", 1, 1, "ok", tables={"memcgs": {"columns": ["path"], "rows": [["x" * (8 << 20)]]}}
        )

    sizes: list[int] = []
    resident: list[int] = []

    def measure(outcome: dict[str, Any]) -> None:
        sizes.append(len(json.loads(outcome["tables"])["memcgs"]["path"][0]))
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))

    driver.run(plan.make_plan(targets(60), PARALLEL), on_outcome=measure, collect=large)
    assert sizes == [8 << 20] * 60
    # Shared pages of the object store (128 MB) count as resident; all outcomes together are 503 MB.
    assert resident[-1] - resident[0] < 200 << 20


def test_progress_hears_what_is_done_and_what_failed():
    calls: list[tuple[int, dict[str, int]]] = []

    class Recorder:
        def update(self, done_count: int, failure_counts: Any) -> None:
            calls.append((done_count, dict(failure_counts)))

    kinds = {"t0": "ok", "t1": "bad_core", "t2": "unsupported", "t3": "bad_core", "t4": "timeout"}
    run(targets(5), with_status(lambda target, attempt: kinds[target.name]), progress=Recorder())
    assert [count for count, _ in calls] == [1, 2, 3, 4, 5]
    assert calls[-1][1] == {"bad_core": 2, "timeout": 1}


# Attempts


def test_a_killed_worker_costs_its_target_an_attempt_and_nobody_else_anything():
    outcomes = run(targets(100), dying_at("t37", (1,)))
    lost, _ = outcomes["t37"]["attempts"]
    assert statuses(outcomes.pop("t37")) == ["lost", "ok"]
    assert (lost["node"], lost["error_type"]) == (os.uname().nodename, "WorkerCrashedError")
    assert {tuple(statuses(outcome)) for outcome in outcomes.values()} == {("ok",)}


def test_a_target_that_kills_every_worker_ends_as_lost():
    outcomes = run(targets(100), dying_at("t0", (1, 2, 3)), retries=2)
    assert statuses(outcomes.pop("t0")) == ["lost", "lost", "lost"]
    assert {tuple(statuses(outcome)) for outcome in outcomes.values()} == {("ok",)}


def test_retries_can_be_none():
    assert statuses(run(targets(1), dying_at("t0", (1,)), retries=0)["t0"]) == ["lost"]


class PreemptedWorker(LocalWorker):
    """A worker whose node is preempted during the first batches."""

    def __init__(self, count: int) -> None:
        self.count = count

    def receive(self, stream: Iterator[Any]) -> Any:
        if self.count:
            self.count -= 1
            raise WorkerLost(PREEMPTED, "its node was preempted")
        return super().receive(stream)


@pytest.mark.parametrize(("retries", "count", "end"), [(0, 5, "ok"), (0, 6, "lost"), (1, 6, "ok"), (1, 1000, "lost")])
def test_five_preemptions_cost_no_retry(retries: int, count: int, end: str) -> None:
    collect = with_status(lambda target, attempt: "ok")
    (outcome,) = run(targets(1), collect, retries=retries, workers=PreemptedWorker(count)).values()
    lost_count = min(count, 6 + retries)
    assert statuses(outcome) == ["lost"] * lost_count + ["ok"] * (end == "ok")
    assert outcome["row"]["status"] == end


@pytest.mark.parametrize(
    ("first", "attempts"),
    [("inconsistent", ["inconsistent", "ok"]), ("bad_core", ["bad_core"]), ("timeout", ["timeout"])],
)
def test_only_what_another_try_may_change_is_tried_again(first, attempts, workers):
    collect = with_status(lambda target, attempt: first if attempt == 1 else "ok")
    outcomes = run(targets(2), collect, workers=workers)
    assert [statuses(outcome) for outcome in outcomes.values()] == [attempts, attempts]


@pytest.mark.parametrize("error_type", [PREEMPTED, OUT_OF_MEMORY, "signal:SIGKILL"])
def test_a_host_that_reports_the_error_type_of_a_lost_worker_is_not_tried_again_for_that(error_type):
    def collect(target: Target, attempt: int, limits: runner.Limits) -> dict[str, Any]:
        return runner.result(attempt, "node", 1, 1, target.name, error_type, "again")

    hosts = [Target(status, "live", "live:") for status in sorted(frame.FAILURES)]
    outcomes = run(hosts, collect, workers=LocalWorker())
    tries = {name: outcome["row"]["attempts"] for name, outcome in outcomes.items()}
    assert tries == {status: 2 if status == "inconsistent" else 1 for status in frame.FAILURES}


def test_a_collector_that_was_killed_from_outside_is_tried_again_and_in_the_end_has_crashed():
    def collect(target: Target, attempt: int, limits: runner.Limits) -> dict[str, Any]:
        if target.name == "t1" or attempt == 1:
            return runner.result(attempt, "node", 1, 1, "crashed", "signal:SIGKILL", "killed by SIGKILL")
        return runner.result(attempt, "node", 1, 1, "ok")

    outcomes = run(targets(2), collect, retries=2)
    assert statuses(outcomes["t0"]) == ["crashed", "ok"]
    assert statuses(outcomes["t1"]) == ["crashed", "crashed", "crashed"]
    assert outcomes["t1"]["row"]["error_type"] == "signal:SIGKILL"


def test_an_error_of_our_own_in_a_worker_is_a_row_and_not_the_end_of_the_run(workers):
    def broken(target: Target, attempt: int, limits: runner.Limits) -> dict[str, Any]:
        if target.name == "t1":
            raise ValueError("a bug")
        return runner.result(attempt, "node", 1, 1, "ok")

    outcomes = run(targets(3), broken, workers=workers)
    row = outcomes["t1"]["row"]
    assert (row["status"], row["error_type"], row["error"]) == ("lost", "ValueError", "a bug")
    assert outcomes["t2"]["row"]["status"] == "ok"


def test_targets_that_no_node_can_collect_are_unreachable_at_once():
    unreachable = plan.Unreachable(Target("gone", "ray", "ray:gone"), "gone is not in the Ray cluster")
    outcomes: list[dict[str, Any]] = []
    run_plan = plan.Plan((plan.Batch(tuple(targets(1))),), 1, unreachable=(unreachable,))
    driver.run(run_plan, on_outcome=outcomes.append, collect=with_status(lambda target, attempt: "ok"))
    first, second = outcomes
    assert (first["target"], second["target"]) == ("gone", "t0")
    assert statuses(first) == ["unreachable"]
    assert (first["row"]["error"], first["attempts"][0]["node"]) == ("gone is not in the Ray cluster", None)


FAULTS = {
    "hung": (
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()); ctypes.PyDLL(None).sleep(100)",
        "timeout",
    ),
    "segfault": ("ctypes.string_at(0)", "crashed"),
    "killed": ("os.kill(os.getpid(), 9)", "crashed"),
    "memory": ("x = bytearray(1 << 30)", "over_budget"),
    "garbage": ("print('x' * 1000)", "bad_output"),
    "endless": ("while True: print('x' * 1000)", "bad_output"),
    "silent": ("sys.exit(3)", "bad_output"),
}


def test_no_fault_of_a_child_costs_another_target_anything_but_its_turn(tmp_path, workers):
    """Real children, each fault between good ones; the hung child holds the GIL in C and blocks every signal."""

    def child(name: str, code: str) -> str:
        script = tmp_path / name
        script.write_text(f"#!{sys.executable}\nimport ctypes, os, signal, sys\n{code}\n")
        script.chmod(0o755)
        return str(script)

    good = child(
        "good",
        'print("list-lru-audit snapshot 1")\n'
        'print(\'{"table": "targets", "columns": ["host"], "rows": [["h"]]}\')\n'
        'print(\'{"end": {"targets": 1}}\')',
    )
    some = []
    for name, (code, _) in FAULTS.items():
        some += [Target(f"before-{name}", "live", "live:", python=good)]
        some += [Target(name, "live", "live:", python=child(name, code))]
    limits = runner.Limits(timeout_s=5, memory_bytes=300 << 20, output_bytes=4 << 20)
    start = time.monotonic()
    outcomes = run(some, runner.run, limits=limits, workers=workers)
    results = {name: outcome["row"]["status"] for name, outcome in outcomes.items()}
    faults = {name: status for name, (_, status) in FAULTS.items()}
    assert results == faults | {f"before-{name}": "ok" for name in FAULTS}
    assert time.monotonic() - start < 60


# Over ssh


def ssh_targets(count: int) -> list[Target]:
    return [Target(f"s{number}", "ssh", f"ssh:{number}") for number in range(count)]


def recorder(folder: Path, starts: int = 0, victim: str = "") -> driver.Collect:
    """Return a `collect` that records the start and end of each target in a file.

    :param starts: how many hosts must have started before one ends, however slowly workers start.
    :param victim: a target that kills its worker once, while others are running.
    """

    def collect(target: Target, attempt: int, limits: runner.Limits) -> dict[str, Any]:
        with (folder / "times").open("a") as times:
            times.write(f"{time.monotonic()} 1 {target.kind} {os.getpid()}\n")
            times.flush()
            deadline = time.monotonic() + 60
            while (folder / "times").read_text().count(" 1 ssh ") < starts and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.3)
            if target.name == victim and attempt == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            times.write(f"{time.monotonic()} -1 {target.kind} {os.getpid()}\n")
        return runner.result(attempt, "node", 1, 1, "ok")

    return collect


def concurrency(folder: Path, kind: str) -> tuple[int, int]:
    """Return the peak number of targets of a kind that were running at a time, and the number of processes."""
    lines = [line.split() for line in (folder / "times").read_text().splitlines()]
    changes = sorted((float(time_s), int(change)) for time_s, change, word, _ in lines if word == kind)
    peak = max(itertools.accumulate(change for _, change in changes))
    return peak, len({pid for _, _, word, pid in lines if word == kind})


def test_hosts_over_ssh_are_waited_for_by_few_workers_and_hold_up_no_core(tmp_path):
    outcomes: list[dict[str, Any]] = []
    run_plan = plan.make_plan([*targets(4), *ssh_targets(60)], PARALLEL, ssh_parallel=12)
    driver.run(run_plan, on_outcome=outcomes.append, collect=recorder(tmp_path, starts=12))
    assert sorted(outcome["target"] for outcome in outcomes) == sorted(t.name for t in [*targets(4), *ssh_targets(60)])
    peak, workers = concurrency(tmp_path, "ssh")
    assert peak == 12
    assert workers < peak
    assert concurrency(tmp_path, "vmcore")[0] <= PARALLEL


def test_a_worker_killed_among_its_hosts_costs_those_an_attempt_and_nobody_a_result(tmp_path):
    outcomes: dict[str, dict[str, Any]] = {}
    run_plan = plan.make_plan(ssh_targets(24), PARALLEL, ssh_parallel=16)
    keep = lambda outcome: outcomes.__setitem__(outcome["target"], outcome)  # noqa: E731
    driver.run(run_plan, on_outcome=keep, collect=recorder(tmp_path, victim="s3"))
    assert len(outcomes) == 24
    assert statuses(outcomes["s3"]) == ["lost", "ok"]
    lost = [name for name, outcome in outcomes.items() if statuses(outcome) != ["ok"]]
    assert len(lost) <= 8
    assert {tuple(statuses(outcomes[name])) for name in lost} == {("lost", "ok")}


@pytest.mark.parametrize("retries", [0, 1])
def test_a_host_that_kills_every_worker_is_lost_and_the_others_of_its_worker_are_not(retries):
    """Even with no retries: the first loss does not tell which of the hosts killed the worker."""

    def collect(target: Target, attempt: int, limits: runner.Limits) -> dict[str, Any]:
        time.sleep(0.2)
        if target.name == "s3":
            os.kill(os.getpid(), signal.SIGKILL)
        return runner.result(attempt, "node", 1, 1, "ok")

    outcomes: dict[str, list[str]] = {}
    keep = lambda outcome: outcomes.__setitem__(outcome["target"], statuses(outcome))  # noqa: E731
    driver.run(plan.make_plan(ssh_targets(8), PARALLEL), on_outcome=keep, collect=collect, retries=retries)
    assert outcomes.pop("s3") == ["lost", "lost"]
    assert {status[-1] for status in outcomes.values()} == {"ok"}
    assert len(outcomes) == 7


# Access control and messages


def join(address: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    code = f"from ray._raylet import GcsClient; print(len(GcsClient(address={address!r}).get_all_node_info()))"
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)


def test_nobody_joins_the_embedded_ray_without_its_token(embedded_ray):
    address = embedded_ray["RAY_ADDRESS"]
    assert len(embedded_ray["RAY_AUTH_TOKEN"]) == 64
    assert join(address, {**os.environ, **embedded_ray}).stdout == "1\n"
    for token in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        process = join(address, {**os.environ, **token})
        assert process.returncode != 0
        assert "InvalidAuthToken" in process.stderr


def test_the_embedded_ray_has_its_token_whatever_the_user_has_set(tmp_path):
    code = """
import subprocess, sys
with cluster.connection(1):
    import ray
    address = ray.get_runtime_context().gcs_address
    code = f"from ray._raylet import GcsClient; print(len(GcsClient(address={address!r}).get_all_node_info()))"
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    print(process.returncode != 0, "InvalidAuthToken" in process.stderr)
"""
    for variables in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_ADDRESS": "local"}):
        assert run_script(tmp_path, code, **variables).stdout == "True True\n"


def test_an_address_of_local_is_a_ray_of_its_own(tmp_path, short):
    code = """
with cluster.connection(1, "local"):
    import pathlib, ray
    session = ray._private.worker._global_node.get_session_dir_path()
    print(pathlib.Path(session).parent.parent.stat().st_mode & 0o777 == 0o700, len(os.environ["RAY_AUTH_TOKEN"]))
print([name for name in os.environ if name.startswith(("RAY_AUTH", "RAY_LRU", "SPT_"))])
"""
    assert run_script(tmp_path, code, TMPDIR=str(short)).stdout == "True 64\n[]\n"


def test_a_cluster_with_no_free_cpu_is_said_once(monkeypatch, caplog):
    import ray

    monkeypatch.setattr(driver, "_FIRST_WORKER_S", 0.2)
    busy = [ray.remote(num_cpus=1)(lambda: time.sleep(1.5)).remote() for _ in range(PARALLEL)]
    time.sleep(0.5)
    run(targets(3), with_status(lambda target, attempt: "ok"))
    ray.get(busy)
    assert [record.getMessage() for record in caplog.records] == [
        "no worker has started after 0.2 s: does Ray have a free CPU?"
    ]


def test_only_this_user_may_enter_the_embedded_rays_directory():
    import ray

    session = Path(ray._private.worker._global_node.get_session_dir_path())
    private = session.parent.parent
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert private.stat().st_uid == os.geteuid()


def test_a_cluster_is_joined_by_its_address(tmp_path, embedded_ray):
    process = run_script(tmp_path, "run(3, ok)", **embedded_ray)
    assert (process.stdout, process.stderr) == ("t0 ok\nt1 ok\nt2 ok\n", "")


def test_a_cluster_that_is_not_there_or_wants_another_token_is_one_line_at_once(tmp_path, embedded_ray):
    code = "try:\n    run(1, ok)\nexcept cluster.ClusterError as error:\n    print(error)"
    start = time.monotonic()
    process = run_script(tmp_path, code, **embedded_ray | {"RAY_ADDRESS": "127.0.0.1:1"})
    assert process.stdout == "cannot join the Ray cluster at 127.0.0.1:1: [Errno 111] Connection refused\n"
    process = run_script(tmp_path, code, **embedded_ray | {"RAY_AUTH_TOKEN": "0" * 64})
    assert process.stdout.startswith(
        f"cannot join the Ray cluster at {embedded_ray['RAY_ADDRESS']}: it requires another token"
    )
    assert process.stdout.count("\n") == 1
    assert time.monotonic() - start < 30


# A driver in a process of its own, like a user's command


@pytest.fixture
def short() -> Iterator[Path]:
    """A temporary directory with a short path for a driver's Ray; it must be empty at the end."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)
        assert list(Path(folder).iterdir()) == []


@pytest.mark.parametrize(
    ("over_ssh", "count", "worker_count"), [(False, 3, 3), (True, 9, 2)], ids=["3 cores", "9 hosts over ssh"]
)
def test_an_embedded_ray_keeps_no_more_workers_than_targets_need(tmp_path, over_ssh, count, worker_count):
    """On a machine with many CPUs; a worker waits for up to 8 hosts over ssh."""
    code = f"""
        def wait(target, attempt, limits):
            time.sleep(100)

        batches = [plan.Batch((Target(f"t{{n}}", "vmcore", "/"),), over_ssh={over_ssh}) for n in range({count})]
        driver.run(plan.Plan(tuple(batches), 64), on_outcome=print, collect=wait)
    """
    word = secrets.token_hex(16)
    process = run_script(tmp_path, textwrap.dedent(code), wait=False, TEST_WORD=word)
    deadline = time.monotonic() + 60
    # Ray starts one in reserve and ends it a second later if there are more than it has CPUs.
    while ray_workers(f"TEST_WORD={word}") != ["ray::collect_batch"] * worker_count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, ray_workers(f"TEST_WORD={word}")
        time.sleep(0.1)
    process.terminate()
    process.communicate(timeout=30)


def ray_workers(variable: str) -> list[str]:
    """Return the command lines of Ray's workers: the title that Ray gives them, before that an interpreter's."""
    commands = [command.strip() for command in processes.find(variable).values()]
    titles = [command for command in commands if command.startswith("ray::") and "Agent" not in command]
    return titles + [command for command in commands if "/default_worker.py" in command and "/raylet " not in command]


def run_script(folder: Path, code: str, wait: bool = True, **env: str) -> Any:
    """Run a driver from another directory."""
    script = folder / "driver.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        + textwrap.dedent("""
        import os, signal, time
        from pipeline.fanout import cluster, driver, runner
        from pipeline.inventory import Target, plan

        def ok(target, attempt, limits):
            return runner.result(attempt, "node", 1, 1, "ok")

        def dying(target, attempt, limits):
            os.kill(os.getpid(), signal.SIGKILL)

        def run(count, collect, **fields):
            targets = [Target(f"t{n}", "live", "live:", **fields) for n in range(count)]
            outcomes = []
            driver.run(plan.make_plan(targets, 2), on_outcome=outcomes.append, collect=collect)
            for outcome in sorted(outcomes, key=lambda outcome: outcome["target"]):
                print(outcome["target"], outcome["row"]["status"], flush=True)

        """)
        + code
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.Popen(
        [sys.executable, "-W", "always", script],
        cwd=folder,
        env={**clean, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if not wait:
        return process
    stdout, stderr = process.communicate(timeout=100)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@pytest.mark.parametrize(
    "number",
    [*(pytest.param(number, marks=pytest.mark.faults) for number in (signal.SIGINT, signal.SIGTERM)), signal.SIGKILL],
)
def test_a_stopped_driver_leaves_nothing_running_and_ray_has_said_nothing(tmp_path, short, number):
    script = tmp_path / "hung"
    script.write_text(
        f"#!{sys.executable}\n"
        "import os, signal, time\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
        f"open({str(tmp_path)!r} + '/pid' + str(os.getpid()), 'w').close()\n"
        "time.sleep(100)\n"
    )
    script.chmod(0o755)
    code = f"with cluster.connection(2):\n    run(2, dying)\n    run(9, runner.run, python={str(script)!r})"
    process = run_script(tmp_path, code, wait=False, TMPDIR=str(short))
    while len(children := [path.name[3:] for path in tmp_path.glob("pid*")]) < PARALLEL:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raylets = descendants(process.pid)
    assert len(raylets) > PARALLEL
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert stdout == "t0 lost\nt1 lost\n"
    if number != signal.SIGKILL:
        assert stderr.startswith("Traceback")
        assert stderr.endswith("\nKeyboardInterrupt\n")
    else:
        assert stderr == ""
    if number == signal.SIGKILL:
        # Ray's own agents take a minute to notice. The next embedded Ray removes the directory.
        assert_exit_within(5, children)
        assert list(short.iterdir())
        run_script(tmp_path, "run(2, ok)", TMPDIR=str(short))
    assert_exit_within(5, children + raylets)


def test_the_directory_of_a_driver_that_lives_and_what_is_not_ours_stays(short):
    code = """
import sys
from pipeline.fanout import cluster
with cluster.connection(1):
    print("up", flush=True)
    sys.stdin.read()
    import ray
    print(ray.get(ray.remote(lambda: 3).remote()))
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"TMPDIR": str(short), "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code], env=env, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout.readline() == "up\n"
    (private,) = short.iterdir()
    (short / "kept").mkdir()
    (short / f"{private.name}.link").symlink_to(short / "kept")
    if os.geteuid() == 0:
        (short / f"{private.name}.other").mkdir(0o700)
        os.chown(short / f"{private.name}.other", 1, 1)
    (short / f"{private.name}.dead").mkdir()
    initial_paths = set(short.iterdir())
    subprocess.run([sys.executable, "-c", code], env=env, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    assert initial_paths - set(short.iterdir()) == {short / f"{private.name}.dead"}
    assert process.communicate(timeout=30)[0] == "3\n"
    assert not private.exists()
    for path in short.iterdir():
        path.unlink() if path.is_symlink() else path.rmdir()


def assert_exit_within(seconds: float, pids: list[str]) -> None:
    deadline = time.monotonic() + seconds
    while running_pids := list(filter(is_running, pids)):
        assert time.monotonic() < deadline, f"still running: {running_pids}"
        time.sleep(0.05)


def descendants(pid: int | str) -> list[str]:
    """Return the pids of all descendants of a process."""
    pids = []
    with contextlib.suppress(FileNotFoundError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                pids += [child, *descendants(child)]
    return pids


def is_running(pid: str) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_drops_still_ends_the_run() -> None:
    class RaisingDestructor:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def collect(target: Target, attempt: int, limits: runner.Limits) -> dict[str, Any]:
        time.sleep(3 * (target.name != "t0"))
        return runner.result(attempt, "node", 1, 1, "ok")

    outcomes = []

    def drop(outcome: dict[str, Any]) -> None:
        outcomes.append(outcome["target"])
        RaisingDestructor()

    with pytest.raises(KeyboardInterrupt):
        driver.run(plan.make_plan(targets(4), PARALLEL), on_outcome=drop, collect=collect)
    assert outcomes == ["t0"]


@pytest.mark.parametrize(
    ("fields", "ends"), [({}, True), ({"over_ssh": True}, False), ({"node": "0123"}, False)], ids=["any", "ssh", "node"]
)
def test_only_what_needs_a_cpu_ends_a_run_on_a_cluster_without_one(
    fields: dict[str, Any], ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head of a cluster may have no CPU, and a worker there may take longer to start than the first check."""
    monkeypatch.setattr(driver, "_NODE_WAIT_S", 0)
    workers = types.SimpleNamespace(cpus=lambda: 0, check_head=lambda: None)
    state = driver._Run(workers, plan.make_plan([], 1), print, None, runner.Limits(), 1, None, runner.run, False)
    state.streams["generator"] = driver._Stream(plan.Batch(tuple(targets(1)), **fields), 1)
    with pytest.raises(cluster.ClusterError, match="no node with a CPU") if ends else contextlib.nullcontext():
        state._check_cluster()
