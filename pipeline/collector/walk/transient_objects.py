"""The list_lrus whose objects are short-lived, so that a lazy kernel's entries outlive them.

Measured on lazy kernels with busybox, systemd and runc as userland: docs/accuracy.md.
"""

from drgn import container_of

from . import superblocks


def list_lrus(prog, sbs):
    """Return the list_lrus in which every running program allocates, as pairs (superblock's address, name).

    These are pipes, the initial proc, and the dentries of names that are looked up on the root filesystem and /run.

    :param sbs: of SuperBlock.
    """
    lists = {(sb.address, name) for sb in sbs if sb.fstype == b"pipefs" for name in ("dentry", "inode")}
    # super_blocks has the oldest first: the proc of the initial pid namespace.
    proc = next((sb.address for sb in sbs if sb.fstype == b"proc"), None)
    lists |= {(proc, "dentry"), (proc, "inode")}
    # Programs look for files that do not exist, such as nscd's socket.
    lists.add((host_root(prog), "dentry"))
    run = {
        sb.address for sb in sbs if sb.mountpoint == b"/run" and superblocks.initial_namespace(prog) in sb.namespaces
    }
    return lists | {(address, "dentry") for address in run}


def kernel_mounts(sbs):
    """Return the addresses of the superblocks whose objects can be opened but not named: sockfs, anon_inodefs, nsfs.

    Many programs open one of these sooner or later.

    :param sbs: of SuperBlock.
    """
    return {sb.address for sb in sbs if sb.kernel_internal and sb.s_flags & superblocks.SB_KERNMOUNT}


def host_root(prog):
    """Return the address of the superblock of the host's root filesystem: that of init, the first task."""
    init = container_of(prog["init_task"].tasks.next, "struct task_struct", "tasks")
    return init.fs.root.mnt.mnt_sb.value_()
