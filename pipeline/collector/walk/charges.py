"""Which memcgs own charged objects of which list_lru: whoever owns one would have an entry on a lazy kernel.

There the allocation of a charged dentry, inode or page cache xa_node makes the entry (kmem_cache_alloc_lru(), v5.18,
88f2ef73fd66); an eager kernel charges the same objects. The memmap is read for the slabs of their caches, the slabs'
object cgroup vectors for whom each object is charged to, the slabs for its superblock, all in bulk: the number of
reads depends on memory and slabs, not on superblocks and memcgs.
"""

from array import array
from collections import Counter, defaultdict, namedtuple
from itertools import repeat

from drgn import FaultError, Object, cast, offsetof
from drgn.helpers.linux.mm import page_to_virt

from ..access.memory import Members, is_running, read_each
from ..status import CollectError
from . import slab, superblocks
from .memmap import Memmap

# Of 4 to 32 KB each.
_SLABS_AT_ONCE = 256
_WORD_BYTES = 8
_MOST_ASKED = 100000


class NotScanned(Exception):
    """The charged objects cannot be counted whole; the message says why."""


class Charges:
    """What the scan found.

    :ivar by_list_lru: address of each ``struct list_lru`` with charged objects, to the set of online Memcgs that own
        one: without their ancestors, and without the root. :ivar read_bytes: of kernel memory that it took.
    """

    def __init__(self):
        self.by_list_lru = defaultdict(set)
        self.read_bytes = 0


class _Source(namedtuple("_Source", "size lru column memcg")):
    """A slab cache of charged objects.

    size: of a slot in bytes. lru: the member of ``struct super_block`` that has them on its lists, None for xa_nodes.
    column: where in a slot the superblock's address is. memcg: address of the only owner, before v5.9, else None.
    """

    __slots__ = ()


def scan(prog, sbs, cgroups):
    """Find the owners of all charged dentries, inodes and page cache xa_nodes.

    :param sbs: of SuperBlock. :param cgroups: of Memcg. :return: Charges.
    :raises NotScanned: memory is missing, a structure is broken, or the slab allocator is not SLUB.
    """
    try:
        return _Scan(prog, sbs, cgroups).run()
    except (FaultError, LookupError, AttributeError, ValueError, CollectError) as e:
        raise NotScanned("charged objects are not counted: %s" % e) from e


