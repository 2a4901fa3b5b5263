"""Coverage-guided fuzzing of every parser of bytes from outside (libFuzzer, by atheris).

    python -m tests.fuzz parsers [--seed N] [--cases N] [--corpus DIR] [TARGET...]
    python -m tests.fuzz parsers --replay DIR [TARGET...]

A parser returns a value or raises an error of its own. Any other exception, a crash, a case of more than 10 seconds and
an allocation beyond 512 MiB is a fault, which leaves its input in DIR/TARGET/fault/. --replay runs the inputs in DIR
once, without atheris: to see a fault again, or for `coverage run`.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.fuzz.target import Target, scratch

_CASE_TIMEOUT_S = 10
_MEMORY_BYTES = 512 << 20
# A target with a small weight gets at least this part of the cases.
_MIN_SHARE = 40


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz parsers", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=100_000, help="of all targets")
    parser.add_argument("--corpus", type=Path, help="keep inputs that reach new code")
    parser.add_argument("--replay", type=Path, help="run the inputs of a corpus once")
    args = parser.parse_args(arguments)
    if args.replay is not None:
        return replay(args.replay, args.targets)
    directory, owner = tempfile.mkdtemp(), os.getpid()
    try:
        return fuzz(args.corpus or Path(directory), args.targets, args.seed, args.cases)
    finally:
        if os.getpid() == owner:  # a fault ends the child's Python in order
            shutil.rmtree(directory)


def targets(names: list[str]) -> dict[str, Target]:
    """Return the named targets, or all."""
    from tests.fuzz import inventories, kernels, results

    by_name = {**kernels.TARGETS, **inventories.TARGETS, **results.TARGETS}
    return {name: by_name[name] for name in names or by_name}


def fuzz(corpus: Path, names: list[str], seed: int, cases: int) -> int:
    """Fuzz targets one after the other, each in a child; print how many cases each had, and its coverage."""
    import atheris

    with atheris.instrument_imports(include=["pipeline"]):
        chosen = targets(names)
    scratch()
    weights = sum(target.weight for target in chosen.values())
    faults = total = 0
    for name, target in chosen.items():
        directory = corpus / name
        runs = max(cases // _MIN_SHARE, int(cases * target.weight / weights))
        started_at = time.monotonic()
        code, count, coverage = _fuzz_in_child(target, directory, seed, runs)
        seconds = time.monotonic() - started_at
        total += count
        print(f"{name}: {count:,} cases in {seconds:.1f} s, {coverage}", flush=True)
        if code:
            faults += 1
            print((directory / "log").read_text(errors="replace")[-4000:], flush=True)
    print(f"{total:,} cases of {len(chosen)} parsers, seed {seed}, {faults} faults")
    return int(bool(faults))


def _fuzz_in_child(target: Target, directory: Path, seed: int, runs: int) -> tuple[int, int, str]:
    """Return the exit code, the number of cases, and libFuzzer's coverage of a target."""
    seeds = write_seeds(target, directory)
    (directory / "fault").mkdir(exist_ok=True)
    dictionary = directory / "words"
    dictionary.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
    log = directory / "log"
    options = [
        *(f"-runs={runs}", f"-seed={seed}", f"-max_len={target.max_bytes}", f"-timeout={_CASE_TIMEOUT_S}"),
        *(f"-artifact_prefix={directory}/fault/", "-print_final_stats=1", "-rss_limit_mb=0", "-len_control=0"),
        *([f"-dict={dictionary}"] if target.words else []),
        str(seeds),
    ]
    child = os.fork()
    if not child:
        _run_libfuzzer(target, options, log, directory / "fault/last")
    _, status = os.waitpid(child, 0)
    text = log.read_text(errors="replace")
    count = re.search(r"stat::number_of_executed_units: (\d+)", text)
    coverage = re.findall(r"(cov: \d+ ft: \d+ corp: \d+)", text)
    code = os.waitstatus_to_exitcode(status)
    return code, int(count[1]) if count else 0, coverage[-1] if coverage else "no coverage"


def _run_libfuzzer(target: Target, options: list[str], log: Path, fault: Path) -> None:
    """Run libFuzzer, which ends the process."""
    import atheris

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    used_bytes = int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10  # type: ignore[index]
    resource.setrlimit(resource.RLIMIT_DATA, (used_bytes + _MEMORY_BYTES, resource.RLIM_INFINITY))

    def run(data: bytes) -> None:
        try:
            target.run(data)
        except BaseException:
            fault.write_bytes(data)  # libFuzzer itself does not write it in each case
            raise

    atheris.Setup(["fuzz", *options], run)
    atheris.Fuzz()


def write_seeds(target: Target, directory: Path) -> Path:
    """Write the seeds of a target to its corpus, and return that directory."""
    inputs = directory / "inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (inputs / f"seed-{number:03}").write_bytes(seed)
    return inputs


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def replay(corpus: Path, names: list[str]) -> int:
    """Run all inputs of a corpus once, and print each fault."""
    faults = total = 0
    for name, target in targets(names).items():
        paths = sorted((corpus / name).glob("*/*"))
        total += len(paths)
        for path in paths:
            try:
                target.run(path.read_bytes())
            except Exception:
                faults += 1
                print(f"{path}:\n{traceback.format_exc()}", file=sys.stderr)
    print(f"{total:,} inputs, {faults} faults")
    return int(bool(faults))
