"""The errors that reach a user. Each prints as one line: what is wrong, where, and what to do.

    AuditError               1  base class; the number is the exit code
    ├── UsageError           2  arguments that contradict one another
    │   ├── InventoryError   2  every error of the arguments and the inventory, a line each  (inventory)
    │   └── ThresholdError   2  an invalid --fail-if condition                               (report.threshold)
    ├── ClusterError         1  Ray cannot be started or joined, or was lost                 (fanout.cluster)
    ├── WarehouseError       1  a run cannot be stored or read                               (warehouse.errors)
    │   ├── TornError        1  a file of a run is missing or incomplete
    │   └── LocationError    2  a path or URI that cannot hold a warehouse
    ├── QueryError           1  a query cannot be answered                                   (query.session)
    ├── CheckError           1  rows of a run contradict one another, whatever the target    (query.checks)
    └── FormatError          1  a format cannot represent a result                           (report.rows)

What goes wrong with one target is no exception here: it becomes that target's status (collector.status).
"""


class AuditError(Exception):
    """A command cannot go on; the message is for the user.

    :cvar exit_code: what the command then exits with.
    """

    exit_code = 1


class UsageError(AuditError):
    """Arguments that contradict one another."""

    exit_code = 2
