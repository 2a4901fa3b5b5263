"""Errors for the user. Each prints as one line: what is wrong, where, and what to do.

    AuditError               1  base class; the number is the exit code
    ├── UsageError           2  arguments that contradict one another
    │   ├── InventoryError   2  all errors of the arguments and the inventory, one per line  (inventory)
    │   └── ThresholdError   2  an invalid --fail-if condition                               (report.threshold)
    ├── ClusterError         1  Ray cannot be started or joined, or was lost                 (fanout.cluster)
    ├── ClientError          1  ssh cannot run on this machine                               (fanout.transports.ssh)
    ├── WarehouseError       1  a run cannot be stored or read                               (warehouse.errors)
    │   ├── TornError        1  a file of a run is missing or incomplete
    │   ├── ExpiredError     1  a run was expired while it was read
    │   └── LocationError    2  a path or URI that cannot hold a warehouse
    ├── QueryError           1  a query cannot be answered                                   (query.session)
    ├── CheckError           1  rows of a run contradict one another, whatever the target    (query.checks)
    └── FormatError          1  a format cannot represent a result                           (report.rows)

The failure of one target is not among them. CollectError, TargetError and FrameError become the status of that target
(collector.status); SessionError, BtfError, NotScanned, Misfit, WorkerLost, ForkServerLost and InventorySyntaxError stay
within their room.
"""


class AuditError(Exception):
    """A command cannot continue; the message is for the user.

    :cvar exit_code: exit code of the command.
    """

    exit_code = 1


class UsageError(AuditError):
    """Arguments that contradict one another."""

    exit_code = 2
