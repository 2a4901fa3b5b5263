"""Guests with an sshd on a port of loopback: audited live from outside, and dumped afterwards."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.fanout.transports.sshd import Client, free_port, make_key
from tests.lab import boot, initramfs, server
from tests.lab.kernels import Kernel
from tests.lab.server import Server


def ssh_server(series: str) -> Server:
    """The shape of a guest with sshd. 5.10 has bullseye's userland: its Python 3.9 is the oldest on the mirror."""
    name, disk = f"ssh-{series.replace('.', '')}", "bullseye" if series == "5.10" else "bookworm"
    return Server(name, series, nodes=2, memory_mb=512, memcgs=150, kept=60, tmpfs=20, workload="ssh", disk=disk)


class Guest(NamedTuple):
    """A running guest with the users root and admin; `client` knows its host key."""

    port: int
    client: Client
    work: Path

    def run(self, command: str) -> str:
        """Run a command in the guest as root, and return its output."""
        ssh = ["ssh", "-F", self.client.config, "-oLogLevel=ERROR", "-p", str(self.port), "root@127.0.0.1", command]
        return subprocess.check_output(ssh, text=True)

    def dump(self, core: Path) -> None:
        """Stop the guest and dump its memory to `core`."""
        with boot.Monitor(self.work / "qmp") as monitor:
            monitor.call("stop")
            monitor.call("dump-guest-memory", paging=False, protocol=f"file:{core.resolve()}")


@contextlib.contextmanager
def running_guest(shape: Server, kernel: Kernel, cache: Path) -> Iterator[Guest]:
    """Boot a guest and wait until its sshd listens; kill it at the end of the `with` block."""
    disk = server.image(shape.disk, cache)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        client = Client(work / "client")
        host_key = make_key(work / "host_key")
        with initramfs.busybox(shape, kernel, work / "initramfs", initramfs.NETWORK_MODULES) as root:
            initramfs.install(root / "init", "server")
            initramfs.install(root / "lab/ssh", "ssh")
            shutil.copy(host_key, root / "lab/host_key")
            shutil.copy(client.key.with_suffix(".pub"), root / "lab/authorized_keys")
        port = free_port()
        client.know(port, host_key)
        command = [
            *boot.qemu(shape, kernel),
            *("-drive", f"file={disk},format=raw,if=virtio,snapshot=on"),
            *("-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"),
            *("-device", "virtio-net-pci,netdev=net,romfile="),
        ]
        with boot.idle_machine(command, work):
            yield Guest(port, client, work)
