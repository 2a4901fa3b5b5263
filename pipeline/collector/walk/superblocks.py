"""Every superblock of the kernel: its filesystem, device, mounts and list_lrus."""

from contextlib import suppress

from drgn import FaultError

from ..access.memory import Members, bounded_path, c_string, has_member, is_running, read_word, walk_list
from ..status import CollectError
from .dentries import Dentries

# Bounds of walks over broken lists, five times what a host with 30,000 containers has.
_MAX_SUPERBLOCKS = 1 << 20
_MAX_MOUNTS = 1 << 20
# Pointers in the last MAX_ERRNO bytes of the address space are errors (include/linux/err.h).
_MAX_ERRNO = 4095
# s_flags of include/linux/fs.h, MS_* before v4.14: the kernel made the superblock for itself (kern_mount(),
# simple_pin_fs()), or users cannot mount it (mount_pseudo(), which in v4.4 sets NOUSER alone).
SB_KERNMOUNT = 1 << 22
_SB_NOUSER = 1 << 31
# The superblock is set up, so that it can be mounted.
_SB_BORN = 1 << 29

LRUS = ("s_dentry_lru", "s_inode_lru")


class SuperBlock:
    """A ``struct super_block``.

    :ivar address: address of the struct.
    :ivar fstype: bytes, ``s_type->name``, with ``.s_subtype`` as in /proc/mounts.
    :ivar s_id: bytes.
    :ivar s_dev: dev_t.
    :ivar s_flags: 32 bits.
    :ivar root: address of the ``struct dentry`` s_root, or 0.
    :ivar user_ns: address of the ``struct user_namespace`` s_user_ns, or None before v4.8.
    :ivar lru_links: ``list.next`` of each of LRUS, or None where struct list_lru has no list.
    :ivar mounts: number of its mounts in all mount namespaces that processes can be in.
    :ivar mountpoint: bytes, path of one mount, preferably in the initial mount namespace; None without a mount.
        Of a path that is longer than PATH_MAX the end, as memory.bounded_path() returns it.
    :ivar mount_root: address of the ``struct dentry`` that is seen at the mountpoint, or 0.
    :ivar namespaces: addresses of the ``struct mnt_namespace`` that it is mounted in.
    :ivar kernel_internal: whether it is the kernel's own and has no mount, so that no process sees it.
    :ivar detached: whether users made it, it has no mount, and it is still in use. Without a mount and neither of the
        two it is being mounted or unmounted.
    """

    def __init__(self, address, fstype, s_id, s_dev, s_flags):
        self.address = address
        self.fstype = fstype
        self.s_id = s_id
        self.s_dev = s_dev
        self.s_flags = s_flags
        self.root = 0
        self.user_ns = None
        self.lru_links = {}
        self.mounts = 0
        self.mountpoint = None
        self.mount_root = 0
        self.namespaces = set()
        self.kernel_internal = False
        self.detached = False


