"""Landlock: the kernel denies a process and its children the files and networks that it does not need.

Run by path, this file is the first code of the child that answers a user's SQL. It imports only the standard library:
Landlock does not apply to threads that were started before the restriction, and importing pyarrow starts one.
Source: https://docs.kernel.org/userspace-api/landlock.html; numbers of include/uapi/linux/landlock.h.

usage: landlock.py PARENT_PID RESULT_FD < request     a line of JSON, then the pickle that `pipeline.query.answer` reads
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
# By the ABI version that added them: 1 in v5.13, REFER in v5.19, TRUNCATE in v6.2, IOCTL_DEV in v6.10.
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_TCP_RIGHTS = {4: 0b11}  # bind and connect, v6.7
_SCOPES = {6: 0b11}  # abstract UNIX sockets of other processes, signals to other processes, v6.12

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


def abi() -> int:
    """Return the version of the kernel's Landlock ABI; 0 if the kernel lacks Landlock or has it disabled."""
    try:
        return _system_call(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    except OSError:
        return 0


def restrict(readable: Iterable[str], listable: Iterable[str]) -> None:
    """Deny this thread and its future children all files but these, all writing, and the network.

    :param readable: files, and directories with everything below them.
    :param listable: directories whose entries may be listed, without access to the files.
    :raises OSError: the kernel refuses, or a file does not exist (FileNotFoundError).
    """
    version = abi()
    handled_rights = [
        sum(right for min_version, right in rights.items() if min_version <= version)
        for rights in (_FILE_RIGHTS, _TCP_RIGHTS, _SCOPES)
    ]
    # A kernel whose struct is shorter accepts this one, since the fields that it does not know are zero.
    ruleset_fd = _system_call(_CREATE_RULESET, struct.pack("=QQQ", *handled_rights), 24, 0)
    try:
        for path in readable:
            _allow(ruleset_fd, path, _READ_FILE | _READ_DIR)
        for path in listable:
            _allow(ruleset_fd, path, _READ_DIR)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _system_call(_RESTRICT_SELF, ruleset_fd, 0)
    finally:
        os.close(ruleset_fd)


def _allow(ruleset_fd: int, path: str, rights: int) -> None:
    path_fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(path):
            rights &= _READ_FILE
        _system_call(_ADD_RULE, ruleset_fd, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, path_fd), 0)
    finally:
        os.close(path_fd)


def _system_call(number: int, *arguments: int | bytes | None) -> int:
    c_arguments = (ctypes.c_long(value) if isinstance(value, int) else value for value in arguments)
    result: int = _libc.syscall(ctypes.c_long(number), *c_arguments)
    return _check_result(result)


def _prctl(option: int, value: int) -> None:
    _check_result(_libc.prctl(option, ctypes.c_ulong(value), *map(ctypes.c_ulong, (0, 0, 0))))


def _check_result(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Apply the limits and the Landlock rules, then answer the user's SQL."""
    parent_pid, result_fd = map(int, sys.argv[1:])
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit("the process that asked this query has ended")
    confinement = json.loads(sys.stdin.buffer.readline())
    # Not RLIMIT_AS: allocators reserve gigabytes of address space and use little of it.
    for name, max_value in (("DATA", confinement["data_bytes"]), ("FSIZE", confinement["result_bytes"]), ("CORE", 0)):
        number = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(number)
        limit = max_value if hard == resource.RLIM_INFINITY else min(max_value, hard)
        resource.setrlimit(number, (limit, limit))
    if confinement["landlock"]:
        restrict(confinement["readable"], confinement["listable"])

    from pipeline.query import answer

    answer.main(result_fd)


if __name__ == "__main__":
    main()
