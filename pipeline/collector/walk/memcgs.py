"""Every memory cgroup, online or dying: its ids, its path and its parent."""

import struct
from array import array

from drgn import offsetof

from ..access.memory import (
    Members,
    bounded_path,
    c_strings,
    check_range,
    has_member,
    is_running,
    read_each,
    struct_prefix,
    walk_list,
)
from ..status import CollectError
from .nodes import nr_node_ids

# kmemcg_id and id.id are ids of 16 bits; css.id is one of an IDR.
MEM_CGROUP_ID_MAX = 65535
_INT_MAX = (1 << 31) - 1
# Bounds the walk over a broken tree.
_MAX_MEMCGS = 1 << 20
_POINTER_BYTES = 8
# Bounds the memory for structs of 2 to 4 KB of which a few pointers are kept.
_STRUCTS_AT_ONCE = 1024
_CSS_ONLINE = 1 << 1
# Set by css_release_work_fn(), an RCU grace period before the cgroup and its name are freed.
_CSS_RELEASED = 1 << 2
# Since commit 33c35aa48178 ("cgroup: Prevent kill_css() from being called more than once") (in v4.12, and in stable
# kernels); no kernel used the bit before.
_CSS_DYING = 1 << 4


class Memcg:
    """A ``struct mem_cgroup``.

    :ivar css_id: ``css.id``.
    :ivar cache_id: ``kmemcg_id``, the index of its lists in each list_lru. None for the root, and for a memcg that is
        not online, whose lists were reparented.
    :ivar memcg_id: ``id.id``, None before v4.7.
    :ivar cgroup: address of its ``struct cgroup``.
    :ivar path: bytes, as from cgroup_path(). Of a path that is longer than PATH_MAX the end, as memory.bounded_path()
        returns it.
    :ivar parent: Memcg, None for the root.
    :ivar online: CSS_ONLINE, and its lists are its own.
    :ivar serial_nr: ``css.serial_nr``, which increases with each css of any controller that the kernel creates.
    :ivar dir_rev: ``cgroup.kn->dir.rev``, the count of entries added to and removed from its directory, None before
        v5.15.
    """

    def __init__(self, address, fields, path, dir_rev, parent):
        self.address = address
        self.css_id = check_range(1, fields.css_id, _INT_MAX, "css.id of a memcg")
        self.memcg_id = getattr(fields, "memcg_id", None)
        if self.memcg_id is not None:
            check_range(0, self.memcg_id, MEM_CGROUP_ID_MAX, "id.id of a memcg")
        check_range(-1, fields.cache_id, MEM_CGROUP_ID_MAX, "kmemcg_id of a memcg")
        self.online = bool(fields.flags & _CSS_ONLINE) and not _is_reparented(fields, parent)
        self.cache_id = fields.cache_id if self.online and fields.cache_id >= 0 else None
        self.cgroup = fields.cgroup
        self.serial_nr = fields.serial_nr
        self.dir_rev = dir_rev
        self.path = path
        self.parent = parent

    def nearest_online(self):
        """Return the memcg itself if it is online, else the ancestor that inherits its charges."""
        memcg = self
        while memcg.parent and not memcg.online:
            memcg = memcg.parent
        return memcg


def _is_reparented(fields, parent):
    """Whether a memcg that goes offline has its parent's ``kmemcg_id`` already, the root's is -1.

    memcg_offline_kmem() gives it that id, and then moves the items of all list_lrus, while CSS_ONLINE is still set:
    from v4.0 to v5.15 and from v5.18 to v6.12.
    """
    if fields.cache_id < 0:
        return bool(fields.flags & _CSS_DYING)
    return parent is not None and fields.cache_id == parent.cache_id


def is_kmem_disabled(prog):
    """Whether the kernel was booted with cgroup.memory=nokmem, so that no memcg is charged for kernel memory.

    The option came with commit 04823c833b32 ("mm: memcontrol: allow to disable kmem accounting for cgroup2") (in v4.5).
    """
    try:
        return bool(prog["cgroup_memory_nokmem"])
    except LookupError:
        return False


