"""Landlock and seccomp: the kernel denies a process and its children the files and sockets that it does not need.

Run by path, this file is the first code of the child that answers a user's SQL. It imports only the standard library:
neither applies to threads that were started before the restriction, and importing pyarrow starts one.
Sources: https://docs.kernel.org/userspace-api/landlock.html and seccomp_filter.html; numbers of include/uapi/linux/
landlock.h, seccomp.h, audit.h and asm/unistd_64.h.

usage: landlock.py PARENT_PID RESULT_FD < request     a line of JSON, then the pickle that `pipeline.query.answer` reads
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
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
# By the ABI version that added them: 1 in v5.13, REFER in v5.19, TRUNCATE in v6.2, IOCTL_DEV in v6.10, RESOLVE_UNIX
# (connections to UNIX sockets with a path) in v7.1.
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15, 9: 1 << 16}
_PORT_RIGHTS = {4: 0b11, 10: 0b1100}  # bind and connect of TCP, v6.7; of UDP, v7.2
_SCOPES = {6: 0b11}  # abstract UNIX sockets of other processes, signals to other processes, v6.12

# By machine: seccomp's number of the architecture, and the system calls that create sockets: socket(), socketpair() and
# io_uring_setup(). There are wheels of DuckDB for these machines only.
_SOCKET_CALLS = {"x86_64": (0xC000003E, 41, 53, 425), "aarch64": (0xC00000B7, 198, 199, 425)}
_X32_CALL = 1 << 30  # bit of the system calls of another ABI of x86_64
_ARCHITECTURE_OFFSET, _NUMBER_OFFSET = 4, 0  # in struct seccomp_data
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # classic BPF
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000 | errno.EACCES
_SECCOMP_MODE_FILTER = 2

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38


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
        for rights in (_FILE_RIGHTS, _PORT_RIGHTS, _SCOPES)
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
    """Add a rule for a path.

    A file of procfs stays open: when the kernel is short of memory it forgets one that is not, and the next access
    finds a new inode, for which there is no rule.
    """
    path_fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(path):
            rights &= _READ_FILE
        _system_call(_ADD_RULE, ruleset_fd, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, path_fd), 0)
    finally:
        if not path.startswith("/proc/"):
            os.close(path_fd)


def deny_sockets() -> None:
    """Deny this thread and its future children every new socket, of any kind (v3.5; on aarch64 v3.19).

    Do nothing on a machine that is not in _SOCKET_CALLS, or where the kernel takes no filter of system calls.
    """
    if os.uname().machine not in _SOCKET_CALLS:
        return
    architecture, *numbers = _SOCKET_CALLS[os.uname().machine]
    count = len(numbers)
    instructions = [  # code, instructions to skip if true and if false, operand
        (_LOAD, 0, 0, _ARCHITECTURE_OFFSET),
        (_JUMP_IF_EQUAL, 0, count + 3, architecture),
        (_LOAD, 0, 0, _NUMBER_OFFSET),
        (_JUMP_IF_AT_LEAST, count + 1, 0, _X32_CALL),
        *((_JUMP_IF_EQUAL, count - index, 0, number) for index, number in enumerate(numbers)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _FAIL),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(instructions), ctypes.addressof(code)))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    with contextlib.suppress(OSError):
        _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program))


def _system_call(number: int, *arguments: int | bytes | None) -> int:
    c_arguments = (ctypes.c_long(value) if isinstance(value, int) else value for value in arguments)
    result: int = _libc.syscall(ctypes.c_long(number), *c_arguments)
    return _check_result(result)


def _prctl(option: int, value: int, address: int = 0) -> None:
    _check_result(_libc.prctl(option, *map(ctypes.c_ulong, (value, address, 0, 0))))


def _check_result(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Confine this process, then answer the user's SQL."""
    parent_pid, result_fd = map(int, sys.argv[1:])
    confine(parent_pid)

    from pipeline.query import answer

    answer.main(result_fd)


def confine(parent_pid: int) -> None:
    """Apply the limits and restrictions that stand in the first line of stdin, and die with the parent."""
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
    if not confinement["sockets"]:
        deny_sockets()


if __name__ == "__main__":
    main()
