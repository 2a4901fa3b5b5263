"""Run the collector on a host that ssh reaches: everything arrives over stdin, nothing stays on the host.

This file arrives first and is executed as it arrives. Then follow, each announced by the one before:

- the request: one line, a Python literal (python3-minimal has no json), with what to run and its limits;
- the sources of the collector, which are imported from memory;
- drgn, where this host lacks it and the client has wheels: this side prints a line on stdout with the build that fits,
  and drgn's sources and shared objects arrive. The shared objects are files only until they are loaded;
- heartbeats: a newline from time to time while the client lives. When they stop, the collector is killed.
"""

import sys

sys.path[:] = [path for path in sys.path if path]  # `python -c` would import from its working directory

_ANNOUNCEMENT = "lru-audit runs"  # tells the client that sudo has let it in and that the interpreter works
_HOST_PREFIX = "list-lru-audit host "  # prefix of the line that tells the client which build of drgn fits
_HEARTBEAT_TIMEOUT_S = 90  # the client sends a heartbeat every 20 s
_CONNECTION_LOST = "the connection was lost"
_MIN_DRGN = (0, 0, 31)
_BLOCK_BYTES = 4096
_DRGN_BYTES = 40 << 20  # room for drgn's shared objects, of which 27 MB are not holes
_PR_SET_PDEATHSIG = 1


def main():
    sys.stderr.write(_ANNOUNCEMENT + "\n")
    sys.stderr.flush()
    if sys.version_info < (3, 6):
        _no_drgn("%s is Python %d.%d; 3.6 or newer is needed", sys.executable, *sys.version_info[:2])
    try:
        import ast
        import zlib

        stdin = sys.stdin.buffer
        request = ast.literal_eval(_read_line(stdin))
        _import_from(ast.literal_eval(zlib.decompress(_read(stdin, request["sources_bytes"])).decode()))
        code = _supervise(request, stdin)
    except ImportError as e:
        _no_drgn("%s lacks a part of the standard library: %s; install python3 in full", sys.executable, e)
    sys.exit(code)


def _no_drgn(message, *values):
    """Print a frame with an error of status ``no_drgn`` and exit; json may be missing."""
    text = "".join(c if c.isalnum() or c in " ./:;,-_+=()'" else "?" for c in message % values)
    print("\nlist-lru-audit snapshot 1")
    print('{"error": {"status": "no_drgn", "error_type": "ImportError", "error": "%s"}}' % text)
    sys.exit(1)


def _import_from(sources):
    """Make modules importable from memory.

    :param sources: path of each file to its source.
    """
    import importlib.abc
    import importlib.util

    class Memory(importlib.abc.InspectLoader):
        def find_spec(self, name, path=None, target=None):
            if self._path(name) is None:
                return None
            return importlib.util.spec_from_loader(name, self)

        def _path(self, name):
            base = name.replace(".", "/")
            return next((path for path in (base + "/__init__.py", base + ".py") if path in sources), None)

        def is_package(self, name):
            return self._path(name).endswith("/__init__.py")

        def get_source(self, name):
            return sources[self._path(name)]

    sys.meta_path.insert(0, Memory())


def _has_drgn():
    """Whether drgn is installed and new enough; tried in a child, since an imported drgn cannot be replaced."""
    import os

    child = os.fork()
    if not child:
        is_new_enough = False
        try:
            import drgn

            version = drgn.__version__.split("+")[0].split(".")
            is_new_enough = tuple(int(part) for part in version if part.isdigit()) >= _MIN_DRGN
        except ImportError:
            pass
        finally:
            os._exit(not is_new_enough)
    return os.waitpid(child, 0)[1] == 0


