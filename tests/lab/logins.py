"""Hosts with the sshd and the sudo of a Debian release, on loopback: chroots in namespaces of their own, no guests."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.fanout.transports.sshd import Client, free_port, make_key
from tests.fanout.transports.test_ssh import CORE
from tests.lab import initramfs, server
from tests.lab.kernels import CACHE

# Arguments: an empty directory, the disk, a directory that becomes /lab, and those of guest/logins. What the host
# writes stays in memory.
_SCRIPT = """
set -e
mount -t tmpfs lab "$1"
mkdir "$1/lower" "$1/upper" "$1/work" "$1/root"
mount -o loop,ro,noload "$2" "$1/lower"
mount -t overlay -o "lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
mount -t proc proc "$1/root/proc"
cp -r "$3" "$1/root/lab"
root=$1/root
shift 3
exec chroot "$root" /lab/logins "$@"
"""


class Host(NamedTuple):
    """A running sshd; the users are those of guest/logins, and /lab/vmcore is a core that only root can read."""

    port: int
    client: Client
    log: Path


@contextlib.contextmanager
def running_host(disk: str, sudo: str, *options: str) -> Iterator[Host]:
    """Run a host until the end of the `with` block, when the kernel ends all its processes and mounts.

    :param disk: a key of server.DISKS.
    :param sudo: the program that is called sudo there: sudo, sudo-rs or doas.
    :param options: of sshd, as KEYWORD=VALUE.
    """
    image = server.image(disk, CACHE)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        client, host_key, port = Client(work / "client"), make_key(work / "host_key"), free_port()
        client.know(port, host_key)
        root, lab = work / "root", work / "lab"
        for folder in (root, lab):
            folder.mkdir()
        initramfs.install(lab / "logins", "logins")
        shutil.copy(host_key, lab)
        shutil.copy(client.key.with_suffix(".pub"), lab / "authorized_keys")
        shutil.copy(CORE, lab)
        host = Host(port, client, work / "log")
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _SCRIPT, "sh"]
        arguments = [argument for option in options for argument in ("-o", option)]
        with host.log.open("w") as log:
            process = subprocess.Popen([*unshare, root, image, lab, str(port), sudo, *arguments], stderr=log)
        try:
            deadline = time.monotonic() + 60
            while "listening" not in host.log.read_text():
                assert process.poll() is None, host.log.read_text()
                assert time.monotonic() < deadline, host.log.read_text()
                time.sleep(0.02)
            yield host
        finally:
            process.kill()
            process.wait()
