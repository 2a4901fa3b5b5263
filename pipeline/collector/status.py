"""The statuses with which the collection of one target ends, and the error that carries one.

Importable without drgn: the runner and the warehouse use the same list.
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

# Messages for a failed memory allocation: of Python, the C library, the dynamic loader (two) and readline.
OUT_OF_MEMORY = (
    "MemoryError",
    "Cannot allocate memory",
    "failed to map segment",
    "cannot map zero-fill pages",
    "out of virtual memory",
)


class CollectError(Exception):
    """A target cannot be audited.

    :param status: one of STATUSES, not of GOOD.
    :param message: one line that names the file or host and, if one is known, the remedy.
    :param error_type: class name of the cause; default the class name of this error.
    """

    def __init__(self, status, message, error_type=None):
        super().__init__(message)
        self.status = status
        self.error_type = error_type or type(self).__name__
