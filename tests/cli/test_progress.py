"""`pipeline.cli.progress`: a bar on a terminal, plain lines in a log, no output with --quiet."""

from __future__ import annotations

import io

import pytest

from pipeline.cli import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_plain_lines_now_and_then_and_the_last_one(monkeypatch):
    log = io.StringIO()
    clock = iter(range(1000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.show(12, file=log) as display:
        for done_count in range(1, 13):
            display.update(done_count, {"timeout": 2, "bad_core": 1, "unchanged": 4} if done_count > 8 else {})
    assert log.getvalue().splitlines() == [
        "5/12 targets, 1.0/s, 7 s left",
        "10/12 targets, 1 bad_core, 2 timeout, 4 unchanged, 1.0/s, 2 s left",
        "12/12 targets, 1 bad_core, 2 timeout, 4 unchanged, 1.0/s",
    ]


def test_a_terminal_gets_a_bar_with_what_failed(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with progress.show(4, file=terminal) as display:
        display.update(3, {"timeout": 2})
    text = terminal.getvalue()
    assert "3/4" in text
    assert "2 timeout" in text
    assert "\x1b[" in text


@pytest.mark.parametrize("file", [io.StringIO(), Terminal()])
def test_quiet_shows_nothing(file):
    with progress.show(1, quiet=True, file=file) as display:
        display.update(1, {"timeout": 1})
    assert file.getvalue() == ""


def test_a_run_of_nothing_shows_no_line():
    log = io.StringIO()
    with progress.show(0, file=log):
        pass
    assert log.getvalue() == ""
