"""A campaign of hostile answers: whatever a host prints and does, the runner reads just what the frame says, in time.

Each answer is a frame of the collector, or a mutation of one, that a real child writes in parts to real pipes between
noise, and then ends in some way. An `ok` is compared with the lines of the answer, which this module decodes itself.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.collector.status import GOOD
from pipeline.fanout import runner
from pipeline.fanout.runner import frame
from pipeline.fanout.workers import collect_batch
from pipeline.inventory import Target
from pipeline.warehouse.outcome import spool_entry
from pipeline.warehouse.rows import Spooled, to_tables
from tests import campaign, processes

ROOT = Path(__file__).resolve().parents[3]
CORE = ROOT / "tests/vmcores/deb510-n1/vmcore"

ANSWERS = 5_000
ANSWERS_PER_CASE = 50
TIMEOUT_S = 30.0
HANG_TIMEOUT_S = 0.5
OUTPUT_BYTES = 1 << 20
# From SIGTERM to the result of a child that survives SIGKILL are 8 s, and the machine of a test may be busy.
GRACE_S = 20.0

# Replacements of a value.
VALUES = (
    "null", "true", "-1", "0", "1e999", "NaN", "-Infinity", "1.5", "9" * 400, str(2**63), str(2**64 - 1), str(2**64),
    '""', '"\\ud800"', '"\\u0000\\u001b[2J\\u202e"', json.dumps("x" * 70_000), "[]", "[[]]", "{}", '{"error": 1}',
    "[" * 5_000 + "]" * 5_000,
)  # fmt: skip
RESERVED = ("run_id", "target", "status", "error", "attempts", "via", "labels", "input_digest")
ERRORS = ("denied", "inconsistent", "ok", "lost", "timeout", "crashed", "bad_output", "x")

# The child: reads what to do beside its file, since a script for each answer would have to be compiled.
CHILD = """
import json, os, signal, subprocess, sys, time
answer = json.load(open({answer!r}))
for number, text in answer["parts"]:
    os.write(number, text.encode("latin-1"))
    time.sleep(answer["pause_s"])
if answer["mark"]:
    subprocess.Popen(["sleep", "60"], env={{"LRU_TEST": answer["mark"]}})
if answer["closes"]:
    os.close(1)
    os.close(2)
if answer["hangs"]:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    time.sleep(60)
if answer["signal"]:
    os.kill(os.getpid(), answer["signal"])
