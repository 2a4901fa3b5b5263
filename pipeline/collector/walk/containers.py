"""Whose the mounts of a superblock are: a container's cgroup, told from the processes in its mount namespace."""

from drgn import FaultError, Object, offsetof

from ..access.memory import Members, text, walk_list
from ..status import CollectError
from . import superblocks

_MOST_TASKS = 1 << 22


def of_superblocks(prog, sbs, cgroups):
    """Return whom each superblock belongs to that is mounted in other mount namespaces than the initial one only.

    That is the path of the cgroup that all processes of these namespaces are in or below, if it is not the root; else
    the user namespace that the superblock was mounted in (s_user_ns, v4.8), as ``user:[inum]``, if not the initial.

    :param sbs: of SuperBlock. :param cgroups: of Memcg. :return: dict of the superblock's address to str.
    """
    initial = superblocks.initial_namespace(prog)
    private = [sb for sb in sbs if sb.namespaces and initial not in sb.namespaces]
    memcgs = _of_namespaces(prog, cgroups) if private else {}
    users = {}
    owners = {}
    for sb in private:
        memcg = _common(memcgs[namespace] for namespace in sb.namespaces if namespace in memcgs)
        if memcg and memcg.parent:
            owners[sb.address], _ = text(memcg.path)
        elif sb.user_ns and sb.user_ns != prog["init_user_ns"].address_:
            if sb.user_ns not in users:
                users[sb.user_ns] = Object(prog, "struct user_namespace", address=sb.user_ns).ns.inum.value_()
            owners[sb.address] = "user:[%d]" % users[sb.user_ns]
    return owners


def _of_namespaces(prog, cgroups):
    """Return the nearest Memcg above all processes of each mount namespace, by its ``struct mnt_namespace *``.

    A kernel that runs changes its list of tasks faster than it can be walked; then nobody is known.
    """
    memcgs = {memcg.address: memcg for memcg in cgroups}
    task_type = prog.type("struct task_struct")
    members = Members(prog, task_type, next="tasks.next", nsproxy="nsproxy", css_set="cgroups")
    mnt_ns = _Pointers(prog, offsetof(prog.type("struct nsproxy"), "mnt_ns"))
    css_offset = 8 * prog.constant("memory_cgrp_id").value_()
    # The css is the first member of struct mem_cgroup.
    css = _Pointers(prog, offsetof(prog.type("struct css_set"), "subsys") + css_offset)
    tasks = prog["init_task"].tasks
    walk = walk_list(
        prog, members, tasks.next.value_(), tasks.address_of_().value_(), offsetof(task_type, "tasks"), _MOST_TASKS
    )
    owners = {}
    try:
        for _, task in walk:
            memcg = memcgs.get(css.at(task.css_set))
            if task.nsproxy and memcg:  # a task that exits has no nsproxy
                namespace = mnt_ns.at(task.nsproxy)
                owners[namespace] = _common([owners.get(namespace, memcg), memcg])
    except (FaultError, CollectError):
        return {}
    return owners


class _Pointers:
    """A pointer at an offset of structs that many tasks share, each read once."""

    def __init__(self, prog, offset):
        self._prog = prog
        self._offset = offset
        self._read = {}

    def at(self, address):
        if address not in self._read:
            self._read[address] = self._prog.read_word(address + self._offset)
        return self._read[address]


def _common(memcgs):
    """Return the nearest Memcg that is above all of some, or one of them; None of none."""
    common = None
    for memcg in memcgs:
        if common is None:
            common = memcg
        above = set()
        while common:
            above.add(common)
            common = common.parent
        while memcg not in above:
            memcg = memcg.parent
        common = memcg
    return common
