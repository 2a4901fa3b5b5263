"""A slow link that loses packets and can be cut, between two network namespaces that exist as long as it does.

A child process has both ends of the link and passes the packets on.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import fcntl
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator

ADDRESSES = ("10.77.0.1", "10.77.0.2")
"""Addresses of the two ends."""
DELAY_S = 0.1
"""One way; the round trip takes twice as long."""
LOSS = 0.05

_NAME = "wire"
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 1, 0x1000


class Wire:
    """The running link.

    :ivar prefixes: for each end, the command that runs another command in its namespace.
    """

    def __init__(self, pid: int, namespaces: list[str]) -> None:
        self.prefixes = [("nsenter", f"--net=/proc/{pid}/fd/{fd}") for fd in namespaces]

    def cut(self) -> None:
        """Take the second end down: from now on every packet is lost."""
        subprocess.run([*self.prefixes[1], "ip", "link", "set", _NAME, "down"], check=True)


@contextlib.contextmanager
def wire() -> Iterator[Wire]:
    process = subprocess.Popen([sys.executable, "-m", __name__], stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout
            namespaces = process.stdout.readline().split()
            assert len(namespaces) == len(ADDRESSES)
            yield Wire(process.pid, namespaces)
        finally:
            process.kill()


def main() -> None:
    """Make the namespaces, print a file descriptor of each, and pass packets on for ever."""
    namespaces, ends = zip(*(_make_end(address) for address in ADDRESSES), strict=True)
    print(*namespaces, flush=True)
    chance = random.Random(0)
    packets: collections.deque[tuple[float, int, bytes]] = collections.deque()
    while True:
        wait_s = max(0.0, packets[0][0] - time.monotonic()) if packets else None
        for end in select.select(ends, [], [], wait_s)[0]:
            packet = os.read(end, 1 << 16)
            if chance.random() >= LOSS:
                packets.append((time.monotonic() + DELAY_S, ends[ends[0] == end], packet))
        while packets and packets[0][0] <= time.monotonic():
            _, end, packet = packets.popleft()
            with contextlib.suppress(OSError):  # this end is down
                os.write(end, packet)


def _make_end(address: str) -> tuple[int, int]:
    """Move this process to a new namespace with one end of the link; return descriptors of both."""
    if ctypes.CDLL(None).unshare(_CLONE_NEWNET):
        raise SystemExit("cannot make a network namespace")
    namespace, end = os.open("/proc/self/ns/net", os.O_RDONLY), os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", _NAME.encode(), _IFF_TUN | _IFF_NO_PI))
    commands = ("link set lo up", f"address add {address}/24 dev {_NAME}", f"link set {_NAME} up")
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True)
    return namespace, end


if __name__ == "__main__":
    main()
