"""The pages that keep dying memcgs: what they are, and the files whose page cache they are.

A page has a reference to the memcg that it is charged to, so a removed memcg exists until its last page is freed. But
slab objects become its parent's: commit fb2f2b0adb98 ("mm: memcg/slab: reparent memcg kmem_caches on cgroup removal")
(in v5.3). So do other kernel pages: commit b4e0b68fbd9d ("mm: memcontrol: use obj_cgroup APIs to charge kmem pages")
(in v5.13). Since v7.1 all pages do, and this finds none.
"""

from collections import Counter, defaultdict, namedtuple
from contextlib import suppress
from heapq import nlargest
from operator import itemgetter

from drgn import FaultError, offsetof, sizeof

from ..access.memory import MAX_PATH_BYTES, Members, WordFinder, has_member, read, read_each, read_word
from .dentries import Dentries
from .memmap import compound_order_location

# Bounds the rows of a target, and the inodes and paths that are read: the files with the most pages.
_MAX_FILES = 1000
# Bounds the size of a broken compound page: hugetlbfs has 16 GB as 2^22 pages of 4 KB.
_MAX_ORDER = 22
_WORD_BYTES = 8
# Flags in the pointer to a memcg. In v5.11 and v5.12 kernel pages have the second, MEMCG_DATA_KMEM.
_MEMCG_FLAGS = (0, 2)
# Flags in the pointer to a mapping: PAGE_MAPPING_ANON, and PAGE_MAPPING_MOVABLE for the memory of a driver.
_ANON = 1
_MOVABLE = 2
# Kinds of pages that are of files.
_FILE_KINDS = ("file", "shmem")


class File(namedtuple("File", "superblock inode is_deleted path")):
    """A file.

    superblock: address, None if it is not on ``super_blocks``. inode: its number. is_deleted: whether no directory has
    it. path: bytes, below the superblock's mountpoint, or in the filesystem if that has none; None without a dentry, or
    if the mount does not show the file.
    """

    __slots__ = ()


_NO_FILE = File(None, None, None, None)


class PageGroup:
    """Pages of one kind that are charged to dying memcgs.

    :ivar kind: as in ``schemas/dying_memcg_pages.toml``.
    :ivar parent: Memcg, the nearest online ancestor of the memcgs; None for several.
    :ivar file: File, all None without one or for several.
    :ivar mappings: addresses of the files' ``struct address_space``.
    :ivar memcgs: the dying Memcgs.
    :ivar pages: number of pages.
    """

    def __init__(self, kind, parent=None, file=_NO_FILE):
        self.kind = kind
        self.parent = parent
        self.file = file
        self.mappings = set()
        self.memcgs = set()
        self.pages = 0


class DyingMemcgPages:
    """Counts the pages of dying memcgs while the memmap is read.

    :param memcgs: list of Memcg.
    :ivar pages: for each pair of Memcg and kind the number of pages by the address of their ``struct address_space``,
        which is 0 without a file.
    """

    def __init__(self, prog, memcgs):
        self._prog = prog
        self._memcgs = [memcg for memcg in memcgs if not memcg.online]
        self._memcg_by_word = {memcg.address | flag: memcg for memcg in self._memcgs for flag in _MEMCG_FLAGS}
        self._finder = WordFinder(self._memcg_by_word)
        page = prog.type("struct page")
        self._step = sizeof(page) // _WORD_BYTES
        # Since commit bcfe06bf2622 ("mm: memcontrol: Use helpers to read page's memcg data") (in v5.11).
        memcg = "memcg_data" if has_member(page, "memcg_data") else "mem_cgroup"
        self._memcg, self._flags, self._mapping = (
            offsetof(page, member) // _WORD_BYTES for member in (memcg, "flags", "mapping")
        )
        self._head, self._swapbacked = (1 << prog.constant(name).value_() for name in ("PG_head", "PG_swapbacked"))
        self._slab = _slab_flag(prog)
        self._order, self._order_shift = compound_order_location(prog)
        self.pages = defaultdict(Counter)

    def add(self, first, page_words):
        """Count the pages of a piece of the memmap.

        :param first: page frame number of the first page.
        :param page_words: array of the words of each ``struct page``.
        """
        memcgs = page_words[self._memcg :: self._step]
        indexes = self._finder.indexes(memcgs)
        if not indexes:
            return
        flags, mappings = page_words[self._flags :: self._step], page_words[self._mapping :: self._step]
        # Most pages of a file have the same flags.
        counts = Counter(zip(*(map(column.__getitem__, indexes) for column in (memcgs, flags, mappings))))
        if any(page_flags & self._head for _, page_flags, _ in counts):
            for i in indexes:
                if flags[i] & self._head:
                    counts[memcgs[i], flags[i], mappings[i]] += self._compound_pages(first, page_words, i) - 1
        for (memcg, page_flags, mapping), count in counts.items():
            kind = self._kind(page_flags, mapping)
            self.pages[self._memcg_by_word[memcg], kind][mapping if kind in _FILE_KINDS else 0] += count

    def page_cache_bytes(self):
        """Return the bytes of the pages of files."""
        pages = sum(sum(counts.values()) for (_, kind), counts in self.pages.items() if kind in _FILE_KINDS)
        return pages * self._prog["PAGE_SIZE"].value_()

    def groups(self, sbs):
        """Return the PageGroups of all pages, and of the memcgs without any.

        Files beyond the _MAX_FILES with the most pages, and those that cannot be read, are in one group for each kind.

        :param sbs: list of SuperBlock.
        """
        counts = defaultdict(Counter)
        for (memcg, kind), pages in self.pages.items():
            counts[kind, memcg.nearest_online()].update(pages)
        file_counts = (
            (count, (kind, parent, mapping))
            for (kind, parent), pages in counts.items()
            for mapping, count in pages.items()
            if mapping
        )
        keys = [key for _, key in nlargest(_MAX_FILES, file_counts, key=itemgetter(0))]
        files = _read_files(self._prog, sbs, {mapping for _, _, mapping in keys})
        groups = {key: PageGroup(*key[:2], file=files[key[-1]]) for key in keys if key[-1] in files}
        for (memcg, kind), pages in self.pages.items():
            parent = memcg.nearest_online()
            for mapping, count in pages.items():
                key = kind, parent, mapping
                if mapping and key not in groups:
                    key = kind, None, 0
                if key not in groups:
                    groups[key] = PageGroup(*key[:2])
                group = groups[key]
                group.memcgs.add(memcg)
                group.pages += count
                if mapping:
                    group.mappings.add(mapping)
        for memcg in self._without_pages():
            parent = memcg.nearest_online()
            groups.setdefault(("other", parent, 0), PageGroup("other", parent)).memcgs.add(memcg)
        return list(groups.values())

    def _kind(self, flags, mapping):
        if flags & self._slab:
            return "slab"
        if mapping & _ANON:
            return "anonymous"
        is_in_file = mapping and not mapping & _MOVABLE
        if flags & self._swapbacked:
            return "shmem" if is_in_file else "anonymous"
        return "file" if is_in_file else "kernel"

    def _compound_pages(self, first, page_words, i):
        """Return the number of pages of the compound page that the page at an index is the head of.

        The structs of some of a huge page's tails can be mapped to that of its head: commit e7d324850bfc ("mm: hugetlb:
        free the 2nd vmemmap page associated with each HugeTLB page") (in v5.18). They have none.
        """
        word = i * self._step + self._order
        if word < len(page_words):
            value = page_words[word]
        else:
            value = read_word(self._prog, self._prog["vmemmap"].value_() + (first * self._step + word) * _WORD_BYTES)
        order = value >> self._order_shift & 0xFF
        return 1 << order if order <= _MAX_ORDER and not (first + i) % (1 << order) else 0

    def _without_pages(self):
        """Return the memcgs to which no page is charged, and none to a memcg below them."""
        with_pages = set()
        for memcg, _ in self.pages:
            while memcg and memcg not in with_pages:
                with_pages.add(memcg)
                memcg = memcg.parent
        return [memcg for memcg in self._memcgs if memcg not in with_pages]