def _fetch_drgn(stdin, directory):
    """Ask the client for drgn, import its sources from memory, and write its shared objects to a directory."""
    import ast
    import importlib.machinery
    import os
    import zlib

    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION")
    except (OSError, ValueError):
        libc = None
    python = "%d.%d" % sys.version_info[:2]
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    print("\n" + _HOST_PREFIX + " ".join((python, suffix, os.uname().machine, libc or "other 0.0")), flush=True)
    sources = {}
    for path, size, is_deflated in ast.literal_eval(_read_line(stdin)):
        content = _read(stdin, size)
        if is_deflated:
            content = zlib.decompress(content, -zlib.MAX_WBITS)
        if path.endswith(".py"):
            sources[path] = content.decode()
        else:
            target = os.path.join(directory, path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            _write_sparse(target, content)
    _import_from(sources)


def _write_sparse(path, content):
    """Write a file with holes for blocks of zeros: four fifths of a wheel's libraries are zeros."""
    with open(path, "wb") as file:
        for start in range(0, len(content), _BLOCK_BYTES):
            block = content[start : start + _BLOCK_BYTES]
            if block.strip(b"\0"):
                file.seek(start)
                file.write(block)
        file.truncate(len(content))


def _read_line(stdin):
    line = b"\n"
    while line == b"\n":  # a heartbeat
        line = stdin.readline()
    if not line.endswith(b"\n"):
        sys.exit(_CONNECTION_LOST)
    return line.decode()


def _read(stdin, size):
    data = stdin.read(size)
    if len(data) < size:
        sys.exit(_CONNECTION_LOST)
    return data


def _supervise(request, stdin):
    """Run the collector in a child; return its exit code, or 128 plus the signal that ended it.

    The child is killed when the connection ends.
    """
    import os
    import select
    import signal

    from pipeline.collector import architectures

    child = directory = None

    def stop(*_):
        if child:
            os.kill(child, signal.SIGKILL)
        sys.exit(_CONNECTION_LOST)

    signals = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    for number in signals:
        signal.signal(number, stop)
    try:
        # The collector refuses the kernel of another architecture without drgn, for which there may be no wheel.
        is_refused = "live:" in request["args"] and os.uname().machine not in architectures.SUPPORTED
        if request["ship_drgn"] and not is_refused and not _has_drgn():
            directory = _make_directory()
            _fetch_drgn(stdin, directory)
        # The child holds the writing end: end of file on the reading end means that it has exited.
        reading_end, writing_end = os.pipe()
        sys.stdout.flush()
        supervisor = os.getpid()
        child = os.fork()
        if not child:
            for number in signals:
                signal.signal(number, signal.SIG_DFL)
            _collect(request, directory, supervisor)
        os.close(writing_end)
        while True:
            ready, _, _ = select.select([0, reading_end], [], [], _HEARTBEAT_TIMEOUT_S)
            if reading_end in ready:
                break
            if not ready or not os.read(0, 4096):
                stop()
        _, status = os.waitpid(child, 0)
    finally:
        if directory is not None:
            _remove(directory)
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _die_with(parent):
    """Have the kernel kill this process when its parent is killed, unless this Python was built without libffi."""
    import contextlib
    import os
    import signal

    with contextlib.suppress(ImportError):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _collect(request, directory, supervisor):
    """Turn this process into the collector, which ends with its supervisor; never returns."""
    import gc
    import os

    code = 1
    try:
        gc.disable()  # as in pipeline/collector/__main__.py
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.nice(request["niceness"])
        _set_limits(request["memory_bytes"])
        if directory is not None:
            sys.path.insert(0, directory)
            import drgn  # noqa: F401

            sys.path.remove(directory)
            _remove(directory)
        _die_with(supervisor)
        from pipeline.collector.__main__ import main as collect

        # The arguments name files by their bytes, in whatever locale this host has.
        code = collect([os.fsdecode(arg.encode("utf-8", "surrogateescape")) for arg in request["args"]])
        sys.stdout.flush()
    except ImportError as e:
        _no_drgn("%s cannot import a module that the collector needs: %s", sys.executable, e)
    except BrokenPipeError:
        pass  # the connection was lost
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        try:
            sys.stdout.flush()
        finally:
            os._exit(code)


def _set_limits(memory_bytes):
    import resource

    for limit, maximum in ((resource.RLIMIT_DATA, memory_bytes), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(limit)
        if maximum is not None and (hard == resource.RLIM_INFINITY or maximum < hard):
            resource.setrlimit(limit, (maximum, maximum))


def _make_directory():
    """Create a private directory from which shared objects can be loaded."""
    import os
    import tempfile

    parents = [tempfile.gettempdir(), "/var/tmp", "/dev/shm", "/run", os.path.expanduser("~")]
    for parent in parents:
        if os.access(parent, os.W_OK):
            fs = os.statvfs(parent)
            is_full = fs.f_blocks and fs.f_bavail * fs.f_frsize < _DRGN_BYTES  # a tmpfs without a limit has 0 blocks
            if not (is_full or fs.f_flag & os.ST_NOEXEC):
                return tempfile.mkdtemp(prefix="lru-audit.", dir=parent)
    text = "drgn cannot be loaded from any of %s: not writable, noexec or less than %d MiB free; install drgn"
    return _no_drgn(text, ", ".join(parents), _DRGN_BYTES >> 20)


def _remove(directory):
    import contextlib
    import os

    for subdirectory, _, files in os.walk(directory, topdown=False):
        paths = [os.path.join(subdirectory, name) for name in files]
        for remove, path in [*((os.unlink, path) for path in paths), (os.rmdir, subdirectory)]:
            with contextlib.suppress(FileNotFoundError):  # the collector removes the directory too
                remove(path)


if __name__ == "__main__":
    main()
