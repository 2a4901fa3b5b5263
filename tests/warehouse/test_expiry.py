"""The runs that expire keeps and removes, the order of removal, and the state after a kill."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
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
from pipeline.warehouse.store import local_folder
from tests.warehouse.outcomes import STARTED_AT, directory_of, failure, ok, publish, run, session

ROOT = Path(__file__).parents[2]
VMCORES = ROOT / "tests" / "vmcores"
DAY_US = 86_400_000_000


def make_manifest(start: str, run_id: str | None = None, year: int = 2020, **changes: object) -> Manifest:
    """Return the manifest of a run that started at `MM-DD` or `MM-DD HH`."""
    text_format = "%Y-%m-%d %H" if " " in start else "%Y-%m-%d"
    started_at = datetime.strptime(f"{year}-{start}", text_format).replace(tzinfo=UTC)
    values = {
        "run_id": run_id or start,
        "audit": "prod",
        "revision_of": None,
        "complete": True,
        "outcomes": {"ok": 1},
        **changes,
    }
    times = {"started_at": started_at, "finished_at": started_at}
    return Manifest(directory=local_folder(Path("w")), targets=1, versions={}, files=(), **times, **values)


RetentionRules = warehouse.RetentionRules
# 2020-11-01 is a Sunday, the last day of ISO week 44.
MONTHS = [make_manifest(day) for day in ("08-31", "09-30", "10-01", "10-31", "11-01", "11-02", "11-02 06", "11-03")]
NO_GOOD_TARGET = {"complete": True, "outcomes": {"unreachable": 1}}
CASES = {
    "without a rule all": (MONTHS, RetentionRules(), "08-31 09-30 10-01 10-31 11-01 11-02 11-02_06 11-03"),
    "the newest": (MONTHS, RetentionRules(last=2), "11-02_06 11-03"),
    "the newest of each day that has runs": (MONTHS, RetentionRules(daily=3), "11-01 11-02_06 11-03"),
    "of each ISO week": (MONTHS, RetentionRules(weekly=2), "11-01 11-03"),
    "of each month": (MONTHS, RetentionRules(monthly=3), "09-30 10-31 11-03"),
    "whatever one rule keeps": (MONTHS, RetentionRules(last=1, weekly=2, monthly=9), "08-31 09-30 10-31 11-01 11-03"),
    "each audit by itself": (
        [
            make_manifest("11-01"),
            make_manifest("11-02"),
            make_manifest("10-01", audit="lab"),
            make_manifest("10-02", audit="lab"),
        ],
        RetentionRules(last=1),
        "10-02 11-02",
    ),
    "the newest good run in any case": (
        [
            make_manifest("11-01"),
            make_manifest("11-02"),
            make_manifest("11-03", **NO_GOOD_TARGET),
            make_manifest("11-04", complete=False),
        ],
        RetentionRules(last=1),
        "11-02 11-04",
    ),
    "the newest where none is good": (
        [make_manifest("11-01", **NO_GOOD_TARGET), make_manifest("11-02", **NO_GOOD_TARGET)],
        RetentionRules(last=1),
        "11-02",
    ),
    "not what is revised": (
        [make_manifest("11-01", "a"), make_manifest("11-01", "b", revision_of="a"), make_manifest("11-02", "c")],
        RetentionRules(last=2),
        "b c",
    ),
    "what is good though revised, with its revisions": (
        [
            make_manifest("11-01", "a"),
            make_manifest("11-01", "b", revision_of="a", complete=False),
            make_manifest("11-01", "c", revision_of="b", complete=False),
            make_manifest("11-02", "d", **NO_GOOD_TARGET),
        ],
        RetentionRules(last=1),
        "a b c d",
    ),
    "what was made last, not what a clock that was ahead made": (
        [
            make_manifest("11-01", "a", sequence=1, publication=1),
            make_manifest("11-01", "ahead", year=2235, sequence=2, publication=2),
            make_manifest("11-02", "b", sequence=3, publication=3),
        ],
        RetentionRules(last=1, daily=1, weekly=1, monthly=1),
        "b",
    ),
    "what was made last by a clock that was behind": (
        [
            make_manifest("11-01", "a", sequence=1, publication=1),
            make_manifest("11-02", "behind", year=1970, sequence=2, publication=2),
        ],
        RetentionRules(last=1, daily=1, weekly=1, monthly=1),
        "behind",
    ),
    "what is not dated in the future, though that was made last": (
        [
            make_manifest("11-01", "a", sequence=1, publication=1),
            make_manifest("11-01", "ahead", year=2235, sequence=2, publication=2),
            make_manifest("11-02", "ahead again", year=2235, sequence=3, publication=3),
        ],
        RetentionRules(last=1, daily=1, weekly=1, monthly=1),
        "a ahead_again",
    ),
    "what an older version made before the clock was ahead": (
        [make_manifest("11-01", "a"), make_manifest("11-01", "ahead", year=2235), make_manifest("11-02", "b")],
        RetentionRules(last=1),
        "b",
    ),
    "what was published last, though it is older": (
        [
            make_manifest("11-01", "late", sequence=1, publication=3, complete=False),
            make_manifest("11-02", "b", sequence=1, publication=1),
            make_manifest("11-03", "c", sequence=2, publication=2),
            make_manifest("11-04", "other", audit="lab", sequence=4, publication=4),
        ],
        RetentionRules(last=1),
        "late c other",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_rules_keep(case):
    manifests, rules, names = CASES[case]
    run_ids = {name.replace("_", " ") for name in names.split()}
    assert expiry.run_ids_to_keep(manifests, rules, set()) == run_ids


def test_a_run_that_a_staged_one_revises_is_kept_and_so_are_its_revisions():
    runs = [make_manifest("11-01", "a"), make_manifest("11-01", "b", revision_of="a"), make_manifest("11-02", "c")]
    assert expiry.run_ids_to_keep(runs, RetentionRules(last=1), {"a"}) == {"a", "b", "c"}
    assert expiry.run_ids_to_keep(runs, RetentionRules(last=1), {"b"}) == {"b", "c"}


@pytest.fixture
def fleet(tmp_path):
    """Three runs of an audit; the middle one has two revisions, whose names sort in reverse order."""
    start = STARTED_AT + 2 * DAY_US
    publish(tmp_path, ok("a"), run_id="20251101T000000Z-aaaaaaa1", started_at=STARTED_AT + DAY_US)
    revision_of = None
    for run_id in ("20251102T000000Z-aaaaaaa9", "20251102T000000Z-aaaaaaa8", "20251102T000000Z-aaaaaaa7"):
        publish(tmp_path, ok("a"), run_id=run_id, started_at=start, revision_of=revision_of)
        revision_of = run_id
    publish(tmp_path, ok("a"), run_id="20251105T000000Z-aaaaaaa5", started_at=STARTED_AT + 5 * DAY_US)
    return tmp_path


def tree(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_a_dry_run_prints_what_the_real_one_does_and_removes_nothing(fleet, capsys):
    (fleet / "staging" / "20251106T000000Z-aaaaaaaa").mkdir()
    command = ["expire", "--keep-last", "1", "-w", str(fleet)]
    tree_before = tree(fleet)
    assert cli.main([*command, "--dry-run"]) == cli.OK
    assert tree(fleet) == tree_before
    dry = capsys.readouterr().out
    assert cli.main(command) == cli.OK
    assert capsys.readouterr().out == dry
    paths = [line.split()[1].rstrip(":") for line in dry.splitlines()]
    assert [path[-1] for path in paths] == ["a", "1", "9", "8", "7"], "staging, then the revised before its revision"
    assert not any(Path(path).exists() for path in paths)
    assert [manifest.run_id for manifest in warehouse.published_runs(fleet)] == ["20251105T000000Z-aaaaaaa5"]
    assert list((fleet / "staging").iterdir()) == []
    assert cli.main(command) == cli.OK
    assert capsys.readouterr().out == ""


def expire_run(root: Path, run: str, *options: str) -> int:
    return cli.main(["expire", "--run", run, "-w", str(root), *options])


def run_ids(root: Path) -> list[str]:
    return [manifest.run_id for manifest in warehouse.published_runs(root)]


def test_one_run_is_removed_by_a_prefix_and_nothing_else(fleet, capsys):
    (fleet / "staging" / "20251106T000000Z-aaaaaaaa").mkdir()
    all_run_ids = run_ids(fleet)
    assert expire_run(fleet, "20251105", "--dry-run") == cli.OK
    dry = capsys.readouterr().out
    assert run_ids(fleet) == all_run_ids
    assert expire_run(fleet, "20251105") == cli.OK
    assert capsys.readouterr().out == dry
    assert dry.startswith(f"remove {fleet}/runs/20251105T000000Z-aaaaaaa5: named by --run, audit adhoc, ")
    assert run_ids(fleet) == all_run_ids[:-1], "though it was the newest good run, and published last"
    assert [path.name for path in (fleet / "staging").iterdir()] == ["20251106T000000Z-aaaaaaaa"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--run", "latest"], cli.FAILED, "takes the id of a run"),
        (["--run", "20251102"], cli.FAILED, "is not unique"),
        (["--run", "2024"], cli.FAILED, "no run '2024'"),
        (["--run", "20251105", "--keep-last", "1"], cli.USAGE, "leave out --keep-"),
        (["--run", "20251105", "--interrupted-days", "0"], cli.USAGE, "leave out --keep-"),
    ],
)
def test_what_names_no_run_to_remove_removes_nothing(fleet, arguments, code, words, capsys):
    tree_before = tree(fleet)
    assert cli.main(["expire", *arguments, "-w", str(fleet)]) == code
    assert words in capsys.readouterr().err
    assert tree(fleet) == tree_before


def test_the_removal_of_a_revision_says_which_run_counts_again(fleet, capsys):
    assert expire_run(fleet, "20251102T000000Z-aaaaaaa7") == cli.OK
    assert "; run 20251102T000000Z-aaaaaaa8, which it revises, counts again" in capsys.readouterr().out
    counting_ids = session(fleet).rows("SELECT run_id FROM _unrevised_runs WHERE run_id LIKE '20251102%'")
    assert counting_ids == [{"run_id": "20251102T000000Z-aaaaaaa8"}]


def test_a_run_with_a_damaged_manifest_is_removed(fleet):
    path = fleet / "runs" / "20251105T000000Z-aaaaaaa5" / "manifest.json"
    path.write_text("{")
    assert expire_run(fleet, path.parent.name) == cli.OK
    assert path.parent.name not in run_ids(fleet)


def test_a_run_that_a_staged_one_needs_stays(fleet, capsys):
    revised_id = "20251105T000000Z-aaaaaaa5"
    staging = warehouse.Staging.revise(fleet, revised_id, run_id="20251106T000000Z-aaaaaaa6", tool_version="1")
    (staging.directory / "carried").unlink()
    assert expire_run(fleet, revised_id) == cli.FAILED
    assert f"a run in staging revises {revised_id}" in capsys.readouterr().err
    (staging.directory / "carried").touch()
    assert expire_run(fleet, revised_id) == cli.OK
    assert staging.publish(lambda tables: []).revision_of == revised_id


def test_a_run_in_staging_is_removed_unless_a_process_has_it_open(fleet, capsys):
    run_id = "20251106T000000Z-aaaaaaa6"
    staging = warehouse.Staging.create(fleet, run(run_id))
    staging.append(ok("a"))
    in_ten_years = datetime.now().timestamp() + 10 * 365 * 86_400  # by the clock that it was staged with
    for path in staging.directory.iterdir():
        os.utime(path, (in_ten_years, in_ten_years))
    assert expire_run(fleet, run_id) == cli.FAILED
    assert "may have this run open" in capsys.readouterr().err
    del staging
    assert expire_run(fleet, run_id) == cli.OK
    assert list((fleet / "staging").iterdir()) == []


def test_what_a_killed_driver_left_of_a_published_run_goes_with_it(fleet):
    """Else it could be resumed, and published again."""
    run_id = "20251105T000000Z-aaaaaaa5"
    leftover = warehouse.Staging.create(fleet, run("20251106T000000Z-aaaaaaa6")).directory
    leftover.rename(leftover.with_name(run_id))
    assert expire_run(fleet, run_id) == cli.OK
    assert warehouse.staged_runs(fleet) == {}


def expire(root: Path, *options: str) -> list[str]:
    """Run expire in a separate process and return the names of the directories that it removed."""
    command = [sys.executable, "-m", "pipeline", "expire", "-w", str(root), *options]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (cli.OK, "")
    return [Path(line.split()[1].rstrip(":")).name for line in process.stdout.splitlines()]


def start_child(body: str, *arguments: object) -> subprocess.Popen[str]:
    code = "import sys\nfrom pathlib import Path\nfrom tests.warehouse.outcomes import *\n" + textwrap.dedent(body)
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_what_a_living_driver_has_staged_is_never_touched(tmp_path):
    run_id = "20251101T000000Z-aaaaaaaa"
    driver = start_child(
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
        tree_before = tree(tmp_path)
        assert expire(tmp_path, "--interrupted-days", "0") == []
        assert tree(tmp_path) == tree_before
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
    """The driver stops with an empty directory in staging; expire waits for the driver, however slow either is."""
    driver = start_child(
        """
        from pipeline.warehouse import staging
        def sync_on_request(path, sync=staging.sync):
            staging.sync = sync
            print("created", flush=True)
            sys.stdin.readline()
            sync(path)
        staging.sync = sync_on_request
        staged_run = warehouse.Staging.create(Path(sys.argv[1]), run("20251101T000000Z-aaaaaaaa"))
        print("staged", flush=True)
        sys.stdin.read()
        """,
        tmp_path,
    )
    try:
        assert driver.stdout.readline() == "created\n"
        command = [sys.executable, "-m", "pipeline", "expire", "-w", str(tmp_path), "--interrupted-days", "0"]
        expirer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            expirer.wait(3)
        driver.stdin.write("\n")
        driver.stdin.flush()
        assert driver.stdout.readline() == "staged\n"
        assert expirer.communicate(timeout=120)[0] == b""
        assert (tmp_path / "staging" / "20251101T000000Z-aaaaaaaa" / "run.json").exists()
    finally:
        driver.kill()
        driver.communicate()


@pytest.mark.parametrize("leftover", ["nothing", "inputs only", "a torn run.json", "torn inputs", "published"])
def test_what_killed_drivers_left_and_cannot_be_resumed_is_removed(tmp_path, leftover):
    published_run = publish(tmp_path, ok("a"), run_id="20251101T000000Z-aaaaaaaa")
    staging = tmp_path / "staging" / "20251102T000000Z-bbbbbbbb"
    staged_run = warehouse.Staging.create(tmp_path, run(staging.name))
    if leftover in ("nothing", "inputs only"):
        for name in ("run.json", "outcomes.jsonl", *(["inputs.jsonl.gz"] if leftover == "nothing" else [])):
            (staging / name).unlink()
    elif leftover == "published":
        staged_run.append(ok("a"))
        staging = staging.rename(staging.with_name(published_run.name))
    else:
        path = staging / ("run.json" if leftover == "a torn run.json" else "inputs.jsonl.gz")
        path.write_bytes(path.read_bytes()[:-9])
    del staged_run
    (tmp_path / "staging" / "notes.txt").write_text("mine")
    (tmp_path / "staging" / "mine").mkdir()
    (removal,) = warehouse.removals(tmp_path, RetentionRules())
    assert removal.path == str(staging)
    removal.carry_out()
    assert sorted(path.name for path in (tmp_path / "staging").iterdir()) == ["mine", "notes.txt"]
    assert [manifest.run_id for manifest in warehouse.published_runs(tmp_path)] == [published_run.name]


DAMAGE = {
    "absent": None,
    "cut": lambda content: content[:-9],
    "zeros": lambda content: bytes(len(content)),
    "scrambled": lambda content: gzip.compress(content)[:10] + b"\xff" * len(content),
}


@pytest.mark.parametrize("name", ["run.json", "inputs.jsonl.gz"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_outcomes_that_cannot_be_resumed_go_only_where_interrupted_days_say_so(tmp_path, name, kind):
    directory = tmp_path / "staging" / "20251102T000000Z-bbbbbbbb"
    warehouse.Staging.create(tmp_path, run(directory.name)).append(ok("a"))
    path = directory / name
    content = path.read_bytes()
    path.unlink()
    if kind != "absent":
        path.write_bytes(DAMAGE[kind](content))
    assert list(warehouse.removals(tmp_path, RetentionRules())) == []
    assert list(warehouse.removals(tmp_path, RetentionRules(), 1)) == []
    (removal,) = warehouse.removals(tmp_path, RetentionRules(), 0)
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
    path.symlink_to("/proc/self/mem")  # a read at offset 0, which no process maps, fails with EIO
    paths_before = sorted(fleet.rglob("*"))
    for _ in range(2):
        assert cli.main(["expire", "--keep-last", "1", "--interrupted-days", "0", "-w", str(fleet)]) == cli.FAILED
        assert capsys.readouterr() == ("", f"lru-audit: {path}: Input/output error\n")
    assert sorted(fleet.rglob("*")) == paths_before


def test_a_run_that_is_opened_while_it_is_removed_is_gone_and_one_line(tmp_path, monkeypatch):
    run_id = "20251102T000000Z-bbbbbbbb"
    warehouse.Staging.create(tmp_path, run(run_id)).append(ok("a"))
    messages = []

    def resume() -> None:
        try:
            warehouse.Staging(tmp_path, run_id)
        except warehouse.WarehouseError as error:
            messages.append(str(error))

    opener = threading.Thread(target=resume)

    def discard_after_opening(*args, discard=expiry.discard):
        opener.start()
        opener.join(0.5)
        discard(*args)

    monkeypatch.setattr(expiry, "discard", discard_after_opening)
    (removal,) = warehouse.removals(tmp_path, RetentionRules(), 0)
    removal.carry_out()
    opener.join()
    assert len(messages) == 1
    assert f"{run_id}/outcomes.jsonl: No such file or directory" in messages[0]


@pytest.mark.faults
def test_killed_at_any_step_of_expire_runs_are_whole_or_absent_and_the_next_one_cleans(tmp_path):
    script = start_child(
        """
        import os, shutil
        from tests.warehouse.kill_hook import kill_hook
        STEPS = {"os.mkdir", "os.rename", "os.rmdir", "os.remove", "shutil.rmtree"}
        root = Path(sys.argv[1])
        publish(root / "0", ok("a"), run_id="20251101T000000Z-aaaaaaaa")
        publish(root / "0", ok("a"), run_id="20251102T000000Z-bbbbbbbb", started_at=STARTED_AT + 1)

        status = steps = 1
        while status != 0:
            copy = shutil.copytree(root / "0", root / str(steps))
            pid = os.fork()
            if pid == 0:
                sys.addaudithook(kill_hook(steps - 1, STEPS))
                for removal in warehouse.removals(copy, warehouse.RetentionRules(last=1)):
                    removal.carry_out()
                os._exit(0)
            status = os.waitpid(pid, 0)[1]
            steps += 1
        """,
        tmp_path,
    )
    _, stderr = script.communicate(timeout=300)
    assert script.returncode == 0, stderr
    run_counts = []
    for copy in tmp_path.iterdir():
        if copy.name == "0":
            continue
        manifests = warehouse.published_runs(copy)
        run_counts.append(len(manifests))
        for manifest in manifests:
            for file in manifest.files:
                content = (directory_of(manifest) / file.path).read_bytes()
                assert hashlib.sha256(content).hexdigest() == file.sha256
        for removal in warehouse.removals(copy, RetentionRules(last=1)):
            removal.carry_out()
        assert [manifest.run_id for manifest in warehouse.published_runs(copy)] == ["20251102T000000Z-bbbbbbbb"]
        assert list((copy / "staging").iterdir()) == []
    assert run_counts.count(2) >= 1
    assert run_counts.count(1) > 8, "a kill at each file"


# Runs a command during whose first query all runs expire but the last.
EXPIRE_FIRST = """
    import subprocess
    from pipeline import cli
    runs = sys.modules["pipeline.warehouse.runs"]

    def expire_first(manifests, datasets=runs.datasets):
        command = [sys.executable, "-m", "pipeline", "expire", "--keep-last", "1", "-w", sys.argv[1]]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return datasets(manifests)

    runs.datasets = expire_first
    sys.exit(cli.main([*sys.argv[2:], "-w", sys.argv[1]]))
    """


@pytest.mark.parametrize("command", [["sql", "SELECT count(*) FROM list_lrus"], ["report"]], ids=["sql", "report"])
def test_a_query_during_which_a_run_is_expired_ends_in_one_line(tmp_path, command):
    """expire runs in a separate process, after the query has listed the runs and before it reads them."""
    for day, run_id in enumerate(("20251101T000000Z-aaaaaaaa", "20251102T000000Z-bbbbbbbb")):
        publish(tmp_path, ok("a"), run_id=run_id, started_at=STARTED_AT + day * DAY_US)
    process = start_child(EXPIRE_FIRST, tmp_path, *command)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (cli.FAILED, ""), err
    assert err == f"lru-audit: {tmp_path}: run 20251101T000000Z-aaaaaaaa was expired meanwhile: run the command again\n"


def test_a_driver_that_removes_its_published_run_from_staging_meanwhile_does_not_disturb(tmp_path, monkeypatch):
    staged = tmp_path / "staging" / publish(tmp_path, ok("a")).name
    staged.mkdir()
    (staged / "outcomes.jsonl").touch()
    lstat = Path.lstat

    def remove_first(path: Path) -> os.stat_result:
        shutil.rmtree(staged, ignore_errors=True)
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", remove_first)
    for removal in warehouse.removals(tmp_path, RetentionRules()):
        removal.carry_out()
    assert not staged.exists()
    assert len(warehouse.published_runs(tmp_path)) == 1


def test_a_run_during_whose_report_another_expires_ends_as_its_targets_did(tmp_path):
    for day, run_id in enumerate(("20251101T000000Z-aaaaaaaa", "20251102T000000Z-bbbbbbbb")):
        publish(tmp_path, ok("a"), run_id=run_id, started_at=STARTED_AT + day * DAY_US)
    process = start_child(EXPIRE_FIRST, tmp_path, "run", VMCORES / "deb510-n1" / "vmcore", "--quiet")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (cli.OK, "")
    (manifest,) = warehouse.published_runs(tmp_path)
    assert out.count(f"Run {manifest.run_id} of audit adhoc\n") == 1


@pytest.mark.faults
def test_readers_see_whole_runs_while_two_drivers_publish_and_runs_expire(tmp_path):
    publish(tmp_path, ok("a"), failure("b"), audit="first")
    drivers = [
        start_child(
            """
            for number in range(6):
                publish(Path(sys.argv[1]), ok("a"), failure("b"), audit=sys.argv[2], started_at=STARTED_AT + number)
            """,
            tmp_path,
            audit,
        )
        for audit in ("left", "right")
    ]
    expirer = start_child(
        """
        import select
        while not select.select([sys.stdin], [], [], 0.05)[0]:
            for removal in warehouse.removals(Path(sys.argv[1]), warehouse.RetentionRules(last=2)):
                removal.carry_out()
        """,
        tmp_path,
    )
    queries = 0
    while any(driver.poll() is None for driver in drivers) or queries == 0:
        queries += 1
        try:
            with warehouse.open_tables(tmp_path) as tables:
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
    for removal in warehouse.removals(tmp_path, RetentionRules(last=2)):
        removal.carry_out()
    audits = [manifest.audit for manifest in warehouse.published_runs(tmp_path)]
    assert sorted(audits) == ["first", "left", "left", "right", "right"]
    assert list((tmp_path / "staging").iterdir()) == []
    assert {row["n"] for row in session(tmp_path).rows("SELECT count(*) AS n FROM targets GROUP BY run_id")} == {2}