def _slab_flag(prog):
    """Return the flag of a slab's pages: they have the pointer to a memcg before commit 4d96ba353075 ("mm: memcg/slab:
    stop setting page->mem_cgroup pointer for slab pages") (in v5.3).
    """
    try:
        return 1 << prog.constant("PG_slab").value_()
    except LookupError:
        # Since commit 46df8e73a4a3 ("mm: free up PG_slab") (in v6.10).
        return 0


def _read_files(prog, sbs, mappings):
    """Return the File of each mapping that has an inode, by the mapping's address.

    On a running kernel an inode may have been freed since its pages were counted.
    """
    host = Members(prog, "struct address_space", inode="host")
    inode = Members(prog, "struct inode", sb="i_sb", number="i_ino", links="i_nlink", alias="i_dentry.first")
    sb_by_address = {sb.address: sb for sb in sbs}
    inode_by_mapping = {
        mapping: host.decode(data).inode for mapping, data in _read_readable(prog, mappings, host.end).items()
    }
    data_by_inode = _read_readable(prog, set(inode_by_mapping.values()) - {0}, inode.end)
    inodes = {address: inode.decode(data) for address, data in data_by_inode.items()}
    dentry_type = prog.type("struct dentry")
    # Since commit 3b7d764a37d0 ("struct dentry: make ->d_u anonymous") (in v7.1).
    alias_offset = offsetof(dentry_type, "d_alias" if has_member(dentry_type, "d_alias") else "d_u.d_alias")
    dentries = Dentries(prog)
    with suppress(FaultError):  # _path() reads those that this cannot.
        dentries.load(fields.alias - alias_offset for fields in inodes.values() if fields.alias)
    files = {}
    for mapping, address in inode_by_mapping.items():
        if address in inodes:
            fields = inodes[address]
            sb = sb_by_address.get(fields.sb)
            path = _path(dentries, fields.alias - alias_offset, sb) if fields.alias and sb else None
            files[mapping] = File(sb and sb.address, fields.number, not fields.links, path)
    return files


def _read_readable(prog, addresses, size):
    """Read objects of one size as read_each() does, without those that are not in memory."""
    with suppress(FaultError):
        return read_each(prog, addresses, size)
    objects = {}
    for address in addresses:
        with suppress(FaultError):
            objects[address] = read(prog, address, size)
    return objects


def _path(dentries, dentry, sb):
    """Return the path of a dentry below the mountpoint of its superblock.

    None if the mount does not show it, and if memory is missing.
    """
    try:
        parent, name = dentries.parent_and_name(dentry)
        if sb.mountpoint is None and parent == dentry:  # of a file that never had a directory, such as a memfd
            return b"/" + name if name else None
        path = dentries.path(dentry, sb.mount_root or sb.root)
    except FaultError:
        return None
    if path is None or len(path) > MAX_PATH_BYTES:
        return None
    return (sb.mountpoint or b"").rstrip(b"/") + path
