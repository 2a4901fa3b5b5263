"""Runs are listed by their manifests; an invalid manifest is a one-line error."""

from __future__ import annotations

import gzip
import json
import random
import re
import shutil

import pytest

from pipeline import warehouse
from pipeline.report.model import build_report
from pipeline.warehouse import expiry, runs
from pipeline.warehouse.errors import TornError
from pipeline.warehouse.store import local_folder
from tests import campaign
from tests.warehouse.outcomes import STARTED_AT, failure, publish, run, session, skip_checks

OLD, NEW, NEWEST = "20251101T000000Z-aaaaaaaa", "20251102T000000Z-bbbbbbbb", "20251102T000000Z-bbbbcccc"
FUTURE, OTHER_FUTURE = "22350101T000000Z-dddddddd", "22350101T000000Z-eeeeeeee"
DAY_US = 86_400_000_000
FUTURE_START = STARTED_AT + 200 * 366 * DAY_US


@pytest.fixture(scope="module")
def published_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    starts = {run_id: STARTED_AT + days * DAY_US for days, run_id in ((2, NEWEST), (0, OLD), (1, NEW))}
    staged = [warehouse.Staging.create(root, run(run_id, started_at=start)) for run_id, start in starts.items()]
    for staging in staged:
        staging.append(failure("a"))
        staging.publish(skip_checks)
    return root


@pytest.fixture
def root(published_root, tmp_path):
    """A warehouse of three runs of one audit that overlapped, and were not published in the order of their starts."""
    return shutil.copytree(published_root, tmp_path / "warehouse")


def test_a_run_id_is_the_time_and_eight_hex_digits_and_never_the_same():
    run_ids = {warehouse.new_run_id() for _ in range(100)}
    assert len(run_ids) == 100
    assert all(re.fullmatch(r"20\d{6}T\d{6}Z-[0-9a-f]{8}", run_id) for run_id in run_ids)


@pytest.mark.parametrize("run_id", ["", "latest", "../x", "20251101T000000Z-AAAAAAAA", OLD + "\n", OLD + "/..", "a=b"])
def test_a_run_of_another_name_is_refused(tmp_path, run_id):
    with pytest.raises(warehouse.WarehouseError, match="invalid run id"):
        publish(tmp_path, failure("a"), run_id=run_id or " ")
    assert list(tmp_path.iterdir()) == []


def test_no_warehouse_has_no_runs_and_every_table_without_rows(tmp_path):
    assert warehouse.published_runs(tmp_path / "absent") == []
    tables = warehouse.tables(tmp_path / "absent")
    assert {name: table.count_rows() for name, table in tables.items()} == dict.fromkeys(tables, 0)
    assert len(tables) == 8


def test_runs_are_listed_the_newest_last(root):
    assert [manifest.run_id for manifest in warehouse.published_runs(root)] == [OLD, NEW, NEWEST]


def test_a_unique_prefix_is_resolved(root):
    assert warehouse.resolve_run(root, "20251101") == OLD
    assert warehouse.resolve_run(root, NEW) == NEW
    assert warehouse.resolve_run(root, NEWEST[:-3]) == NEWEST


def test_the_latest_is_the_run_that_the_views_and_the_report_are_of(tmp_path):
    """In audit prod, a revision of the first run is older than the second run; the newest run is of audit adhoc."""
    days = {"20251101T000000Z-00000001": ("prod", 0, None), "20251109T000000Z-00000009": ("prod", 0, 1)}
    days |= {f"2025110{day}T000000Z-0000000{day}": ("prod", day, None) for day in (2, 3)}
    days |= {"20251108T000000Z-00000008": ("prod", 3, 3), "20251104T000000Z-00000004": ("adhoc", 4, None)}
    names = {int(run_id[-1]): run_id for run_id in days}
    for run_id, (audit, day, revised_number) in days.items():
        values = {"audit": audit, "started_at": STARTED_AT + day * DAY_US, "revision_of": names.get(revised_number)}
        publish(tmp_path, failure("a"), run_id=run_id, **values)
    db = session(tmp_path)
    assert warehouse.resolve_run(tmp_path, "latest") == names[8]
    assert db.rows("SELECT newest_run_id() AS run_id") == [{"run_id": names[8]}]
    assert build_report(db).run_id == names[8]
    for audit, number in (("prod", 8), ("adhoc", 4)):
        assert warehouse.resolve_run(tmp_path, "latest", audit) == names[number]
        assert build_report(db, audit=audit).run_id == names[number]


