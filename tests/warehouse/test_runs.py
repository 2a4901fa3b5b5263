"""Runs are found by their manifests; one that cannot be read is one clear line."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from pipeline import warehouse
from pipeline.report.model import build_report
from tests.warehouse.outcomes import STARTED_AT, failed, publish, session

OLD, NEW, OTHER = "20251101T000000Z-aaaaaaaa", "20251102T000000Z-bbbbbbbb", "20251102T000000Z-bbbbcccc"
DAY = 86_400_000_000


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    for days, run_id in ((2, OTHER), (0, OLD), (1, NEW)):
        publish(root, failed("a"), run_id=run_id, started_at=STARTED_AT + days * DAY)
    return root


@pytest.fixture
def three(published, tmp_path):
    """Three runs of one audit, published in another order than they started."""
    return shutil.copytree(published, tmp_path / "warehouse")


def test_a_run_id_is_the_time_and_eight_hex_digits_and_never_the_same():
    made = {warehouse.new_run_id() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"20\d{6}T\d{6}Z-[0-9a-f]{8}", run_id) for run_id in made)


@pytest.mark.parametrize("run_id", ["", "latest", "../x", "20251101T000000Z-AAAAAAAA", OLD + "\n", OLD + "/..", "a=b"])
def test_a_run_of_another_name_is_refused(tmp_path, run_id):
    with pytest.raises(warehouse.WarehouseError, match="is no run id"):
        publish(tmp_path, failed("a"), run_id=run_id or " ")
    assert list(tmp_path.iterdir()) == []


def test_no_warehouse_has_no_runs_and_every_table_without_rows(tmp_path):
    assert warehouse.runs(tmp_path / "absent") == []
    tables = warehouse.tables(tmp_path / "absent")
    assert {name: table.count_rows() for name, table in tables.items()} == dict.fromkeys(tables, 0)
    assert len(tables) == 6


def test_runs_are_listed_the_newest_last(three):
    assert [manifest.run_id for manifest in warehouse.runs(three)] == [OLD, NEW, OTHER]


def test_a_unique_prefix_is_resolved(three):
    assert warehouse.resolve(three, "20251101") == OLD
    assert warehouse.resolve(three, NEW) == NEW
    assert warehouse.resolve(three, OTHER[:-3]) == OTHER


def test_the_latest_is_the_run_that_the_views_and_the_report_are_of(tmp_path):
    """Of audit prod a revision of its first run is no newer than its second; what is newest of all is adhoc."""
    days = {"20251101T000000Z-00000001": ("prod", 0, None), "20251109T000000Z-00000009": ("prod", 0, 1)}
    days |= {f"2025110{day}T000000Z-0000000{day}": ("prod", day, None) for day in (2, 3)}
    days |= {"20251108T000000Z-00000008": ("prod", 3, 3), "20251104T000000Z-00000004": ("adhoc", 4, None)}
    names = {int(run_id[-1]): run_id for run_id in days}
    for run_id, (audit, day, revised) in days.items():
        known = {"audit": audit, "started_at": STARTED_AT + day * DAY, "revision_of": names.get(revised)}
        publish(tmp_path, failed("a"), run_id=run_id, **known)
    asked = session(tmp_path)
    assert warehouse.resolve(tmp_path, "latest") == names[8]
    assert asked.rows("FROM newest_run") == [{"run_id": names[8]}]
    assert build_report(asked).run_id == names[8]
    for audit, number in (("prod", 8), ("adhoc", 4)):
        assert warehouse.resolve(tmp_path, "latest", audit) == names[number]
        assert build_report(asked, audit=audit).run_id == names[number]


def test_the_latest_is_adhoc_where_no_audit_has_a_name(three):
    assert warehouse.resolve(three, "latest") == OTHER
    assert build_report(session(three)).run_id == OTHER


@pytest.mark.parametrize(
    ("run", "why"),
    [
        ("20251102", "is not unique: .*bbbbbbbb, .*bbbbcccc"),
        ("2024", "no published run '2024'; the newest is"),
        ("", "no published run ''"),
    ],
)
def test_what_names_no_run_or_several_is_one_clear_line(three, run, why):
    with pytest.raises(warehouse.WarehouseError, match=why):
        warehouse.resolve(three, run)


def test_a_run_is_sought_in_vain_where_there_is_none(tmp_path):
    with pytest.raises(warehouse.WarehouseError, match="no published run"):
        warehouse.resolve(tmp_path, "2025")


def test_what_else_lies_in_the_warehouse_is_not_seen(three):
    (three / "runs" / "lost+found").mkdir()
    (three / "runs" / ".DS_Store").write_text("")
    stray = three / "runs" / OLD / "targets-00001.parquet"
    stray.write_bytes((three / "runs" / NEW / "targets-00000.parquet").read_bytes())
    assert len(warehouse.runs(three)) == 3
    assert session(three).rows("SELECT count(*) AS n FROM targets") == [{"n": 3}]


def change(**values):
    return lambda content: {**content, **values}


FILE = {"table": "targets", "path": "targets-00000.parquet", "rows": 1, "bytes": 1, "sha256": ""}
BAD = {
    "cut short": lambda content: None,
    "a list": lambda content: [],
    "of another version": change(manifest_version=2),
    "of another run": change(run_id=NEW),
    "with a time that is none": change(started_at="yesterday"),
    "with an unknown key": change(colour="red"),
    "with a file elsewhere": change(files=[{**FILE, "path": "../../etc/passwd"}]),
    "with a file of another table": change(files=[{**FILE, "path": "memcgs-00000.parquet"}]),
    "with a file that says too little": change(files=[{"table": "targets"}]),
}


@pytest.mark.parametrize("how", BAD)
def test_a_manifest_that_cannot_be_read_is_one_line_that_names_it(three, how):
    path = three / "runs" / OLD / "manifest.json"
    text = path.read_text()
    changed = BAD[how](json.loads(text))
    path.write_text(text[:100] if changed is None else json.dumps(changed))
    with pytest.raises(warehouse.WarehouseError) as error:
        warehouse.runs(three)
    assert str(error.value).startswith(f"{path}: not a manifest that can be read: ")
    assert "\n" not in str(error.value)


def test_a_run_without_a_manifest_is_one_line_that_names_it(three):
    path = three / "runs" / OLD / "manifest.json"
    path.unlink()
    with pytest.raises(warehouse.WarehouseError, match=f"^{re.escape(str(path))}: No such file or directory$"):
        warehouse.tables(three)
