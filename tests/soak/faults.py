"""Faults during a run: kills of one of its processes, of its driver, and a disk that is full for a while."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests import processes

# What the command line of a process has in it that a fault kills.
_VICTIMS: dict[str, tuple[str, ...]] = {
    "worker": ("ray::",),
    "raylet": ("/raylet/raylet ",),
    "head": ("/gcs/gcs_server ",),
    "collector": ("/runner/launch.py ", "/bin/recorded-", "/bin/slow", "/bin/hangs", "/bin/drips", "session.main"),
}
_SIGNALS = {"driver": signal.SIGKILL, "interrupt": signal.SIGINT, "terminate": signal.SIGTERM}
FAULTS = (*_SIGNALS, "group", *_VICTIMS, "disk")
# Upper limit of the time before a fault: a run with an embedded Ray takes about twice as long.
_MAX_DELAY_S = 7.0
_MAX_FULL_S = 4.0
# Targets that a fault may end: those of a worker over ssh, when it or its raylet is killed, with their retries.
MAX_DISTURBED = {"worker": 8, "raylet": 24, "head": 24, "collector": 8, "disk": 8}


class Disk:
    """The file system of the warehouse, a tmpfs whose size can be reduced to what it holds."""

    SIZE = "2g"

    def __init__(self, mount: Path) -> None:
        self.mount = mount
        mount.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={self.SIZE}", "tmpfs", mount], check=True)

    def fill(self, spare_bytes: int) -> None:
        state = os.statvfs(self.mount)
        used = (state.f_blocks - state.f_bfree) * state.f_frsize
        self._resize(str(used + spare_bytes))

    def free(self) -> None:
        self._resize(self.SIZE)

    def _resize(self, size: str) -> None:
        # The size may no longer be enough for what was written meanwhile.
        subprocess.run(["mount", "-o", f"remount,size={size}", self.mount], check=False, stderr=subprocess.DEVNULL)


def inject(name: str, chance: random.Random, driver: subprocess.Popen[str], mark: str, disk: Disk) -> bool:
    """Do a fault at a random moment of a run; return whether the run was still there.

    :param mark: the environment variable, as NAME=VALUE, of all processes of the run.
    """
    delay_s, seconds, spare = chance.uniform(0, _MAX_DELAY_S), chance.uniform(0.5, _MAX_FULL_S), chance.choice((0, 16))
    index = chance.random()
    with contextlib.suppress(subprocess.TimeoutExpired):
        driver.wait(delay_s)
    if name == "disk":
        disk.fill(spare << 12)
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(seconds)
        disk.free()
        return True
    if name in _SIGNALS:
        return _send(lambda: driver.send_signal(_SIGNALS[name]), driver)
    if name == "group":
        return _send(lambda: os.killpg(driver.pid, signal.SIGKILL), driver)
    while driver.poll() is None:
        found = processes.find(mark)
        victims = [pid for pid in sorted(found) if any(text in found[pid] for text in _VICTIMS[name])]
        if victims and driver.poll() is None:
            victim = victims[int(index * len(victims))]
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
            return True
        time.sleep(0.02)
    return False


def _send(send: Callable[[], None], driver: subprocess.Popen[str]) -> bool:
    if driver.poll() is not None:
        return False
    send()
    return True
