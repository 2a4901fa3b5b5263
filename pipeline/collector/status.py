"""How the collection of one target can end, and the error that carries such an end.

Importable without drgn: the runner and the warehouse check against the same list.
"""

STATUSES = (
    "ok",
    "unsupported",
    "unreachable",
    "denied",
    "no_drgn",
    "bad_core",
    "no_types",
    "mismatch",
    "bad_output",
    "over_budget",
    "timeout",
    "crashed",
    "lost",
    "inconsistent",
    "not_run",
)

GOOD = ("ok", "unsupported")

# How Python, the C library, the loader (twice) and readline say that there is no memory.
OUT_OF_MEMORY = (
    "MemoryError",
    "Cannot allocate memory",
    "failed to map segment",
    "cannot map zero-fill pages",
    "out of virtual memory",
)


class CollectError(Exception):
    """A target cannot be audited.

    :param status: one of STATUSES that is not good.
    :param message: one line that names the file or host and, where there is one, the remedy.
    :param error_type: the class of the cause; default the class name of this error.
    """

    def __init__(self, status, message, error_type=None):
        super().__init__(message)
        self.status = status
        self.error_type = error_type or type(self).__name__
