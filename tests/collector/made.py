"""Kernels that never ran: types declared in C, memory laid out by address, and as much of slab, page and vmalloc
bookkeeping as drgn's helpers ask for. For layouts of list_lru that no package boots any more, or none ever did.

Nothing here comes from pipeline/: sizes follow from C's rules, and where an object lies says how large it is.
"""

from __future__ import annotations

import struct

from drgn import (
    Architecture,
    FaultError,
    FindObjectFlags,
    Object,
    Platform,
    Program,
    Symbol,
    SymbolBinding,
    SymbolKind,
    TypeKind,
    offsetof,
    sizeof,
)

from tests.collector.c_types import declare

DIRECT_MAP = 0xFFFF888000000000
VMEMMAP = 0xFFFFEA0000000000
# In the same terabyte, as with the 39-bit addresses of some arm64 kernels.
VMALLOC = 0xFFFF889000000000
DATA = 0xFFFFFFFF82000000
MODULE = 0xFFFFFFFFC0000000
FIRST_PFN = 0x100
PG_SLAB, PG_HEAD = 9, 16

# The parts of v5.10's that slab_object_info(), page_size() and find_vmap_area() read.
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

# drgn wants page tables to be where these say, but finds everything without them.
VMCOREINFO = """OSRELEASE=made
PAGESIZE={}
SYMBOL(swapper_pg_dir)=ffffffff80001000
NUMBER(phys_base)=0
NUMBER(pgtable_l5_enabled)=0
KERNELOFFSET=0
"""


class MadeKernel:
    """A drgn program, and what puts things into its memory."""

    def __init__(self, declarations: str, page_bytes: int = 4096) -> None:
        self.page_bytes = page_bytes
        self.prog = Program(Platform(Architecture.X86_64))
        self.prog.set_linux_kernel_custom(VMCOREINFO.format(page_bytes), False)
        self.variables: dict[str, tuple[str, int]] = {}
        self.memory: dict[int, bytearray] = {}
        self.caches: dict[str, tuple[int, int]] = {}
        self.free: dict[str, list[int]] = {}
        self.next_pfn = FIRST_PFN
        self.next_data = DATA
        self.next_vmalloc = VMALLOC
        self.prog.add_memory_segment(0xFFFF800000000000, (1 << 47) - 1, self._read)
        self.prog.register_object_finder("made", self._find_object, enable_index=0)
        self.prog.register_symbol_finder("made", self._find_symbol, enable_index=0)
        declare(self.prog, HELPERS + declarations)
        self.variable("min_low_pfn", "unsigned long", 0)
        self.variable("max_low_pfn", "unsigned long", 0x10000)
        self.vmap_tail = self.variable("vmap_area_root", "struct rb_root")

    # What drgn asks for.

    def _read(self, address: int, count: int, offset: int, physical: bool) -> bytes:
        data = bytearray()
        while count:
            page, start = self.memory.get(address >> 12), address & 0xFFF
            if page is None:
                raise FaultError("nothing was put there", address)
            part = page[start : start + count]
            data += part
            address, count = address + len(part), count - len(part)
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

    def _find_symbol(self, prog: Program, name: str | None, address: int | None, one: bool) -> list[Symbol]:
        return [
            Symbol(known, at, 64, SymbolBinding.LOCAL, SymbolKind.OBJECT)
            for known, (_, at) in self.variables.items()
            if name in (None, known) and (address is None or at <= address < at + 64)
        ]

    # What a test puts there.

    def write(self, address: int, data: bytes) -> int:
        for i, byte in enumerate(data, address):
            self.memory.setdefault(i >> 12, bytearray(4096))[i & 0xFFF] = byte
        return address

    def zero(self, address: int, size: int) -> int:
        for page in range(address >> 12, (address + size - 1 >> 12) + 1):
            self.memory.setdefault(page, bytearray(4096))
        return address

    def put(self, address: int, struct_name: str, **members: int) -> int:
        """Set members of the struct at an address; `__` in a name stands for a dot."""
        struct_type = self.prog.type(struct_name)
        for name, value in members.items():
            path = name.replace("__", ".")
            member = struct_type
            for part in path.split("."):
                member = member.member(part).type
                while member.kind == TypeKind.TYPEDEF:
                    member = member.type
            data = (value & (1 << 64) - 1).to_bytes(8, "little")[: sizeof(member)]
            self.write(address + offsetof(struct_type, path), data)
        return address

    def words(self, address: int, *values: int) -> int:
        return self.write(address, struct.pack(f"<{len(values)}Q", *values))

    def variable(self, name: str, type_name: str, value: int | None = None) -> int:
        """Declare a global, in the kernel's data; returns its address."""
        address, self.next_data = self.next_data, self.next_data + 64
        self.variables[name] = (type_name, address)
        self.zero(address, 64)
        if value is not None:
            self.write(address, value.to_bytes(8, "little"))
        return address

    def cache(self, name: str, size: int) -> int:
        """Make a slab cache whose objects take `size` bytes; returns its struct kmem_cache."""
        at = self.next_data
        self.next_data += 16384
        self.zero(at, 16384)
        text = self.write(at + 12288, name.encode() + b"\0")
        self.caches[name] = (self.put(at, "struct kmem_cache", size=size, object_size=size, name=text), size)
        self.free[name] = []
        return at

    def slab(self, name: str) -> int:
        """Allocate an object of a slab cache; returns its address."""
        cache, size = self.caches[name]
        if not self.free[name]:
            page, at = self._pages(1)
            self.put(page, "struct page", flags=1 << PG_SLAB, slab_cache=cache)
            self.free[name] = [at + i * size for i in range(self.page_bytes // size)]
        return self.free[name].pop(0)

    def compound(self, pages: int) -> int:
        """Allocate a compound page, as a large kmalloc() does; returns its address."""
        head, at = self._pages(pages)
        self.put(head, "struct page", flags=1 << PG_HEAD)
        self.put(head + 64, "struct page", compound_order=pages.bit_length() - 1)
        for tail in range(1, pages):
            self.put(head + 64 * tail, "struct page", compound_head=head + 1)
        return at

    def vmalloc(self, pages: int) -> int:
        """Map pages in vmalloc space, a guard page behind them; returns their address."""
        start, size = self.next_vmalloc, pages * self.page_bytes
        self.next_vmalloc += size + self.page_bytes
        self.zero(start, size)
        at, self.next_data = self.next_data, self.next_data + 256
        self.zero(at, 256)
        self.put(at + 128, "struct vm_struct", addr=start, nr_pages=pages)
        self.put(at, "struct vmap_area", va_start=start, va_end=start + size + self.page_bytes, vm=at + 128)
        node = at + 16
        self.words(self.vmap_tail, node)  # each area lies to the right of the one before
        self.vmap_tail = node + 8
        return start

    def _pages(self, count: int) -> tuple[int, int]:
        pfn = -(-self.next_pfn // count) * count
        self.next_pfn = pfn + count
        at = DIRECT_MAP + pfn * self.page_bytes
        self.zero(at, count * self.page_bytes)
        return self.zero(VMEMMAP + 64 * pfn, 64 * count), at
