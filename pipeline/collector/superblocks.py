"""Every superblock of the kernel: its filesystem, its device, where it is mounted, and where its list_lrus are."""

from .memory import Members, c_string, has_member
from .status import CollectError

_MOST_SUPERBLOCKS = 1 << 20
_MOST_MOUNTS = 1 << 20
_DEEPEST_PATH = 4096
_MAX_ERRNO = 4095


class SuperBlock:
    """A ``struct super_block``.

    :ivar address: of the struct. :ivar fstype: bytes, ``s_type->name``, and ``.s_subtype`` as in /proc/mounts.
    :ivar s_id: bytes. :ivar s_dev: dev_t. :ivar s_flags: 32 bits.
    :ivar mounts: its mounts in any mount namespace. :ivar mountpoint: bytes, one of these, in the first namespace
        where there is one, or None. :ivar kernel_internal: it has none: nobody can see it.
    """

    def __init__(self, address, fstype, s_id, s_dev, s_flags):
        self.address = address
        self.fstype = fstype
        self.s_id = s_id
        self.s_dev = s_dev
        self.s_flags = s_flags
        self.mounts = 0
        self.mountpoint = None
        self.kernel_internal = True


def walk(prog):
    """Return all superblocks on ``super_blocks``.

    :raises CollectError: ``bad_core``: the list does not end.
    """
    paths = {
        "next": "s_list.next",
        "s_id": "s_id",
        "s_dev": "s_dev",
        "s_flags": "s_flags",
        "s_type": "s_type",
        "s_subtype": "s_subtype",
        "s_mounts": "s_mounts.next",
    }
    # Since v6.18 (09a1b33c080f) the mounts are chained by pointers, before that they are on a list_head.
    chained = not has_member(prog.type("struct super_block"), "s_mounts.next")
    if chained:
        paths["s_mounts"] = "s_mounts"
    members = Members(prog, "struct super_block", **paths)
    mounts = _Mounts(prog, chained)
    s_mounts_offset = prog.type("struct super_block").member("s_mounts").offset
    fstypes = {}
    found = []
    head = prog["super_blocks"].address_of_().value_()
    address = prog["super_blocks"].next.value_()
    while address != head:
        if len(found) == _MOST_SUPERBLOCKS:
            raise CollectError("bad_core", "the list of superblocks does not end after %d" % len(found))
        # s_list is the first member of struct super_block in every version.
        fields = members.read(prog, address)
        fstype = fstypes.get(fields.s_type)
        if fstype is None:
            fstype = fstypes[fields.s_type] = c_string(prog, prog.read_word(fields.s_type))
        if fields.s_subtype:
            fstype += b"." + c_string(prog, fields.s_subtype)
        sb = SuperBlock(address, fstype, fields.s_id.split(b"\0")[0], fields.s_dev, fields.s_flags & 0xFFFFFFFF)
        sb.mounts, sb.mountpoint = mounts.of(fields.s_mounts, address + s_mounts_offset)
        sb.kernel_internal = not sb.mounts
        found.append(sb)
        address = fields.next
    return found


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
        self._instance_offset = 0 if chained else prog.type("struct mount").member("mnt_instance").offset
        self._dentry = Members(prog, "struct dentry", parent="d_parent", name="d_name.name")
        self._init_ns = prog["init_task"].nsproxy.mnt_ns.value_()
        self._read = {}
        self._dentries = {}

    def of(self, first, head):
        """Return the number of mounts in a namespace and the path of one of them, or None.

        :param first: ``s_mounts``, or ``s_mounts.next``. :param head: address of the list_head.
        """
        count = 0
        best = None
        at = first
        for _ in range(_MOST_MOUNTS):
            if at in (0, head):
                break
            mount = self._mount_at(at - self._instance_offset)
            # NULL: detached; an error pointer (MNT_NS_INTERNAL): mounted by the kernel for itself.
            if 0 < mount.ns < (1 << 64) - _MAX_ERRNO:
                count += 1
                if best is None or (mount.ns == self._init_ns and self._mount_at(best).ns != self._init_ns):
                    best = at - self._instance_offset
            at = mount.next
        else:
            raise CollectError("bad_core", "the list of a superblock's mounts does not end")
        return count, None if best is None else self._path(best)

    def _path(self, address):
        """Return the path of a mount in its namespace, as fs/d_path.c walks it."""
        names = []
        mount = self._mount_at(address)
        dentry = mount.root
        for _ in range(_DEEPEST_PATH):
            if dentry == mount.root:
                if mount.parent == address:
                    break
                dentry = mount.mountpoint
                address = mount.parent
                mount = self._mount_at(address)
                continue
            parent, name = self._dentry_at(dentry)
            if parent == dentry:
                break
            names.append(name)
            dentry = parent
        return b"/" + b"/".join(reversed(names))

    def _mount_at(self, address):
        if address not in self._read:
            self._read[address] = self._mount.read(self._prog, address)
        return self._read[address]

    def _dentry_at(self, address):
        if address not in self._dentries:
            fields = self._dentry.read(self._prog, address)
            self._dentries[address] = fields.parent, c_string(self._prog, fields.name)
        return self._dentries[address]
