"""`pipeline.fanout.runner`: whatever a child does, one attempt with a status comes back in time.

Every child is a real process that runs a script instead of the collector: as a program, and forked by a fork server.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.fanout import runner, transports
from pipeline.fanout.runner import frame, launch
from pipeline.inventory import Target

ROOT = Path(__file__).resolve().parents[3]

FRAME = """
print("list-lru-audit snapshot 1")
print('{"table": "targets", "columns": ["host"], "rows": [["db1"]]}')
print('{"table": "memcgs", "columns": ["css_id", "path"], "rows": [[1, "/"], [2, "/a"]]}')
print('{"end": {"targets": 1, "superblocks": 0, "list_lrus": 0, "memcgs": 2}}', flush=True)
"""


def run(target: Target, **limits: float) -> dict:
    result = runner.run(target, 1, runner.Limits(**{"timeout_s": 20, **limits}))
    assert json.loads(json.dumps(result)) == result
    assert len(result["attempt"]["error"] or "") <= 500
    assert (result["attempt"]["error"] or "").isprintable()
    return result


def failure(target: Target, **limits: float) -> tuple:
    """Run a target that yields no snapshot; return its status, error_type and error."""
    result = run(target, **limits)
    assert (result["columns"], result["tables"]) == ({}, {})
    return tuple(result["attempt"][key] for key in ("status", "error_type", "error"))


# A good child


def test_a_snapshot_is_an_attempt_and_its_rows(child):
    before_us = time.time_ns() // 1000
    result = run(child(FRAME))
    attempt = result["attempt"]
    assert (attempt["status"], attempt["error_type"], attempt["error"]) == ("ok", None, None)
    assert (attempt["attempt"], attempt["node"]) == (1, os.uname().nodename)
    assert before_us <= attempt["started_at"] <= time.time_ns() // 1000
    assert 0 < attempt["duration_ms"] < 20_000
    assert result["columns"] == {"host": "db1"}
    assert result["tables"]["memcgs"] == {"columns": ["css_id", "path"], "rows": [[1, "/"], [2, "/a"]]}


def test_a_banner_before_the_frame_and_noise_on_stderr_do_not_matter(child):
    noise = "import sys\nprint('Welcome!')\nprint('x' * 10_000_000, file=sys.stderr)\n"
    assert run(child(noise + FRAME))["attempt"]["status"] == "ok"


def test_unsupported_keeps_its_row_and_its_reason(child):
    code = FRAME.replace("print('{\"end", 'print(\'{"unsupported": "no memcg here"}\')\nprint(\'{"end')
    result = run(child(code))
    assert (result["attempt"]["status"], result["attempt"]["error"]) == ("unsupported", "no memcg here")
    assert result["columns"] == {"host": "db1"}


def test_a_whole_frame_counts_whatever_the_child_does_afterwards(child):
    run(child(FRAME))  # starts the fork server, which may take longer than the deadline
    for end in ("os.kill(os.getpid(), 11)", "os._exit(3)", "time.sleep(60)"):
        target = child(f"{FRAME}\nimport os, time\n{end}", timeout_s=0.5)
        assert run(target)["attempt"]["status"] == "ok"


def test_a_child_has_no_input_no_token_no_core_dump_low_priority_and_a_safe_directory(child, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    code = """
    import json, os, resource, sys
    values = [sys.stdin.read(), [k for k in os.environ if k.startswith("RAY")], os.getcwd(), os.nice(0),
            resource.getrlimit(resource.RLIMIT_CORE)[1], os.getpgid(0) == os.getpid()]
    print("list-lru-audit snapshot 1")
    print(json.dumps({"table": "targets", "columns": ["values"], "rows": [[json.dumps(values)]]}))
    print('{"end": {"targets": 1}}')
    """
    nice = os.nice(0)
    values = json.loads(run(child(code))["columns"]["values"])
    assert values == ["", [], "/", min(nice + 10, 19), 0, True]


@pytest.mark.parametrize("python", [None, sys.executable])
def test_the_collector_of_this_very_package_is_what_runs(tmp_path, monkeypatch, python):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("raise SystemExit('hostile')")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no.core").write_bytes(b"nothing")
    status, _, error = failure(Target("t", "vmcore", str(tmp_path / "no.core"), python=python))
    assert status == "bad_core"
    assert "no.core" in error


def test_bytes_for_stdin_reach_a_program(monkeypatch):
    code = "import sys\nassert sys.stdin.read() == 'payload' * 100_000\n" + FRAME
    command = transports.Command(["-c", code], program=[sys.executable], stdin=b"payload" * 100_000)
    monkeypatch.setattr(transports, "command", lambda target: command)
    assert run(Target("t", "live", "live:"))["attempt"]["status"] == "ok"


# A child that reports a failure


def test_the_collectors_own_reason_is_the_status(child):
    code = """
    print("list-lru-audit snapshot 1")
    print('{"error": {"status": "no_types", "error_type": "LookupError", "error": "no BTF"}}')
    raise SystemExit(1)
    """
    assert failure(child(code)) == ("no_types", "LookupError", "no BTF")


def test_what_a_child_says_is_one_short_printable_line(child):
    code = r"""
    import json
    print("list-lru-audit snapshot 1")
    error = {"status": "bad_core", "error_type": "E\x1b[2J", "error": "a\x1b[31m\n\u202e" + "\x00" * 10000}
    print(json.dumps({"error": error}))
    """
    status, error_type, error = failure(child(code))
    assert (status, error_type) == ("bad_core", r"E\x1b[2J")
    assert error.startswith(r"a\x1b[31m\n\u202e\x00")
    assert error.endswith(" ...")


@pytest.mark.parametrize(("length", "line"), [(500, "x" * 500), (501, "x" * 496 + " ..."), (9999, "x" * 496 + " ...")])
def test_a_text_that_was_cut_says_so(length, line):
    assert runner.error_line("x" * length) == line


def test_a_child_cannot_say_that_it_was_lost_and_be_tried_again(child):
    code = """
    print("list-lru-audit snapshot 1")
    print('{"error": {"status": "lost", "error_type": "E", "error": "again"}}')
    """
    status, _, error = failure(child(code))
    assert status == "bad_output"
    assert "no status that a child may report" in error


@pytest.mark.parametrize("python", [None, sys.executable])
def test_a_file_that_is_not_there_is_unreachable_on_this_node(tmp_path, python):
    status, error_type, error = failure(Target("t", "vmcore", f"{tmp_path}/gone", python=python))
    assert (status, error_type) == ("unreachable", "FileNotFoundError")
    assert error == f"no such file on {os.uname().nodename}: {tmp_path}/gone"


def test_a_file_that_may_not_be_read_is_denied(tmp_path):
    core = tmp_path / "core"
    core.touch(mode=0)
    # Root reads everything, until it gives up the two capabilities for that.
    prefix = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    code = (
        "import json, sys; from pipeline import inventory; from pipeline.fanout import runner;"
        "print(json.dumps(runner.run(inventory.Target('t', 'vmcore', sys.argv[1]), 1, runner.Limits())))"
    )
    process = subprocess.run([*prefix, sys.executable, "-c", code, core], cwd=ROOT, capture_output=True, check=True)
    attempt = json.loads(process.stdout)["attempt"]
    assert (attempt["status"], attempt["error_type"]) == ("denied", "PermissionError")
    assert str(core) in attempt["error"]


def test_an_interpreter_that_is_not_there_is_no_drgn():
    target = Target("t", "live", "live:", python="/opt/python")
    status, _, error = failure(target)
    assert status == "no_drgn"
    assert "/opt/python" in error


# A child that hangs


@pytest.mark.parametrize(
    "hang",
    [
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\ntime.sleep(60)",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nctypes.PyDLL(None).sleep(60)",  # in C, with the GIL
    ],
)
def test_a_hung_child_is_killed_at_its_deadline_with_all_its_processes(child, pids, hang):
    code = f"""
