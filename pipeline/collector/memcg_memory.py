"""The rows of the table memcg_memory: each part of what memory cgroups cost, as it is counted.

A part that cannot be counted is left out with a note, and never ends the audit.
"""

from drgn import FaultError

from .status import CollectError
from .walk.held import Held


def parts(findings, memcg_list):
    """Return the rows of each part, and notes on the parts that could not be counted.

    :param findings: list_lrus.Findings.
    :param memcg_list: list of Memcg, empty on a kernel without lists for memcgs.
    """
    counters = {"list_lru": lambda: _list_lrus(findings, memcg_list)}
    rows, notes = [], []
    for part, count in counters.items():
        try:
            held, basis = count()
        except (FaultError, LookupError, AttributeError, ValueError, CollectError) as e:
            notes.append("%s is not counted: %s" % (part, e))
            continue
        if held is not None:
            rows.append(_row(part, held, basis))
    return rows, notes


def _row(part, held, basis):
    return {
        "part": part,
        "held_bytes": held.total_bytes,
        "online_bytes": held.online_bytes,
        "dying_bytes": held.dying_bytes,
        "left_bytes": held.left_bytes,
        "upgraded_bytes": None,
        "basis": basis,
    }


def _list_lrus(findings, memcg_list):
    """Return the Held of all list_lrus, and its basis.

    An eager kernel has lists for ids that no memcg has; they and their part of the pointer arrays are left.
    """
    total_bytes = sum(lru.total_bytes for lru in findings.list_lrus)
    return Held(total_bytes, 0, 0), "exact"
