"""The fork server of `pipeline.fanout.runner`: its children are separate, and its loss is one target's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.fanout import runner, transports
from pipeline.fanout.runner import child, process
from pipeline.inventory import Target

ROOT = Path(__file__).resolve().parents[3]

RUN = f"""
import json, os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from pipeline.fanout import runner
from pipeline.inventory import Target
def run(timeout_s=20):
    return runner.run(Target("t", "live", "live:"), 1, runner.Limits(timeout_s=timeout_s))
"""


def answering(expression: str, statement: str = "") -> str:
    """Return the code of a child that runs a statement, then answers with the value of an expression."""
    return f"""
import ctypes, gc, json, os, resource, sys, time
{statement}
print("list-lru-audit snapshot 1")
print(json.dumps({{"table": "targets", "columns": ["value"], "rows": [[json.dumps({expression})]]}}))
print('{{"end": {{"targets": 1}}}}', flush=True)
"""


def attempt(target: Target, timeout_s: float = 20) -> dict:
    return runner.run(target, 1, runner.Limits(timeout_s=timeout_s))


def answer(target: Target) -> object:
    columns = attempt(target)["columns"]
    return json.loads(columns["value"])


def failure(target: Target, timeout_s: float = 20) -> tuple:
    row = attempt(target, timeout_s)["attempt"]
    return row["status"], row["error_type"], row["error"]


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait 0.2 s instead of seconds for what does not answer."""
    for module, name in ((child, "_GRACE_S"), (child, "REAP_S"), (process, "REAP_S"), (process, "_END_S")):
        monkeypatch.setattr(module, name, 0.2)


# What its children share


def test_a_forked_collector_says_nothing_on_stderr():
    core = str(ROOT / "tests/vmcores/deb510-n1/vmcore")
    collector = child._run_child(transports.command(Target("t", "vmcore", core)), runner.Limits(), 60)
    assert (collector.returncode, collector.stderr) == (0, b"")


def test_the_children_of_a_thread_have_one_parent_and_those_of_another_thread_another(forked):
    target = forked(answering("os.getppid()"))
    answers = []
    thread = threading.Thread(target=lambda: answers.append(answer(target)))
    thread.start()
    thread.join()
    parents = {answer(target) for _ in range(3)}
    assert len(parents) == 1
    assert parents.isdisjoint([os.getpid(), *answers])


def test_a_fork_of_the_runner_has_a_server_of_its_own(forked):
    target = forked(answering("os.getppid()"))
    parent = answer(target)
    reader, writer = os.pipe()
    if not os.fork():
        try:
            os.write(writer, str(answer(target)).encode())
        finally:
            os._exit(0)
    os.wait()
    assert int(os.read(reader, 32)) != parent
    assert answer(target) == parent
    os.close(reader)
    os.close(writer)


def test_what_a_child_does_to_itself_reaches_no_other(forked):
    state = (
        "[sys.path, sorted(sys.modules), sorted(os.environ), os.getcwd(), os.nice(0), gc.isenabled(), os.umask(0o22),"
        "resource.getrlimit(resource.RLIMIT_DATA), resource.getrlimit(resource.RLIMIT_NOFILE),"
        "sorted(os.listdir('/proc/self/fd')), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 200 << 10]"
    )
    before = answer(forked(answering(state)))
    change = (
        "sys.path.append('/x'); sys.modules['x'] = None; os.environ['X'] = '1'; os.chdir('/proc'); os.nice(5)\n"
        "gc.disable(); os.umask(0); resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32)); x = b'x' * (300 << 20)\n"
        "os.dup2(os.open('/proc', os.O_RDONLY), 17)"
    )
    assert answer(forked(answering(state, change))) != before
    assert answer(forked(answering(state))) == before


def test_a_child_has_the_environment_that_the_runner_has_now(forked, monkeypatch):
    target = forked(answering("os.environ.get('LRU_TEST')"))
    assert answer(target) is None
    monkeypatch.setenv("LRU_TEST", "1")
    assert answer(target) == "1"


