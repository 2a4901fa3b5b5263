"""The memcgs that own charged objects of each list_lru: on a lazy kernel each of them would have an entry there.

A lazy kernel makes the entry when it allocates a charged dentry, inode or page cache xa_node: commit 88f2ef73fd66 ("mm:
introduce kmem_cache_alloc_lru") (in v5.18). An eager kernel charges the same objects. The scan reads the memmap to find
the slabs of their caches, the slabs' object cgroup vectors for the owner of each object, and the slabs for the object's
superblock. It reads all of these in bulk, so the number of reads depends on memory and slabs, not on superblocks and
memcgs. With a limit it starts with the pageblocks that nearly all slabs are in, and reads a random sample of the slabs
if it cannot read all.
"""

from collections import Counter, defaultdict, namedtuple
from contextlib import suppress
from itertools import repeat
from operator import itemgetter

from drgn import FaultError, offsetof

from ..access.memory import UNREADABLE, Members, is_running, read_each, words
from ..model import unseen
from ..status import CollectError
from . import memcg_caches, pageblocks, superblocks
from .memmap import Memmap, pfn_spans
from .slab import count_slabs, find_slots, object_info

# Bounds the memory for one bulk read: a slab has 4 to 32 KB.
_SLABS_PER_READ = 256
_WORD_BYTES = 8
# Bounds the calls of drgn's slab helper, which takes a millisecond each time.
_MAX_LOOKUPS = 100000
# Limit of the scan of a running host: half of it is the memmap of 2 GB, the other half 2,000 to 8,000 slabs.
LIVE_BYTES = 64 << 20
_MAX_LIVE_LOOKUPS = 500
# Slabs of a cache that are read in turn with those of the other caches, so that each cache has a sample.
_SLABS_PER_TURN = 64
# Part of the slabs that a whole memmap has at least, although some are allocated during the scan.
_MIN_FOUND = 0.9
# Half a slab, so that a cache without sampled slabs has a fraction above 0.
_NO_SLABS = 0.5


class NotScanned(Exception):
    """The charged objects could not be counted completely; the message is the reason."""


class Charges:
    """Result of the scan.

    :ivar by_list_lru: address of each ``struct list_lru`` with charged objects to the set of online Memcgs that own
        one, without their ancestors and without the root.
    :ivar imputed_by_list_lru: the same for pairs of a list_lru and a Memcg that stand for those without an object in
        the sampled slabs.
    :ivar error_pairs: half width of the 95 % interval of the number of pairs, None if all slabs were read.
    :ivar read_bytes: bytes of kernel memory that were read.
    """

    def __init__(self):
        self.by_list_lru = defaultdict(set)
        self.imputed_by_list_lru = defaultdict(set)
        self.error_pairs = None
        self.read_bytes = 0


class _SlabCache(namedtuple("_SlabCache", "address size lru sb_offset memcg")):
    """A slab cache of charged objects.

    address: of the ``struct kmem_cache``. size: bytes of a slot. lru: member of ``struct super_block`` that lists the
    objects, None for xa_nodes. sb_offset: offset in a slot of the superblock's address. memcg: before v5.9 the address
    of the only owner, else None.
    """

    __slots__ = ()


def scan(prog, sbs, memcgs, dying_pages=None, max_bytes=None):
    """Find the owners of all charged dentries, inodes and page cache xa_nodes.

    :param sbs: list of SuperBlock.
    :param memcgs: list of Memcg.
    :param dying_pages: DyingMemcgPages, which count their pages in the memmap, or None.
    :param max_bytes: limit of the bytes to read, with which dying_pages are not counted; None for all.
    :return: Charges.
    :raises NotScanned: memory is missing, a structure is broken, the slab allocator is not SLUB, or the limit does not
        allow for a sample.
    """
    try:
        if max_bytes is None:
            return _Scan(prog, sbs, memcgs).run(dying_pages)
        return _LimitedScan(prog, sbs, memcgs).run_within(max_bytes)
    except (FaultError, LookupError, AttributeError, ValueError, CollectError) as e:
        raise NotScanned("charged objects are not counted: %s" % e) from e


