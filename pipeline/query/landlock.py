"""Landlock: the kernel keeps a process, and all that it starts, from files and networks that it does not need.

Run by path it is the first thing of the child that answers a user's SQL. It imports the standard library only: threads
that are there before the restriction stay outside, and importing pyarrow starts one.
Source: https://docs.kernel.org/userspace-api/landlock.html; numbers of include/uapi/linux/landlock.h.

usage: landlock.py PARENT_PID RESULT_FD < request     a line of JSON, then what `pipeline.query.answer` reads
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # system calls, the same on every architecture
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
# By the ABI that brought them: v5.13, REFER in v5.19, TRUNCATE in v6.2, IOCTL_DEV in v6.10.
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_TCP_RIGHTS = {4: 0b11}  # to bind and to connect, v6.7
_SCOPES = {6: 0b11}  # abstract UNIX sockets of others, signals to others, v6.12

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


def abi() -> int:
    """Return the version of Landlock's ABI that this kernel offers; 0 where it has none or it is switched off."""
    try:
        return _system_call(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    except OSError:
        return 0


def restrict(readable: Iterable[str], listable: Iterable[str]) -> None:
    """Take from this thread, and from all that it starts, every file but these, all writing, and the network.

    :param readable: files, and directories with all that is below them.
    :param listable: directories of which names may be read, not files.

    Raises OSError where the kernel refuses, and FileNotFoundError for a file that is gone.
    """
    version = abi()
    handled = [
        sum(right for since, right in rights.items() if since <= version)
        for rights in (_FILE_RIGHTS, _TCP_RIGHTS, _SCOPES)
    ]
    # A kernel that knows a shorter struct takes this one: what it does not know is zero.
    ruleset = _system_call(_CREATE_RULESET, struct.pack("=QQQ", *handled), 24, 0)
    try:
        for path in readable:
            _allow(ruleset, path, _READ_FILE | _READ_DIR)
        for path in listable:
            _allow(ruleset, path, _READ_DIR)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _system_call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    file = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(path):
            rights &= _READ_FILE
        _system_call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, file), 0)
    finally:
        os.close(file)


def _system_call(number: int, *arguments: int | bytes | None) -> int:
    as_c = (ctypes.c_long(value) if isinstance(value, int) else value for value in arguments)
    result: int = _libc.syscall(ctypes.c_long(number), *as_c)
    return _checked(result)


def _prctl(option: int, value: int) -> None:
    _checked(_libc.prctl(option, ctypes.c_ulong(value), *map(ctypes.c_ulong, (0, 0, 0))))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Become the confined child: its limits, its files, then the user's SQL."""
    parent, result = map(int, sys.argv[1:])
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("nobody waits for this query")
    confinement = json.loads(sys.stdin.buffer.readline())
    # Not RLIMIT_AS: allocators reserve address space by the gigabyte and use little of it.
    for limit, most in (("DATA", confinement["data_bytes"]), ("FSIZE", confinement["result_bytes"]), ("CORE", 0)):
        number = getattr(resource, f"RLIMIT_{limit}")
        _, hard = resource.getrlimit(number)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(number, (most, most))
    if confinement["landlock"]:
        restrict(confinement["readable"], confinement["listable"])

    from pipeline.query import answer

    answer.main(result)


if __name__ == "__main__":
    main()
