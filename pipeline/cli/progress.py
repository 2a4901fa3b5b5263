"""How far a run is, for whoever watches stderr: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LINE_EVERY_S = 5.0


class Shown(Protocol):
    """What pipeline.fanout tells how far it is."""

    def update(self, done: int, failed: Mapping[str, int]) -> None: ...


@contextlib.contextmanager
def show(total: int, quiet: bool = False, file: TextIO | None = None) -> Iterator[Shown]:
    """Show the progress of a run of `total` targets on `file` (stderr) while the block lasts; quiet shows none."""
    file = file or sys.stderr
    if quiet:
        yield _Nothing()
    elif file.isatty():
        console = Console(file=file)
        columns = ("{task.fields[failed]}", "{task.fields[rate]}")
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
        lines.last()


class _Nothing:
    def update(self, done: int, failed: Mapping[str, int]) -> None:
        pass


class _Bar:
    def __init__(self, bar: Progress, total: int) -> None:
        self._bar = bar
        self._start = time.monotonic()
        self._task = bar.add_task("", total=total, failed="", rate="")

    def update(self, done: int, failed: Mapping[str, int]) -> None:
        rate = f"{done / (time.monotonic() - self._start):.1f}/s"
        self._bar.update(self._task, completed=done, failed=_reasons(failed), rate=rate)


class _Lines:
    def __init__(self, file: TextIO, total: int) -> None:
        self._file = file
        self._total = total
        self._start = time.monotonic()
        self._printed_at = self._start
        self._line = ""

    def update(self, done: int, failed: Mapping[str, int]) -> None:
        now = time.monotonic()
        rate = done / (now - self._start)
        left = f", {(self._total - done) / rate:.0f} s left" if done < self._total else ""
        reasons = f", {_reasons(failed)}" if failed else ""
        self._line = f"{done}/{self._total} targets{reasons}, {rate:.1f}/s{left}"
        if now - self._printed_at >= _LINE_EVERY_S:
            self._printed_at = now
            self.last()

    def last(self) -> None:
        """Print the newest line, once."""
        if self._line:
            print(self._line, file=self._file, flush=True)
        self._line = ""


def _reasons(failed: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in sorted(failed.items()))
