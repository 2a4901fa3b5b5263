"""The memcgs that own charged objects of each list_lru: on a lazy kernel each of them would have an entry there.

A lazy kernel makes the entry when it allocates a charged dentry, inode or page cache xa_node: commit 88f2ef73fd66 ("mm:
introduce kmem_cache_alloc_lru") (in v5.18). An eager kernel charges the same objects. The scan reads the memmap to find
the slabs of their caches, the slabs' object cgroup vectors for the owner of each object, and the slabs for the object's
superblock. It reads all of these in bulk, so the number of reads depends on memory and slabs, not on superblocks and
memcgs.
"""

from collections import Counter, defaultdict, namedtuple
from itertools import repeat

from drgn import FaultError, offsetof

from ..access.memory import Members, is_running, read_each, words
from ..status import CollectError
from . import memcg_caches, superblocks
from .memmap import Memmap
from .slab import count_slabs, find_slots, object_info

# Bounds the memory for one bulk read: a slab has 4 to 32 KB.
_SLABS_PER_READ = 256
_WORD_BYTES = 8
# Bounds the calls of drgn's slab helper, which takes a millisecond each time.
_MAX_LOOKUPS = 100000


class NotScanned(Exception):
    """The charged objects could not be counted completely; the message is the reason."""


class Charges:
    """Result of the scan.

    :ivar by_list_lru: address of each ``struct list_lru`` with charged objects to the set of online Memcgs that own
        one, without their ancestors and without the root.
    :ivar read_bytes: bytes of kernel memory that were read.
    """

    def __init__(self):
        self.by_list_lru = defaultdict(set)
        self.read_bytes = 0


class _SlabCache(namedtuple("_SlabCache", "size lru sb_offset memcg")):
    """A slab cache of charged objects.

    size: bytes of a slot. lru: member of ``struct super_block`` that lists the objects, None for xa_nodes. sb_offset:
    offset in a slot of the superblock's address. memcg: before v5.9 the address of the only owner, else None.
    """

    __slots__ = ()


def scan(prog, sbs, memcgs, dying_pages=None):
    """Find the owners of all charged dentries, inodes and page cache xa_nodes.

    :param sbs: list of SuperBlock.
    :param memcgs: list of Memcg.
    :param dying_pages: DyingMemcgPages, which count their pages in the memmap, or None.
    :return: Charges.
    :raises NotScanned: memory is missing, a structure is broken, or the slab allocator is not SLUB.
    """
    try:
        return _Scan(prog, sbs, memcgs).run(dying_pages)
    except (FaultError, LookupError, AttributeError, ValueError, CollectError) as e:
        raise NotScanned("charged objects are not counted: %s" % e) from e


