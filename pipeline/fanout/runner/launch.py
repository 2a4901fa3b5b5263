"""The launcher of every child: applies the limits, checks the required file, then becomes the child.

usage: launch.py RUNNER_PID MEMORY_BYTES NICENESS FILE COMMAND...     FILE must be readable; "" for no file
       launch.py RUNNER_PID                                           fork a collector for each request on stdin

In the first form the runner starts it by path with `python -IS`, so it imports nothing of the project. It takes 12 ms.
The alternative, a `preexec_fn`, would run Python between fork and exec in a Ray worker that has a dozen threads.

The second form is a fork server. It has imported drgn and the collector, and has one thread and one child at a time.
Its children share its hash seed and the addresses of its libraries.
"""

import ctypes
import os
import resource
import stat
import sys

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9  # importing signal and json would make the launcher 50 % slower


def main() -> None:
    runner, *arguments = sys.argv[1:]
    die_with(int(runner))
    memory_bytes, niceness, file, *command = arguments or serve()
    # Not RLIMIT_AS: drgn maps a vmlinux twice, and 128 idle threads have 1 GB of stacks and 8 GB of malloc arenas.
    _, hard_limit = resource.getrlimit(resource.RLIMIT_DATA)
    limit = int(memory_bytes) if hard_limit == resource.RLIM_INFINITY else min(int(memory_bytes), hard_limit)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(int(niceness))
    node = os.uname().nodename
    if file:
        try:
            # The collector refuses anything but a file. open(2) of a device may have effects.
            if stat.S_IFMT(os.stat(file).st_mode) in (stat.S_IFREG, stat.S_IFDIR):
                os.close(os.open(file, os.O_RDONLY | os.O_NONBLOCK))
        except PermissionError as error:
            fail("denied", error, f"{file} on {node}: {error.strerror}; run as a user who may read it")
        except FileNotFoundError as error:
            fail("unreachable", error, f"no such file on {node}: {file}")
        except OSError as error:
            fail("unreachable", error, f"{file} on {node}: {error.strerror}")
    if not arguments:
        collect(command)
        return
    try:
        os.execvp(command[0], command)
    except OSError as error:
        fail("no_drgn", error, f"cannot run {command[0]} on {node}: {error.strerror}")


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, even by SIGKILL: no child runs on without a reader."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != parent:
        sys.exit("the runner has ended")


def serve() -> list[str]:
    """Fork for each request on stdin, a socket; return the request in the child, never in the server.

    A request is a JSON list and the writing ends of the child's stdout and stderr. The child sends its pid when it has
    a session of its own. The server sends the return code when the child has exited, and reaps it when the runner
    answers that it has killed the process group: until then no other group can have its id.
    """
    import gc
    import json
    import socket

    from pipeline.collector.__main__ import main as audit

    audit([os.devnull])  # imports what every audit needs
    sys.stdout.flush()
    gc.freeze()  # no collection in a child touches these objects, which would copy their pages
    control = socket.socket(fileno=0)
    server = os.getpid()
    while True:
        request, pipes, _, _ = socket.recv_fds(control, 1 << 20, 2)
        if not request:
            sys.exit()
        child = os.fork()
        if not child:
            die_with(server)
            os.setsid()
            control.send(b"started %d" % os.getpid())
            control.detach()
            os.dup2(1, 0)  # the server's stdout is /dev/null
            for number, fd in enumerate(pipes, 1):
                os.dup2(fd, number)
                os.close(fd)
            return json.loads(request)
        for fd in pipes:
            os.close(fd)
        _, _, _, status, code = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # type: ignore[misc]  # never None
        control.send(b"exited %d" % (status if code == os.CLD_EXITED else -status))
        control.recv(1)
        os.waitpid(child, 0)


def collect(arguments: list[str]) -> None:
    """Do what `python -m pipeline.collector` does; an exception ends the interpreter as it does there."""
    import runpy

    del sys.modules["pipeline.collector.__main__"]  # runpy warns of a module that is already imported
    sys.argv[1:] = arguments
    runpy.run_module("pipeline.collector", run_name="__main__", alter_sys=True)


def fail(status: str, error: OSError, text: str) -> None:
    """Print a failure as a frame, as the collector does, and exit."""
    import json

    print("list-lru-audit snapshot 1")
    print(json.dumps({"error": {"status": status, "error_type": type(error).__name__, "error": text}}))
    sys.exit(1)


if __name__ == "__main__":
    main()
