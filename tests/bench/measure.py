"""Run something in a child process and say what it cost; and the row that a benchmark makes of it."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_PR_SET_CHILD_SUBREAPER = 36
# Modules are compiled once and output is buffered.
_UNUSUAL = {"PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"}
_AS_USERS_HAVE_IT = {name: value for name, value in os.environ.items() if name not in _UNUSUAL}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    - unit: of `figure` and of `other`, the same thing's figure in what it is compared with;
    - budget: such as ``>= 0.8`` or ``<= 2``, of the ratio where there is a comparison, else of the figure.
    """

    name: str
    figure: float
    unit: str
    compared_with: str | None = None
    other: float | None = None
    budget: str | None = None

    @property
    def ratio(self) -> float | None:
        return self.figure / self.other if self.other else None

    @property
    def holds(self) -> bool | None:
        """Whether the budget does; None without one."""
        if self.budget is None:
            return None
        sign, _, bound = self.budget.partition(" ")
        held = self.figure if self.ratio is None else self.ratio
        return held >= float(bound) if sign == ">=" else held <= float(bound)


@dataclass(frozen=True)
class Cost:
    """What one run in a child process took.

    - cpu_s: of the child and of its descendants, orphans too, but for those that nobody waited for: Ray's daemon leaves
      out its workers;
    - peak_rss_bytes: a function's: of the child alone; a command's: of the largest of its processes;
    - value: what the function returned, or the command's stdout.
    """

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    value: Any


def call(function: Callable[..., Any], *args: Any) -> Cost:
    """Call a function of a module, with arguments and a result that are JSON-able, in a fresh interpreter.

    Wall time is the call's; CPU time and memory are the interpreter's, imports included.

    :raises RuntimeError: it raised; its traceback is on stderr.
    """
    return _child({"module": function.__module__, "name": function.__qualname__, "args": args})


def command(
    argv: Sequence[str | os.PathLike[str]],
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    ok: Sequence[int] = (0,),
) -> Cost:
    """Run a program.

    :param env: default this process's.
    :raises RuntimeError: its exit code is not among `ok`.
    """
    options = {"input": stdin, "env": env and dict(env), "cwd": cwd and os.fspath(cwd)}
    return _child({"argv": list(map(os.fspath, argv)), "options": options, "ok": list(ok)})


def interleaved(repeats: int, **jobs: Callable[[], Cost]) -> dict[str, Cost]:
    """Run all jobs so many times, in turn and back again, and return of each the run of median wall time."""
    costs: dict[str, list[Cost]] = {name: [] for name in jobs}
    for number in range(repeats):
        for name in list(jobs)[:: -1 if number % 2 else 1]:
            costs[name].append(jobs[name]())
    middle = statistics.median_low
    return {name: next(c for c in ran if c.wall_s == middle(d.wall_s for d in ran)) for name, ran in costs.items()}


def peak_rss_bytes() -> int:
    """Return the most memory that this process has had, without its children's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def forget_peak_rss() -> None:
    """Let `peak_rss_bytes` begin anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _child(job: dict[str, Any]) -> Cost:
    reading, writing = os.pipe()
    code = f"from tests.bench.measure import _perform; _perform({writing})"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with open(reading, encoding="utf-8") as result:
        try:
            child = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env={**_AS_USERS_HAVE_IT, "PYTHONPATH": path},
                pass_fds=[writing],
                text=True,
            )
        finally:
            os.close(writing)
        with child:
            child.stdin.write(json.dumps(job))  # type: ignore[union-attr]  # it is a pipe
            child.stdin.close()  # type: ignore[union-attr]
            said = result.read()  # before its end: a pipe holds 64 KiB
    if child.returncode or not said:
        raise RuntimeError(f"{job.get('name') or job['argv']} failed with {child.returncode}")
    return Cost(**json.loads(said))


def _perform(result: int) -> None:
    """The child's part: do the job that stdin describes and write its cost to a descriptor."""
    job = json.load(sys.stdin)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what outlives its parent is ours to wait for, and to count
    if "argv" in job:
        start = time.perf_counter()
        done = subprocess.run(job["argv"], capture_output=True, text=True, **job["options"])
        if done.returncode not in job["ok"]:
            sys.stderr.write(done.stderr)
            raise SystemExit(f"{job['argv']} ended with {done.returncode}")
        value = done.stdout
    else:
        function = getattr(importlib.import_module(job["module"]), job["name"])
        start = time.perf_counter()
        value = function(*job["args"])
    wall_s = time.perf_counter() - start
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
    usages = [resource.getrusage(resource.RUSAGE_CHILDREN)]
    peak = usages[0].ru_maxrss * 1024 if "argv" in job else peak_rss_bytes()
    if "argv" not in job:
        usages.append(resource.getrusage(resource.RUSAGE_SELF))
    cost = {
        "wall_s": wall_s,
        "cpu_s": sum(usage.ru_utime + usage.ru_stime for usage in usages),
        "peak_rss_bytes": peak,
        "value": value,
    }
    with open(result, "w", encoding="utf-8") as file:
        json.dump(cost, file)