class _Scan:
    """A scan of all slabs."""

    max_lookups = _MAX_LOOKUPS

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
        self.read_objects = self.read_charged_objects if self.memmap.has_vectors else self.read_allocated_objects

    def run(self, dying_pages):
        unread_slabs = defaultdict(list)
        slab_counts = Counter()
        for address, slab in self.memmap.slabs(self.caches, dying_pages):
            slab_counts[address] += 1
            if self.can_have_charged_objects(slab):
                unread_slabs[address].append(slab)
                if len(unread_slabs[address]) == _SLABS_PER_READ:
                    self.read_objects(self.caches[address], unread_slabs.pop(address))
        for address, slabs in unread_slabs.items():
            self.read_objects(self.caches[address], slabs)
        self.check_slab_counts(slab_counts)
        self.charges.read_bytes += self.memmap.read_bytes
        for list_lru, memcg in self.pairs().values():
            self.charges.by_list_lru[list_lru].add(memcg)
        return self.charges

    def can_have_charged_objects(self, slab):
        return bool(slab.vector) or not self.memmap.has_vectors

    def pairs(self):
        """Return the list_lru and the Memcg of each charged object that needs an entry, by its triple."""
        # A superblock that is not on super_blocks is being destroyed.
        charged_objects = [(owner, lru, sb) for owner, lru, sb in self.charged_objects if (lru, sb) in self.list_lrus]
        memcgs = self.memcgs_of({owner for owner, _, _ in charged_objects if owner})
        pairs = {}
        for charged_object in charged_objects:
            owner, lru, sb = charged_object
            memcg = self.online_memcg(memcgs[owner]) if owner in memcgs else None
            list_lru = self.list_lrus[lru, sb]
            # The root memcg needs no entry.
            if list_lru and memcg and memcg.parent:
                pairs[charged_object] = list_lru, memcg
        return pairs

    def memcgs_of(self, owners):
        """Return the address of the memcg of each owner: dict by the owner's address."""
        if not self.memmap.has_vectors:
            return {owner: owner for owner in owners}
        obj_cgroup = Members(self.prog, "struct obj_cgroup", memcg="memcg")
        try:
            obj_cgroups = obj_cgroup.read_each(self.prog, owners)
        except UNREADABLE:
            if not is_running(self.prog):
                raise
            # The vector of a slab that was freed during the scan can have any words.
            obj_cgroups = {}
            for owner in owners:
                with suppress(*UNREADABLE):
                    obj_cgroups[owner] = obj_cgroup.read(self.prog, owner)
        return {owner: fields.memcg for owner, fields in obj_cgroups.items()}

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
        dentry_members = Members(self.prog, dentry_type, d_inode="d_inode", d_sb="d_sb")
        d_sb, i_sb = offsetof(dentry_type, "d_sb"), offsetof(self.prog.type("struct inode"), "i_sb")
        child_caches = memcg_caches.owners(self.prog)
        # Address of a root cache -> the fields lru and sb_offset of its _SlabCache.
        layouts = {self.prog["radix_tree_node_cachep"].value_(): (None, None)}
        roots = {sb.fstype: sb for sb in sbs if sb.root}.values()
        dentries = dentry_members.read_each(self.prog, [sb.root for sb in roots])
        for sb in roots:
            root = dentries[sb.root]
            if not is_running(self.prog) and not (root.d_inode and root.d_sb == sb.address):
                raise CollectError("bad_core", "the root of the superblock at 0x%x is broken" % sb.address)
        inodes = {dentry: fields.d_inode for dentry, fields in dentries.items()}
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
        return {cache: _SlabCache(cache, sizes[cache].size, *layouts[root], memcg) for cache, root, memcg in caches}

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
            self.add_charged_objects(cache, address, zip(owners[address], repeat(cache.lru), slab_sbs))

    def add_charged_objects(self, cache, address, charged_objects):
        """Add the triples of the objects of the slab at an address, some of them without an owner."""
        self.charged_objects.update(charged_objects)

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
        if self.lookups > self.max_lookups:
            message = "before v5.9 each object of a slab that is not full is looked up, here more than %d"
            raise CollectError("over_budget", message % self.max_lookups)
        info = object_info(self.prog, address)
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


