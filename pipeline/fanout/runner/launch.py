"""The launcher of every child: applies the limits, checks the required file, then executes the command.

The runner starts it by path with `python -IS`, so it imports nothing of the project. It takes 12 ms. The alternative,
a `preexec_fn`, would run Python between fork and exec in a Ray worker that has a dozen threads.

usage: launch.py PARENT_PID MEMORY_BYTES NICENESS FILE COMMAND...     FILE must be readable; "" for no file
"""

import ctypes
import os
import resource
import sys

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9  # importing signal and json would make the launcher 50 % slower


def main() -> None:
    parent, memory_bytes, niceness, file, *command = sys.argv[1:]
    # The kernel kills the child when the runner ends, even by SIGKILL, so that no collector runs on without a reader.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != int(parent):
        sys.exit("the runner has ended")
    # Not RLIMIT_AS: drgn maps a vmlinux twice, and 128 idle threads have 1 GB of stacks and 8 GB of malloc arenas.
    _, hard_limit = resource.getrlimit(resource.RLIMIT_DATA)
    limit = int(memory_bytes) if hard_limit == resource.RLIM_INFINITY else min(int(memory_bytes), hard_limit)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(int(niceness))
    node = os.uname().nodename
    if file:
        try:
            os.close(os.open(file, os.O_RDONLY | os.O_NONBLOCK))
        except PermissionError as error:
            fail("denied", error, f"{file} on {node}: {error.strerror}; run as a user who may read it")
        except FileNotFoundError as error:
            fail("unreachable", error, f"no such file on {node}: {file}")
        except OSError as error:
            fail("unreachable", error, f"{file} on {node}: {error.strerror}")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        fail("no_drgn", error, f"cannot run {command[0]} on {node}: {error.strerror}")


def fail(status: str, error: OSError, text: str) -> None:
    """Print a failure as a frame, as the collector does, and exit."""
    import json

    print("list-lru-audit snapshot 1")
    print(json.dumps({"error": {"status": status, "error_type": type(error).__name__, "error": text}}))
    sys.exit(1)


if __name__ == "__main__":
    main()