os._exit(answer["code"])
"""


class Answer(NamedTuple):
    """What a child prints on stdout, and how it ends.

    :ivar is_whole: whether stdout has an unchanged frame after arbitrary text.
    """

    stdout: bytes
    stderr: bytes
    pause_s: float
    part_count: int
    code: int
    signal: int
    hangs: bool
    closes: bool
    leaves_process: bool
    is_whole: bool


@pytest.fixture(scope="module")
def good_frame() -> bytes:
    output = subprocess.run(
        [sys.executable, "-m", "pipeline.collector", CORE], cwd=ROOT, check=True, capture_output=True
    ).stdout
    # The same bytes in each run, so that a seed makes the same answers.
    output = output[output.index(frame.HEADER) :]
    line = output.split(b"\n")[1]
    record = json.loads(line)
    for name in ("reads", "read_bytes", "peak_rss_bytes"):
        record["rows"][0][record["columns"].index(name)] = 1
    return output.replace(line, json.dumps(record).encode())


def make_answer(chance: random.Random, good: bytes) -> Answer:
    mutations = chance.choice([0, 1, 1, 2, 5])
    stdout = good
    for _ in range(mutations):
        stdout = chance.choice(MUTATIONS)(chance, stdout)
    before = chance.choice([b"", b"Welcome!\n", b"\xff\0{[", frame.HEADER[:-1] + b" ", chance.randbytes(2_000)])
    after = chance.choice([b"", b"", b"logout\n", good, b"[" * 50_000, b"\n" * 2 * OUTPUT_BYTES])
    return Answer(
        before + stdout + after,
        chance.choice([b"", b"", b"Traceback\n", b"MemoryErro", b"\x1b]0;x\a\n" * 100, chance.randbytes(200_000)]),
        chance.choice([0, 0, 0.001]),
        chance.choice([1, 3, 64]),
        chance.choice([0, 0, 0, 1, 3, 75, 76, 127, 255]),
        chance.choice([0] * 7 + [6, 9, 11, 15]),
        chance.random() < 0.02,
        chance.random() < 0.1,
        chance.random() < 0.05,
        not mutations,
    )


def change_bytes(chance: random.Random, data: bytes) -> bytes:
    start = chance.randrange(len(data) + 1)
    end = start + chance.choice([0, 1, 1, 8, 300])
    new = chance.choice([b"", b"\0", b"\n", b'"', b"]", chance.randbytes(3), data[start:end] * 2, bytes(5_000)])
    return data[:start] + new + data[end:]


def cut(chance: random.Random, data: bytes) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def move_lines(chance: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    line = chance.choice(lines)
    if chance.random() < 0.5:
        lines.remove(line)
    if chance.random() < 0.7:
        lines.insert(chance.randrange(len(lines) + 1), line)
    return b"\n".join(lines)


def replace_value(chance: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    index = chance.randrange(len(lines))
    cells = lines[index].split(b",")
    cells[chance.randrange(len(cells))] = chance.choice(VALUES).encode()
    lines[index] = b",".join(cells)
    return b"\n".join(lines)


def rename_column(chance: random.Random, data: bytes) -> bytes:
    names = data.split(b'"')
    names[chance.randrange(len(names))] = chance.choice((*RESERVED, *frame.TABLES)).encode()
    return b'"'.join(names)


def report_error(chance: random.Random, data: bytes) -> bytes:
    error = {
        "status": chance.choice(ERRORS),
        "error_type": "NodePreempted",
        "error": "\x1b[31m\n" * chance.choice([1, 999]),
    }
    record = {chance.choice(["error", "unsupported", "end"]): chance.choice([error, error, [], None, {"targets": 1}])}
    line = json.dumps(record).encode() + b"\n"
    lines = data.splitlines(keepends=True)
    lines.insert(chance.randrange(min(1, len(lines)), len(lines) + 1), line)
    return b"".join(lines)


MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    change_bytes, cut, move_lines, replace_value, replace_value, rename_column, report_error,
)  # fmt: skip


def rows_of(stdout: bytes) -> dict[str, list[Any]]:
    """Return the rows by table in the lines from the first header to the first line with an `end`."""
    rows: dict[str, list[Any]] = {}
    for line in stdout[stdout.index(frame.HEADER) + len(frame.HEADER) :].split(b"\n"):
        record = json.loads(line)
        if "end" in record:
            break
        for row in record.get("rows", ()):
            rows.setdefault(record["table"], []).append(row)
    return rows


def check(answer: Answer, result: dict[str, Any], seconds: float) -> None:
    """Check the attempt that an answer has yielded."""
    attempt = result["attempt"]
    status, error = attempt["status"], attempt["error"]
    assert seconds < (HANG_TIMEOUT_S if answer.hangs else TIMEOUT_S) + GRACE_S
    assert json.loads(json.dumps(result)) == result
    assert len(error or "") <= 500
    assert (error or "").isprintable()
    assert (attempt["error_type"] or "").isprintable()
    is_flood = len(answer.stdout) > OUTPUT_BYTES
    if status in GOOD:
        rows = rows_of(answer.stdout)
        assert rows.pop("targets") == [list(result["columns"].values())]
        assert {name: table["rows"] for name, table in result["tables"].items() if table["rows"]} == rows
        assert not {"run_id", "target", "status", "error", "attempts", "via", "labels"}.intersection(result["columns"])
    else:
        assert (result["columns"], result["tables"]) == ({}, {})
        ends = {"bad_output", "over_budget", *frame.FAILURES, "lost"}
        ends |= {"timeout"} if answer.hangs else set()
        ends |= {"crashed"} if answer.signal else set()
        assert status in ends
        if status == "lost":  # is tried again: only an exit code of the session says so
            assert answer.code == 75
    if answer.is_whole and not answer.hangs and not is_flood:
        assert status == "ok"


def check_warehouse(target: Target, result: dict[str, Any]) -> str:
    """Convert an attempt as the driver does; return the status that is published for it."""
    (_, (_, attempt)) = collect_batch([(target, 1)], runner.Limits(), lambda *_: result, 1, None)
    entry, tables = spool_entry(runner.outcome(target, [attempt]))
    rows = to_tables(
        [Spooled(target.name, json.loads(json.dumps(entry)), tables, len(tables))], "20260101T000000Z-00000000"
    )
    (status,) = rows["targets"]["status"].to_pylist()
    assert rows["targets"]["target"].to_pylist() == rows["attempts"]["target"].to_pylist() == [target.name]
    if status not in GOOD:
        assert not any(len(rows[name]) for name in ("superblocks", "list_lrus", "memcgs"))
    return str(status)


@pytest.mark.parametrize("case", campaign.example_and_faults(range(ANSWERS // ANSWERS_PER_CASE), 2))
def test_hostile_answers_end_in_time_with_what_the_frame_says_and_leave_nothing(forked, tmp_path, good_frame, case):
    chance = random.Random(case)
    mark = str(tmp_path)
    file = tmp_path / "answer.json"
    target = forked(CHILD.format(answer=str(file)))
    statuses = set()
    file.write_text(json.dumps({**plan(Answer(b"", b"", 0, 1, 0, 0, False, False, False, False)), "mark": ""}))
    runner.run(target, 1, runner.Limits())  # starts the fork server, which may take longer than a deadline
    descriptors = len(os.listdir("/proc/self/fd"))
    for number in range(ANSWERS_PER_CASE if case else 20):
        answer = make_answer(chance, good_frame)
        file.write_text(json.dumps({**plan(answer), "mark": mark if answer.leaves_process else ""}))
        start = time.monotonic()
        timeout_s = HANG_TIMEOUT_S if answer.hangs else TIMEOUT_S
        result = runner.run(target, 1, runner.Limits(timeout_s=timeout_s, output_bytes=OUTPUT_BYTES))
        try:
            check(answer, result, time.monotonic() - start)
            statuses.add(check_warehouse(target, result))
        except Exception as error:
            error.add_note(f"answer {number} of case {case}: {str(answer)[:2_000]}")
            raise
    assert len(os.listdir("/proc/self/fd")) == descriptors
    processes.wait_for_exit(f"LRU_TEST={mark}", 5)
    assert {"ok", "bad_output"} <= statuses


def plan(answer: Answer) -> dict[str, Any]:
    """Return what the child reads."""
    parts = []
    for number, data in ((2, answer.stderr), (1, answer.stdout)):
        part_bytes = len(data) // answer.part_count + 1
        starts = range(0, len(data), part_bytes)
        parts += [(number, data[start : start + part_bytes].decode("latin-1")) for start in starts]
    values = answer._asdict()
    return {"parts": parts, **{name: values[name] for name in ("pause_s", "closes", "hangs", "signal", "code")}}