def walk(prog):
    """Return all superblocks on ``super_blocks``.

    :raises CollectError: ``bad_core``: the list does not end, or a filesystem type has no name.
    """
    paths = {
        "next": "s_list.next",
        "s_id": "s_id",
        "s_dev": "s_dev",
        "s_flags": "s_flags",
        "s_root": "s_root",
        "s_active": "s_active.counter",
        "s_type": "s_type",
        "s_subtype": "s_subtype",
        "s_mounts": "s_mounts.next",
    }
    # Since commit 6e4eab577a0c ("fs: Add user namespace member to struct super_block") (in v4.8).
    if has_member(prog.type("struct super_block"), "s_user_ns"):
        paths["s_user_ns"] = "s_user_ns"
    # Since commit 09a1b33c080f ("preparations to taking MNT_WRITE_HOLD out of ->mnt_flags") (in v6.18) the mounts are
    # on a singly linked list. Before that, they are on a list_head.
    is_singly_linked = not has_member(prog.type("struct super_block"), "s_mounts.next")
    if is_singly_linked:
        paths["s_mounts"] = "s_mounts"
    for lru in LRUS:
        if has_member(prog.type("struct super_block"), lru + ".list.next"):
            paths[lru + "_next"] = lru + ".list.next"
    members = Members(prog, "struct super_block", **paths)
    mounts = _Mounts(prog, is_singly_linked)
    s_mounts_offset = prog.type("struct super_block").member("s_mounts").offset
    fstypes = {}
    sbs, shown_mounts = [], {}
    super_blocks = prog["super_blocks"]
    # In every version s_list is the first member of struct super_block, and name of struct file_system_type.
    first, head = super_blocks.next.value_(), super_blocks.address_of_().value_()
    for address, fields in walk_list(prog, members, first, head, 0, _MAX_SUPERBLOCKS):
        fstype = fstypes.get(fields.s_type)
        if fstype is None:
            fstype = fstypes[fields.s_type] = c_string(prog, read_word(prog, fields.s_type))
            if not fstype:
                raise CollectError("bad_core", "the filesystem type of the superblock at 0x%x has no name" % address)
        if fields.s_subtype:
            fstype += b"." + c_string(prog, fields.s_subtype)
        sb = SuperBlock(address, fstype, fields.s_id.split(b"\0")[0], fields.s_dev, fields.s_flags & 0xFFFFFFFF)
        sb.root = fields.s_root
        sb.user_ns = getattr(fields, "s_user_ns", None)
        sb.lru_links = {lru: getattr(fields, lru + "_next", None) for lru in LRUS}
        sb.mounts, mount, sb.namespaces = mounts.summarize(fields.s_mounts, address + s_mounts_offset)
        if mount:
            shown_mounts[sb] = mount
        if not sb.mounts:
            sb.kernel_internal = bool(sb.s_flags & (SB_KERNMOUNT | _SB_NOUSER))
            is_alive = sb.s_flags & _SB_BORN and fields.s_root and fields.s_active
            sb.detached = bool(is_alive) and not sb.kernel_internal
        sbs.append(sb)
    mounts.load_paths(shown_mounts.values())
    for sb, mount in shown_mounts.items():
        sb.mountpoint, sb.mount_root = mounts.path(mount), mounts.root(mount)
    if is_running(prog):
        moved_mounts = mounts.moved(shown_mounts.values())
        for sb, mount in shown_mounts.items():
            if mount in moved_mounts:
                sb.mountpoint, sb.mount_root = None, 0
    return sbs


def root_by_superblock(prog):
    """Read ``super_blocks`` again: address of each superblock to the address of its root dentry, or 0."""
    members = Members(prog, "struct super_block", next="s_list.next", root="s_root")
    head = prog["super_blocks"]
    walk = walk_list(prog, members, head.next.value_(), head.address_of_().value_(), 0, _MAX_SUPERBLOCKS)
    return {address: fields.root for address, fields in walk}


def initial_namespace(prog):
    """Return the address of the initial mount namespace, which the kernel's own threads are in."""
    return prog["init_task"].nsproxy.mnt_ns.value_()


def _anonymous_inums(prog):
    """Return the inode numbers of anonymous mount namespaces: 0 from v5.2 on, MNT_NS_ANON_INO from v6.18 on."""
    try:
        return {0, prog.constant("MNT_NS_ANON_INO").value_()}
    except LookupError:
        return {0}


