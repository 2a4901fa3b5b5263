"""Use objects that allocate inodes and dentries, release all of them, and exit. Arguments: the functions to run."""

import asyncio
import ctypes
import mmap
import os
import socket
import subprocess
import sys
import tempfile


def pipes():
    os.close(os.pipe()[0])
    subprocess.run(["true"])


def sockets():
    socket.socketpair()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        socket.create_connection(server.getsockname())


def events():
    asyncio.run(asyncio.sleep(0))


def memory():
    os.close(os.memfd_create("workload"))
    mmap.mmap(-1, 4096)


def namespaces():
    for name in os.listdir("/proc/self/ns"):
        os.close(os.open(f"/proc/self/ns/{name}", os.O_RDONLY))


def queues():
    libc = ctypes.CDLL(None)
    name = f"/q{os.getpid()}".encode()
    libc.mq_open(name, os.O_CREAT | os.O_RDWR, 0o600, None)
    libc.mq_unlink(name)


def files():
    with tempfile.TemporaryDirectory() as folder:
        for n in range(20):
            with open(f"{folder}/{n}", "w") as f:
                f.write("x")
    for top in ("/dev", "/sys/class", "/sys/fs/cgroup", "/proc/self", "/etc"):
        for folder, _, names in os.walk(top):
            for name in names[:20]:
                os.path.exists(os.path.join(folder, name))


for name in sys.argv[1:]:
    globals()[name]()
