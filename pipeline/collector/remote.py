"""Runs the collector on a host that ssh reaches: everything comes over stdin, nothing stays on the host.

This file is the first thing that arrives, and is executed as it arrives. Then come, each announced by the one before,

- a line: what to run and how, a Python literal (python3-minimal has no json);
- the sources of the collector, imported from memory;
- where drgn is missing and the other side has wheels: a line that says what this host needs goes out on stdout, and
  drgn's sources and shared objects come back. The shared objects are files for as long as it takes to load them;
- a newline every now and then for as long as the other side lives. The collector is killed when they end.
"""

import sys

sys.path[:] = [path for path in sys.path if path]  # `python -c` would import from the directory it was started in

HOST = "list-lru-audit host "  # begins the line that says what drgn has to fit
_SILENCE_S = 90  # after so long the connection is dead; the other side speaks every 20 s
_GONE = "the connection was lost"
_DRGN = (0, 0, 31)
_BLOCK_BYTES = 4096


def main():
    if sys.version_info < (3, 6):
        _no_drgn("%s is Python %d.%d and 3.6 is the oldest that will do", sys.executable, *sys.version_info[:2])
    try:
        import ast
        import zlib

        stdin = sys.stdin.buffer
        request = ast.literal_eval(_line(stdin))
        _import_from(ast.literal_eval(zlib.decompress(_read(stdin, request["sources_bytes"])).decode()))
        code = _supervise(request, stdin)
    except ImportError as e:
        _no_drgn("%s lacks a part of the standard library: %s; install python3 in full", sys.executable, e)
    sys.exit(code)


def _no_drgn(message, *values):
    text = "".join(c if c.isalnum() or c in " ./:;,-_+=()'" else "?" for c in message % values)
    print("\nlist-lru-audit snapshot 1")
    print('{"error": {"status": "no_drgn", "error_type": "ImportError", "error": "%s"}}' % text)
    sys.exit(1)


def _import_from(sources):
    """Let modules be imported from a dict: path of the file to its source."""
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
    """Whether a drgn that is new enough can be imported; tried in a child, as an old one could not be replaced."""
    import os

    child = os.fork()
    if not child:
        found = False
        try:
            import drgn

            version = drgn.__version__.split("+")[0].split(".")
            found = tuple(int(part) for part in version if part.isdigit()) >= _DRGN
        except ImportError:
            pass
        finally:
            os._exit(not found)
    return os.waitpid(child, 0)[1] == 0


def _fetch_drgn(stdin, folder):
    """Say what this host needs, take drgn, and leave its shared objects in a folder."""
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
    print("\n" + HOST + " ".join((python, suffix, os.uname().machine, libc or "other 0.0")), flush=True)
    sources = {}
    for path, size, deflated in ast.literal_eval(_line(stdin)):
        content = _read(stdin, size)
        if deflated:
            content = zlib.decompress(content, -zlib.MAX_WBITS)
        if path.endswith(".py"):
            sources[path] = content.decode()
        else:
            to = os.path.join(folder, path)
            os.makedirs(os.path.dirname(to), exist_ok=True)
            _write(to, content)
    _import_from(sources)


def _write(path, content):
    """Write a file with holes where there are zeros: four fifths of a wheel's libraries are."""
    with open(path, "wb") as file:
        for start in range(0, len(content), _BLOCK_BYTES):
            block = content[start : start + _BLOCK_BYTES]
            if block.strip(b"\0"):
                file.seek(start)
                file.write(block)
        file.truncate(len(content))


def _line(stdin):
    line = b"\n"
    while line == b"\n":  # a sign of life
        line = stdin.readline()
    if not line.endswith(b"\n"):
        sys.exit(_GONE)
    return line.decode()


def _read(stdin, size):
    data = stdin.read(size)
    if len(data) < size:
        sys.exit(_GONE)
    return data


def _supervise(request, stdin):
    """Run the collector in a child, kill it when the connection ends, and return its exit code or 128 + its signal."""
    import os
    import select
    import signal

    child = folder = None

    def end(*_):
        if child:
            os.kill(child, signal.SIGKILL)
        sys.exit(_GONE)

    signals = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    for number in signals:
        signal.signal(number, end)
    try:
        if request["ship_drgn"] and not _has_drgn():
            folder = _folder()
            _fetch_drgn(stdin, folder)
        alive, childs_end = os.pipe()
        sys.stdout.flush()
        child = os.fork()
        if not child:
            for number in signals:
                signal.signal(number, signal.SIG_DFL)
            _collect(request, folder)
        os.close(childs_end)
        while True:
            ready, _, _ = select.select([0, alive], [], [], _SILENCE_S)
            if alive in ready:
                break
            if not ready or not os.read(0, 4096):
                end()
        _, status = os.waitpid(child, 0)
    finally:
        if folder is not None:
            _remove(folder)
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _collect(request, folder):
    """Be the collector; never returns."""
    import gc
    import os

    code = 1
    try:
        gc.disable()  # as where the collector is a program of its own
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.nice(request["niceness"])
        _limit(request["memory_bytes"])
        if folder is not None:
            sys.path.insert(0, folder)
            import drgn  # noqa: F401

            sys.path.remove(folder)
            _remove(folder)
        from pipeline.collector.__main__ import main as collect

        # A path is bytes, whatever the locale here makes of them.
        code = collect([os.fsdecode(arg.encode("utf-8", "surrogateescape")) for arg in request["args"]])
        sys.stdout.flush()
    except ImportError as e:
        _no_drgn("%s cannot import what the collector needs: %s", sys.executable, e)
    except BrokenPipeError:
        pass  # the connection was lost
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        try:
            sys.stdout.flush()
        finally:
            os._exit(code)


def _limit(memory_bytes):
    import resource

    for limit, most in ((resource.RLIMIT_DATA, memory_bytes), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(limit)
        if most is not None and (hard == resource.RLIM_INFINITY or most < hard):
            resource.setrlimit(limit, (most, most))


def _folder():
    """Make a private directory from which shared objects can be loaded."""
    import os
    import tempfile

    places = [tempfile.gettempdir(), "/var/tmp", "/dev/shm", "/run", os.path.expanduser("~")]
    for place in places:
        if os.access(place, os.W_OK) and not os.statvfs(place).f_flag & os.ST_NOEXEC:
            return tempfile.mkdtemp(prefix="lru-audit.", dir=place)
    return _no_drgn("drgn cannot be loaded from any of %s: not writable or noexec; install drgn", ", ".join(places))


def _remove(folder):
    import contextlib
    import os

    for below, _, files in os.walk(folder, topdown=False):
        paths = [os.path.join(below, name) for name in files]
        for remove, path in [*((os.unlink, path) for path in paths), (os.rmdir, below)]:
            with contextlib.suppress(FileNotFoundError):  # the collector may have been at the same
                remove(path)


if __name__ == "__main__":
    main()
