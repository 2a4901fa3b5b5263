"""What is kept, what goes, in which order, and what a kill in between leaves."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys
import textwrap
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline import cli, query, warehouse
from pipeline.warehouse import expiry
from pipeline.warehouse.runs import Manifest
from pipeline.warehouse.store import here
from tests.warehouse.outcomes import STARTED_AT, directory_of, failed, ok, publish, run, session

ROOT = Path(__file__).parents[2]
DAY = 86_400_000_000


def manifest(started: str, run_id: str | None = None, **changed: object) -> Manifest:
    """A run by its start, `MM-DD` or `MM-DD HH` of 2026."""
    at = datetime.strptime(f"2026-{started}", "%Y-%m-%d %H" if " " in started else "%Y-%m-%d").replace(tzinfo=UTC)
    known = {
        "run_id": run_id or started,
        "audit": "prod",
        "revision_of": None,
        "complete": True,
        "outcomes": {"ok": 1},
        **changed,
    }
    return Manifest(directory=here(Path("w")), started_at=at, finished_at=at, targets=1, versions={}, files=(), **known)


Rules = warehouse.Rules
# 2026-11-01 is a Sunday, the last day of ISO week 44.
MONTHS = [manifest(day) for day in ("08-31", "09-30", "10-01", "10-31", "11-01", "11-02", "11-02 06", "11-03")]
BAD = {"complete": True, "outcomes": {"unreachable": 1}}
KEPT = {
    "without a rule all": (MONTHS, Rules(), "08-31 09-30 10-01 10-31 11-01 11-02 11-02_06 11-03"),
    "the newest": (MONTHS, Rules(last=2), "11-02_06 11-03"),
    "the newest of each day that has runs": (MONTHS, Rules(daily=3), "11-01 11-02_06 11-03"),
    "of each ISO week": (MONTHS, Rules(weekly=2), "11-01 11-03"),
    "of each month": (MONTHS, Rules(monthly=3), "09-30 10-31 11-03"),
    "whatever one rule keeps": (MONTHS, Rules(last=1, weekly=2, monthly=9), "08-31 09-30 10-31 11-01 11-03"),
    "each audit by itself": (
        [manifest("11-01"), manifest("11-02"), manifest("10-01", audit="lab"), manifest("10-02", audit="lab")],
        Rules(last=1),
        "10-02 11-02",
    ),
    "the newest good run in any case": (
        [manifest("11-01"), manifest("11-02"), manifest("11-03", **BAD), manifest("11-04", complete=False)],
        Rules(last=1),
        "11-02 11-04",
    ),
    "the newest where none is good": ([manifest("11-01", **BAD), manifest("11-02", **BAD)], Rules(last=1), "11-02"),
    "not what is revised": (
        [manifest("11-01", "a"), manifest("11-01", "b", revision_of="a"), manifest("11-02", "c")],
        Rules(last=2),
        "b c",
    ),
    "what is good though revised, with its revisions": (
        [
            manifest("11-01", "a"),
            manifest("11-01", "b", revision_of="a", complete=False),
            manifest("11-01", "c", revision_of="b", complete=False),
            manifest("11-02", "d", **BAD),
        ],
        Rules(last=1),
        "a b c d",
    ),
}


@pytest.mark.parametrize("what", KEPT)
def test_rules_keep(what):
    published, rules, kept = KEPT[what]
    names = {name.replace("_", " ") for name in kept.split()}
    assert expiry.keep(published, rules, set()) == names


def test_a_run_that_a_staged_one_revises_is_kept_and_so_are_its_revisions():
    published = [manifest("11-01", "a"), manifest("11-01", "b", revision_of="a"), manifest("11-02", "c")]
    assert expiry.keep(published, Rules(last=1), {"a"}) == {"a", "b", "c"}
    assert expiry.keep(published, Rules(last=1), {"b"}) == {"b", "c"}


@pytest.fixture
def fleet(tmp_path):
    """Three runs of an audit; the middle one has two revisions, whose names sort the other way."""
    names = {1: "20251101T000000Z-aaaaaaa1", 2: "20251102T000000Z-aaaaaaa9", 5: "20251105T000000Z-aaaaaaa5"}
    for day, run_id in names.items():
        publish(tmp_path, ok("a"), run_id=run_id, started_at=STARTED_AT + day * DAY)
    revised, start = names[2], STARTED_AT + 2 * DAY
    for again in ("20251102T000000Z-aaaaaaa8", "20251102T000000Z-aaaaaaa7"):
        publish(tmp_path, ok("a"), run_id=again, started_at=start, revision_of=revised)
        revised = again
    return tmp_path


def tree(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_a_dry_run_prints_what_the_real_one_does_and_removes_nothing(fleet, capsys):
    (fleet / "staging" / "20251106T000000Z-aaaaaaaa").mkdir()
    command = ["expire", "--keep-last", "1", "-w", str(fleet)]
    before = tree(fleet)
    assert cli.main([*command, "--dry-run"]) == cli.OK
    assert tree(fleet) == before
    dry = capsys.readouterr().out
    assert cli.main(command) == cli.OK
    assert capsys.readouterr().out == dry
    paths = [line.split()[1].rstrip(":") for line in dry.splitlines()]
    assert [path[-1] for path in paths] == ["a", "1", "9", "8", "7"], "staging, then the revised before its revision"
    assert not any(Path(path).exists() for path in paths)
    assert [one.run_id for one in warehouse.runs(fleet)] == ["20251105T000000Z-aaaaaaa5"]
    assert list((fleet / "staging").iterdir()) == []
    assert cli.main(command) == cli.OK
    assert capsys.readouterr().out == ""


def expire(root: Path, *options: str) -> list[str]:
    """Run expire in a process of its own and return the names of what it removed."""
    command = [sys.executable, "-m", "pipeline", "expire", "-w", str(root), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (cli.OK, "")
    return [Path(line.split()[1].rstrip(":")).name for line in done.stdout.splitlines()]


def child(body: str, *arguments: object) -> subprocess.Popen[str]:
    code = "import sys\nfrom pathlib import Path\nfrom tests.warehouse.outcomes import *\n" + textwrap.dedent(body)
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_what_a_living_driver_has_staged_is_never_touched(tmp_path):
    run_id = "20251101T000000Z-aaaaaaaa"
    driver = child(
        """
        staging = warehouse.Staging.create(Path(sys.argv[1]), run(sys.argv[2], targets=2))
        staging.append(ok("a"))
        print("staged", flush=True)
        sys.stdin.read()
        """,
        tmp_path,
        run_id,
    )
    try:
        assert driver.stdout.readline() == "staged\n"
        before = tree(tmp_path)
        assert expire(tmp_path, "--interrupted-days", "0") == []
        assert tree(tmp_path) == before
    finally:
        driver.kill()
        driver.communicate()
    assert expire(tmp_path) == [], "it can be resumed"
    assert expire(tmp_path, "--interrupted-days", "1") == []
    long_ago = datetime.now().timestamp() - 2 * 86_400
    for path in (tmp_path / "staging").rglob("*"):
        os.utime(path, (long_ago, long_ago))
    assert expire(tmp_path, "--interrupted-days", "1") == [run_id]
    assert list((tmp_path / "staging").iterdir()) == []


def test_a_run_that_is_being_staged_is_not_taken_for_half_made(tmp_path):
    """The driver stops with its directory made and nothing in it yet; expire waits for it, however slow either is."""
    driver = child(
        """
        from pipeline.warehouse import staging
        def stop(path, sync=staging.sync):
            staging.sync = sync
            print("made", flush=True)
            sys.stdin.readline()
            sync(path)
        staging.sync = stop
        made = warehouse.Staging.create(Path(sys.argv[1]), run("20251101T000000Z-aaaaaaaa"))
        print("staged", flush=True)
        sys.stdin.read()
        """,
        tmp_path,
    )
    try:
        assert driver.stdout.readline() == "made\n"
        command = [sys.executable, "-m", "pipeline", "expire", "-w", str(tmp_path), "--interrupted-days", "0"]
        other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(3)
        driver.stdin.write("\n")
        driver.stdin.flush()
        assert driver.stdout.readline() == "staged\n"
        assert other.communicate(timeout=120)[0] == b""
        assert (tmp_path / "staging" / "20251101T000000Z-aaaaaaaa" / "run.json").exists()
    finally:
        driver.kill()
        driver.communicate()


@pytest.mark.parametrize("left", ["nothing", "inputs only", "a torn run.json", "torn inputs", "published"])
def test_what_killed_drivers_left_and_cannot_be_resumed_is_removed(tmp_path, left):
    published = publish(tmp_path, ok("a"), run_id="20251101T000000Z-aaaaaaaa")
    staging = tmp_path / "staging" / "20251102T000000Z-bbbbbbbb"
    staged = warehouse.Staging.create(tmp_path, run(staging.name))
    if left in ("nothing", "inputs only"):
        for name in ("run.json", "outcomes.jsonl", *(["inputs.jsonl.gz"] if left == "nothing" else [])):
            (staging / name).unlink()
    elif left == "published":
        staged.append(ok("a"))
        staging = staging.rename(staging.with_name(published.name))
    else:
        path = staging / ("run.json" if left == "a torn run.json" else "inputs.jsonl.gz")
        path.write_bytes(path.read_bytes()[:-9])
    del staged
    (tmp_path / "staging" / "notes.txt").write_text("mine")
    (tmp_path / "staging" / "mine").mkdir()
    (removal,) = warehouse.removals(tmp_path, Rules())
    assert removal.path == str(staging)
    removal.carry_out()
    assert sorted(path.name for path in (tmp_path / "staging").iterdir()) == ["mine", "notes.txt"]
    assert [one.run_id for one in warehouse.runs(tmp_path)] == [published.name]


TORN = {
    "absent": None,
    "cut": lambda content: content[:-9],
    "zeros": lambda content: bytes(len(content)),
    "scrambled": lambda content: gzip.compress(content)[:10] + b"\xff" * len(content),
}


@pytest.mark.parametrize("name", ["run.json", "inputs.jsonl.gz"])
@pytest.mark.parametrize("how", TORN)
def test_outcomes_that_cannot_be_resumed_go_only_where_interrupted_days_say_so(tmp_path, name, how):
    directory = tmp_path / "staging" / "20251102T000000Z-bbbbbbbb"
    warehouse.Staging.create(tmp_path, run(directory.name)).append(ok("a"))
    path = directory / name
    content = path.read_bytes()
    path.unlink()
    if how != "absent":
        path.write_bytes(TORN[how](content))
    assert list(warehouse.removals(tmp_path, Rules())) == []
    assert list(warehouse.removals(tmp_path, Rules(), 1)) == []
    (removal,) = warehouse.removals(tmp_path, Rules(), 0)
    removal.carry_out()
    assert not directory.exists()


@pytest.mark.parametrize("name", ["run.json", "inputs.jsonl.gz"])
@pytest.mark.parametrize("outcomes", [[], [ok("a")]], ids=["none", "one"])
def test_where_a_file_cannot_be_read_nothing_is_removed(fleet, name, outcomes, capsys):
    (fleet / "staging" / "20251106T000000Z-aaaaaaaa").mkdir()
    path = fleet / "staging" / "20251107T000000Z-aaaaaaaa" / name
    staging = warehouse.Staging.create(fleet, run(path.parent.name))
    for outcome in outcomes:
        staging.append(outcome)
    del staging
    path.unlink()
    path.symlink_to("/proc/self/mem")  # whose start no process has mapped: EIO
    before = sorted(fleet.rglob("*"))
    for _ in range(2):
        assert cli.main(["expire", "--keep-last", "1", "--interrupted-days", "0", "-w", str(fleet)]) == cli.FAILED
        assert capsys.readouterr() == ("", f"lru-audit: {path}: Input/output error\n")
    assert sorted(fleet.rglob("*")) == before


def test_a_run_that_is_opened_while_it_is_removed_is_gone_and_one_line(tmp_path, monkeypatch):
    run_id = "20251102T000000Z-bbbbbbbb"
    warehouse.Staging.create(tmp_path, run(run_id)).append(ok("a"))
    said = []

    def resume() -> None:
        try:
            warehouse.Staging(tmp_path, run_id)
        except warehouse.WarehouseError as error:
            said.append(str(error))

    opener = threading.Thread(target=resume)

    def opened_before(*args, discard=expiry.discard):
        opener.start()
        opener.join(0.5)
        discard(*args)

    monkeypatch.setattr(expiry, "discard", opened_before)
    (removal,) = warehouse.removals(tmp_path, Rules(), 0)
    removal.carry_out()
    opener.join()
    assert len(said) == 1
    assert f"{run_id}/outcomes.jsonl: No such file or directory" in said[0]


def test_killed_at_any_step_of_expire_runs_are_whole_or_absent_and_the_next_one_cleans(tmp_path):
    script = child(
        """
        import os, shutil
        from tests.warehouse.killing import count_down
        STEPS = {"os.mkdir", "os.rename", "os.rmdir", "os.remove", "shutil.rmtree"}
        root = Path(sys.argv[1])
        publish(root / "0", ok("a"), run_id="20251101T000000Z-aaaaaaaa")
        publish(root / "0", ok("a"), run_id="20251102T000000Z-bbbbbbbb", started_at=STARTED_AT + 1)

        status = steps = 1
        while status != 0:
            copy = shutil.copytree(root / "0", root / str(steps))
            pid = os.fork()
            if pid == 0:
                sys.addaudithook(count_down(steps - 1, STEPS))
                for removal in warehouse.removals(copy, warehouse.Rules(last=1)):
                    removal.carry_out()
                os._exit(0)
            status = os.waitpid(pid, 0)[1]
            steps += 1
        """,
        tmp_path,
    )
    _, stderr = script.communicate(timeout=300)
    assert script.returncode == 0, stderr
    runs = []
    for copy in tmp_path.iterdir():
        if copy.name == "0":
            continue
        published = warehouse.runs(copy)
        runs.append(len(published))
        for one in published:
            for file in one.files:
                content = (directory_of(one) / file.path).read_bytes()
                assert hashlib.sha256(content).hexdigest() == file.sha256
        for removal in warehouse.removals(copy, Rules(last=1)):
            removal.carry_out()
        assert [one.run_id for one in warehouse.runs(copy)] == ["20251102T000000Z-bbbbbbbb"]
        assert list((copy / "staging").iterdir()) == []
    assert runs.count(2) >= 1
    assert runs.count(1) > 8, "a kill at each file"


@pytest.mark.parametrize("command", [["sql", "SELECT count(*) FROM list_lrus"], ["report"]], ids=lambda it: it[0])
def test_a_query_during_which_a_run_is_expired_ends_in_one_line(tmp_path, command):
    """expire is a process of its own, between the moment in which runs are found and that in which they are read."""
    for day, run_id in enumerate(("20251101T000000Z-aaaaaaaa", "20251102T000000Z-bbbbbbbb")):
        publish(tmp_path, ok("a"), run_id=run_id, started_at=STARTED_AT + day * DAY)
    script = """
        import subprocess
        from pipeline import cli
        runs = sys.modules["pipeline.warehouse.runs"]

        def found(manifests, datasets=runs.datasets):
            command = [sys.executable, "-m", "pipeline", "expire", "--keep-last", "1", "-w", sys.argv[1]]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            return datasets(manifests)

        runs.datasets = found
        sys.exit(cli.main([*sys.argv[2:], "-w", sys.argv[1]]))
        """
    process = child(script, tmp_path, *command)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (cli.FAILED, ""), err
    assert err == f"lru-audit: {tmp_path}: run 20251101T000000Z-aaaaaaaa was expired meanwhile: run the command again\n"


def test_readers_see_whole_runs_while_two_drivers_publish_and_runs_expire(tmp_path):
    publish(tmp_path, ok("a"), failed("b"), audit="first")
    drivers = [
        child(
            """
            for number in range(6):
                publish(Path(sys.argv[1]), ok("a"), failed("b"), audit=sys.argv[2], started_at=STARTED_AT + number)
            """,
            tmp_path,
            audit,
        )
        for audit in ("left", "right")
    ]
    expirer = child(
        """
        import select
        while not select.select([sys.stdin], [], [], 0.05)[0]:
            for removal in warehouse.removals(Path(sys.argv[1]), warehouse.Rules(last=2)):
                removal.carry_out()
        """,
        tmp_path,
    )
    looks = 0
    while any(driver.poll() is None for driver in drivers) or looks == 0:
        looks += 1
        try:
            with warehouse.reading(tmp_path) as tables:
                rows = query.Session(tables).rows("SELECT run_id, count(*) AS n FROM targets GROUP BY run_id")
        except warehouse.WarehouseError as error:
            assert "was expired meanwhile: run the command again" in str(error)  # noqa: PT017
            continue
        assert {row["n"] for row in rows} == {2}
        assert len(rows) == len(list(tables["targets"].get_fragments()))
    for driver in drivers:
        assert driver.communicate()[1] == ""
    _, err = expirer.communicate("\n", timeout=120)
    assert (expirer.returncode, err) == (0, "")
    for removal in warehouse.removals(tmp_path, Rules(last=2)):
        removal.carry_out()
    audits = [one.audit for one in warehouse.runs(tmp_path)]
    assert sorted(audits) == ["first", "left", "left", "right", "right"]
    assert list((tmp_path / "staging").iterdir()) == []
    assert {row["n"] for row in session(tmp_path).rows("SELECT count(*) AS n FROM targets GROUP BY run_id")} == {2}
