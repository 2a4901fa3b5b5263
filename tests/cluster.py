"""A Ray cluster of several nodes on this machine, started as an administrator would: `ray start` for each node.

A node has its own address of the loopback network and its own directory. The variable TEST_WORD in the environment of
its processes identifies them, also to a collector on the node.
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
# Ray gives a node 30 s for its start, which a busy machine can exceed.
_STARTS = 3
# Each worker of pytest-xdist has a network of its own.
NETWORK = f"127.0.{os.environ.get('PYTEST_XDIST_WORKER', 'gw0').removeprefix('gw')}"
# Address of the head node. Ray substitutes another address of the machine for 127.0.0.1.
HEAD = f"{NETWORK}.2"
RAY = Path(sys.executable).with_name("ray")


class Cluster:
    """A running cluster.

    :param ray: the program `ray`. With `ray[default]` it can serve a dashboard, which accepts jobs at http://{jobs}.
    :ivar words: the value of TEST_WORD of each node, by ip.
    :ivar env: the environment variables that a driver needs to join.
    """

    def __init__(self, folder: Path, cwd: Path, ray: Path, dashboard: bool) -> None:
        self.folder = folder
        self.cwd = cwd
        self.ray = ray
        self.dashboard = dashboard
        self.words: dict[str, str] = {}
        with socket.create_server((HEAD, 0)) as gcs, socket.create_server((HEAD, 0)) as dashboard_server:
            self.address = f"{HEAD}:{gcs.getsockname()[1]}"
            self.jobs = f"{HEAD}:{dashboard_server.getsockname()[1]}"
        self.token = secrets.token_hex(32)
        self.env = {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def add(self, ip: str) -> None:
        """Start a node and wait until it has joined."""
        word = self.words[ip] = secrets.token_hex(16)
        head = ["--head", "--port", self.address.split(":")[1], f"--include-dashboard={self.dashboard}"]
        head += ["--dashboard-host", HEAD, "--dashboard-port", self.jobs.split(":")[1]]
        role = head if ip == HEAD else ["--address", self.address]
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
        # Without SPT_NOENV Ray overwrites the environment of its agents.
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "TEST_WORD": word, "SPT_NOENV": "1"}
        auth["RAY_DASHBOARD_STARTUP_TIMEOUT_S"] = "300"  # a busy machine needs more than 60
        command = [self.ray, "start", *role, "--node-ip-address", ip]
        command += ["--num-cpus", "0" if ip == HEAD else "1", "--object-store-memory", str(_OBJECT_STORE_BYTES)]
        command += ["--disable-usage-stats", "--temp-dir", self.folder / ip[-1]]
        for _ in range(_STARTS):
            process = subprocess.run(
                command, cwd=self.cwd, env=clean | auth, capture_output=True, text=True, check=False
            )
            if "timed out during startup" not in process.stderr:
                break
            self.kill(ip)
        assert process.returncode == 0, process.stdout + process.stderr

    def preempt(self, ip: str) -> None:
        """Announce the end of a node, as the autoscaler does for a spot instance, and kill it after the deadline."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        code = (
            "import sys, time\nfrom ray._raylet import GcsClient\nfrom ray.core.generated import autoscaler_pb2\n"
            "client = GcsClient(address=sys.argv[1])\n"
            "nodes = client.get_all_node_info().values()\n"
            "(node,) = [node for node in nodes if node.node_manager_address == sys.argv[2]]\n"
            "reason = autoscaler_pb2.DrainNodeReason.Value('DRAIN_NODE_REASON_PREEMPTION')\n"
            "assert client.drain_node(node.node_id.hex(), reason, 'spot', time.time_ns() // 1_000_000 + 1000)[0]\n"
            "time.sleep(1.5)\n"
        )
        subprocess.run([sys.executable, "-c", code, self.address, ip], cwd=self.cwd, env=clean | self.env, check=True)
        self.kill_raylet(ip)

    def kill_raylet(self, ip: str) -> None:
        """Kill the raylet of a node, and no other process of it."""
        (pid,) = (pid for pid, command in processes.find(self.mark(ip)).items() if "/raylet/raylet " in command)
        os.kill(pid, signal.SIGKILL)

    def kill(self, ip: str) -> None:
        """Kill all processes of a node."""
        processes.kill(self.mark(ip))

    def mark(self, ip: str) -> str:
        """Return the environment variable, as NAME=VALUE, that identifies a node's processes."""
        return f"TEST_WORD={self.words[ip]}"


@contextlib.contextmanager
def cluster(nodes: int, ray: Path = RAY, dashboard: bool = False) -> Iterator[Cluster]:
    """Run a cluster for the duration of the block. Its nodes are HEAD, which has no CPUs, NETWORK.3, ..."""
    # Ray's sockets are below the folder, and the path of a socket is limited to 107 bytes.
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder, tempfile.TemporaryDirectory() as cwd:
        running_cluster = Cluster(Path(folder), Path(cwd), ray, dashboard)
        try:
            for number in range(2, 2 + nodes):
                running_cluster.add(f"{NETWORK}.{number}")
            yield running_cluster
        finally:
            for ip in running_cluster.words:
                running_cluster.kill(ip)