def walk(prog):
    """Return all memcgs of ``root_mem_cgroup``'s tree, parents before children.

    A dying memcg stays in the tree until its last reference is dropped (css_release_work_fn()).

    :raises CollectError: ``bad_core``: the tree has a cycle, or more than _MAX_MEMCGS memcgs.
    """
    memcg_type = prog.type("struct mem_cgroup")
    member_paths = {
        "first_child": "css.children.next",
        "next": "css.sibling.next",
        "flags": "css.flags",
        "css_id": "css.id",
        "serial_nr": "css.serial_nr",
        "cgroup": "css.cgroup",
        "cache_id": "kmemcg_id",
    }
    # Since commit 73f576c04b94 ("mm: memcontrol: fix cgroup creation failure after many small jobs") (in v4.7).
    if has_member(memcg_type, "id.id"):
        member_paths["memcg_id"] = "id.id"
    members = Members(prog, memcg_type, **member_paths)
    css_offset = memcg_type.member("css").offset
    css_type = prog.type("struct cgroup_subsys_state")
    children_offset = css_offset + css_type.member("children").offset
    sibling_offset = css_offset + css_type.member("sibling").offset
    cgroup = Members(prog, "struct cgroup", kn="kn")
    # Renamed by commit 633488947ef6 ("kernfs: Use RCU to access kernfs_node::parent.") (in v6.15).
    parent_member = next(name for name in ("__parent", "parent") if has_member(prog.type("struct kernfs_node"), name))
    kernfs_member_paths = {"name": "name", "parent": parent_member}
    # Since commit 895adbec302e ("kernfs: add a revision to identify directory node changes") (in v5.15).
    if has_member(prog.type("struct kernfs_node"), "dir.rev"):
        kernfs_member_paths["dir_rev"] = "dir.rev"
    kernfs_node = Members(prog, "struct kernfs_node", **kernfs_member_paths)

    nodes = {}

    def read_directories(cgroups):
        read_nodes = {address: fields.kn for address, fields in cgroup.read_each(prog, cgroups).items()}
        nodes.update(read_nodes)
        directories = kernfs_node.read_each(prog, read_nodes.values())
        return {address: directories[node] for address, node in read_nodes.items()}

    root_address = prog["root_mem_cgroup"].value_()
    root_fields = members.read(prog, root_address)
    (root_directory,) = read_directories([root_fields.cgroup]).values()
    memcgs = [Memcg(root_address, root_fields, b"/", getattr(root_directory, "dir_rev", None), None)]
    first_children = [root_fields.first_child]
    addresses = {root_address}
    # The loop body appends to both lists, so the walk is breadth first, with parents before children.
    for parent, first_child in zip(memcgs, first_children):
        head = parent.address + children_offset
        children = {}
        for address, fields in walk_list(prog, members, first_child, head, sibling_offset, _MAX_MEMCGS):
            if address in addresses or len(addresses) == _MAX_MEMCGS:
                message = "the tree of memory cgroups does not end after %d cgroups"
                raise CollectError("bad_core", message % len(addresses))
            addresses.add(address)
            children[address] = fields
        if not children:
            continue
        directories = read_directories(fields.cgroup for fields in children.values())
        names = c_strings(prog, {directory.name for directory in directories.values()})
        if is_running(prog):
            children = _unreleased(children, members.read_each(prog, children))
        for address, fields in children.items():
            directory = directories[fields.cgroup]
            # A removed directory keeps its parent.
            if directory.parent not in (0, nodes[parent.cgroup]) or not names[directory.name]:
                raise CollectError("bad_core", "the directory of the memcg at 0x%x is broken" % address)
            path = bounded_path((b"" if parent.parent is None else parent.path) + b"/" + names[directory.name])
            memcgs.append(Memcg(address, fields, path, getattr(directory, "dir_rev", None), parent))
            first_children.append(fields.first_child)
    return memcgs


def _unreleased(first_reads, second_reads):
    """Return the first reads, fields by address, of the memcgs that are not released at the second.

    A name that was read in between is theirs: a cgroup is freed after its memcg.
    """
    return {
        address: fields
        for address, fields in first_reads.items()
        if second_reads[address].serial_nr == fields.serial_nr and not second_reads[address].flags & _CSS_RELEASED
    }


class Pointers:
    """Reads pointers in the structs of memcgs: of each struct all at once, since several parts of an audit need some.

    :param tables: dicts of the name of a struct to the paths of its pointers, of which a kernel can lack some. Those to
        the structs of nodes are added.
    """

    def __init__(self, prog, *tables):
        self._prog = prog
        self._tables = ({"struct mem_cgroup": _node_paths(prog)}, *tables)
        self._structs = {}

    def each(self, name, addresses, paths):
        """Yield the address of each struct, and a list of its pointers in the order of their paths."""
        if name not in self._structs:
            all_paths = {path for table in self._tables for path in table.get(name, ())}
            self._structs[name] = _PointerMembers(self._prog, name, all_paths)
        return self._structs[name].each(addresses, paths)


class _PointerMembers:
    """The pointers at known paths of all structs of one type that were read so far."""

    def __init__(self, prog, name, paths):
        self._prog = prog
        struct_type = prog.type(name)
        offsets = {path: offsetof(struct_type, path) for path in paths if has_member(struct_type, path)}
        ordered = sorted(set(offsets.values()))
        self._indexes = {path: ordered.index(offset) for path, offset in offsets.items()}
        self._start = end = ordered[0] if ordered else 0
        code = struct_prefix(prog)
        for offset in ordered:
            code += "%dxQ" % (offset - end)
            end = offset + _POINTER_BYTES
        self._decoder = struct.Struct(code)
        self._pointers = {}

    def each(self, addresses, paths):
        unread = sorted(self._start + address for address in addresses if address not in self._pointers)
        for i in range(0, len(unread), _STRUCTS_AT_ONCE):
            for start, data in read_each(self._prog, unread[i : i + _STRUCTS_AT_ONCE], self._decoder.size).items():
                self._pointers[start - self._start] = array("Q", self._decoder.unpack(data))
        indexes = [self._indexes[path] for path in paths]
        for address in addresses:
            pointers = self._pointers[address]
            yield address, [pointers[i] for i in indexes]


def _node_paths(prog):
    """Return the paths of nodeinfo's pointers, of which those of impossible nodes are NULL."""
    return ["nodeinfo[%d]" % nid for nid in range(nr_node_ids(prog))]


def node_structs(prog, memcgs, pointers):
    """Return the addresses of each Memcg's ``struct mem_cgroup_per_node``: dict of Memcg to list."""
    by_address = {memcg.address: memcg for memcg in memcgs}
    nodeinfo = pointers.each("struct mem_cgroup", by_address, _node_paths(prog))
    return {by_address[address]: [node for node in nodes if node] for address, nodes in nodeinfo}
