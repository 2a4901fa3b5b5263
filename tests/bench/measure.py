"""Measure a function or a program in a child process, and compare the figures in a row of the table."""

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
# Users have neither variable set: their Python compiles modules once and buffers its output.
_DEVELOPMENT_VARIABLES = {"PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"}
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in _DEVELOPMENT_VARIABLES}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    - unit: of `figure` and of `compared_figure`, which is that of the program `compared_with`;
    - budget: a limit, as ``>= 0.8`` or ``<= 2``, on the ratio if there is one, else on the figure.
    """

    name: str
    figure: float
    unit: str
    compared_with: str | None = None
    compared_figure: float | None = None
    budget: str | None = None

    @property
    def ratio(self) -> float | None:
        return self.figure / self.compared_figure if self.compared_figure else None

    @property
    def holds(self) -> bool | None:
        """Whether the figures are within the budget; None without a budget."""
        if self.budget is None:
            return None
        sign, _, bound = self.budget.partition(" ")
        value = self.figure if self.ratio is None else self.ratio
        return value >= float(bound) if sign == ">=" else value <= float(bound)


@dataclass(frozen=True)
class Cost:
    """The cost of one run in a child process.

    - cpu_s: of the child and its descendants, orphans included. A descendant whose parent does not wait for it is
      excluded, as Ray's workers are;
    - peak_rss_bytes: for a function that of the child alone, for a command that of the largest of its processes;
    - value: the function's result, or the command's stdout.
    """

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    value: Any


def call(function: Callable[..., Any], *args: Any) -> Cost:
    """Call a function of a module in a new interpreter; its arguments and result must be serializable as JSON.

    The wall time is that of the call. CPU time and memory are those of the interpreter, imports included.

    :raises RuntimeError: the function raised; its traceback is on stderr.
    """
    return _child({"module": function.__module__, "name": function.__qualname__, "args": args})


def run_command(
    argv: Sequence[str | os.PathLike[str]],
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    ok: Sequence[int] = (0,),
) -> Cost:
    """Run a program in a child process.

    :param env: default the environment of this process.
    :param ok: the exit codes of success.
    :raises RuntimeError: another exit code.
    """
    options = {"input": stdin, "env": env and dict(env), "cwd": cwd and os.fspath(cwd)}
    return _child({"argv": list(map(os.fspath, argv)), "options": options, "ok": list(ok)})


def run_in_turn(repeats: int, **jobs: Callable[[], Cost]) -> dict[str, Cost]:
    """Run jobs `repeats` times in turn (a b b a ...), and return the cost of each job's run of median wall time."""
    costs: dict[str, list[Cost]] = {name: [] for name in jobs}
    for number in range(repeats):
        for name in list(jobs)[:: -1 if number % 2 else 1]:
            costs[name].append(jobs[name]())
    medians = {name: statistics.median_low(run.wall_s for run in runs) for name, runs in costs.items()}
    return {name: next(run for run in runs if run.wall_s == medians[name]) for name, runs in costs.items()}


def peak_rss_bytes() -> int:
    """Return the peak resident memory of this process, excluding its children."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def forget_peak_rss() -> None:
    """Reset the value of `peak_rss_bytes` to the memory in use."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _child(job: dict[str, Any]) -> Cost:
    read_fd, write_fd = os.pipe()
    code = f"from tests.bench.measure import _perform; _perform({write_fd})"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with open(read_fd, encoding="utf-8") as result:
        try:
            child = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env={**_ENVIRONMENT, "PYTHONPATH": path},
                pass_fds=[write_fd],
                text=True,
            )
        finally:
            os.close(write_fd)
        with child:
            child.stdin.write(json.dumps(job))  # type: ignore[union-attr]  # it is a pipe
            child.stdin.close()  # type: ignore[union-attr]
            cost_json = result.read()  # before the child exits: a pipe holds only 64 KiB
    if child.returncode or not cost_json:
        raise RuntimeError(f"{job.get('name') or job['argv']} failed with {child.returncode}")
    return Cost(**json.loads(cost_json))


def _perform(result_fd: int) -> None:
    """Do the job that stdin describes and write its cost to a file descriptor; this runs in the child."""
    job = json.load(sys.stdin)
    # Orphans become children of this process, which waits for them and so counts their CPU time.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if "argv" in job:
        start = time.perf_counter()
        process = subprocess.run(job["argv"], capture_output=True, text=True, **job["options"])
        if process.returncode not in job["ok"]:
            sys.stderr.write(process.stderr)
            raise SystemExit(f"{job['argv']} exited with {process.returncode}")
        value = process.stdout
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
    with open(result_fd, "w", encoding="utf-8") as file:
        json.dump(cost, file)
