"""What an embedded Ray needs, under real limits: of an account, of a cgroup, of /dev/shm and of a disk."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.fanout import needs

ROOT = Path(__file__).resolve().parents[2]
UID = 54321  # of no account, so that no process of it runs
STORE_BYTES = 128 << 20
REPORT = f"print(needs.find_shortage(2, sys.argv[1], {STORE_BYTES}))"
TASKS = needs._RAY_TASKS + 2 * needs._WORKER_TASKS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def shortage(setup: str, folder: Path) -> str:
    """Return what `find_shortage` says for two workers in a process that has run `setup`."""
    code = f"import os, resource, sys; from pipeline.fanout import needs; {setup}; {REPORT}"
    process = subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT, capture_output=True, text=True, check=True)
    return process.stdout.strip()


@pytest.mark.parametrize("missing", [0, 1, 90])
def test_a_limit_of_the_account_is_counted_to_the_thread(tmp_path: Path, missing: int) -> None:
    limit = 1 + TASKS - missing  # one is this thread's
    setup = f"resource.setrlimit(resource.RLIMIT_NPROC, ({limit}, {limit})); os.setuid({UID})"
    result = shortage(setup, Path("/tmp"))
    if missing == 0:
        assert result == "None"
    else:
        assert result.startswith(
            f"it needs {TASKS} processes and threads for 2 workers, and only {TASKS - missing} can"
        )
        assert f"(ulimit -u is {limit})" in result


@pytest.mark.parametrize("name", ["RLIMIT_DATA", "RLIMIT_AS"])
def test_a_limit_of_memory_is_no_limit_of_threads(name: str) -> None:
    """Of 900 MB, which the stacks of so many threads would exceed."""
    setup = f"resource.setrlimit(resource.{name}, (900_000_000, 900_000_000))"
    assert shortage(setup, Path("/tmp")) == "None"


START = """
import sys, threading
from pipeline.fanout import needs
headroom = min(needs._task_headrooms())[0]
end = threading.Event()
threads = []
try:
    while len(threads) < 100:
        threads.append(threading.Thread(target=end.wait, daemon=True))
        threads[-1].start()
except RuntimeError:  # can't start new thread
    threads.pop()
print(headroom, len(threads))
"""


@pytest.mark.parametrize("capabilities", ["-all", "-all,+sys_admin", "-all,+kill"])
def test_as_many_threads_start_as_an_account_may_have(capabilities: str) -> None:
    rights = f"{capabilities},+dac_override,+dac_read_search"
    command = ["setpriv", f"--reuid={UID}", "--clear-groups", f"--inh-caps={rights}", f"--ambient-caps={rights}"]
    command = ["prlimit", "--nproc=60:60", *command, sys.executable, "-c", START]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    headroom, started = map(int, process.stdout.split())
    assert min(headroom, 100) == started


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A new cgroup, v1 or v2, that can limit processes."""
    for root in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup"):
        directory = Path(root, f"lru-audit-test-{os.getpid()}")
        try:
            directory.mkdir()
        except OSError:
            continue
        try:
            if (directory / "pids.max").exists():
                yield directory
                return
        finally:
            directory.rmdir()
    pytest.skip("needs a cgroup")


def test_a_limit_of_a_cgroup_above_is_counted_too(tmp_path: Path, cgroup: Path) -> None:
    (cgroup / "pids.max").write_text(str(TASKS))
    inner = cgroup / "inner"
    inner.mkdir()
    try:
        result = shortage(f"open({str(inner / 'cgroup.procs')!r}, 'w').write('0')", tmp_path)
        (cgroup / "pids.max").write_text("60")
        code = f"open({str(inner / 'cgroup.procs')!r}, 'w').write('0')\n{START}"
        process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    finally:
        inner.rmdir()
    assert f"only {TASKS - 1} can be started (pids.max of the container or service is {TASKS})" in result
    assert process.stdout == "59 59\n"


@pytest.mark.parametrize(
    ("shm_mib", "disk_mib", "expected"),
    [
        (64, 160, "None"),
        (64, 120, "has 120 MiB free, and it needs 144 MiB, as /dev/shm has only 64.0 MiB"),
        (200, 20, "None"),
        (200, 8, "has 8.00 MiB free, and it needs 16.0 MiB; free some"),
    ],
)
def test_a_small_dev_shm_takes_the_disk(tmp_path: Path, shm_mib: int, disk_mib: int, expected: str) -> None:
    mounts = f"mount -t tmpfs -o size={shm_mib}m none /dev/shm && mount -t tmpfs -o size={disk_mib}m none {tmp_path}"
    command = (
        f"{mounts} && exec {sys.executable} -c 'import sys; from pipeline.fanout import needs; {REPORT}' {tmp_path}"
    )
    process = subprocess.run(["unshare", "-m", "sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
    if "unshare" in process.stderr or "mount" in process.stderr:
        pytest.skip("needs mounts")
    assert expected in process.stdout


SMALL_TMP = """
import shutil, types
from pipeline.fanout import cluster, needs
shutil.disk_usage = lambda place: types.SimpleNamespace(free=8 << 20 if place == "/tmp" else 1 << 40)
print(needs.describe_limits(needs.ray_directory()))
try:
    with cluster.connection(2, "local"):
        pass
except cluster.ClusterError as error:
    print(error)
"""


@pytest.mark.parametrize("length", [25, 100])
def test_where_the_path_of_tmpdir_is_too_long_the_disk_of_tmp_counts(length: int) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as parent:
        folder = Path(parent, "a" * (length - len(parent) - 1))
        folder.mkdir()
        environment = {**os.environ, "TMPDIR": str(folder)}
        command = [sys.executable, "-c", SMALL_TMP]
        process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    limits_text, error_text = process.stdout.splitlines()
    assert limits_text.endswith(", 8.00 MiB free in /tmp")
    assert error_text == (
        "cannot start Ray: /tmp has 8.00 MiB free, and it needs 16.0 MiB; free some, or set TMPDIR to another "
        "directory, with a path of at most 24 characters"
    )


def test_a_run_that_cannot_start_ray_says_so_at_once(tmp_path: Path) -> None:
    """As an account that may have 60 processes."""
    tmp_path.chmod(0o777)
    core = str(ROOT / "tests/vmcores/deb510-n1/vmcore")
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("".join(f"- {{target: '{core}', name: t{number}}}\n" for number in range(2)))
    # With the rights to read the interpreter wherever it is installed; root itself has no limit.
    rights = "+dac_override,+dac_read_search"
    account = ["setpriv", f"--reuid={UID}", "--clear-groups", f"--inh-caps={rights}", f"--ambient-caps={rights}"]
    command = ["prlimit", "--nproc=60:60", *account, sys.executable, "-m", "pipeline"]
    arguments = ["run", "-i", fleet, "-w", tmp_path / "w", "--parallel", "2"]
    process = subprocess.run(
        [*command, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (process.returncode, process.stdout) == (cli.FAILED, "")
    (line,) = process.stderr.splitlines()
    assert line.startswith(
        f"lru-audit: cannot start Ray: it needs {TASKS} processes and threads for 2 workers, and only "
    )
    assert not list(tmp_path.glob("w/staging/2*"))
    assert not list(tmp_path.glob("lru-ray.*"))
