"""What a hostile host can do to the ssh of an audit and to the process that runs it: bounded time, memory and words."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.fanout.transports import payload
from pipeline.inventory import Target
from tests import campaign, processes
from tests.fanout.runner.test_child import FRAME
from tests.fanout.transports.sshd import SSHD, Client, Server
from tests.fanout.transports.test_ssh import Listener, core_via, run

ROOT = Path(__file__).resolve().parents[3]
SESSION_BYTES = 96 << 20  # for Python, three threads with stacks, and what the session keeps of a host's words
TIMEOUT_S = 4.0
GRACE_S = 8.0  # 2 s from SIGTERM to SIGKILL, and the machine of a test may be busy

FAKE_SSH = """#!{python}
import os, sys, time
if "-G" in sys.argv:
    sys.exit(print("user root"))
os.environ["LRU_TEST"] = {mark!r}
say = lambda text: os.write(2, text.encode())
START = "{start}/usr/bin/python3\\n{announcement}\\n"
{code}
"""

# What the host does, and the status. `ok` is for a whole frame, whatever else there is.
HOSTS = {
    "never reads": ("say(START)" + FRAME, "ok"),
    "says each marker many times": (
        'say("lru-audit asks for gzip\\nlru-audit refuses place\\n" * 9999)\nsay(START * 9999)' + FRAME,
        "ok",
    ),
    "asks for drgn that is not sent": (
        'say(START)\nprint("\\nlist-lru-audit host 3.11 .so x86_64 glibc 2.31")' + FRAME,
        "ok",
    ),
    "says 32 MiB without a newline": ('for _ in range(512): say("x" * 65536)\nsys.exit(255)', "unreachable"),
    "prints a gigabyte": ('say(START)\nfor _ in range(16384): os.write(1, b"x" * 65536)', "bad_output"),
    "prints a frame, then a gigabyte": (
        "say(START)" + FRAME + '\nfor _ in range(16384): os.write(1, b"x" * 65536)',
        "ok",
    ),
    "sends a byte at a time": ("say(START)\nwhile True: os.write(1, b'x'); time.sleep(.1)", "timeout"),
    "speaks a byte at a time": ("while True: say('x'); time.sleep(.1)", "timeout"),
    "closes and stays": ("say(START)\nos.close(1)\nos.close(2)\ntime.sleep(60)", "timeout"),
    "ignores that it shall end": ("import signal\nsignal.pthread_sigmask(0, range(1, 65))\ntime.sleep(60)", "timeout"),
    "says that it was killed": ("say(START)\nsys.exit(137)", "crashed"),
}  # fmt: skip


@pytest.mark.parametrize("name", campaign.example_and_faults(list(HOSTS), 5))
def test_a_host_has_one_status_in_time_and_in_little_memory(tmp_path, monkeypatch, name):
    code, expected_status = HOSTS[name]
    mark = str(tmp_path)
    ssh = tmp_path / "ssh"
    markers = {"start": payload.START_MARKER, "announcement": payload.ANNOUNCEMENT}
    ssh.write_text(FAKE_SSH.format(python=sys.executable, mark=mark, code=code, **markers))
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("LRU_TEST", mark)
    timeout_s = TIMEOUT_S if expected_status == "timeout" else 60.0
    start = time.monotonic()
    result = run(Target("t", "ssh", "ssh:evil", timeout_s=timeout_s), memory_bytes=SESSION_BYTES)
    assert result["attempt"]["status"] == expected_status, result["attempt"]
    assert time.monotonic() - start < timeout_s + GRACE_S
    assert bool(result["tables"]) == (expected_status == "ok")
    children = {pid for pid, command in processes.find(f"LRU_TEST={mark}").items() if str(ssh) in command}
    assert not children


def drip_banner(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"x")
        time.sleep(0.2)


def flood_banner(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"x" * 8_000 + b"\r\n")


def drip_key_exchange(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-x\r\n")
    ignore = b"\0\0\0\x0c\x05\2\0\0\0\1x" + bytes(5)  # SSH_MSG_IGNORE (RFC 4253, 11.2)
    while True:
        connection.sendall(ignore)
        time.sleep(0.2)


@pytest.mark.skipif(SSHD is None, reason="needs sshd")
@pytest.mark.faults
@pytest.mark.parametrize("answer", [drip_banner, flood_banner, drip_key_exchange])
def test_a_server_that_never_lets_ssh_log_in_costs_no_more_than_the_deadline(client: Client, server: Server, answer):
    def serve(connection: socket.socket, number: int) -> None:
        with connection, contextlib.suppress(OSError):
            answer(connection)

    with Listener(serve) as listener:
        via = f"ssh:127.0.0.1:{listener.port}"
        start = time.monotonic()
        target = core_via(server, client, via=via, timeout_s=TIMEOUT_S, ssh_args=("-oConnectTimeout=2",))
        attempt = run(target, memory_bytes=SESSION_BYTES)["attempt"]
    assert time.monotonic() - start < TIMEOUT_S + GRACE_S
    assert attempt["status"] in {"unreachable", "timeout"}
    assert attempt["error"].isprintable()


# Frames of 64 MiB, the limit of stdout, that take as much memory as they can when they are parsed.
BOMBS = {
    "one line": ["{}", 21 << 20, 1],
    "empty rows": ["[]", 1 << 20, 20],
    "empty lists": ["[[],[],[],[]]", 1 << 18, 18],
}
BOMB = """#!{python}
row, rows, lines = {bomb}
columns = '"a","b","c","d"' if row.startswith("[[") else ""
line = '{{"table": "memcgs", "columns": [' + columns + '], "rows": [' + (row + ",") * (rows - 1) + row + "]}}\\n"
print("list-lru-audit snapshot 1\\n" + line * lines)
"""
PEAK = """
import json, sys, tempfile
from pipeline.fanout import runner, workers
from pipeline.inventory import Target
target = Target("t", "live", "live:", python=sys.argv[1])
_, (_, attempt) = workers.collect_batch([(target, 1)], runner.Limits(timeout_s=300), runner.run, 1, None)
peak_kib = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
print(json.dumps([attempt["attempt"]["status"], peak_kib]))
"""


@pytest.mark.faults
@pytest.mark.parametrize("name", campaign.sample(list(BOMBS), 1))
def test_a_worker_has_room_for_any_frame(tmp_path, name):
    host = tmp_path / "host"
    host.write_text(BOMB.format(python=sys.executable, bomb=BOMBS[name]))
    host.chmod(0o755)
    command = [sys.executable, "-c", PEAK, str(host)]
    status, peak_kib = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
    assert status == "bad_output"
    assert peak_kib < 1_536 << 10
