"""Directory entries: names and parents, from which paths are built.

Each dentry is read once, although paths share them.
"""

from drgn import sizeof

from ..access.memory import MAX_PATH_BYTES, Members, c_string, read, read_each

# Steps from a dentry up to its root: a longer path has more than MAX_PATH_BYTES, two for a slash and a name.
MAX_PATH_DEPTH = MAX_PATH_BYTES // 2


class Dentries:
    """The dentries of a kernel, by address."""

    def __init__(self, prog):
        self._prog = prog
        self._members = Members(prog, "struct dentry", parent="d_parent", name="d_name.name")
        self._bytes = sizeof(prog.type("struct dentry"))
        self._dentries = {}

    def parent_and_name(self, address):
        """Return the address of a dentry's parent, which is its own for a root, and its name."""
        if address not in self._dentries:
            self._decode(address, read(self._prog, address, self._bytes))
        return self._dentries[address]

    def load(self, addresses):
        """Read dentries and all their ancestors, in few reads."""
        for _ in range(MAX_PATH_DEPTH):
            addresses = set(addresses) - self._dentries.keys()
            if not addresses:
                return
            for address, data in read_each(self._prog, addresses, self._bytes).items():
                self._decode(address, data)
            addresses = {self._dentries[address][0] for address in addresses}

    def path(self, address, root):
        """Return the path of a dentry below a root as bytes, or None if it is not below it, or too far."""
        path, top = self.path_up(address, root)
        return path or b"/" if top == root else None

    def path_up(self, address, root):
        """Return the path of a dentry below a root and the root, or below its file system's root and that.

        The root itself has an empty path. A path of more than MAX_PATH_BYTES begins below the ancestor that is
        returned with it. In a cycle both are None.
        """
        names = []
        length = 0
        visited = set()
        while address != root and length <= MAX_PATH_BYTES:
            if address in visited:
                return None, None
            visited.add(address)
            parent, name = self.parent_and_name(address)
            if parent == address:
                break
            names.append(name)
            length += len(b"/") + len(name)
            address = parent
        return b"".join(b"/" + name for name in reversed(names)), address

    def _decode(self, address, data):
        fields = self._members.decode(data)
        # A short name is stored in the dentry itself.
        offset = fields.name - address
        if 0 <= offset < len(data) and b"\0" in data[offset:]:
            name = data[offset : data.index(0, offset)]
        else:
            name = c_string(self._prog, fields.name)
        self._dentries[address] = fields.parent, name