import ctypes, os, signal, subprocess, sys, time
sibling = subprocess.Popen(["sleep", "60"])
open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{sibling.pid}}")
print("list-lru-audit snapshot 1", flush=True)
print("still at it", file=sys.stderr, flush=True)
{hang}
"""
    run(child(FRAME))  # starts the fork server, which may take longer than the deadline
    start = time.monotonic()
    status, _, error = failure(child(code, timeout_s=0.5))
    assert status == "timeout"
    assert error == "no result after 0.5 s; stderr: still at it"
    assert time.monotonic() - start < 5


def test_a_target_without_its_own_deadline_has_the_runs(child):
    assert failure(child("import time; time.sleep(60)"), timeout_s=0.3)[0] == "timeout"


def test_what_a_child_leaves_behind_neither_holds_up_the_result_nor_stays(child, pids):
    code = f"""
import subprocess
sibling = subprocess.Popen(["sleep", "60"])
open({str(pids)!r}, "w").write(str(sibling.pid))
"""
    start = time.monotonic()
    assert run(child(code + FRAME))["attempt"]["status"] == "ok"
    assert time.monotonic() - start < 5


def test_no_child_outlives_its_runner(child, pids):
    hung = child(f"import os, time\nopen({str(pids)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)")
    code = (
        "import sys; from pipeline import inventory; from pipeline.fanout import runner;"
        "runner.run(inventory.Target('t', 'live', 'live:', python=sys.argv[1] or None), 1, runner.Limits())"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, hung.python or ""], cwd=ROOT)
    while not (pids.exists() and pids.read_text()):
        time.sleep(0.02)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()


def test_a_closed_directory_is_denied(tmp_path):
    """A search of a directory makes a target of each subdirectory that it may not read."""
    closed = tmp_path / "closed"
    closed.mkdir(0)
    arguments = [sys.executable, "-IS", launch.__file__, str(os.getpid()), str(4 << 30), "0", str(closed), "true"]
    if not os.geteuid():  # root reads everything, unless it is without these capabilities
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv")
        arguments = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *arguments]
    process = subprocess.run(arguments, capture_output=True, timeout=60)
    assert frame.parse(process.stdout) == frame.Failure(
        "denied",
        "PermissionError",
        f"{closed} on {os.uname().nodename}: Permission denied; run as a user who may read it",
    )


def test_a_device_is_not_opened(tmp_path):
    status, error_type, error = failure(Target("t", "vmcore", "/dev/ptmx"))  # each open(2) of it makes a terminal
    assert (status, error_type) == ("bad_core", "NotAFile")
    assert error == "/dev/ptmx: a character device, not the file of a core"


# A child that breaks


@pytest.mark.parametrize("statement", ["", 'print("list-lru-audit snapshot 1", flush=True)'])
def test_a_segmentation_fault_is_crashed(child, statement):
    status, error_type, error = failure(child(f"import ctypes\n{statement}\nctypes.string_at(0)"))
    assert (status, error_type) == ("crashed", "signal:SIGSEGV")
    assert "SIGSEGV" in error


def test_a_killed_child_is_crashed_and_the_cause_is_guessed(child):
    status, error_type, error = failure(child("import os; os.kill(os.getpid(), 9)"))
    assert (status, error_type) == ("crashed", "signal:SIGKILL")
    assert "want of memory" in error


def test_a_core_that_shrinks_while_it_is_mapped_is_a_bad_core(child, tmp_path):
    core = tmp_path / "core"
    core.write_bytes(bytes(1 << 20))
    code = f"""
        import mmap, os
        with open({str(core)!r}, "r+b") as file:
            mapped = mmap.mmap(file.fileno(), 0)
            os.truncate({str(core)!r}, 0)
            mapped[1 << 19]
    """
    status, error_type, error = failure(child(code, kind="vmcore", source=str(core)))
    assert (status, error_type) == ("bad_core", "signal:SIGBUS")
    assert f"{core} shrank while it was read" in error


def test_a_child_that_wants_too_much_memory_is_over_budget_and_says_the_limit(child):
    status, error_type, error = failure(child("x = bytearray(1 << 30)"), memory_bytes=200 << 20)
    assert (status, error_type) == ("over_budget", "MemoryError")
    assert "200 MiB" in error


def test_a_flood_of_garbage_neither_fills_the_memory_nor_goes_on(child, pids):
    code = f"""
