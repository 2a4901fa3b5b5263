"""What an audit costs the host that it runs on, and the end of one that costs more than it may.

Importable without drgn, which may be the first thing that there is no memory for.
"""

import contextlib
import re
import resource
import signal

from .status import OUT_OF_MEMORY, CollectError

_CHECK_S = 0.1

# Reads that /proc/self/io leaves out, and their bytes; less the reads of that file, which are not the audit's.
_uncounted = [0, 0]


class OverBudget(BaseException):
    """More was read than allowed. No Exception: what handles a broken kernel must not handle this."""


def count(size, reads=1):
    """Add a read that /proc/self/io leaves out."""
    _uncounted[0] += reads
    _uncounted[1] += size


def reads():
    """Return the read system calls of this process and their bytes, as /proc/self/io has them, or None and None.

    With those that it leaves out, of a QEMU guest; what goes through its monitor is in both.
    """
    try:
        with open("/proc/self/io", "rb", buffering=0) as f:
            said = f.read(4096)
    except OSError:
        return None, None
    counters = dict(line.split(b": ") for line in said.splitlines())
    used = int(counters[b"syscr"]) + _uncounted[0], int(counters[b"rchar"]) + _uncounted[1]
    count(-len(said), reads=-1)
    return used


def peak_rss_bytes():
    """Return the most memory that this program had, or None; getrusage() would include its parent's before exec()."""
    try:
        with open("/proc/self/status") as f:
            return int(re.search(r"^VmHWM:\s+(\d+) kB", f.read(), re.MULTILINE).group(1)) * 1024
    except (OSError, AttributeError):
        return None


def within(max_reads, audit):
    """Return what audit() returns, unless it reads more often than max_reads (None: as often as it likes).

    :raises CollectError: ``over_budget``: that, or there was not enough memory.
    """
    try:
        with _at_most(max_reads):
            return audit()
    except OverBudget:
        error_type, needs, cause = "OverBudget", "more than %d reads" % max_reads, ""
    except MemoryError:
        error_type, needs, cause = "MemoryError", _more_memory(), ""
    except CollectError as e:
        if not any(sign in str(e) for sign in OUT_OF_MEMORY):
            raise
        error_type, needs, cause = e.error_type, _more_memory(), ": %s" % e
    # Here, where what the audit held is free again.
    message = "needs %s; stopped after %s%s" % (needs, _used(), cause)
    raise CollectError("over_budget", message, error_type)


@contextlib.contextmanager
def _at_most(max_reads):
    if max_reads is None:
        yield
        return
    if reads() == (None, None):
        raise CollectError("over_budget", "reads cannot be limited: this kernel does not count them in /proc/self/io")

    def check(*_):
        count, _ = reads()
        if count > max_reads:
            raise OverBudget

    signal.signal(signal.SIGALRM, check)
    # drgn's system calls go on after the signal; Python runs check() when they have returned.
    signal.siginterrupt(signal.SIGALRM, False)
    signal.setitimer(signal.ITIMER_REAL, _CHECK_S, _CHECK_S)
    try:
        yield
        check()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _more_memory():
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit == resource.RLIM_INFINITY:
        return "more memory than there is"
    return "more than %d MiB of memory" % (limit >> 20)


def _used():
    count, read_bytes = reads()
    peak_bytes = peak_rss_bytes()
    return "%s reads of %s bytes, with at most %s MiB resident" % (
        "?" if count is None else count,
        "?" if read_bytes is None else read_bytes,
        "?" if peak_bytes is None else peak_bytes >> 20,
    )
