"""The collector's process: audit one kernel, print its snapshot as JSON lines in a frame.

The frame starts with FRAME on a line of its own. It ends with a line that counts the rows, or names the error.
"""

import argparse
import functools
import gc
import importlib.util
import json
import logging
import os
import sys

from . import architectures, budget
from .model import target_kernels
from .status import CollectError

FRAME = "list-lru-audit snapshot 1"
_ROWS_PER_LINE = 100  # the runner takes lines of up to 8 MiB, and a path may have thousands of characters
# Bounds the audits of one running kernel, whose lists may change during a walk.
_MAX_LIVE_WALKS = 3


def main(argv=None):
    """Audit the kernel that the arguments name; return the exit code."""
    parser = argparse.ArgumentParser(prog="list-lru-audit collector", description=__doc__.splitlines()[0])
    parser.add_argument("source", help="path of a core, live:, or qmp:SOCKET")
    parser.add_argument("--vmlinux", help="file with the kernel's DWARF debug info")
    parser.add_argument("--debug-dir", action="append", default=[], help="directory to search for it")
    parser.add_argument("--btf-dir", help="directory of BTF files by release and architecture")
    parser.add_argument("--vmcoreinfo", help="file with the VMCOREINFO of a core or a QEMU guest")
    charged_group = parser.add_mutually_exclusive_group()
    charged_group.add_argument(
        "--charged",
        action="store_true",
        default=None,
        help="scan all memory for charged objects; the default for cores. A running host's is scanned up to a limit",
    )
    charged_group.add_argument("--no-charged", action="store_false", dest="charged", help="scan no memory for them")
    parser.add_argument("--target-kernel", choices=tuple(target_kernels.KERNELS), help="kernel to upgrade to")
    parser.add_argument("--target-layout", choices=tuple(target_kernels.LAYOUTS), help="older form of --target-kernel")
    parser.add_argument("--verify", action="store_true", help="check every pointer array instead of a sample")
    parser.add_argument("--max-reads", type=int, metavar="N", help="limit of read system calls")
    args = parser.parse_args(argv)
    try:
        target_kernels.check(args.target_kernel, args.target_layout)
    except ValueError as e:
        parser.error(str(e))
    print("\n" + FRAME)
    try:
        snapshot = budget.run_within_budget(functools.partial(_take_snapshot, args), args.max_reads)
    except CollectError as e:
        message = str(e) if args.source in str(e) else "%s: %s" % (args.source.rstrip(":"), e)
        _print_line({"error": {"status": e.status, "error_type": e.error_type, "error": message}})
        return 1
    row_counts = {}
    for table in snapshot.tables:
        row_counts[table.name] = len(table.rows)
        for start in range(0, len(table.rows), _ROWS_PER_LINE):
            part = table.rows[start : start + _ROWS_PER_LINE]
            _print_line({"table": table.name, "columns": table.columns, "rows": part})
    if snapshot.unsupported_reason:
        _print_line({"unsupported": snapshot.unsupported_reason})
    _print_line({"end": row_counts})
    return 0


def _take_snapshot(args):
    """Open the kernel that the arguments name and audit it.

    :raises CollectError: with the status that says why.
    """
    if args.source == "live:":
        architectures.check(os.uname().machine, os.uname().nodename)
    # drgn's commands are plugins, which import all of its helpers: 80 ms of CPU time. DRGN_PLUGINS still names others.
    os.environ.setdefault("DRGN_DISABLE_PLUGINS", "*")
    os.environ.pop("DEBUGINFOD_URLS", None)  # an audit asks no server for debug info, and waits for none
    try:
        import drgn
    except ImportError as e:
        message = "%s cannot import drgn: %s; install drgn 0.0.31 or newer" % (sys.executable, e)
        raise CollectError("no_drgn", message, "ImportError") from e
    # drgn warns of missing debug info, which the collector does not need.
    logging.getLogger("drgn").setLevel(logging.ERROR)
    _import_helpers()
    from . import snapshot
    from .access import core_file, kernel, memory
    from .walk import charges

    try:
        opened_kernel = kernel.open_kernel(args.source, args.vmlinux, args.debug_dir, args.btf_dir, args.vmcoreinfo)
        is_running = memory.is_running(opened_kernel.prog)
        # A guest's memory may be read through QEMU's monitor, which takes too long for a scan.
        is_limited = args.charged is None and memory.is_own(opened_kernel.prog)
        scan_charges = is_limited or (not is_running if args.charged is None else args.charged)
        target = args.target_kernel or args.target_layout or target_kernels.DEFAULT
        max_scan_bytes = charges.LIVE_BYTES if is_limited else None
        take = functools.partial(snapshot.take, opened_kernel, scan_charges, target, args.verify, max_scan_bytes)
        if is_running:
            return _retry_on_change(take)
        with core_file.explained(opened_kernel.note):
            return take()
    except drgn.FaultError as e:
        raise CollectError("bad_core", "memory is missing: %s" % e, "FaultError") from e
    except NotImplementedError as e:
        # Of drgn, for page tables of a kind that it does not read: ppc64 with the hash MMU.
        message = "drgn cannot translate this kernel's addresses: %s" % e
        raise CollectError("bad_core", message, "NotImplementedError") from e
    except (LookupError, AttributeError, ValueError, RecursionError) as e:
        # This kernel lacks a type, member or symbol that the collector relies on, or its types are damaged.
        raise CollectError("no_types", str(e), type(e).__name__) from e
    except (CollectError, MemoryError):
        raise
    except Exception as e:
        # For example drgn's own exceptions, whose classes differ between its versions.
        message = "memory is damaged: %s: %s (%s)" % (type(e).__name__, e, _innermost_line(e))
        raise CollectError("bad_core", message, type(e).__name__) from e


def _innermost_line(error):
    """Return the line of the collector in which an exception was raised, or which called what raised it."""
    place = "?"
    traceback = error.__traceback__
    while traceback:
        module = traceback.tb_frame.f_globals["__name__"]
        if module.startswith(__package__):
            place = "%s, line %d" % (module, traceback.tb_lineno)
        traceback = traceback.tb_next
    return place


def _import_helpers():
    """Import only the used modules of drgn.helpers.linux: its __init__ imports all, which takes 50 ms of CPU time."""
    package = importlib.util.find_spec("drgn.helpers.linux")
    if package is None or package.name in sys.modules:
        return
    sys.modules[package.name] = importlib.util.module_from_spec(package)
    try:
        from drgn.helpers.linux import kallsyms, mm, nodemask, slab  # noqa: F401
    except ImportError:  # the helpers of this drgn need the whole package; the first use imports it
        pass
    finally:
        del sys.modules[package.name]


def _retry_on_change(take):
    """Audit a running kernel, again if the walk failed because a list changed during it.

    :raises CollectError: ``inconsistent``: the kernel changed during each of _MAX_LIVE_WALKS walks.
    """
    import drgn

    for _ in range(_MAX_LIVE_WALKS):
        try:
            return take()
        except (drgn.FaultError, CollectError) as e:
            if isinstance(e, CollectError) and e.status != "bad_core":
                raise
            error = e
    message = "the kernel changed during each of %d walks, the last time: %s" % (_MAX_LIVE_WALKS, error)
    raise CollectError("inconsistent", message, type(error).__name__)


def _print_line(record):
    print(json.dumps(record, separators=(",", ":")))


if __name__ == "__main__":
    gc.disable()  # saves a tenth of the time; an audit leaves no cycles to free
    code = main()
    sys.stdout.flush()
    os._exit(code)  # skips the teardown of memory
