"""The cost of an audit on its host, and the end of an audit that exceeds its budget.

Importable without drgn: the import of drgn may already exceed the memory limit.
"""

import contextlib
import re
import resource
import signal

from .status import OUT_OF_MEMORY, CollectError

# Interval at which a running audit is checked against its limit of reads.
_CHECK_S = 0.1

# Correction to the reads and bytes of /proc/self/io: plus reads that it leaves out, minus the reads of /proc/self/io.
_correction = [0, 0]


class OverBudget(BaseException):
    """The audit made more reads than allowed. A BaseException: handlers for a broken kernel must not catch it."""


def count_read(size, reads=1):
    """Count a read that /proc/self/io leaves out."""
    _correction[0] += reads
    _correction[1] += size


def reads():
    """Return the number of this process's read system calls and their bytes, or None and None without /proc/self/io.

    Reads of a QEMU guest's memory by process_vm_readv(), which /proc/self/io leaves out, are added. Reads through
    QEMU's monitor count twice.
    """
    try:
        with open("/proc/self/io", "rb", buffering=0) as f:
            content = f.read(4096)
    except OSError:
        return None, None
    counters = dict(line.split(b": ") for line in content.splitlines())
    totals = int(counters[b"syscr"]) + _correction[0], int(counters[b"rchar"]) + _correction[1]
    count_read(-len(content), reads=-1)
    return totals


def peak_rss_bytes():
    """Return the peak resident memory of this program, or None where /proc/self/status does not have it.

    getrusage() would include the memory of the parent before exec().
    """
    try:
        with open("/proc/self/status") as f:
            return int(re.search(r"^VmHWM:\s+(\d+) kB", f.read(), re.MULTILINE).group(1)) * 1024
    except (OSError, AttributeError):
        return None


def run_within_budget(audit, max_reads):
    """Call audit() and return its result.

    :param max_reads: limit of read system calls, or None for no limit.
    :raises CollectError: ``over_budget``: the audit made more reads, or ran out of memory.
    """
    try:
        with _read_limit(max_reads):
            return audit()
    except OverBudget:
        error_type, requirement, cause = "OverBudget", "more than %d reads" % max_reads, ""
    except MemoryError:
        error_type, requirement, cause = "MemoryError", _memory_requirement(), ""
    except CollectError as e:
        if not any(text in str(e) for text in OUT_OF_MEMORY):
            raise
        error_type, requirement, cause = e.error_type, _memory_requirement(), ": %s" % e
    # Only after the except blocks is the audit's memory free for this message.
    message = "needs %s; stopped after %s%s" % (requirement, _usage(), cause)
    raise CollectError("over_budget", message, error_type)


@contextlib.contextmanager
def _read_limit(max_reads):
    """Raise OverBudget in the body of the with statement soon after it made more than max_reads reads."""
    if max_reads is None:
        yield
        return
    if reads() == (None, None):
        raise CollectError("over_budget", "reads cannot be limited: /proc/self/io, which counts them, cannot be read")

    def check(*_):
        count, _ = reads()
        if count > max_reads:
            raise OverBudget

    signal.signal(signal.SIGALRM, check)
    # Restart drgn's system calls after the signal; Python runs check() when they have returned.
    signal.siginterrupt(signal.SIGALRM, False)
    signal.setitimer(signal.ITIMER_REAL, _CHECK_S, _CHECK_S)
    try:
        yield
        check()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _memory_requirement():
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit == resource.RLIM_INFINITY:
        return "more memory than the host has"
    return "more than %d MiB of memory" % (limit >> 20)


def _usage():
    count, read_bytes = reads()
    peak_bytes = peak_rss_bytes()
    return "%s reads of %s bytes, with at most %s MiB resident" % (
        "?" if count is None else count,
        "?" if read_bytes is None else read_bytes,
        "?" if peak_bytes is None else peak_bytes >> 20,
    )
