"""The collector's process: audit one kernel, print its snapshot as JSON lines in a frame.

The frame starts with FRAME on a line of its own and ends with a line that counts the rows, or names the error.
"""

import argparse
import functools
import gc
import importlib.util
import json
import logging
import os
import sys

from . import budget
from .status import CollectError

FRAME = "list-lru-audit snapshot 1"
_ROWS_A_LINE = 1000
_LIVE_WALKS = 3


def main(argv=None):
    """Audit the kernel that the arguments name; return the exit code."""
    parser = argparse.ArgumentParser(prog="list-lru-audit collector", description=__doc__.splitlines()[0])
    parser.add_argument("source", help="path of a core, live:, or qmp:SOCKET")
    parser.add_argument("--vmlinux", help="file with this kernel's DWARF")
    parser.add_argument("--debug-dir", action="append", default=[], help="directory to search for it by build id")
    parser.add_argument("--btf-dir", help="directory of BTF files by release and architecture")
    parser.add_argument("--vmcoreinfo", help="file with the VMCOREINFO of a QEMU guest")
    charged = parser.add_mutually_exclusive_group()
    charged.add_argument("--charged", action="store_true", default=None, help="look for charged objects; cores: yes")
    charged.add_argument("--no-charged", action="store_false", dest="charged")
    parser.add_argument("--target-layout", choices=("5.18", "6.13"), default="5.18", help="lazy kernel to estimate")
    parser.add_argument("--verify", action="store_true", help="look at every pointer array, not at a sample")
    parser.add_argument("--max-reads", type=int, metavar="N", help="read system calls to make at most")
    args = parser.parse_args(argv)
    print("\n" + FRAME)
    try:
        snapshot = budget.within(args.max_reads, functools.partial(_take, args))
    except CollectError as e:
        message = str(e) if args.source in str(e) else "%s: %s" % (args.source.rstrip(":"), e)
        _line({"error": {"status": e.status, "error_type": e.error_type, "error": message}})
        return 1
    rows = {}
    for table in snapshot.tables:
        rows[table.name] = len(table.rows)
        for start in range(0, len(table.rows), _ROWS_A_LINE):
            part = table.rows[start : start + _ROWS_A_LINE]
            _line({"table": table.name, "columns": table.columns, "rows": part})
    if snapshot.unsupported:
        _line({"unsupported": snapshot.unsupported})
    _line({"end": rows})
    return 0


def _take(args):
    try:
        import drgn
    except ImportError as e:
        message = "drgn cannot be imported by %s: %s; install drgn 0.0.31 or newer" % (sys.executable, e)
        raise CollectError("no_drgn", message, "ImportError") from e
    # Its warnings speak of debug info that this collector does without.
    logging.getLogger("drgn").setLevel(logging.ERROR)
    _import_helpers()
    from . import snapshot
    from .access import kernel, memory

    try:
        opened = kernel.open_kernel(args.source, args.vmlinux, args.debug_dir, args.btf_dir, args.vmcoreinfo)
        running = memory.is_running(opened.prog)
        charged = not running if args.charged is None else args.charged
        take = functools.partial(snapshot.take, opened, charged, args.target_layout, args.verify)
        return _while_it_changes(take) if running else take()
    except drgn.FaultError as e:
        message = "memory is missing: the core is truncated or was filtered: %s" % e
        raise CollectError("bad_core", message, "FaultError") from e
    except (LookupError, AttributeError) as e:
        # A type, member or symbol of this kernel that the collector relies on.
        raise CollectError("no_types", str(e), type(e).__name__) from e


def _import_helpers():
    """Import the modules of drgn.helpers.linux that are used: the package itself imports all, for 50 ms of CPU time."""
    package = importlib.util.find_spec("drgn.helpers.linux")
    if package is None or package.name in sys.modules:
        return
    sys.modules[package.name] = importlib.util.module_from_spec(package)
    try:
        from drgn.helpers.linux import kallsyms, mm, nodemask, slab  # noqa: F401
    except ImportError:  # a drgn whose helpers need the whole package: it is imported with the first that is used
        pass
    finally:
        del sys.modules[package.name]


def _while_it_changes(take):
    """Audit a running kernel; a list that was changed under the walk breaks it, so walk again."""
    import drgn

    for _ in range(_LIVE_WALKS):
        try:
            return take()
        except (drgn.FaultError, CollectError) as e:
            if isinstance(e, CollectError) and e.status != "bad_core":
                raise
            last = e
    message = "the kernel changed under each of %d walks, the last time: %s" % (_LIVE_WALKS, last)
    raise CollectError("inconsistent", message, type(last).__name__)


def _line(record):
    print(json.dumps(record, separators=(",", ":")))


if __name__ == "__main__":
    gc.disable()  # a tenth of the time, and nothing that it could free
    code = main()
    sys.stdout.flush()
    os._exit(code)  # all memory goes at once