class _Scan:
    def __init__(self, prog, sbs, memcgs):
        self.prog = prog
        self.memcg_by_address = {memcg.address: memcg for memcg in memcgs}
        superblock_type = prog.type("struct super_block")
        # (member of struct super_block, address of the superblock) -> address of the list_lru.
        self.list_lrus = {
            (lru, sb.address): sb.address + offsetof(superblock_type, lru) for lru in superblocks.LRUS for sb in sbs
        }
        self.list_lrus[None, None] = _shadow_nodes(prog)
        self.memmap = Memmap(prog)
        self.caches = self.find_caches(sbs)
        # Triples (owner, member, superblock), one for all objects that have these in common. The owner is an
        # obj_cgroup, before v5.9 a memcg; the other two are a key of list_lrus.
        self.charged_objects = set()
        self.lookups = 0
        self.charges = Charges()

    def run(self, dying_pages):
        read_objects = self.read_charged_objects if self.memmap.has_vectors else self.read_allocated_objects
        unread_slabs = defaultdict(list)
        slab_counts = Counter()
        for address, slab in self.memmap.slabs(self.caches, dying_pages):
            slab_counts[address] += 1
            if slab.vector or not self.memmap.has_vectors:
                unread_slabs[address].append(slab)
                if len(unread_slabs[address]) == _SLABS_PER_READ:
                    read_objects(self.caches[address], unread_slabs.pop(address))
        for address, slabs in unread_slabs.items():
            read_objects(self.caches[address], slabs)
        self.check_slab_counts(slab_counts)
        self.charges.read_bytes += self.memmap.read_bytes
        self.resolve_owners()
        return self.charges

    def resolve_owners(self):
        """Fill the Charges from the charged objects."""
        if self.memmap.has_vectors:
            obj_cgroup = Members(self.prog, "struct obj_cgroup", memcg="memcg")
            data = read_each(self.prog, {owner for owner, _, _ in self.charged_objects if owner}, obj_cgroup.end)
            memcgs = {owner: obj_cgroup.decode(data[owner]).memcg for owner in data}
            self.charged_objects = {(memcgs[owner], lru, sb) for owner, lru, sb in self.charged_objects if owner}
        for owner, lru, sb in self.charged_objects:
            memcg = self.online_memcg(owner)
            list_lru = self.list_lrus.get((lru, sb))
            # A superblock that is not on super_blocks is being destroyed. The root memcg needs no entry.
            if list_lru and memcg and memcg.parent:
                self.charges.by_list_lru[list_lru].add(memcg)

    def check_slab_counts(self, counts):
        """Compare the slabs found in the memmap with the kernel's count: a core can lack pages of the memmap."""
        if is_running(self.prog):
            return
        for address, nr_slabs in count_slabs(self.prog, self.caches).items():
            if counts[address] < nr_slabs:
                message = "the memmap has %d of %d slabs of a slab cache" % (counts[address], nr_slabs)
                raise CollectError("bad_core", message)

    def find_caches(self, sbs):
        """Return the _SlabCache at each address. The root of each filesystem is an object of its caches.

        :raises CollectError: ``bad_core``: the roots of two filesystems disagree on a cache's objects.
        """
        dentry_type = self.prog.type("struct dentry")
        d_inode = Members(self.prog, dentry_type, d_inode="d_inode")
        d_sb, i_sb = offsetof(dentry_type, "d_sb"), offsetof(self.prog.type("struct inode"), "i_sb")
        child_caches = memcg_caches.owners(self.prog)
        # Address of a root cache -> the fields lru and sb_offset of its _SlabCache.
        layouts = {self.prog["radix_tree_node_cachep"].value_(): (None, None)}
        roots = {sb.fstype: sb.root for sb in sbs if sb.root}.values()
        inodes = {dentry: fields.d_inode for dentry, fields in d_inode.read_each(self.prog, roots).items()}
        # An object outside slabs is part of the kernel image and not charged.
        slots = find_slots(self.prog, {*inodes, *inodes.values()})
        for dentry, inode in inodes.items():
            for address, lru, member_offset in ((dentry, "s_dentry_lru", d_sb), (inode, "s_inode_lru", i_sb)):
                if address in slots:
                    cache, offset = slots[address]
                    root_cache, _ = child_caches.get(cache, (cache, None))
                    layout = lru, offset + member_offset
                    if layouts.setdefault(root_cache, layout) != layout:
                        raise CollectError("bad_core", "the slab cache at 0x%x has objects of two kinds" % root_cache)
        size = Members(self.prog, "struct kmem_cache", size="size")
        caches = [(root, root, None) for root in layouts]
        caches += [(child, root, memcg) for child, (root, memcg) in child_caches.items() if root in layouts]
        sizes = size.read_each(self.prog, (cache for cache, _, _ in caches))
        return {cache: _SlabCache(sizes[cache].size, *layouts[root], memcg) for cache, root, memcg in caches}

    def read_charged_objects(self, cache, slabs):
        """Add the charged objects of slabs: their owner, an obj_cgroup, and their superblock.

        Since commit 964d4bd370d5 ("mm: memcg/slab: save obj_cgroup for non-root slab objects") (in v5.9).
        """
        element_bytes = self.memmap.element_bytes
        vectors = self.read_words((slab.vector, (slab.objects - 1) * slab.stride + element_bytes) for slab in slabs)
        owners = {
            slab.address: vectors[slab.vector][self.memmap.objcg_word :: slab.stride // _WORD_BYTES] for slab in slabs
        }
        slabs = [slab for slab in slabs if any(owners[slab.address])]
        for address, slab_sbs in self.read_superblocks(cache, slabs).items():
            if 0 in slab_sbs:
                self.check_initialized(address, zip(owners[address], slab_sbs))
            self.charged_objects.update(zip(owners[address], repeat(cache.lru), slab_sbs))

    def check_initialized(self, address, objects):
        """Check that at most one charged object of a slab has no superblock: a CPU initializes one at a time.

        :param address: of the slab.
        :param objects: pairs (owner, superblock), one for each slot.
        """
        count = sum(1 for owner, sb in objects if owner and sb == 0)
        if count > 1 and not is_running(self.prog):
            message = "%d charged objects of the slab at 0x%x have no superblock" % (count, address)
            raise CollectError("bad_core", message)

    def read_allocated_objects(self, cache, slabs):
        """Add the allocated objects of slabs. Before v5.9 a memcg has caches for the objects charged to it."""
        if cache.memcg is None:
            return
        sbs_by_slab = self.read_superblocks(cache, slabs)
        for slab in slabs:
            for i, sb in enumerate(sbs_by_slab[slab.address]):
                charged_object = (cache.memcg, cache.lru, sb)
                if charged_object in self.charged_objects or (cache.lru, sb) not in self.list_lrus:
                    continue
                # A free object can still contain the superblock of an earlier owner of the page.
                if slab.is_full or self.is_allocated(slab.address + i * cache.size):
                    self.charged_objects.add(charged_object)

    def is_allocated(self, address):
        """Whether the object at an address is allocated, according to drgn, which walks the free lists."""
        self.lookups += 1
        info = object_info(self.prog, address) if self.lookups <= _MAX_LOOKUPS else None
        if info is None or info.allocated is None:
            raise CollectError("bad_core", "cannot determine which slab objects are allocated")
        return info.allocated

    def read_superblocks(self, cache, slabs):
        """Return for each slab, by its address, the superblock's address in each slot, None for xa_nodes."""
        if cache.lru is None:
            return {slab.address: [None] * slab.objects for slab in slabs}
        words_by_slab = self.read_words((slab.address, slab.objects * cache.size) for slab in slabs)
        first, step = cache.sb_offset // _WORD_BYTES, cache.size // _WORD_BYTES
        return {address: slab_words[first::step] for address, slab_words in words_by_slab.items()}

    def read_words(self, ranges):
        """Read memory as 64-bit words.

        :param ranges: pairs (address, bytes).
        :return: dict of address to array.
        """
        addresses_by_size = defaultdict(list)
        for address, size in ranges:
            addresses_by_size[size].append(address)
        words_by_address = {}
        for size, addresses in addresses_by_size.items():
            for address, data in read_each(self.prog, addresses, size).items():
                words_by_address[address] = words(self.prog, data)
                self.charges.read_bytes += size
        return words_by_address

    def online_memcg(self, address):
        """Return the Memcg at an address or, if it is offline, the ancestor that inherited its charges.

        None on a running kernel if the memcg is new.
        """
        if address not in self.memcg_by_address:
            if is_running(self.prog):
                return None
            raise CollectError("bad_core", "an object is charged to 0x%x, which is not a memcg" % address)
        return self.memcg_by_address[address].nearest_online()


def _shadow_nodes(prog):
    """Return the address of the list_lru of page cache xa_nodes, or None on a kernel without it."""
    for name in ("shadow_nodes", "workingset_shadow_nodes"):  # the second up to v4.14
        try:
            return prog.symbol(name).address
        except LookupError:
            pass
    return None