import os, sys
open({str(pids)!r}, "w").write(str(os.getpid()))
for _ in range(1024):
    sys.stdout.write("x" * (1 << 20))
"""
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status, _, error = failure(child(code), output_bytes=8 << 20)
    assert status == "bad_output"
    assert "more than 8 MiB on stdout" in error
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 64 << 10


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("", "no frame on stdout; exit code 0"),
        ("raise SystemExit(3)", "no frame on stdout; exit code 3"),
        ("import gone", "ModuleNotFoundError: No module named 'gone'"),
        (FRAME.replace('"memcgs": 2', '"memcgs": 3'), "counts"),
        (FRAME.replace('["host"]', '["target"]'), "not the collector's: target"),
        (FRAME.replace("print('{\"end", "#"), "has no end"),
    ],
)
def test_no_valid_frame_is_bad_output_that_says_what_is_wrong(child, code, part):
    status, _, error = failure(child(code))
    assert status == "bad_output"
    assert part in error


# Outcomes


def test_an_outcome_is_the_last_attempt_with_all_attempts_as_rows():
    target = Target("t", "vmcore", "/a\n\udcff", labels={"rack": "r1"})
    lost = runner.result(1, None, 1000, 20, "lost", "WorkerCrashedError", "died")
    good = runner.result(2, "node", 5000, 30, "ok", None, None, {"host": "db1"}, {"memcgs": {}})
    assert runner.outcome(target, [lost, good]) == {
        "target": "t",
        "row": {
            "kind": "vmcore",
            "source": r"/a\n\udcff",
            "via": None,
            "labels": {"rack": "r1"},
            "status": "ok",
            "error_type": None,
            "error": None,
            "attempts": 2,
            "started_at": 1000,
            "duration_ms": 50,
            "host": "db1",
        },
        "attempts": [lost["attempt"], good["attempt"]],
        "tables": {"memcgs": {}},
    }


@pytest.mark.parametrize("python", [None, sys.executable])
def test_the_peak_memory_is_the_childs_own(python: str | None) -> None:
    """A child's ru_maxrss starts with its parent's memory at fork: 300 MB here, far more than an audit takes."""
    core = Path(__file__).parents[2] / "vmcores" / "deb510-n1" / "vmcore"
    ballast = bytearray(os.urandom(1 << 20)) * 300
    attempt = runner.run(Target("core", "vmcore", str(core), python=python), 1, runner.Limits())
    assert len(ballast) > 2 * attempt["columns"]["peak_rss_bytes"] > 0


def test_a_core_that_its_dump_left_incomplete_is_audited_and_says_so(tmp_path):
    """At offset 424 of struct disk_dump_header is its status; 8 is DUMP_DH_COMPRESSED_INCOMPLETE (makedumpfile)."""
    complete_core = Path(__file__).parents[2] / "vmcores" / "deb510-n1" / "vmcore"
    core = bytearray(complete_core.read_bytes())
    core[424] |= 8
    (tmp_path / "vmcore-incomplete").write_bytes(core)
    command = [sys.executable, "-m", "pipeline", "inspect", "--json"]
    reports = [
        json.loads(subprocess.run([*command, path], check=True, capture_output=True).stdout)
        for path in (tmp_path, complete_core)
    ]
    assert [report["notes"] for report in reports] == ["the dump is incomplete: its disk was full", None]
    assert [report["status"] for report in reports] == ["ok", "ok"]
    assert reports[0]["list_lru_bytes"] == reports[1]["list_lru_bytes"] > 500_000
