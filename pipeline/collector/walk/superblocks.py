"""Every superblock of the kernel: its filesystem, its device, where it is mounted, and where its list_lrus are."""

from drgn import sizeof

from ..access.memory import Members, c_string, has_member, read, walk_list
from ..status import CollectError

_MOST_SUPERBLOCKS = 1 << 20
_MOST_MOUNTS = 1 << 20
_DEEPEST_PATH = 4096
_MAX_ERRNO = 4095

LRUS = ("s_dentry_lru", "s_inode_lru")


class SuperBlock:
    """A ``struct super_block``.

    :ivar address: of the struct. :ivar fstype: bytes, ``s_type->name``, and ``.s_subtype`` as in /proc/mounts.
    :ivar s_id: bytes. :ivar s_dev: dev_t. :ivar s_flags: 32 bits.
    :ivar root: address of the ``struct dentry`` s_root, or 0.
    :ivar lru_links: of each of LRUS its ``list.next``, or None where a list_lru has no list.
    :ivar mounts: its mounts in any mount namespace. :ivar mountpoint: bytes, one of these, in the first namespace
        where there is one, or None. :ivar kernel_internal: it has none: nobody can see it.
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
        self.namespaces = set()
        self.kernel_internal = True


def walk(prog):
    """Return all superblocks on ``super_blocks``.

    :raises CollectError: ``bad_core``: the list does not end, or a filesystem has no name.
    """
    paths = {
        "next": "s_list.next",
        "s_id": "s_id",
        "s_dev": "s_dev",
        "s_flags": "s_flags",
        "s_root": "s_root",
        "s_type": "s_type",
        "s_subtype": "s_subtype",
        "s_mounts": "s_mounts.next",
    }
    if has_member(prog.type("struct super_block"), "s_user_ns"):  # v4.8 (6e4eab577a0c)
        paths["s_user_ns"] = "s_user_ns"
    # Since v6.18 (09a1b33c080f) the mounts are chained by pointers, before that they are on a list_head.
    chained = not has_member(prog.type("struct super_block"), "s_mounts.next")
    if chained:
        paths["s_mounts"] = "s_mounts"
    for lru in LRUS:
        if has_member(prog.type("struct super_block"), lru + ".list.next"):
            paths[lru + "_next"] = lru + ".list.next"
    members = Members(prog, "struct super_block", **paths)
    mounts = _Mounts(prog, chained)
    s_mounts_offset = prog.type("struct super_block").member("s_mounts").offset
    fstypes = {}
    found = []
    super_blocks = prog["super_blocks"]
    # s_list is the first member of struct super_block in every version, name that of struct file_system_type.
    first, head = super_blocks.next.value_(), super_blocks.address_of_().value_()
    for address, fields in walk_list(prog, members, first, head, 0, _MOST_SUPERBLOCKS):
        fstype = fstypes.get(fields.s_type)
        if fstype is None:
            fstype = fstypes[fields.s_type] = c_string(prog, prog.read_word(fields.s_type))
            if not fstype:
                raise CollectError("bad_core", "the filesystem type of the superblock at 0x%x has no name" % address)
        if fields.s_subtype:
            fstype += b"." + c_string(prog, fields.s_subtype)
        sb = SuperBlock(address, fstype, fields.s_id.split(b"\0")[0], fields.s_dev, fields.s_flags & 0xFFFFFFFF)
        sb.root = fields.s_root
        sb.user_ns = getattr(fields, "s_user_ns", None)
        sb.lru_links = {lru: getattr(fields, lru + "_next", None) for lru in LRUS}
        sb.mounts, sb.mountpoint, sb.namespaces = mounts.of(fields.s_mounts, address + s_mounts_offset)
        sb.kernel_internal = not sb.mounts
        found.append(sb)
    return found


def listed(prog):
    """Return the superblocks that are on ``super_blocks`` now: address to that of their root dentry, or 0."""
    members = Members(prog, "struct super_block", next="s_list.next", root="s_root")
    head = prog["super_blocks"]
    found = walk_list(prog, members, head.next.value_(), head.address_of_().value_(), 0, _MOST_SUPERBLOCKS)
    return {address: fields.root for address, fields in found}


def initial_namespace(prog):
    """Return the address of the initial mount namespace, that of the kernel's own threads."""
    return prog["init_task"].nsproxy.mnt_ns.value_()


class _Mounts:
    """The mounts of superblocks and their paths; dentries that paths share are read once."""

    def __init__(self, prog, chained):
        self._prog = prog
        self._chained = chained
        self._mount = Members(
            prog,
            "struct mount",
            parent="mnt_parent",
            mountpoint="mnt_mountpoint",
            root="mnt.mnt_root",
            ns="mnt_ns",
            next="mnt_next_for_sb" if chained else "mnt_instance.next",
        )
        self._link_offset = 0 if chained else prog.type("struct mount").member("mnt_instance").offset
        self._dentry = Members(prog, "struct dentry", parent="d_parent", name="d_name.name")
        self._dentry_bytes = sizeof(prog.type("struct dentry"))
        self._init_ns = initial_namespace(prog)
        self._read = {}
        self._dentries = {}

    def of(self, first, head):
        """Return the number of mounts in a namespace, the path of one of them or None, and their namespaces.

        :param first: ``s_mounts``, or ``s_mounts.next``. :param head: address of the list_head.
        """
        count = 0
        namespaces = set()
        best = None
        end = 0 if self._chained else head
        for address, mount in walk_list(self._prog, self._mount, first, end, self._link_offset, _MOST_MOUNTS):
            self._read[address] = mount
            # NULL: detached; an error pointer (MNT_NS_INTERNAL): mounted by the kernel for itself.
            if 0 < mount.ns < (1 << 64) - _MAX_ERRNO:
                count += 1
                namespaces.add(mount.ns)
                if best is None or (mount.ns == self._init_ns and self._read[best].ns != self._init_ns):
                    best = address
        return count, None if best is None else self._path(best), namespaces

    def _path(self, address):
        """Return the path of a mount in its namespace, as fs/d_path.c walks it, or None if that does not end."""
        names = []
        mount = self._mount_at(address)
        dentry = mount.root
        for _ in range(_DEEPEST_PATH):
            if dentry == mount.root:
                if mount.parent == address:
                    return b"/" + b"/".join(reversed(names))
                dentry = mount.mountpoint
                address = mount.parent
                mount = self._mount_at(address)
                continue
            parent, name = self._dentry_at(dentry)
            if parent == dentry:
                return b"/" + b"/".join(reversed(names))
            names.append(name)
            dentry = parent
        return None

    def _mount_at(self, address):
        if address not in self._read:
            self._read[address] = self._mount.read(self._prog, address)
        return self._read[address]

    def _dentry_at(self, address):
        if address not in self._dentries:
            data = read(self._prog, address, self._dentry_bytes)
            fields = self._dentry.decode(data)
            # A short name lies in the dentry itself.
            inline = fields.name - address
            if 0 <= inline < len(data) and b"\0" in data[inline:]:
                name = data[inline : data.index(0, inline)]
            else:
                name = c_string(self._prog, fields.name)
            self._dentries[address] = fields.parent, name
        return self._dentries[address]