class _LimitedScan(_Scan):
    """A scan of the slabs that a limit allows for: all, or a random sample.

    Half of the limit is for the memmap, in which the slabs are found, the rest for the slabs themselves.
    """

    max_lookups = _MAX_LIVE_LOOKUPS

    def __init__(self, prog, sbs, memcgs):
        from random import Random  # takes 3 ms of CPU time, which an audit of a core does not need

        super().__init__(prog, sbs, memcgs)
        self.random = Random(0)
        self.fstypes = {sb.address: sb.fstype for sb in sbs}
        self.is_memmap_read = False
        self.range_bytes = 0
        # Slabs of each cache by their address, in the order in which they were found.
        self.slabs = {address: {} for address in self.caches}
        # Addresses of the slabs with each charged object, by cache.
        self.slabs_by_object = defaultdict(lambda: defaultdict(set))

    def run_within(self, max_bytes):
        counts = count_slabs(self.prog, self.caches)
        for address, slab in self.memmap.slabs(self.caches, spans=self.spans(max_bytes // 2, counts)):
            self.slabs[address][slab.address] = slab
        self.charges.read_bytes += self.memmap.read_bytes
        sampled = self.read_sample(max_bytes)
        fractions = self.fractions(sampled, counts)
        pairs = self.pairs()
        for list_lru, memcg in pairs.values():
            self.charges.by_list_lru[list_lru].add(memcg)
        if any(fraction < 1 for fraction in fractions.values()):
            if not self.memmap.has_vectors:
                raise CollectError("over_budget", "there are too many slabs, of which none are sampled before v5.9")
            self.estimate_unseen(pairs, sampled, fractions)
        return self.charges

    def spans(self, max_bytes, counts):
        """Yield ranges of page frame numbers in random order, until all slabs are found or the limit is reached.

        The movable ones are the last. All others are read even if the number of slabs is already right: meanwhile some
        may have been freed, and others allocated.

        :param counts: the kernel's number of slabs of each cache, by its address.
        """
        spans = pfn_spans(self.prog)
        try:
            ranges = pageblocks.ranges(self.prog, spans[-1][1])
        except (LookupError, FaultError):
            ranges = pageblocks.split(spans)
        self.range_bytes = ranges.pages * self.prog["PAGE_SIZE"].value_()
        for starts in (ranges.fixed, ranges.movable):
            for start in self.in_random_order(starts):
                if self.memmap.read_bytes >= max_bytes:
                    return
                if starts is ranges.movable and all(len(self.slabs[cache]) >= counts[cache] for cache in counts):
                    return
                yield start, start + ranges.pages
        self.is_memmap_read = True

    def in_random_order(self, items):
        """Yield the items of an array, and change their order: a shuffle of as many as are taken."""
        for count in range(len(items), 0, -1):
            chosen = self.random.randrange(count)
            items[chosen], items[count - 1] = items[count - 1], items[chosen]
            yield items[count - 1]

    def read_sample(self, max_bytes):
        """Read slabs of each cache in random order, until the limit is reached.

        Ranges of the memmap are in random order already. Where a part of them was not read, slabs stay in it, so that
        all slabs of a range are sampled, or none.

        :return: number of slabs that were read, by the cache's address.
        """
        turns = []
        for address, slabs in self.slabs.items():
            slabs = [slab for slab in slabs.values() if self.can_have_charged_objects(slab)]
            if self.is_memmap_read:
                self.random.shuffle(slabs)
            turns += [(i, address, slabs[i : i + _SLABS_PER_TURN]) for i in range(0, len(slabs), _SLABS_PER_TURN)]
        sampled = Counter()
        for _, address, slabs in sorted(turns, key=itemgetter(0)):
            cache = self.caches[address]
            object_bytes = cache.size if cache.lru else 0
            slabs_bytes = sum(slab.objects * (slab.stride + object_bytes) for slab in slabs)
            if self.charges.read_bytes + slabs_bytes > max_bytes:
                break
            self.read_objects(cache, slabs)
            sampled[address] += len(slabs)
        return sampled

    def fractions(self, sampled, counts):
        """Return the fraction of the slabs of each cache that was read, by the cache's address.

        :param sampled: number of slabs that were read, by the cache's address.
        :param counts: the kernel's number of slabs of each cache at the start.
        :raises CollectError: ``bad_core``: all of the memmap was read, and slabs are missing.
        """
        # Slabs come and go during the scan.
        last_counts = count_slabs(self.prog, self.caches)
        counts = {address: min(counts[address], last_counts[address]) for address in counts}
        if self.is_memmap_read:
            found, count = sum(map(len, self.slabs.values())), sum(counts.values())
            if found < _MIN_FOUND * count:
                raise CollectError("bad_core", "the memmap has %d of %d slabs of charged objects" % (found, count))
            counts = dict.fromkeys(counts, 0)
        fractions = {}
        for address, slabs in self.slabs.items():
            found = max(len(slabs), _NO_SLABS) / max(len(slabs), counts[address], _NO_SLABS)
            with_vector = sum(map(self.can_have_charged_objects, slabs.values()))
            fractions[address] = found * max(sampled[address], _NO_SLABS) / max(with_vector, _NO_SLABS)
        return fractions

    def add_charged_objects(self, cache, address, charged_objects):
        charged_objects = set(charged_objects)
        super().add_charged_objects(cache, address, charged_objects)
        for charged_object in charged_objects:
            self.slabs_by_object[cache.address][charged_object].add(address)

    def estimate_unseen(self, pairs, sampled, fractions):
        """Fill in what the Charges have for pairs that the sample does not show.

        :param pairs: pairs().
        """
        groups = defaultdict(list)
        for (lru, sb), list_lru in self.list_lrus.items():
            groups[lru, self.fstypes.get(sb)].append(list_lru)
        group_of = {list_lru: group for group in groups.values() for list_lru in group}
        # The slabs of a range of memory are often of one memcg. Where a part of the memmap was not read, ranges were
        # sampled, not slabs.
        unit_bytes = 1 if self.is_memmap_read else self.range_bytes
        self.charges.error_pairs = 0
        for address, fraction in fractions.items():
            slabs_by_pair = defaultdict(set)
            for charged_object, slabs in self.slabs_by_object[address].items():
                if charged_object in pairs:
                    slabs_by_pair[pairs[charged_object]].update(slab // unit_bytes for slab in slabs)
            slab_counts = {pair: len(slabs) for pair, slabs in slabs_by_pair.items()}
            estimate = unseen.estimate(slab_counts.values(), sampled[address], fraction)
            once = sorted((pair for pair, count in slab_counts.items() if count == 1), key=_by_address)
            count = round(estimate.pairs)
            if count > unseen.MAX_PAIRS:
                message = "a sample of %.2g of the slabs of a slab cache is too small"
                raise CollectError("over_budget", message % fraction)
            imputed = unseen.impute(self.charges.by_list_lru, once, count, group_of, self.random)
            self.charges.error_pairs += estimate.error + count - len(imputed)
            for list_lru, memcg in imputed:
                self.charges.imputed_by_list_lru[list_lru].add(memcg)


def _by_address(pair):
    list_lru, memcg = pair
    return list_lru, memcg.address


def _shadow_nodes(prog):
    """Return the address of the list_lru of page cache xa_nodes, or None on a kernel without it."""
    for name in ("shadow_nodes", "workingset_shadow_nodes"):  # the second up to v4.14
        try:
            return prog.symbol(name).address
        except LookupError:
            pass
    return None
