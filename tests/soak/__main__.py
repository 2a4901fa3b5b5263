"""Run audits of all kinds of targets in a loop, with faults, readers, expiry and a long-lived driver beside them.

    python -m tests.soak [--minutes N] [--seed N] [--first N] [--steps N]

After each step: every published run is whole and has one final row for each target, readers have seen no half, and
nothing is left. The first violation ends the soak with exit code 1, and with the command that repeats its step. The
soak runs as root, in namespaces of its own, with a /tmp of its own: whatever is left there, it has left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.soak import checks, clients, faults
from tests.soak.growth import growth
from tests.soak.targets import ROOT, Fleet, Kind

_INSIDE = "TEST_SOAK_INSIDE"
_NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--net", "--ipc")
# A checkout below /tmp is moved into the new one. The shell stays: as process 1 it reaps orphans.
_SET_UP = """set -e
ip link set lo up
mount -t tmpfs tmpfs /dev/shm
case $1/ in /tmp/*) mkdir /dev/shm/tree; mount --rbind "$1" /dev/shm/tree ;; esac
mount -t tmpfs -o mode=1777,size=2g tmpfs /tmp
case $1/ in /tmp/*) mkdir -p "$1"; mount --move /dev/shm/tree "$1"; rmdir /dev/shm/tree ;; esac
cd "$1"; shift
set +e
"$@"
exit $?
"""
_AUDIT = "soak"
# TMPDIR of the long-lived driver, whose Ray starts and ends workers at any time.
_SPARED = "/tmp/driver"
# Each step has one of these in turn, in an order by chance.
_FIRST_FAULTS = (None, None, *faults.FAULTS)
_LARGE_EVERY, _LARGE_TARGETS = 25, 300
# A run of 300 targets, some of which end with a time limit, takes a minute on two idle cores.
_RUN_S = 600.0
_MAX_COMMANDS = 6
_MAX_GROWTH_KIB_PER_H = 1024
# Ray keeps some connections to workers.
_MAX_MORE_FILES = 8


class Soak:
    """The state of a soak. Everything that it makes is below /tmp, which is its own."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.samples: list[tuple[float, float]] = []
        self.fds: list[int] = []
        self.disk = faults.Disk(Path("/tmp/w"))
        self.fleet = Fleet(Path("/tmp/f"))
        self.resident_targets = self._resident_targets()
        self.fleet.write_inventory(self.fleet.folder / "resident.json", self.resident_targets)
        for name in ("ssh_config", "fleet.json", "stderr"):
            (self.fleet.folder / name).touch()
        self.temporary = Path("/tmp/s")
        self.temporary.mkdir()
        self.mark = f"TMPDIR={self.temporary}"
        self.manifests: dict[str, dict[str, Any]] = {}
        self.clients = {role: self._start_client(role) for role in ("reader", "keeper", "driver")}

    def _resident_targets(self) -> dict[str, Kind]:
        kinds = {kind.name: kind for kind in self.fleet.kinds}
        names = ["recorded-deb510-n1", "recorded-deb61-n2", "recorded-deb7-n2"] * 3 + ["deb510-n1", "dies", "absent"]
        return {f"{name}-{number}": kinds[name] for number, name in enumerate(names)}

    def _start_client(self, role: str) -> subprocess.Popen[str]:
        temporary = Path("/tmp") / role
        temporary.mkdir()
        command = [sys.executable, "-m", "tests.soak.clients", role, self.disk.mount, self.fleet.folder]
        env = {**os.environ, "TMPDIR": str(temporary)}
        pipe = subprocess.PIPE
        with self._errors_of(role).open("w") as stderr:
            return subprocess.Popen(command, cwd=ROOT, env=env, stdin=pipe, stdout=pipe, stderr=stderr, text=True)

    def _errors_of(self, role: str) -> Path:
        return self.fleet.folder / f"stderr of the {role}"

    def _tell(self, message: str) -> None:
        for client in self.clients.values():
            client.stdin.write(f"{message}\n")  # type: ignore[union-attr]  # it is a pipe
            client.stdin.flush()  # type: ignore[union-attr]

    def _answers(self) -> dict[str, Any]:
        answers = {}
        for role, client in self.clients.items():
            is_there = select.select([client.stdout], [], [], _RUN_S)[0]
            if not (line := client.stdout.readline() if is_there else ""):  # type: ignore[union-attr]
                raise SystemExit(f"the {role} does not answer: {self._errors_of(role).read_text()}")
            answers[role] = json.loads(line)
        return answers

    def warm_up(self) -> list[str]:
        """Let the clients import and start what they keep, and record what is there from then on."""
        self._tell("warm up")
        self._tell("stop")
        answers = self._answers()
        self.manifests |= answers["keeper"]["manifests"] | checks.manifests(self.disk.mount)
        self.before = checks.Machine.now(_SPARED)
        return [problem for answer in answers.values() for problem in answer["problems"]]

    def step(self, number: int) -> Iterator[str]:
        """Do one run with its faults, and yield a line for each violation."""
        chance = random.Random(f"{self.seed}/{number}")
        cycle, place = divmod(number, len(_FIRST_FAULTS))
        order = random.Random(f"{self.seed}/cycle {cycle}").sample(_FIRST_FAULTS, len(_FIRST_FAULTS))
        size = _LARGE_TARGETS if number % _LARGE_EVERY == _LARGE_EVERY - 1 else chance.randint(4, 24)
        targets = self.fleet.choose(chance, size)
        known_ids = set(self.manifests)
        self._tell(f"{self.seed}/{number}")
        injected, violations = self._audit(chance, targets, order[place])
        self._tell("stop")
        answers = self._answers()
        yield from violations
        yield from self._check_clients(answers)
        new = {run_id: self.manifests[run_id] for run_id in self.manifests.keys() - known_ids}
        for run_id, manifest in new.items():
            self.counts["runs"] += 1
            self.counts["targets"] += manifest["targets"]
            self.ends.update(manifest["outcomes"])
            folder = self.disk.mount / "runs" / run_id
            is_own = manifest["audit"] == _AUDIT
            hitting = injected if is_own else set(injected) & {"disk"}
            max_disturbed = sum(faults.MAX_DISTURBED.get(name, 0) for name in hitting)
            expected = targets if is_own else self.resident_targets
            yield from checks.run(folder, expected, self.fleet.figures, max_disturbed)
        if [manifest["audit"] for manifest in new.values()].count(_AUDIT) != 1:
            yield f"{len(new)} new runs: {sorted(new)}"
        yield from checks.disk(self.disk.mount, audits=2)
        yield from checks.leftovers(self.before, _SPARED)

    def _audit(self, chance: random.Random, targets: dict[str, Kind], fault: str | None) -> tuple[list[str], list[str]]:
        """Run an audit until it is published, and return the faults that it has had, and the violations."""
        inventory = self.fleet.folder / "fleet.json"
        self.fleet.write_inventory(inventory, targets)
        is_local = fault in (None, "driver", "interrupt", "disk") and chance.random() < 0.3
        options = ["--ssh-config", self.fleet.folder / "ssh_config", "--ssh-parallel", "8"]
        options += ["--again"] if chance.random() < 0.5 else []
        options += ["--redact"] if chance.random() < 0.15 else []
        command = ["run", "-i", inventory, "--audit", _AUDIT, *options]
        injected, violations = [], []
        known_ids = set(checks.manifests(self.disk.mount))
        for _ in range(_MAX_COMMANDS):
            driver, errors = self._start([*command, "--parallel", "1" if is_local else "2"])
            if fault and faults.inject(fault, chance, driver, self.mark, self.disk):
                injected.append(fault)
                self.faults[fault] += 1
            code = self._wait(driver)
            stderr = errors.read_text(errors="replace")
            self.counts["commands"] += 1
            # A busy machine can take longer than the driver gives Ray.
            is_excused = fault is not None or "cannot start Ray" in stderr
            # Python itself prints the traceback of an interrupt while it starts and imports.
            is_early = code == -signal.SIGINT and " in main\n" not in stderr
            if ("Traceback" in stderr and not is_early) or code is None or (code not in (0, 3, 4) and not is_excused):
                violations.append(f"{command[0]} ended with {code}: {stderr[-3000:]}")
            elif code in (0, 3, 4):
                break
            # A run that no driver has published or staged begins again.
            if staged := clients.staged_runs(self.disk.mount, _AUDIT):
                command = ["resume", staged[-1]]
            elif any(
                manifest["audit"] == _AUDIT and run_id not in known_ids
                for run_id, manifest in checks.manifests(self.disk.mount).items()
            ):
                break
            fault, is_local = (chance.choice(faults.FAULTS) if chance.random() < 0.3 else None), False
        else:
            violations.append(f"not published after {_MAX_COMMANDS} commands")
        return injected, violations

    def _wait(self, driver: subprocess.Popen[str]) -> int | None:
        """Wait for the end of a command, and return its exit code; None if it does not end."""
        try:
            return driver.wait(_RUN_S)
        except subprocess.TimeoutExpired:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
            return None

    def _start(self, args: list[str | Path]) -> tuple[subprocess.Popen[str], Path]:
        errors = self.fleet.folder / "stderr"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "LRU_AUDIT_"))}
        env = {**clean, **self.fleet.environment(), "TMPDIR": str(self.temporary)}
        command = [sys.executable, "-m", "pipeline", *args, "-w", self.disk.mount]
        with errors.open("w") as stderr:
            driver = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=stderr, text=True, start_new_session=True
            )
        return driver, errors

    def _check_clients(self, answers: dict[str, Any]) -> Iterator[str]:
        for role, answer in answers.items():
            self.counts[f"commands of the {role}"] += answer["commands"]
            yield from (f"{role}: {problem}" for problem in answer["problems"])
        self.manifests |= answers["keeper"]["manifests"] | checks.manifests(self.disk.mount)
        for row in answers["reader"]["rows"]:
            if not (manifest := self.manifests.get(row["run_id"])):
                yield f"reader: {row['run_id']} was never published"
                continue
            rows = checks.rows_by_table(manifest)
            expected = {name: rows[name] for name in clients.COUNTED}
            seen = {name: row[name] for name in clients.COUNTED}
            if seen != expected or not row["planned"] == row["names"] == manifest["targets"]:
                yield f"reader: {row}, but the manifest has {manifest['targets']} targets and {expected}"
        for run_id, targets, statuses in answers["reader"]["reports"]:
            counts: Counter[str] = Counter()
            for status, count in statuses:
                counts[status] += count
            if counts != self.manifests[run_id]["outcomes"] or targets != self.manifests[run_id]["targets"]:
                yield f"reader: a report has {statuses}, but the manifest {self.manifests[run_id]['outcomes']}"
        self.samples.append((answers["driver"]["time"], answers["driver"]["kib"]))
        self.fds.append(answers["driver"]["fds"])

    def end(self) -> Iterator[str]:
        """End the clients, and check that nothing of them is left."""
        for client in self.clients.values():
            client.stdin.close()  # type: ignore[union-attr]
            client.wait(60)
        for role in self.clients:
            if left := os.listdir(f"/tmp/{role}"):
                yield f"the {role} has left {left}"
        pids = self.before.pids - {client.pid for client in self.clients.values()}
        yield from checks.leftovers(replace(self.before, pids=pids), "/nowhere")

    def growth_violations(self) -> Iterator[str]:
        """Check that the driver neither grows by more than its limit, as far as that is certain, nor keeps files."""
        slope = growth(self.samples)
        if slope and slope.per_hour - slope.error > _MAX_GROWTH_KIB_PER_H:
            yield f"the driver grows by {slope.per_hour:.0f} ± {slope.error:.0f} KiB an hour"
        if len(self.fds) > 10 and min(self.fds[-5:]) > max(self.fds[:5]) + _MAX_MORE_FILES:
            yield f"the driver has {self.fds[-1]} open files, and had {self.fds[0]}"

    def table(self, steps: int, seconds: float) -> Iterator[str]:
        """Yield the lines of the results as a Markdown table, as docs/benchmarks.md has it."""
        yield "| measurement | figure |"
        yield "|---|---|"
        yield f"| seed, time | {self.seed}, {seconds / 60:.0f} min |"
        yield f"| steps, faults | {steps}, {sum(self.faults.values())} |"
        yield f"| runs published and checked | {self.counts['runs']} |"
        yield f"| targets, each with one final row | {self.counts['targets']:,} |"
        yield f"| ends | {_listed(self.ends)} |"
        yield f"| faults | {_listed(self.faults)} |"
        commands = {name.removeprefix("commands of "): count for name, count in self.counts.items() if "of the" in name}
        yield f"| commands | {self.counts['commands']} of drivers with faults, {_listed(commands)} |"
        if slope := growth(self.samples):
            yield f"| growth of the driver's memory | {slope.per_hour:.0f} ± {slope.error:.0f} KiB/h |"
        yield f"| memory of the driver, open files | {self.samples[-1][1] / 1024:.0f} MiB, {self.fds[-1]} |"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def main() -> int:
    args = _arguments()
    if _INSIDE not in os.environ:
        command = [sys.executable, "-m", "tests.soak", *sys.argv[1:], "--seed", str(args.seed)]
        env = {**os.environ, _INSIDE: "1"}
        os.execvpe("unshare", [*_NAMESPACES, "sh", "-c", _SET_UP, "-", str(ROOT), *command], env)
    return _soak(args)


def _soak(args: argparse.Namespace) -> int:
    print(f"seed {args.seed}", flush=True)
    soak, start, next_line = Soak(args.seed), time.monotonic(), 60.0
    violations, steps, seconds = soak.warm_up(), 0, 0.0
    while not violations and steps < args.steps and seconds < 60 * args.minutes:
        violations = list(soak.step(args.first + steps))
        steps += 1
        seconds = time.monotonic() - start
        if seconds >= next_line:
            next_line += 60
            progress = (
                f"{soak.counts['runs']} runs, {soak.counts['targets']} targets, {_listed(soak.faults) or 'no faults'}"
            )
            memory = f"driver {soak.samples[-1][1] / 1024:.1f} MiB, {soak.fds[-1]} files"
            print(f"{seconds / 60:.0f} min: {steps} steps, {progress}; {memory}", flush=True)
    violations += soak.end()
    if not violations:
        violations = list(soak.growth_violations())
    print(*soak.table(steps, seconds), sep="\n", flush=True)
    for violation in violations:
        print(f"violation: {violation}", flush=True)
    if violations:
        print(f"repeat it with: python -m tests.soak --seed {args.seed} --first {args.first + steps - 1} --steps 1")
    return int(bool(violations))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60, metavar="N", help="stop after N minutes (default: 60)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000, metavar="N", help="default by chance")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="begin with step N, to repeat it")
    parser.add_argument("--steps", type=int, default=sys.maxsize, metavar="N", help="do at most N steps")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