def test_the_latest_is_not_dated_in_the_future_unless_all_are(tmp_path):
    publish(tmp_path, failure("a"), run_id=OLD, audit="prod")
    publish(tmp_path, failure("a"), run_id=FUTURE, audit="prod", started_at=FUTURE_START)
    publish(tmp_path, failure("a"), run_id=OTHER_FUTURE, audit="lab", started_at=FUTURE_START)
    for audit, run_id in ((None, OLD), ("prod", OLD), ("lab", OTHER_FUTURE)):
        assert warehouse.resolve_run(tmp_path, "latest", audit) == run_id
        assert build_report(session(tmp_path), audit=audit).run_id == run_id
    assert warehouse.published_run_ids(tmp_path, "latest") == [OLD]


def test_a_run_made_after_the_clock_was_set_back_is_the_latest_although_its_date_is_not(tmp_path):
    publish(tmp_path, failure("a"), run_id=NEW, started_at=STARTED_AT + 2 * DAY_US)
    publish(tmp_path, failure("a"), run_id=OLD, started_at=STARTED_AT)
    assert warehouse.resolve_run(tmp_path, "latest") == OLD
    assert build_report(session(tmp_path)).run_id == OLD


def test_a_run_that_is_published_late_is_not_the_latest(tmp_path):
    """The clock was ahead when it was staged: its date would make it the newest."""
    late = warehouse.Staging.create(tmp_path, run(NEWEST, started_at=STARTED_AT + DAY_US))
    late.append(failure("a"))
    for run_id in (OLD, NEW):
        publish(tmp_path, failure("a"), run_id=run_id)
    late.publish(skip_checks)
    assert warehouse.resolve_run(tmp_path, "latest") == NEW
    manifests = warehouse.published_runs(tmp_path)
    assert [(m.run_id, m.sequence, m.publication) for m in manifests] == [(OLD, 1, 1), (NEWEST, 1, 3), (NEW, 2, 2)]


def test_the_latest_to_resume_was_begun_last(tmp_path):
    publish(tmp_path, failure("a"), run_id=FUTURE, started_at=FUTURE_START)
    publish(tmp_path, failure("a"), run_id=NEW)
    staged = [warehouse.Staging.create(tmp_path, run(OLD, started_at=STARTED_AT - DAY_US))]
    assert warehouse.resolve_resumable_run(tmp_path, "latest") == OLD
    assert warehouse.resolve_staged_run(tmp_path, "latest") == OLD
    staged.append(warehouse.Staging.revise(tmp_path, NEW, run_id=NEWEST, tool_version="1"))
    assert warehouse.resolve_resumable_run(tmp_path, "latest") == NEWEST


def test_a_run_that_its_driver_publishes_while_it_is_looked_at_is_not_staged(tmp_path, monkeypatch):
    staging = warehouse.Staging.create(tmp_path, run(targets=1))
    staging.append(failure("a"))
    read_run_file = runs.read_run_file

    def publish_first(directory):
        staging.publish(skip_checks)
        return read_run_file(directory)

    monkeypatch.setattr(runs, "read_run_file", publish_first)
    assert warehouse.staged_runs(tmp_path) == {}


def test_a_manifest_that_cannot_be_read_does_not_keep_a_run_from_being_made(tmp_path):
    publish(tmp_path, failure("a"), run_id=OLD)
    (publish(tmp_path, failure("a"), run_id=NEW) / "manifest.json").write_text("{")
    directory = publish(tmp_path, failure("a"), run_id=NEWEST)
    assert json.loads((directory / "manifest.json").read_text())["sequence"] == 2


def test_a_manifest_that_the_storage_does_not_give_may_have_the_greatest_number(tmp_path):
    staged = warehouse.Staging.create(tmp_path, run(OLD))
    staged.append(failure("a"))
    manifest = publish(tmp_path, failure("a"), run_id=NEW) / "manifest.json"
    manifest.unlink()
    manifest.symlink_to("/proc/self/mem")  # reading it at 0 is an I/O error
    error_text = f"^{manifest}: Input/output error; nothing was "
    with pytest.raises(warehouse.WarehouseError, match=f"{error_text}audited$"):
        warehouse.Staging.create(tmp_path, run(NEWEST))
    with pytest.raises(warehouse.WarehouseError, match=f"{error_text}published, .*lru-audit resume {OLD}$"):
        staged.publish(skip_checks)


def test_views_and_manifests_have_one_order(tmp_path):
    """Runs with and without a sequence, dated in the past and the future, of two audits, some of them revised."""
    generator = random.Random(campaign.SEED)
    run_ids: list[str] = []
    for _ in range(24):
        revised_id = generator.choice([None, None, *run_ids])
        start = generator.choice([STARTED_AT, FUTURE_START]) + generator.randrange(3) * DAY_US
        values = {"audit": generator.choice(["prod", "adhoc"]), "started_at": start, "revision_of": revised_id}
        directory = publish(tmp_path, failure("a"), **values)
        run_ids.append(directory.name)
        path = directory / "manifest.json"
        manifest = json.loads(path.read_text()) | {"sequence": generator.choice([None, 1, 2, 3])}
        path.write_text(json.dumps(manifest))
        db = session(tmp_path)
        positions = db.rows("SELECT run_id FROM _ordered_runs ORDER BY position")
        assert [row["run_id"] for row in positions] == [run.run_id for run in warehouse.published_runs(tmp_path)]
        assert db.rows("SELECT newest_run_id() AS id") == [{"id": warehouse.resolve_run(tmp_path, "latest")}]
        latest_ids = {row["run_id"] for row in db.rows("SELECT run_id FROM latest_runs")}
        for rules in (warehouse.RetentionRules(last=1), warehouse.RetentionRules(monthly=1)):
            assert latest_ids <= expiry.run_ids_to_keep(warehouse.published_runs(tmp_path), rules, set())


