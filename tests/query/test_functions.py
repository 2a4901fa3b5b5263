"""A campaign: no function of DuckDB, called with hostile arguments, writes, discloses a secret or reaches a socket.

Many statements share a child process, confined as the one of `lru-audit sql`. A statement that ends it is asked again
alone, as a user asks it. `make test-faults` tries a random part of the statements, and TEST_FULL=1 all of them, under
Landlock and without, on the installed and on the oldest DuckDB (tests/test_duckdb_versions.py).
"""

from __future__ import annotations

import json
import random
import select
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import query
from pipeline.query import confined, landlock
from tests import campaign
from tests.query import batch, reach, statements
from tests.query.test_hostile import NEEDS_LANDLOCK, SECRET, Scenario, assert_one_line, fill_in, scenario, tree

__all__ = ["scenario"]
pytestmark = pytest.mark.faults

LIMITS = query.Limits(timeout_s=300, memory_bytes=256 << 20, result_bytes=256 << 20)
STATEMENTS = 120
"""Statements that `make test-faults` samples."""
BATCH = 300
"""Statements of one child process."""
LONE_TIMEOUT_S = 20
MODES = [pytest.param("landlock", marks=NEEDS_LANDLOCK), "arrow"]


def outcomes(
    scenario: Scenario, hostile: list[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, list[str]]]:
    """Yield each statement's outcome in a child process of many; none for those that end their process."""
    with monkeypatch.context() as patches:
        patches.setattr(landlock, "__file__", batch.__file__)
        patches.setattr(confined, "_failure_reason", lambda _code, result, *_: result.seek(0) or result.read().decode())
        remaining = hostile
        while remaining:
            with pytest.raises(query.QueryError) as error:
                query.run_confined(scenario.tables(), json.dumps(remaining[:BATCH]), {}, LIMITS)
            lines = [json.loads(line) for line in str(error.value).splitlines()]
            assert lines, "the child process did not start"
            yield from zip(lines[::2], lines[1::2], strict=False)
            remaining = remaining[(len(lines) + 1) // 2 :]


@pytest.mark.parametrize("mode", campaign.sample(MODES, 1))
def test_every_function_does_no_harm(scenario, mode, monkeypatch, tmp_path):
    if mode == "arrow":
        monkeypatch.setattr(landlock, "abi", lambda: 0)
    monkeypatch.setenv("LRU_CANARY", SECRET)
    rng = random.Random(campaign.SEED)
    listeners = reach.listeners(str(tmp_path))
    tcp_address = "{}:{}".format(*listeners["tcp"].getsockname())
    names = {**scenario.names, "tcp": tcp_address, "unix": str(tmp_path / "stream")}
    hostile = [fill_in(text, names) for text in (*statements.calls(rng), *statements.damaged(rng))]
    hostile = campaign.sample(list(dict.fromkeys(hostile)), STATEMENTS)
    files_before = tree(scenario.folder)

    answered = dict(outcomes(scenario, hostile, monkeypatch))
    for statement, (kind, text) in answered.items():
        assert kind in ("rows", "error"), (statement, kind, text)
        assert SECRET not in text, statement
    kinds = [kind for kind, _ in answered.values()]
    assert min(kinds.count("rows"), kinds.count("error")) > len(hostile) / 10
    for statement in hostile:
        if statement not in answered:
            answer = scenario.ask(statement, query.Limits(LONE_TIMEOUT_S, LIMITS.memory_bytes, LIMITS.result_bytes))
            assert isinstance(answer, pa.Table) or assert_one_line(answer) is None, statement
    assert tree(scenario.folder) == files_before
    assert [path.name for path in Path(tmp_path).iterdir() if not path.is_socket()] == []
    assert select.select(listeners.values(), [], [], 0)[0] == []
