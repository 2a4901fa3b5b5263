"""`runner.frame`: a complete and valid frame is parsed, anything else is refused with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.collector import __main__ as collector
from pipeline.collector.status import GOOD, STATUSES
from pipeline.fanout.runner import frame

CORE = Path(__file__).parents[2] / "vmcores/deb510-growing/vmcore"

# Statuses that only the runner and the driver set.
NOT_THE_CHILDS = ["bad_output", "timeout", "crashed", "lost", "not_run"]

HEADER = frame.HEADER.decode()
TARGETS = {"table": "targets", "columns": ["host", "reads"], "rows": [["db1", 7]]}
MOUNTS = {"table": "superblocks", "columns": ["address", "fstype"], "rows": [[2**64 - 1, "ext4"], [1, "tmpfs"]]}
MORE_MOUNTS = {"table": "superblocks", "columns": ["address", "fstype"], "rows": [[3, None]]}
END = {"end": {"targets": 1, "superblocks": 3, "list_lrus": 0, "memcgs": 0}}
GOOD_LINES = [TARGETS, MOUNTS, MORE_MOUNTS, END]


def frame_bytes(*lines: object) -> bytes:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return (HEADER + "".join(text + "\n" for text in texts)).encode()


def parse_error(*lines: object) -> str:
    with pytest.raises(frame.FrameError) as caught:
        frame.parse(frame_bytes(*lines))
    return str(caught.value)


def test_a_frame_begins_as_the_collector_begins_it():
    assert collector.FRAME.encode() + b"\n" == frame.HEADER


def test_chunks_of_rows_are_joined():
    snapshot = frame.parse(frame_bytes(*GOOD_LINES))
    assert snapshot.columns == {"host": "db1", "reads": 7}
    assert snapshot.tables["superblocks"]["rows"] == [[2**64 - 1, "ext4"], [1, "tmpfs"], [3, None]]
    assert snapshot.tables["memcgs"] == {"columns": [], "rows": []}
    assert snapshot.unsupported_reason is None


def test_a_line_that_would_fill_the_memory_is_refused_before_it_is_parsed():
    line = json.dumps(TARGETS).ljust(frame.MAX_LINE_BYTES - 1)
    assert frame.parse(frame_bytes(line, {"end": {"targets": 1}})).columns == {"host": "db1", "reads": 7}
    assert parse_error(line + " ", {"end": {"targets": 1}}) == "line 1 of the frame has more than 8 MiB"


@pytest.mark.parametrize(
    ("rows", "value_count"),
    [([], 0), ([[]] * 5, 5), ([[1], [2]], 4), ([[[]]], 2), ([[[7, 8, 9]]], 5)],
)
def test_values_that_would_fill_the_memory_are_refused_however_they_are_divided(monkeypatch, rows, value_count):
    lines = [{"table": "memcgs", "columns": ["a"] * bool(rows and rows[0]), "rows": [row]} for row in rows]
    monkeypatch.setattr(frame, "MAX_VALUES", value_count + 3)  # that of targets is a row with two values
    lines += [TARGETS, {"end": {"targets": 1, "memcgs": len(rows)}}]
    assert frame.parse(frame_bytes(*lines)).tables["memcgs"]["rows"] == rows
    monkeypatch.setattr(frame, "MAX_VALUES", value_count + 2)
    assert "more than" in parse_error(*lines)


def test_the_lines_of_the_collector_have_room_for_long_paths(capsys):
    collector.main([str(CORE)])
    lines = [line for line in capsys.readouterr().out.splitlines() if '"superblocks"' in line and '"rows"' in line]
    row_counts = [len(json.loads(line)["rows"]) for line in lines]
    assert len(lines) > 1
    two_paths_bytes = 2 * 6 * 4096  # PATH_MAX, of characters that JSON escapes
    assert max(row_counts) * two_paths_bytes + max(map(len, lines)) < frame.MAX_LINE_BYTES


@pytest.mark.parametrize("text", [b"Welcome to db1!\nLast login: today\n", b"$ ", b"\xff\x00\n", b"{\n"])
def test_text_before_and_after_the_frame_is_ignored(text):
    output = frame_bytes(*GOOD_LINES)
    assert frame.parse(text + output + b"logout\n") == frame.parse(output)


def test_a_frame_cut_off_anywhere_is_refused():
    output = frame_bytes(*GOOD_LINES).rstrip(b"\n")
    for length in range(len(output)):
        with pytest.raises(frame.FrameError):
            frame.parse(output[:length])
    assert frame.parse(output)


def test_unsupported_is_a_snapshot_with_a_reason():
    snapshot = frame.parse(frame_bytes(*GOOD_LINES[:-1], {"unsupported": "no memcg"}, END))
    assert snapshot.unsupported_reason == "no memcg"


@pytest.mark.parametrize("status", sorted(frame.FAILURES))
def test_a_failure_carries_its_status(status):
    error = {"status": status, "error_type": "FaultError", "error": "core: why"}
    assert frame.parse(frame_bytes({"error": error})) == frame.Failure(status, "FaultError", "core: why")


def test_every_status_is_good_or_the_childs_or_ours():
    assert sorted([*frame.FAILURES, *NOT_THE_CHILDS, *GOOD]) == sorted(STATUSES)


@pytest.mark.parametrize(
    "error",
    [
        *({"status": status, "error_type": "E", "error": "x"} for status in NOT_THE_CHILDS),
        {"status": "ok", "error_type": "E", "error": "x"},
        {"status": "unsupported", "error_type": "E", "error": "x"},
        {"status": "fine", "error_type": "E", "error": "x"},
        {"status": ["denied"], "error_type": "E", "error": "x"},
        {"status": "denied", "error_type": 5, "error": "x"},
        {"status": "denied"},
        "denied",
        None,
    ],
)
def test_a_failure_without_a_status_that_a_child_may_give_is_refused(error):
    assert "has no status" in parse_error({"error": error})


def test_counts_have_to_match():
    for table, count in (("superblocks", 2), ("superblocks", "3"), ("memcgs", 1), ("files", 0)):
        counts = {**END["end"], table: count}
        assert "counts" in parse_error(*GOOD_LINES[:-1], {"end": counts})
    assert "counts" in parse_error(*GOOD_LINES[:-1], {"end": 4})


def test_there_is_exactly_one_row_of_targets():
    assert "0 rows of targets" in parse_error({"end": {}})
    two = {**TARGETS, "rows": [["db1", 7], ["db2", 8]]}
    assert "2 rows of targets" in parse_error(two, {"end": {"targets": 2}})


@pytest.mark.parametrize(
    "column", ["run_id", "target", "kind", "source", "labels", "status", "error", "attempts", "started_at"]
)
def test_a_host_cannot_say_who_it_is_or_how_it_went(column):
    assert column in parse_error({"table": "targets", "columns": ["host", column], "rows": [["db1", "x"]]}, END)


@pytest.mark.parametrize("column", ["run_id", "target"])
def test_a_host_cannot_write_into_anothers_rows(column):
    assert column in parse_error(TARGETS, {"table": "memcgs", "columns": [column], "rows": [["db2"]]}, END)


@pytest.mark.parametrize(
    "line",
    [
        {"table": "files", "columns": ["a"], "rows": [[1]]},
        {"table": "memcgs", "columns": ["a", "b"], "rows": [[1]]},
        {"table": "memcgs", "columns": ["a", "a"], "rows": [[1, 2]]},
        {"table": "memcgs", "columns": [1], "rows": [[1]]},
        {"table": "memcgs", "columns": ["a"], "rows": [{"a": 1}]},
        {"table": "memcgs", "columns": ["a"]},
        {"table": "memcgs", "columns": ["a"], "rows": [], "more": 1},
        {"table": "superblocks", "columns": ["address"], "rows": [[1]]},
        [1],
        5,
        "not JSON",
        "[" * 100_000,
        "",
    ],
)
def test_what_is_no_record_is_refused(line):
    parse_error(TARGETS, MOUNTS, line, MORE_MOUNTS, END)


@pytest.mark.parametrize(
    "value", ["1e999", "NaN", "18446744073709551616", "-9223372036854775809", '"\\ud800"', '{"a":1}', "[[1]]"]
)
def test_a_value_that_no_column_can_hold_is_refused(value):
    line = f'{{"table": "memcgs", "columns": ["a"], "rows": [[{value}]]}}'
    assert "cannot be stored" in parse_error(TARGETS, line, {"end": {"targets": 1, "memcgs": 1}})


@pytest.mark.parametrize("value", [None, True, 0, -(2**63), 2**64 - 1, 1.5, "x", "\U0001f600", [], [0, "a"]])
def test_a_value_that_some_column_can_hold_is_taken(value):
    line = {"table": "memcgs", "columns": ["a"], "rows": [[value]]}
    snapshot = frame.parse(frame_bytes(TARGETS, line, {"end": {"targets": 1, "memcgs": 1}}))
    assert snapshot.tables["memcgs"]["rows"] == [[value]]
