"""Progress of a run on stderr: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from pipeline.fanout import driver

# A log gets a line at most this often.
_LINE_INTERVAL_S = 5.0


@contextlib.contextmanager
def show(total: int, quiet: bool = False, file: TextIO | None = None) -> Iterator[driver.Progress]:
    """Show the progress of a run of `total` targets on a file during the block.

    :param quiet: show nothing.
    :param file: default stderr.
    """
    file = file or sys.stderr
    if quiet:
        yield _NoProgress()
    elif file.isatty():
        console = Console(file=file)
        columns = ("{task.fields[remarks]}", "{task.fields[rate]}")
        with Progress(
            TextColumn("auditing"),
            BarColumn(),
            MofNCompleteColumn(),
            *(TextColumn(column, markup=False) for column in columns),
            TimeRemainingColumn(),
            console=console,
        ) as bar:
            yield _Bar(bar, total)
    else:
        lines = _Lines(file, total)
        yield lines
        lines.flush()


class _NoProgress:
    def update(self, done_count: int, counts: Mapping[str, int]) -> None:
        pass


class _Bar:
    def __init__(self, bar: Progress, total: int) -> None:
        self._bar = bar
        self._start = time.monotonic()
        self._task = bar.add_task("", total=total, remarks="", rate="")

    def update(self, done_count: int, counts: Mapping[str, int]) -> None:
        rate = f"{done_count / (time.monotonic() - self._start):.1f}/s"
        self._bar.update(self._task, completed=done_count, remarks=_remarks(counts), rate=rate)


class _Lines:
    def __init__(self, file: TextIO, total: int) -> None:
        self._file = file
        self._total = total
        self._start = time.monotonic()
        self._last_print = self._start
        self._line = ""

    def update(self, done_count: int, counts: Mapping[str, int]) -> None:
        time_s = time.monotonic()
        rate = done_count / (time_s - self._start)
        remaining_time = f", {(self._total - done_count) / rate:.0f} s left" if done_count < self._total else ""
        remarks = f", {_remarks(counts)}" if counts else ""
        self._line = f"{done_count}/{self._total} targets{remarks}, {rate:.1f}/s{remaining_time}"
        if time_s - self._last_print >= _LINE_INTERVAL_S:
            self._last_print = time_s
            self.flush()

    def flush(self) -> None:
        """Print the newest line unless it is printed already."""
        if self._line:
            print(self._line, file=self._file, flush=True)
        self._line = ""


def _remarks(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {result}" for result, count in sorted(counts.items()))