def test_neither_a_child_nor_its_server_has_rays_token_or_a_file_of_the_runner(forked, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    code = """
def files(pid):
    fds = os.listdir(f"/proc/{pid}/fd")
    return {fd: readlink(f"/proc/{pid}/fd/{fd}") for fd in fds if os.path.exists(f"/proc/{pid}/fd/{fd}")}
def readlink(path):
    return os.readlink(path).split(" ")[0].split(":")[0]
environ = open("/proc/self/environ").read() + open(f"/proc/{os.getppid()}/environ").read()
"""
    with open(os.memfd_create("inheritable"), "w+b") as file:
        os.set_inheritable(file.fileno(), True)
        value = answer(forked(answering("[files(os.getppid()), files(os.getpid()), 'secret' in environ]", code)))
    server_files = {"0": "socket", "1": "/dev/null", "2": "/memfd"}
    assert value == [server_files, {"0": "/dev/null", "1": "pipe", "2": "pipe"}, False]


def test_a_server_has_imported_drgn_and_has_one_thread_when_it_forks(forked):
    code = answering("['drgn' in sys.modules, len(os.listdir(f'/proc/{os.getppid()}/task'))]")
    assert answer(forked(code)) == [True, 1]


@pytest.mark.parametrize("name", ["bytedance", "deb510-n1", "deb7-n2"])
def test_a_forked_collector_finds_what_a_started_one_finds(name):
    core = str(ROOT / "tests" / "vmcores" / name / "vmcore")
    forked, started = (attempt(Target("t", "vmcore", core, python=python)) for python in (None, sys.executable))
    assert forked["tables"] == started["tables"]
    differing = {column for column, value in forked["columns"].items() if value != started["columns"][column]}
    assert differing <= {"reads", "read_bytes", "peak_rss_bytes"}
    assert forked["columns"]["superblocks"] > 0


# What stays behind


def test_two_hundred_targets_leave_no_file_and_no_process(forked):
    target = forked(answering("os.getppid()"))
    server = answer(target)
    before = os.listdir("/proc/self/fd"), children(os.getpid())
    assert Counter(answer(target) for _ in range(200)) == {server: 200}
    assert (os.listdir("/proc/self/fd"), children(os.getpid())) == before
    deadline = time.monotonic() + 5
    while children(server):  # it reaps the last child after it was told that the group is killed
        assert time.monotonic() < deadline
    assert len(os.listdir(f"/proc/{server}/fd")) == 3


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.parametrize("end", ["sys.exit()", "os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_an_idle_server_ends_with_its_runner(forked, pids, end):
    forked(answering("None", f"open({str(pids)!r}, 'w').write(str(os.getppid()))"))
    subprocess.run([sys.executable, "-c", f"{RUN}\nassert run()['attempt']['status'] == 'ok'\n{end}"], check=False)


def test_a_server_that_is_stopped_ends_with_its_runner(forked, pids):
    write_pids = f"open({str(pids)!r}, 'w').write(f'{{os.getppid()}} {{os.getpid()}}')"
    forked(f"import os, time\nos.kill(os.getppid(), 19)\n{write_pids}\ntime.sleep(60)")
    runner_process = subprocess.Popen([sys.executable, "-c", f"{RUN}\nrun()"])
    while not (pids.exists() and pids.read_text()):
        time.sleep(0.02)
    runner_process.kill()
    runner_process.wait()


def test_a_server_ends_with_its_thread(forked, pids):
    target = forked(answering("None", f"open({str(pids)!r}, 'w').write(str(os.getppid()))"))
    thread = threading.Thread(target=attempt, args=(target,))
    thread.start()
    thread.join()


# The loss of a server


def test_a_child_that_kills_its_server_is_lost_and_the_next_target_has_another(forked, pids):
    code = f"""
import os, subprocess, time
sibling = subprocess.Popen(["sleep", "60"])
open({str(pids)!r}, "w").write(f"{{os.getppid()}} {{os.getpid()}} {{sibling.pid}}")
os.kill(os.getppid(), 9)
time.sleep(60)
"""
    status, error_type, error = failure(forked(code))
    assert (status, error_type) == ("lost", "ForkServerLost")
    assert "killed by SIGKILL" in error
    assert answer(forked(answering("1"))) == 1


def test_a_whole_frame_counts_if_the_server_is_lost_afterwards(forked):
    target = forked(answering("1") + "\nos.kill(os.getppid(), 9)\ntime.sleep(60)")
    assert answer(target) == 1


def test_a_server_that_ended_while_it_was_idle_is_replaced(forked):
    target = forked(answering("os.getppid()"))
    server = answer(target)
    os.kill(server, signal.SIGKILL)
    os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)
    assert answer(target) != server


def test_a_child_of_a_stopped_server_ends_at_its_deadline(forked, pids, short_waits):
    stop = f"open({str(pids)!r}, 'w').write(f'{{os.getppid()}} {{os.getpid()}}')\nos.kill(os.getppid(), 19)"
    assert answer(forked(answering("0"))) == 0  # starts the server, which may take longer than the deadline
    assert answer(forked(answering("1", stop), timeout_s=0.5)) == 1
    assert answer(forked(answering("2"))) == 2
    status, error_type, _ = failure(forked(f"import os, time\n{stop}\ntime.sleep(60)", timeout_s=0.5))
    assert (status, error_type) == ("timeout", "deadline")
    assert answer(forked(answering("1"))) == 1


def test_a_stopped_server_that_cannot_fork_is_lost(forked, pids, short_waits, monkeypatch):
    target = forked(answering("os.getppid()"))
    server = answer(target)
    pids.write_text(str(server))
    os.kill(server, signal.SIGSTOP)
    with monkeypatch.context() as context:
        context.setattr(process, "_START_S", 0.2)
        assert failure(target) == ("lost", "ForkServerLost", "the process that forks the collectors does not answer")
    assert answer(forked(answering("1"))) == 1


def test_a_server_that_hangs_at_its_start_ends_at_the_targets_deadline(forked, pids, short_waits, tmp_path):
    hang = "print('importing', file=sys.stderr, flush=True)\ntime.sleep(60)"
    (tmp_path / "drgn.py").write_text(f"import os, sys, time\nopen({str(pids)!r}, 'w').write(str(os.getpid()))\n{hang}")
    error = "no result after 2 s; stderr: importing"
    assert failure(forked("", timeout_s=2)) == ("timeout", "deadline", error)


def test_the_start_of_a_server_counts_towards_the_deadline(forked, monkeypatch):
    """The clock jumps over the deadline, 1000 s, during the start; a child with a deadline of its own would go on."""
    clock = SimpleNamespace(monotonic=time.monotonic, time_ns=time.time_ns)

    class LateCollector(process.Collector):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            clock.monotonic = lambda: time.monotonic() + 1000

    monkeypatch.setattr(child, "time", clock)
    monkeypatch.setattr(child, "Collector", LateCollector)
    status, error_type, _ = failure(forked("import time; time.sleep(60)", timeout_s=1000))
    assert (status, error_type) == ("timeout", "deadline")


def test_a_child_that_is_killed_before_it_has_started_is_crashed_and_its_server_stays(forked, tmp_path):
    kill = tmp_path / "kill"
    with (tmp_path / "sitecustomize.py").open("a") as file:
        condition = f"os.path.exists({str(kill)!r})"
        file.write(f"import os\nos.register_at_fork(after_in_child=lambda: {condition} and os.kill(os.getpid(), 9))")
    target = forked(answering("os.getppid()"))
    server = answer(target)
    kill.touch()
    assert failure(target)[:2] == ("crashed", "signal:SIGKILL")
    kill.unlink()
    assert answer(target) == server


def test_the_group_of_a_lost_server_is_signalled_once(forked, monkeypatch):
    signals = []
    killpg = os.killpg
    monkeypatch.setattr(os, "killpg", lambda group, number: (signals.append(number), killpg(group, number)))
    assert failure(forked("import os, time\nos.kill(os.getppid(), 9)\ntime.sleep(60)"))[0] == "lost"
    assert signals == [signal.SIGKILL]


def test_a_server_that_cannot_start_is_lost_with_the_reason(forked, tmp_path):
    (tmp_path / "drgn.py").write_text("raise RuntimeError('cannot load')")
    status, error_type, error = failure(forked(""))
    assert (status, error_type) == ("lost", "ForkServerLost")
    assert error.endswith("RuntimeError: cannot load")
    assert "ended with exit code 1; stderr: " in error


def test_without_drgn_the_collector_says_so(tmp_path, monkeypatch):
    (tmp_path / "drgn.py").write_text("raise ImportError('libelf.so.1 is missing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    status, error_type, error = failure(Target("t", "live", "live:"))
    assert (status, error_type) == ("no_drgn", "ImportError")
    assert "libelf.so.1 is missing" in error


def test_an_interrupt_ends_a_child_and_its_server_stays(forked, pids):
    forked(f"import os, time\nopen({str(pids)!r}, 'a').write(f'{{os.getppid()}} {{os.getpid()}} ')\ntime.sleep(60)")
    code = f"""{RUN}
import signal, threading
def interrupt():
    while not (os.path.exists({str(pids)!r}) and os.path.getsize({str(pids)!r})):
        time.sleep(0.01)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
threading.Thread(target=interrupt).start()
try:
    run()
except KeyboardInterrupt:
    print(run(0.5)["attempt"]["status"])
"""
    result = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert result.stdout == "timeout\n"
    server, child, next_server, next_child = pids.read_text().split()
    assert server == next_server
    assert child != next_child
