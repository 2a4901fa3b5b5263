"""Every memory cgroup, online or dying: its ids, its path and its place in the tree."""

from ..access.memory import Members, c_string, has_member, walk_list
from ..status import CollectError

_MOST_MEMCGS = 1 << 20
_CSS_ONLINE = 1 << 1


class Memcg:
    """A ``struct mem_cgroup``.

    :ivar css_id: ``css.id``. :ivar cache_id: ``kmemcg_id``, the index of its lists, or None where it has none: the
        root, and, since a dead memcg's lists went to its parent, one that is not online.
    :ivar memcg_id: ``id.id``, v4.7+, or None. :ivar path: bytes, as cgroup_path() gives it.
    :ivar parent: Memcg, None for the root. :ivar online: CSS_ONLINE.
    :ivar serial_nr: ``css.serial_nr``: in which order the host made its controllers' states, this one among them.
    :ivar dir_rev: ``cgroup.kn->dir.rev``, v5.15+: how often an entry of its directory was made or removed; or None.
    """

    def __init__(self, address, fields, path, dir_rev, parent):
        self.address = address
        self.css_id = fields.css_id
        self.memcg_id = getattr(fields, "memcg_id", None)
        self.online = bool(fields.flags & _CSS_ONLINE)
        self.cache_id = fields.cache_id if self.online and fields.cache_id >= 0 else None
        self.serial_nr = fields.serial_nr
        self.dir_rev = dir_rev
        self.path = path
        self.parent = parent


def walk(prog):
    """Return all memcgs of ``root_mem_cgroup``'s tree, parents before children.

    A dying memcg stays in the tree until its last reference is gone (css_release_work_fn()).

    :raises CollectError: ``bad_core``: the tree does not end.
    """
    memcg_type = prog.type("struct mem_cgroup")
    paths = {
        "first_child": "css.children.next",
        "next": "css.sibling.next",
        "flags": "css.flags",
        "css_id": "css.id",
        "serial_nr": "css.serial_nr",
        "cgroup": "css.cgroup",
        "cache_id": "kmemcg_id",
    }
    if has_member(memcg_type, "id.id"):  # v4.7 (73f576c04b94)
        paths["memcg_id"] = "id.id"
    members = Members(prog, memcg_type, **paths)
    css_offset = memcg_type.member("css").offset
    css_type = prog.type("struct cgroup_subsys_state")
    children_offset = css_offset + css_type.member("children").offset
    sibling_offset = css_offset + css_type.member("sibling").offset
    cgroup = Members(prog, "struct cgroup", kn="kn")
    of_directory = {"name": "name"}
    if has_member(prog.type("struct kernfs_node"), "dir.rev"):  # v5.15 (895adbec302e)
        of_directory["dir_rev"] = "dir.rev"
    kernfs_node = Members(prog, "struct kernfs_node", **of_directory)

    def directory(fields):
        return kernfs_node.read(prog, cgroup.read(prog, fields.cgroup).kn)

    root_address = prog["root_mem_cgroup"].value_()
    root_fields = members.read(prog, root_address)
    root_rev = getattr(directory(root_fields), "dir_rev", None)
    found = [Memcg(root_address, root_fields, b"/", root_rev, None)]
    first_children = [root_fields.first_child]
    seen = {root_address}
    # The loops append to what they iterate over: breadth first, parents before children.
    for parent, first in zip(found, first_children):
        head = parent.address + children_offset
        for address, fields in walk_list(prog, members, first, head, sibling_offset, _MOST_MEMCGS):
            if address in seen or len(seen) == _MOST_MEMCGS:
                raise CollectError("bad_core", "the tree of memory cgroups does not end after %d" % len(found))
            seen.add(address)
            kernfs = directory(fields)
            path = (b"" if parent.parent is None else parent.path) + b"/" + c_string(prog, kernfs.name)
            found.append(Memcg(address, fields, path, getattr(kernfs, "dir_rev", None), parent))
            first_children.append(fields.first_child)
    return found