class _Mounts:
    """Mounts of superblocks, and their paths."""

    def __init__(self, prog, is_singly_linked):
        self._prog = prog
        self._is_singly_linked = is_singly_linked
        self._mount = Members(
            prog,
            "struct mount",
            parent="mnt_parent",
            mountpoint="mnt_mountpoint",
            root="mnt.mnt_root",
            ns="mnt_ns",
            next="mnt_next_for_sb" if is_singly_linked else "mnt_instance.next",
        )
        self._link_offset = 0 if is_singly_linked else prog.type("struct mount").member("mnt_instance").offset
        self._namespace = Members(prog, "struct mnt_namespace", inum="ns.inum")
        self._anonymous_inums = _anonymous_inums(prog)
        self._init_ns = initial_namespace(prog)
        self._is_anonymous = {self._init_ns: False}
        self._mounts = {}
        self._paths = {}
        self._dentries = Dentries(prog)

    def summarize(self, first, head):
        """Return the number of a superblock's mounts, the address of one of them or None, and their namespaces.

        Mounts without a namespace, or in one that no process can be in, are not counted.

        :param first: ``s_mounts``, or ``s_mounts.next``.
        :param head: address of the list_head.
        """
        count = 0
        namespaces = set()
        best = None
        end = 0 if self._is_singly_linked else head
        for address, mount in walk_list(self._prog, self._mount, first, end, self._link_offset, _MAX_MOUNTS):
            self._mounts[address] = mount
            # NULL marks a detached mount, an error pointer (MNT_NS_INTERNAL) a mount of the kernel for its own use.
            if 0 < mount.ns < (1 << 64) - _MAX_ERRNO and not self._is_in_anonymous_namespace(mount):
                count += 1
                namespaces.add(mount.ns)
                if best is None or (mount.ns == self._init_ns and self._mounts[best].ns != self._init_ns):
                    best = address
        return count, best, namespaces

    def _is_in_anonymous_namespace(self, mount):
        """Whether only file descriptors lead to a mount, those of open_tree() or fsmount()."""
        if mount.ns not in self._is_anonymous:
            try:
                inum = self._namespace.read(self._prog, mount.ns).inum
            except FaultError:  # missing from a core: taken for one with processes
                inum = None
            self._is_anonymous[mount.ns] = inum in self._anonymous_inums
        return self._is_anonymous[mount.ns]

    def root(self, address):
        """Return the address of the dentry at the root of a mount."""
        return self._mount_at(address).root

    def load_paths(self, addresses):
        """Read the dentries that path() follows from each of many mounts, in few reads."""
        mounts = [(address, self._mount_at(address)) for address in addresses]
        with suppress(FaultError):  # path() reads those that this cannot.
            self._dentries.load(mount.mountpoint for address, mount in mounts if mount.parent != address)

    def path(self, address):
        """Return the path of a mount in its namespace, as fs/d_path.c builds it, or None if the walk does not end.

        Of a path that is longer than MAX_PATH_BYTES it is what memory.bounded_path() returns.
        """
        new_mounts = []
        parent = address
        while parent not in self._paths:
            self._paths[parent] = None  # and so it stays in a cycle
            new_mounts.append(parent)
            parent = self._mount_at(parent).parent
        for mount in reversed(new_mounts):
            self._paths[mount] = self._path_below_parent(mount)
        path = self._paths[address]
        return b"/" if path == b"" else path

    def _path_below_parent(self, address):
        """Return the path of a mount, empty for the root of a namespace, once that of its parent is known."""
        mount = self._mount_at(address)
        if mount.parent == address:
            return b""
        root = self._mount_at(mount.parent).root
        path, top = self._dentries.path_up(mount.mountpoint, root)
        parent_path = self._paths[mount.parent] if top == root else b""
        return None if path is None or parent_path is None else bounded_path(parent_path + path)

    def moved(self, addresses):
        """Return those of many mounts that were moved or unmounted since they were first read.

        Their dentries may have been freed before path() read them.
        """
        mounts = self._mount.read_each(self._prog, addresses)
        return {
            address
            for address, mount in mounts.items()
            if mount._replace(next=0) != self._mounts[address]._replace(next=0)
        }

    def _mount_at(self, address):
        if address not in self._mounts:
            self._mounts[address] = self._mount.read(self._prog, address)
        return self._mounts[address]
