"""NUMA nodes of a kernel."""

from drgn.helpers.linux.nodemask import for_each_node_mask

from ..access.memory import check_range

_MAX_NUMNODES = 1 << 10


def nr_node_ids(prog):
    """Return ``nr_node_ids``, one more than the highest possible node.

    :raises CollectError: ``bad_core``: the kernel cannot have so many.
    """
    try:
        return check_range(1, prog["nr_node_ids"].value_(), _MAX_NUMNODES, "nr_node_ids")
    except LookupError:  # A macro without CONFIG_NUMA.
        return 1


def nodes_in_state(prog, state):
    """Return the nodes in a state (for example ``N_POSSIBLE`` or ``N_ONLINE``), ascending."""
    return list(for_each_node_mask(prog["node_states"][prog.constant(state)]))
