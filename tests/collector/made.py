"""Synthetic kernels, and changes to the memory of bundled cores.

A SyntheticKernel has types declared in C, memory laid out by address, and the data of slabs, pages and vmalloc that
drgn's helpers read. It stands for the layouts of list_lru that no packaged kernel has. `overlay` and the functions
below it change the memory that is read from a real core. Nothing here comes from pipeline/: sizes follow C's rules.
"""

from __future__ import annotations

import struct
from typing import Literal

from drgn import (
    Architecture,
    FaultError,
    FindObjectFlags,
    Object,
    Platform,
    PlatformFlags,
    Program,
    Symbol,
    SymbolBinding,
    SymbolKind,
    Type,
    TypeKind,
    TypeMember,
    offsetof,
    sizeof,
)
from drgn.helpers.linux.mm import virt_to_page
from drgn.helpers.linux.slab import for_each_slab_cache

from tests.collector.c_types import declare

DIRECT_MAP = 0xFFFF888000000000
VMEMMAP = 0xFFFFEA0000000000
# In the same terabyte as the direct map, as with the 39-bit addresses of some arm64 kernels.
VMALLOC = 0xFFFF889000000000
DATA = 0xFFFFFFFF82000000
MODULE = 0xFFFFFFFFC0000000
FIRST_PFN = 0x100
PG_SLAB, PG_HEAD = 9, 16

ByteOrder = Literal["little", "big"]

# The members of v5.10's structs that slab_object_info(), page_size() and find_vmap_area() read.
HELPERS = """
typedef unsigned long phys_addr_t;
typedef struct { unsigned long bits[1]; } nodemask_t;
struct list_head { struct list_head *next; struct list_head *prev; };
struct rb_node { unsigned long __rb_parent_color; struct rb_node *rb_right; struct rb_node *rb_left; };
struct rb_root { struct rb_node *rb_node; };
struct page {
    unsigned long flags;
    union {
        struct { unsigned long slab_list; unsigned long prev; struct kmem_cache *slab_cache; void *freelist; };
        struct { unsigned long compound_head; unsigned char compound_dtor; unsigned char compound_order; };
    };
    unsigned long rest[3];
};
struct kmem_cache_node { unsigned long nr_partial; };
struct kmem_cache {
    unsigned int size; unsigned int object_size; unsigned int offset; const char *name; struct list_head list;
    struct kmem_cache_node *node[1024];
};
struct vm_struct { void *addr; unsigned int nr_pages; };
struct vmap_area {
    unsigned long va_start; unsigned long va_end; struct rb_node rb_node; struct list_head list; struct vm_struct *vm;
};
struct module { struct list_head list; struct mod_kallsyms *kallsyms; };
struct mod_kallsyms { void *symtab; unsigned int num_symtab; char *strtab; char *typetab; };
"""

# drgn requires the addresses of page tables, but the tests need no page tables.
VMCOREINFO = """OSRELEASE=made
PAGESIZE={}
SYMBOL(swapper_pg_dir)=ffffffff80001000
NUMBER(phys_base)=0
NUMBER(pgtable_l5_enabled)=0
KERNELOFFSET=0
"""