def test_the_latest_is_adhoc_where_no_audit_has_a_name(root):
    assert warehouse.resolve_run(root, "latest") == NEWEST
    assert build_report(session(root)).run_id == NEWEST


@pytest.mark.parametrize(
    ("run", "error_text"),
    [
        ("20251102", "is not unique: .*bbbbbbbb, .*bbbbcccc"),
        ("2024", "no published run '2024'; the newest is"),
        ("", "no published run ''"),
    ],
)
def test_what_names_no_run_or_several_is_one_clear_line(root, run, error_text):
    with pytest.raises(warehouse.WarehouseError, match=error_text):
        warehouse.resolve_run(root, run)


def test_a_run_is_sought_in_vain_where_there_is_none(tmp_path):
    with pytest.raises(warehouse.WarehouseError, match="no published run"):
        warehouse.resolve_run(tmp_path, "2025")


def test_what_else_lies_in_the_warehouse_is_not_seen(root):
    (root / "runs" / "lost+found").mkdir()
    (root / "runs" / ".DS_Store").write_text("")
    stray = root / "runs" / OLD / "targets-00001.parquet"
    stray.write_bytes((root / "runs" / NEW / "targets-00000.parquet").read_bytes())
    assert len(warehouse.published_runs(root)) == 3
    assert session(root).rows("SELECT count(*) AS n FROM targets") == [{"n": 3}]


def replace_keys(**values):
    return lambda content: {**content, **values}


FILE = {"table": "targets", "path": "targets-00000.parquet", "rows": 1, "bytes": 1, "sha256": ""}
INVALID_MANIFESTS = {
    "cut short": lambda content: None,
    "a list": lambda content: [],
    "of another version": replace_keys(manifest_version=2),
    "of another run": replace_keys(run_id=NEW),
    "with a time that is none": replace_keys(started_at="yesterday"),
    "with a number that is none": replace_keys(targets="many"),
    "with a time without a time zone": replace_keys(started_at="2025-11-01T00:00:00"),
    "with a sequence that is none": replace_keys(sequence="first"),
    "with an unknown key": replace_keys(colour="red"),
    "with a file elsewhere": replace_keys(files=[{**FILE, "path": "../../etc/passwd"}]),
    "with a file of another table": replace_keys(files=[{**FILE, "path": "memcgs-00000.parquet"}]),
    "with a file that says too little": replace_keys(files=[{"table": "targets"}]),
}


@pytest.mark.parametrize("kind", INVALID_MANIFESTS)
def test_a_manifest_that_cannot_be_read_is_one_line_that_names_it(root, kind):
    path = root / "runs" / OLD / "manifest.json"
    text = path.read_text()
    content = INVALID_MANIFESTS[kind](json.loads(text))
    path.write_text(text[:100] if content is None else json.dumps(content))
    with pytest.raises(warehouse.WarehouseError) as error:
        warehouse.tables(root)
    assert str(error.value).startswith(f"{path}: invalid manifest: ")
    assert "\n" not in str(error.value)


NESTED = "[" * 100_000


def test_a_manifest_that_is_nested_too_deep_is_one_line_that_names_it(root):
    path = root / "runs" / OLD / "manifest.json"
    path.write_text(NESTED)
    with pytest.raises(warehouse.WarehouseError, match="invalid manifest: ValueError: nested too deeply") as error:
        warehouse.tables(root)
    assert "\n" not in str(error.value)


def test_files_of_a_staged_run_that_are_nested_too_deep_are_damaged(tmp_path):
    (tmp_path / "run.json").write_text(NESTED)
    with gzip.open(tmp_path / "inputs.jsonl.gz", "wt") as file:
        file.write(NESTED)
    for read, directory in ((runs.read_run_file, tmp_path), (runs.read_inputs, local_folder(tmp_path))):
        with pytest.raises(TornError, match=str(tmp_path)):
            read(directory)


def test_a_run_without_a_manifest_is_one_line_that_names_it(root):
    path = root / "runs" / OLD / "manifest.json"
    path.unlink()
    with pytest.raises(warehouse.WarehouseError, match=f"^{re.escape(str(path))}: No such file or directory$"):
        warehouse.tables(root)
