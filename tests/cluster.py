"""A Ray cluster of several nodes on this machine, as an administrator would start it: `ray start` on each.

A node has its own address of the loopback network and its own directory. Its processes are known by a word in their
environment and ended by their pids; a collector there finds it as TEST_WORD.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests import processes

_OBJECT_STORE_BYTES = 80 << 20
# Ray takes another address of the machine for 127.0.0.1.
HEAD = "127.0.0.2"
RAY = Path(sys.executable).with_name("ray")


class Cluster:
    """words: of each node, by ip; env: what a driver needs to join.

    ray: the program; one with `ray[default]` can have a dashboard, at http://{jobs}, and takes jobs there.
    """

    def __init__(self, folder: Path, cwd: Path, ray: Path, dashboard: bool) -> None:
        self.folder = folder
        self.cwd = cwd
        self.ray = ray
        self.dashboard = dashboard
        self.words: dict[str, str] = {}
        with socket.create_server((HEAD, 0)) as free, socket.create_server((HEAD, 0)) as another:
            self.address = f"{HEAD}:{free.getsockname()[1]}"
            self.jobs = f"{HEAD}:{another.getsockname()[1]}"
        self.token = secrets.token_hex(32)
        self.env = {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def add(self, ip: str) -> None:
        """Start a node and wait until it takes part."""
        word = self.words[ip] = secrets.token_hex(16)
        head = ["--head", "--port", self.address.split(":")[1], f"--include-dashboard={self.dashboard}"]
        head += ["--dashboard-host", HEAD, "--dashboard-port", self.jobs.split(":")[1]]
        place = head if ip == HEAD else ["--address", self.address]
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
        # Ray writes over the environment of its agents without SPT_NOENV.
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "TEST_WORD": word, "SPT_NOENV": "1"}
        auth["RAY_DASHBOARD_STARTUP_TIMEOUT_S"] = "300"  # a busy machine needs more than 60
        command = [self.ray, "start", *place, "--node-ip-address", ip]
        command += ["--num-cpus", "0" if ip == HEAD else "1", "--object-store-memory", str(_OBJECT_STORE_BYTES)]
        command += ["--disable-usage-stats", "--temp-dir", self.folder / ip[-1]]
        started = subprocess.run(command, cwd=self.cwd, env=clean | auth, capture_output=True, text=True, check=False)
        assert started.returncode == 0, started.stdout + started.stderr

    def kill_raylet(self, ip: str) -> None:
        (pid,) = (pid for pid, command in processes.having(self.mark(ip)).items() if "/raylet/raylet " in command)
        os.kill(pid, signal.SIGKILL)

    def kill(self, ip: str) -> None:
        """End a node, all of it."""
        processes.kill(self.mark(ip))

    def mark(self, ip: str) -> str:
        """The variable by which a node's processes are known."""
        return f"TEST_WORD={self.words[ip]}"


@contextlib.contextmanager
def cluster(nodes: int, ray: Path = RAY, dashboard: bool = False) -> Iterator[Cluster]:
    """Have a cluster of so many nodes: HEAD, which has no CPU to give, 127.0.0.3, ..."""
    # A socket's path may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder, tempfile.TemporaryDirectory() as cwd:
        made = Cluster(Path(folder), Path(cwd), ray, dashboard)
        try:
            for number in range(2, 2 + nodes):
                made.add(f"127.0.0.{number}")
            yield made
        finally:
            for ip in made.words:
                made.kill(ip)