class SyntheticKernel:
    """A drgn program with writable memory, allocators and global variables."""

    def __init__(self, declarations: str, page_bytes: int = 4096, byte_order: ByteOrder = "little") -> None:
        self.page_bytes, self.byte_order = page_bytes, byte_order
        # For an x86_64 drgn needs no page tables, and it takes a big-endian one for what it is.
        endian = PlatformFlags.IS_LITTLE_ENDIAN if byte_order == "little" else PlatformFlags(0)
        self.prog = Program(Platform(Architecture.X86_64, PlatformFlags.IS_64_BIT | endian))
        self.prog.set_linux_kernel_custom(VMCOREINFO.format(page_bytes), False)
        self.variables: dict[str, tuple[str, int]] = {}
        self.memory: dict[int, bytearray] = {}
        self.reads = 0
        self.caches: dict[str, tuple[int, int]] = {}
        self.free_slots: dict[str, list[int]] = {}
        self.next_pfn = FIRST_PFN
        self.next_data = DATA
        self.next_vmalloc = VMALLOC
        self.prog.add_memory_segment(0xFFFF800000000000, (1 << 47) - 1, self._read)
        self.prog.register_object_finder("synthetic", self._find_object, enable_index=0)
        self.prog.register_symbol_finder("synthetic", self._find_symbol, enable_index=0)
        declare(self.prog, HELPERS + declarations)
        self.variable("min_low_pfn", "unsigned long", 0)
        self.variable("max_low_pfn", "unsigned long", 0x10000)
        self.vmap_tail = self.variable("vmap_area_root", "struct rb_root")

    # Finders and memory of the drgn program.

    def _read(self, address: int, count: int, offset: int, physical: bool) -> bytes:
        self.reads += 1
        data = bytearray()
        while count:
            page, start = self.memory.get(address >> 12), address & 0xFFF
            if page is None:
                raise FaultError("no memory at this address", address)
            chunk = page[start : start + count]
            data += chunk
            address, count = address + len(chunk), count - len(chunk)
        return bytes(data)

    def _find_object(self, prog: Program, name: str, flags: FindObjectFlags, filename: str | None) -> Object | None:
        constants = {
            "page_offset_base": ("unsigned long", DIRECT_MAP),
            "vmemmap": ("struct page *", VMEMMAP),
            "PG_slab": ("int", PG_SLAB),
            "PG_head": ("int", PG_HEAD),
            "N_POSSIBLE": ("int", 0),
        }
        if name in constants:
            return Object(prog, constants[name][0], value=constants[name][1])
        if name in self.variables and flags & FindObjectFlags.VARIABLE:
            type_name, address = self.variables[name]
            return Object(prog, type_name, address=address)
        return None

    def _find_symbol(self, prog: Program, name: str | None, address: int | None, find_one: bool) -> list[Symbol]:
        return [
            Symbol(variable, start, 64, SymbolBinding.LOCAL, SymbolKind.OBJECT)
            for variable, (_, start) in self.variables.items()
            if name in (None, variable) and (address is None or start <= address < start + 64)
        ]

    # Writers and allocators for tests.

    def write(self, address: int, data: bytes) -> int:
        for i, byte in enumerate(data, address):
            self.memory.setdefault(i >> 12, bytearray(4096))[i & 0xFFF] = byte
        return address

    def zero(self, address: int, size: int) -> int:
        for page in range(address >> 12, (address + size - 1 >> 12) + 1):
            self.memory.setdefault(page, bytearray(4096))
        return address

    def put(self, address: int, struct_name: str, **members: int) -> int:
        """Set members of the struct at an address; `__` in a member's name stands for a dot."""
        struct_type = self.prog.type(struct_name)
        for name, value in members.items():
            path = name.replace("__", ".")
            member = struct_type
            for part in path.split("."):
                member = member.member(part).type
                while member.kind == TypeKind.TYPEDEF:
                    member = member.type
            self.number(address + offsetof(struct_type, path), sizeof(member), value)
        return address

    def number(self, address: int, size: int, value: int) -> int:
        return self.write(address, (value & (1 << 8 * size) - 1).to_bytes(size, self.byte_order))

    def words(self, address: int, *values: int) -> int:
        for i, value in enumerate(values):
            self.number(address + 8 * i, 8, value)
        return address

    def variable(self, name: str, type_name: str, value: int | None = None) -> int:
        """Declare a global variable in the kernel's data, and return its address."""
        address, self.next_data = self.next_data, self.next_data + 64
        self.variables[name] = (type_name, address)
        self.zero(address, 64)
        if value is not None:
            self.number(address, min(sizeof(self.prog.type(type_name)), 8), value)
        return address

    def cache(self, name: str, size: int) -> int:
        """Create a slab cache whose objects take `size` bytes, and return the address of its struct kmem_cache."""
        address = self.next_data
        self.next_data += 16384
        self.zero(address, 16384)
        text = self.write(address + 12288, name.encode() + b"\0")
        self.caches[name] = (self.put(address, "struct kmem_cache", size=size, object_size=size, name=text), size)
        self.free_slots[name] = []
        return address

    def slab(self, name: str) -> int:
        """Allocate an object of a slab cache, and return its address."""
        cache, size = self.caches[name]
        if not self.free_slots[name]:
            page, address = self._pages(1)
            self.put(page, "struct page", flags=1 << PG_SLAB, slab_cache=cache)
            self.free_slots[name] = [address + i * size for i in range(self.page_bytes // size)]
        return self.free_slots[name].pop(0)

    def compound(self, pages: int) -> int:
        """Allocate a compound page, as a large kmalloc() does, and return its address."""
        head, address = self._pages(pages)
        self.put(head, "struct page", flags=1 << PG_HEAD)
        self.put(head + 64, "struct page", compound_order=pages.bit_length() - 1)
        for tail in range(1, pages):
            self.put(head + 64 * tail, "struct page", compound_head=head + 1)
        return address

    def vmalloc(self, pages: int) -> int:
        """Map pages in vmalloc space, followed by a guard page, and return their address."""
        start, size = self.next_vmalloc, pages * self.page_bytes
        self.next_vmalloc += size + self.page_bytes
        self.zero(start, size)
        area, self.next_data = self.next_data, self.next_data + 256
        self.zero(area, 256)
        self.put(area + 128, "struct vm_struct", addr=start, nr_pages=pages)
        self.put(area, "struct vmap_area", va_start=start, va_end=start + size + self.page_bytes, vm=area + 128)
        node = area + 16
        self.words(self.vmap_tail, node)  # each area is the right child of the previous one
        self.vmap_tail = node + 8
        return start

    def _pages(self, count: int) -> tuple[int, int]:
        """Allocate pages; return the addresses of the first struct page and of the memory."""
        pfn = -(-self.next_pfn // count) * count
        self.next_pfn = pfn + count
        address = DIRECT_MAP + pfn * self.page_bytes
        self.zero(address, count * self.page_bytes)
        return self.zero(VMEMMAP + 64 * pfn, 64 * count), address


def overlay(prog: Program, address: int, data: bytes) -> None:
    """Replace the core's bytes at an address."""
    prog.add_memory_segment(address, len(data), lambda address, count, offset, physical: data[offset : offset + count])


def word(prog: Program, address: int, value: int) -> None:
    """Replace the core's word at an address by a number, as 64 bits, little-endian."""
    overlay(prog, address, struct.pack("<Q", value & (1 << 64) - 1))


def free_slot(prog: Program, cache: Object, slot: int) -> None:
    """Free one object of a full slab, as the only object on the slab's free list.

    The link to the next free object is NULL, encoded as by freelist_ptr() in v5.10's mm/slub.c: XORed with the cache's
    random number and the byte-swapped address of the link.

    :param cache: ``struct kmem_cache *``.
    :param slot: address of the object.
    """
    page = virt_to_page(prog, slot).value_()
    page_type = prog.type("struct page")
    link = slot + cache.offset.value_()
    word(prog, link, cache.random.value_() ^ int.from_bytes(link.to_bytes(8, "little"), "big"))
    word(prog, page + offsetof(page_type, "freelist"), slot)
    counters = page + offsetof(page_type, "counters")
    word(prog, counters, prog.read_word(counters) - 1)  # its low bits are `inuse`


class MemcgCache:
    """A memcg's own copy of a slab cache, which kernels before v5.9 have for each memcg, in a core of v5.10.

    struct kmem_cache has memcg_params (mm/slab.h of v5.8), here in place of kobj, and struct page lacks obj_cgroups:
    struct memcg_cache_params { struct kmem_cache *root_cache; union { ...; struct { struct mem_cgroup *memcg; ...
    """

    # Addresses at which no core has memory.
    _CACHE, _NODE = 0xFFFFFE1234560000, 0xFFFFFE1234570000

    def __init__(self, prog: Program, root: Object, memcg: int, slab: int) -> None:
        """Copy a cache for a memcg, and move one slab from the root cache to the copy.

        :param root: ``struct kmem_cache *``.
        :param memcg: address of the ``struct mem_cgroup``.
        :param slab: address of the slab's first object.
        """
        cache_type, page_type = prog.type("struct kmem_cache"), prog.type("struct page")
        members = [
            TypeMember(prog.type("struct kmem_cache *"), "root_cache", 0),
            TypeMember(prog.type("struct mem_cgroup *"), "memcg", 64),
        ]
        params_offset = offsetof(cache_type, "kobj")
        params = TypeMember(prog.struct_type("memcg_cache_params", 16, members), "memcg_params", 8 * params_offset)
        self._types = {
            "kmem_cache": prog.struct_type("kmem_cache", cache_type.size, [*cache_type.members, params]),
            "page": prog.struct_type("page", page_type.size, page_type.members[:-1]),
        }
        for cache in for_each_slab_cache(prog):
            overlay(prog, cache.value_() + params_offset, bytes(16))
        copy = bytearray(prog.read(root, offsetof(cache_type, "node")) + struct.pack("<Q", self._NODE))
        copy += bytes(cache_type.size - len(copy))
        list_offset = offsetof(cache_type, "list")
        struct.pack_into("<Q", copy, list_offset, prog["slab_caches"].next.value_())
        struct.pack_into("<QQ", copy, params_offset, root.value_(), memcg)
        overlay(prog, self._CACHE, bytes(copy))
        word(prog, prog["slab_caches"].address_, self._CACHE + list_offset)
        root_node = root.node[0].value_()
        nr_slabs = offsetof(prog.type("struct kmem_cache_node"), "nr_slabs")
        overlay(prog, self._NODE, prog.read(root_node, nr_slabs) + struct.pack("<Q", 1))
        word(prog, root_node + nr_slabs, prog.read_word(root_node + nr_slabs) - 1)
        word(prog, virt_to_page(prog, slab).value_() + offsetof(page_type, "slab_cache"), self._CACHE)
        prog.register_type_finder("before v5.9", self._find_type, enable_index=0)

    def _find_type(self, prog: Program, kinds: object, name: str, filename: str | None) -> Type | None:
        return self._types.get(name)