class _Scan:
    def __init__(self, prog, sbs, cgroups):
        self.prog = prog
        self.memcgs = {memcg.address: memcg for memcg in cgroups}
        superblock_type = prog.type("struct super_block")
        # What an object's cache and the object itself say, to the list_lru that counts it.
        self.list_lrus = {
            (lru, sb.address): sb.address + offsetof(superblock_type, lru) for lru in superblocks.LRUS for sb in sbs
        }
        self.list_lrus[None, None] = _shadow_nodes(prog)
        self.memmap = Memmap(prog)
        self.sources = self.find_sources(sbs)
        # Of the objects: their owner (an obj_cgroup, before v5.9 a memcg), and a key of list_lrus.
        self.pairs = set()
        self.asked = 0
        self.charges = Charges()

    def run(self):
        read = self.read_charged if self.memmap.has_vectors else self.read_allocated
        waiting = defaultdict(list)
        counts = Counter()
        for cache, found in self.memmap.slabs(self.sources):
            counts[cache] += 1
            if found.vector or not self.memmap.has_vectors:
                waiting[cache].append(found)
                if len(waiting[cache]) == _SLABS_AT_ONCE:
                    read(self.sources[cache], waiting.pop(cache))
        for cache, slabs in waiting.items():
            read(self.sources[cache], slabs)
        for cache in self.sources:
            self.check_whole(cache, counts[cache])
        self.charges.read_bytes += self.memmap.read_bytes
        self.settle()
        return self.charges

    def settle(self):
        """Turn what the objects say into memcgs and list_lrus."""
        if self.memmap.has_vectors:
            objcg = Members(self.prog, "struct obj_cgroup", memcg="memcg")
            data = read_each(self.prog, {owner for owner, _, _ in self.pairs if owner}, objcg.end)
            owners = {owner: objcg.decode(data[owner]).memcg for owner in data}
            self.pairs = {(owners[owner], lru, sb) for owner, lru, sb in self.pairs if owner}
        for owner, lru, sb in self.pairs:
            memcg = self.memcg(owner)
            counted_by = self.list_lrus.get((lru, sb))
            # A superblock that is no longer listed is on its way out; the root memcg needs no entry.
            if counted_by and memcg and memcg.parent:
                self.charges.by_list_lru[counted_by].add(memcg)

    def check_whole(self, cache, found):
        """Compare the slabs in the memmap with a core's count: a page of the memmap may be missing."""
        if is_running(self.prog):
            return
        counted = slab.slab_count(Object(self.prog, "struct kmem_cache *", cache))
        if found < counted:
            raise CollectError("bad_core", "the memmap has %d of %d slabs of a cache" % (found, counted))

    def find_sources(self, sbs):
        """Return the _Source of each slab cache by its address, told from where the filesystems' roots lie."""
        dentry_type = self.prog.type("struct dentry")
        d_inode = Members(self.prog, dentry_type, d_inode="d_inode")
        d_sb, i_sb = offsetof(dentry_type, "d_sb"), offsetof(self.prog.type("struct inode"), "i_sb")
        children = slab.memcg_caches(self.prog)
        columns = {self.prog["radix_tree_node_cachep"].value_(): (None, None)}
        for root in {sb.fstype: sb.root for sb in sbs if sb.root}.values():
            inode = d_inode.read(self.prog, root).d_inode
            for address, lru, member in ((root, "s_dentry_lru", d_sb), (inode, "s_inode_lru", i_sb)):
                cache, offset = self.slot(address)
                if cache:
                    cache, _ = children.get(cache, (cache, None))
                    columns[cache] = lru, offset + member
        size = Members(self.prog, "struct kmem_cache", size="size")
        owners = [(cache, cache, None) for cache in columns]
        owners += [(child, root, memcg) for child, (root, memcg) in children.items() if root in columns]
        return {
            cache: _Source(size.read(self.prog, cache).size, *columns[root], memcg) for cache, root, memcg in owners
        }

    def slot(self, address):
        """Return the slab cache of an object, and the offset of the object in its slot, red zone included.

        What lies in no slab is a part of the kernel itself, charged to nobody: None and None.
        """
        info = slab.object_info(self.prog, address)
        if info is None:
            return None, None
        base = page_to_virt(cast("struct page *", info.slab)).value_()
        return info.slab_cache.value_(), (address - base) % info.slab_cache.size.value_()

    def read_charged(self, source, slabs):
        """Note for each charged object its owner, an obj_cgroup, and its superblock (v5.9, 964d4bd370d5)."""
        last = self.memmap.element_bytes
        vectors = self.read_some((found.vector, (found.objects - 1) * found.stride + last) for found in slabs)
        owners = {
            found.address: vectors[found.vector][self.memmap.objcg_word :: found.stride // _WORD_BYTES]
            for found in slabs
        }
        slabs = [found for found in slabs if any(owners[found.address])]
        for address, column in self.read_columns(source, slabs).items():
            if 0 in column:
                self.check_initialized(address, zip(owners[address], column))
            self.pairs.update(zip(owners[address], repeat(source.lru), column))

    def check_initialized(self, address, objects):
        """Refuse a slab with more objects of no superblock than a CPU can have at hand, which fills in one at a time.

        :param objects: of each slot its owner and its superblock.
        """
        blank = sum(1 for owner, sb in objects if owner and sb == 0)
        if blank > 1 and not is_running(self.prog):
            raise CollectError("bad_core", "%d charged objects of the slab at 0x%x are blank" % (blank, address))

    def read_allocated(self, source, slabs):
        """The same before v5.9: a memcg has caches of its own, and every allocated object in them is charged to it."""
        if source.memcg is None:
            return
        columns = self.read_columns(source, slabs)
        for found in slabs:
            for i, sb in enumerate(columns[found.address]):
                pair = (source.memcg, source.lru, sb)
                if pair in self.pairs or (source.lru, sb) not in self.list_lrus:
                    continue
                # What a free object holds may be left over from another owner of its page.
                if found.full or self.is_allocated(found.address + i * source.size):
                    self.pairs.add(pair)

    def is_allocated(self, address):
        """Ask drgn, which walks the free lists: a millisecond each time."""
        self.asked += 1
        info = slab.object_info(self.prog, address) if self.asked <= _MOST_ASKED else None
        if info is None or info.allocated is None:
            raise CollectError("bad_core", "it cannot be told which objects are allocated")
        return info.allocated

    def read_columns(self, source, slabs):
        """Return for each slab, by its address, what its slots have where the superblock is; None for xa_nodes."""
        if source.lru is None:
            return {found.address: [None] * found.objects for found in slabs}
        objects = self.read_some((found.address, found.objects * source.size) for found in slabs)
        at, step = source.column // _WORD_BYTES, source.size // _WORD_BYTES
        return {address: words[at::step] for address, words in objects.items()}

    def read_some(self, places):
        """Read memory as words.

        :param places: pairs of address and bytes. :return: dict of address to array.
        """
        by_size = defaultdict(list)
        for address, size in places:
            by_size[size].append(address)
        found = {}
        for size, addresses in by_size.items():
            for address, data in read_each(self.prog, addresses, size).items():
                found[address] = array("Q", data)
                self.charges.read_bytes += size
        return found

    def memcg(self, address):
        """Return the Memcg at an address, or what inherits from it when it is offline; None: it is new."""
        if address not in self.memcgs:
            if is_running(self.prog):
                return None
            raise CollectError("bad_core", "an object is charged to 0x%x, which is no memcg" % address)
        memcg = self.memcgs[address]
        while memcg.parent and not memcg.online:
            memcg = memcg.parent
        return memcg


def _shadow_nodes(prog):
    """Return the address of the list_lru of page cache xa_nodes, or None where they have none."""
    for name in ("shadow_nodes", "workingset_shadow_nodes"):  # the latter up to v4.14
        try:
            return prog.symbol(name).address
        except LookupError:
            pass
    return None
