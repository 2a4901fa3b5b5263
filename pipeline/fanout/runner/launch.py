"""The first thing that runs in every child: take the limits on, then become the command.

Run by path with `python -IS`, so it imports nothing of the project. It costs 12 ms; a `preexec_fn` would run
Python between fork and exec in a Ray worker that has a dozen threads.

usage: launch.py PARENT_PID MEMORY_BYTES NICENESS FILE COMMAND...     FILE has to be readable; "" for none
"""

import ctypes
import os
import resource
import sys

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9  # the modules signal and json would add half to the time that this takes


def main() -> None:
    parent, memory_bytes, niceness, file, *command = sys.argv[1:]
    # Killed with the runner, also where the runner itself is killed: no child reads a kernel for nobody.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != int(parent):
        sys.exit("the runner is gone")
    # Not RLIMIT_AS: drgn maps a vmlinux twice and 128 idle threads have 1 GB of stacks and 8 GB of malloc arenas.
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = int(memory_bytes) if most == resource.RLIM_INFINITY else min(int(memory_bytes), most)
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
    """Say why in a frame, as the collector does."""
    import json

    print("list-lru-audit snapshot 1")
    print(json.dumps({"error": {"status": status, "error_type": type(error).__name__, "error": text}}))
    sys.exit(1)


if __name__ == "__main__":
    main()
