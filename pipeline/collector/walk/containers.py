"""The container that a superblock belongs to: the cgroup of the processes in the mount namespaces that mount it."""

from drgn import FaultError, Object, offsetof

from ..access.memory import Members, read_word, text, walk_list
from ..status import CollectError
from . import superblocks

# Bounds the walk over a broken list of tasks: PID_MAX_LIMIT on 64 bits.
_MAX_TASKS = 1 << 22


def find_owners(prog, sbs, memcgs):
    """Return the owner of each superblock that is mounted, but not in the initial mount namespace.

    The owner is the path of the nearest cgroup that contains all processes of these namespaces. If that is the root,
    the owner is the user namespace of the superblock (s_user_ns, since v4.8) as ``user:[inum]``, unless that is the
    initial one.

    :param sbs: list of SuperBlock.
    :param memcgs: list of Memcg.
    :return: dict of the superblock's address to str.
    """
    initial_namespace = superblocks.initial_namespace(prog)
    private_sbs = [sb for sb in sbs if sb.namespaces and initial_namespace not in sb.namespaces]
    memcg_by_namespace = _memcg_by_namespace(prog, memcgs) if private_sbs else {}
    user_ns_inums = {}
    owners = {}
    for sb in private_sbs:
        memcg = _common_ancestor(memcg_by_namespace[ns] for ns in sb.namespaces if ns in memcg_by_namespace)
        if memcg and memcg.parent:
            owners[sb.address], _ = text(memcg.path)
        elif sb.user_ns and sb.user_ns != prog["init_user_ns"].address_:
            if sb.user_ns not in user_ns_inums:
                user_ns_inums[sb.user_ns] = Object(prog, "struct user_namespace", address=sb.user_ns).ns.inum.value_()
            owners[sb.address] = "user:[%d]" % user_ns_inums[sb.user_ns]
    return owners


def _memcg_by_namespace(prog, memcgs):
    """Return the nearest Memcg that contains all processes of a mount namespace, by ``struct mnt_namespace *``.

    A running kernel can change its list of tasks faster than it is walked; the result is then empty.
    """
    memcg_by_address = {memcg.address: memcg for memcg in memcgs}
    task_type = prog.type("struct task_struct")
    members = Members(prog, task_type, next="tasks.next", nsproxy="nsproxy", css_set="cgroups")
    mnt_ns = _PointerCache(prog, offsetof(prog.type("struct nsproxy"), "mnt_ns"))
    css_offset = 8 * prog.constant("memory_cgrp_id").value_()
    # The css is the first member of struct mem_cgroup, so its address is that of the memcg.
    css = _PointerCache(prog, offsetof(prog.type("struct css_set"), "subsys") + css_offset)
    tasks = prog["init_task"].tasks
    walk = walk_list(
        prog, members, tasks.next.value_(), tasks.address_of_().value_(), offsetof(task_type, "tasks"), _MAX_TASKS
    )
    memcg_by_namespace = {}
    try:
        for _, task in walk:
            memcg = memcg_by_address.get(css.read(task.css_set))
            if task.nsproxy and memcg:  # An exiting task has no nsproxy.
                namespace = mnt_ns.read(task.nsproxy)
                memcg_by_namespace[namespace] = _common_ancestor([memcg_by_namespace.get(namespace, memcg), memcg])
    except (FaultError, CollectError):
        return {}
    return memcg_by_namespace


class _PointerCache:
    """A pointer member of structs that many tasks share; reads each struct once."""

    def __init__(self, prog, offset):
        self._prog = prog
        self._offset = offset
        self._pointers = {}

    def read(self, address):
        if address not in self._pointers:
            self._pointers[address] = read_word(self._prog, address + self._offset)
        return self._pointers[address]


def _common_ancestor(memcgs):
    """Return the nearest Memcg that contains all memcgs, possibly one of them; None without any."""
    common = None
    for memcg in memcgs:
        if common is None:
            common = memcg
        ancestors = set()
        while common:
            ancestors.add(common)
            common = common.parent
        while memcg not in ancestors:
            memcg = memcg.parent
        common = memcg
    return common
