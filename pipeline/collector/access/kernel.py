"""Open a core or a running kernel, with types and symbols from the first source that has them.

The result is an ordinary drgn program: the rest of the collector does not know whether the types came from DWARF or
from the BTF inside the kernel.
"""

import functools
import os

from drgn import Architecture, FindObjectFlags, Object, Platform, Program

from ..status import CollectError
from . import btf_files, build_check, core_file, dwarf, kallsyms, kcore, physical, ppc64, qmp, vmcoreinfo
from .btf import Btf, BtfError
from .memory import is_running

# Declarations of the global variables that the collector and drgn's helpers read: BTF declares per-CPU variables only.
_DECLARATIONS = {
    "__cpu_online_mask": "struct cpumask",
    "__cpu_possible_mask": "struct cpumask",
    "__cpu_present_mask": "struct cpumask",
    "__per_cpu_offset": "unsigned long []",
    "_totalram_pages": "atomic_long_t",
    "cgroup_memory_nokmem": "_Bool",
    "contig_page_data": "struct pglist_data",
    "cur_cpu_spec": "struct cpu_spec *",
    "init_task": "struct task_struct",
    "init_user_ns": "struct user_namespace",
    "init_uts_ns": "struct uts_namespace",
    "list_lrus": "struct list_head",
    "max_low_pfn": "unsigned long",
    "mem_section": "struct mem_section **",
    "memcg_cache_ids_sem": "struct rw_semaphore",
    "memcg_list_lrus": "struct list_head",
    "memcg_nr_cache_ids": "int",
    "min_low_pfn": "unsigned long",
    "modules": "struct list_head",
    "node_data": "struct pglist_data *[]",
    "node_states": "nodemask_t []",
    "nr_cpu_ids": "unsigned int",
    "nr_node_ids": "unsigned int",
    "nr_vmap_nodes": "unsigned int",
    "page_offset_base": "unsigned long",
    "pcpu_base_addr": "void *",
    "pcpu_chunk_lists": "struct list_head *",
    "pcpu_first_chunk": "struct pcpu_chunk *",
    "pcpu_nr_populated": "unsigned long",
    "pcpu_nr_slots": "int",
    "pcpu_nr_units": "int",
    "pcpu_slot": "struct list_head *",
    "radix_tree_node_cachep": "struct kmem_cache *",
    "root_mem_cgroup": "struct mem_cgroup *",
    "saved_command_line": "char *",
    "shrinker_nr_max": "int",
    "slab_caches": "struct list_head",
    "super_blocks": "struct list_head",
    "timekeeper_data": "struct tk_data []",
    "tk_core": "struct tk_data",
    "totalram_pages": "unsigned long",
    "vm_node_stat": "atomic_long_t []",
    "vm_stat": "atomic_long_t []",
    "vm_zone_stat": "atomic_long_t []",
    "vmap_area_root": "struct rb_root",
    "vmap_nodes": "struct vmap_node *",
    "vmap_zone_size": "unsigned int",
    "vmemmap_base": "unsigned long",
}
# Functions whose existence drgn tests: the memmap is virtually contiguous if the kernel can populate it.
_FUNCTIONS = ("vmemmap_populate",)

# By utsname.machine: architectures.SUPPORTED.
_PLATFORMS = {
    "x86_64": Platform(Architecture.X86_64),
    "aarch64": Platform(Architecture.AARCH64),
    "ppc64le": Platform(Architecture.PPC64),
    "s390x": Platform(Architecture.S390X),
}


class Kernel:
    """An opened kernel.

    :ivar prog: ``drgn.Program``.
    :ivar types_source: ``dwarf``, ``btf`` (the kernel's own) or ``btf-dir``.
    :ivar note: warning about the core file for a reader of the audit, or None.
    :ivar core_bytes: size of the core file, or None for a running kernel.
    """

    def __init__(self, prog, types_source, note=None):
        self.prog = prog
        self.types_source = types_source
        self.note = note
        self.core_bytes = None


def open_kernel(source, vmlinux=None, debug_dirs=(), btf_dir=None, vmcoreinfo_path=None):
    """Open a core or the running kernel and find its types and symbols.

    The order of sources: ``vmlinux`` or ``debug_dirs``, the BTF in the kernel, ``btf_dir``, DWARF in drgn's standard
    places. BTF precedes the standard places, since few hosts have DWARF there, and since an audit takes 45 MB of memory
    with BTF, 220 MB with DWARF.

    :param source: path of an ELF or kdump-compressed core, ``live:``, or ``qmp:`` and the path of a socket.
    :param vmlinux: path of a file with this kernel's DWARF, or None.
    :param debug_dirs: directories to search for that file by build id and by release.
    :param btf_dir: directory of BTF files by release and architecture (the layout of BTFHub-archive), or None.
    :param vmcoreinfo_path: path of a file with the VMCOREINFO of a core or a QEMU guest, or None.
    :raises CollectError: with the status that says why.
    """
    if source == "live:":
        source = kcore.PATH
    prog, core = _attach(source, vmcoreinfo_path)
    ppc64.check_byte_order(prog, source)
    if core is None:
        return with_types(prog, source, vmlinux, debug_dirs, btf_dir)
    with core_file.explained(core.note):
        kernel = with_types(prog, source, vmlinux, debug_dirs, btf_dir)
    kernel.note, kernel.core_bytes = core.note, core.size_bytes
    return kernel


def with_types(prog, source, vmlinux=None, debug_dirs=(), btf_dir=None):
    """Return the Kernel of a program that is already attached; the other parameters are as for open_kernel()."""
    if vmlinux is not None or debug_dirs:
        dwarf.load(prog, source, vmlinux, debug_dirs)
        return Kernel(prog, "dwarf")
    try:
        return Kernel(prog, _load_btf(prog, source, btf_dir))
    except CollectError as btf_error:
        if btf_error.status != "no_types":
            raise
        try:
            dwarf.load(prog, source)
        except CollectError as dwarf_error:
            if dwarf_error.status != "no_types":
                raise
            message = "%s; give %s with --vmlinux or --debug-dir" % (btf_error, build_check.read_build(prog).vmlinux)
            raise CollectError("no_types", message, btf_error.error_type) from None
        return Kernel(prog, "dwarf")


def _attach(source, vmcoreinfo_path):
    """Return a program attached to the kernel, and the CoreFile of its core, or None."""
    if source.startswith(qmp.PREFIX):
        return qmp.attach(source, vmcoreinfo_path), None
    if source == kcore.PATH:
        return _attach_live(), None
    try:
        return _attach_core(source, vmcoreinfo_path)
    except PermissionError as e:
        raise CollectError("denied", "%s: run as root" % source, "PermissionError") from e
    except FileNotFoundError as e:
        raise CollectError("unreachable", "%s: no such file" % source, "FileNotFoundError") from e
    except OSError as e:
        raise CollectError("bad_core", "%s: %s" % (source, e.strerror), type(e).__name__) from e


def _attach_live():
    """Return a program attached to the running kernel."""
    kcore.check()
    prog = Program()
    try:
        prog.set_kernel()
    except Exception as e:
        raise CollectError("bad_core", "%s: %s" % (kcore.PATH, e), type(e).__name__) from e
    return prog


def _attach_core(path, vmcoreinfo_path):
    """Return a program attached to a core, and its CoreFile.

    :raises OSError: the core cannot be read.
    """
    core = core_file.read_header(path)
    with core_file.explained(core.note):
        return _open_core(core, path, vmcoreinfo_path), core


def _open_core(core, path, vmcoreinfo_path):
    """Return a program attached to a core.

    VMCOREINFO is that of a file, else that of the core's notes, else that of the memory in the core.

    :raises OSError: the core cannot be read.
    """

    def open_core(text=None):
        prog = Program(_PLATFORMS.get(core.machine), vmcoreinfo=text)
        prog.set_core_dump(path)
        physical.add_to(prog, path)
        ppc64.add_linear_map(prog)
        prog["VMCOREINFO"]
        return prog

    try:
        if vmcoreinfo_path is None:
            return open_core()
        prog = open_core(vmcoreinfo.read_file(vmcoreinfo_path))
        vmcoreinfo.check(prog, path, vmcoreinfo_path)
        return prog
    except CollectError:
        raise
    except (OSError, MemoryError):
        raise
    except Exception as e:
        # drgn's errors for a core without VMCOREINFO have no class of their own: the one that is found decides.
        memory = _open_readable(open_core, path, vmcoreinfo.PLACEHOLDER)
        if vmcoreinfo_path is not None:
            message = "%s: not the VMCOREINFO of a kernel: %s" % (vmcoreinfo_path, e)
            raise CollectError("no_types", message, type(e).__name__) from e
        ranges = physical.ranges(path)
        if not ranges:
            message = (
                "%s: no physical memory in it: the core of a process, or xl dump-core's form, which drgn does not read"
            )
            raise CollectError("bad_core", message % path, type(e).__name__) from e
    return open_core(vmcoreinfo.find(memory, path, ranges, open_core))


def _open_readable(open_core, path, text):
    """Return the program of a core with the given VMCOREINFO, or raise that drgn cannot read the file."""
    try:
        return open_core(text)
    except (OSError, MemoryError):
        raise
    except Exception as e:
        # drgn raises Exception, ValueError or FaultError for a file that libelf or libkdumpfile cannot read.
        core_file.check_flattened(path, e)
        message = "%s: not a core that drgn can read: %s" % (path, e)
        raise CollectError("bad_core", message, type(e).__name__) from e


def _load_btf(prog, source, btf_dir):
    """Register finders for types, symbols and global variables without debug info; return the types_source."""
    prog.register_symbol_finder("kallsyms", kallsyms.load(prog, _system_maps(prog, source)), enable_index=0)
    types_source, blob = "btf", btf_files.read_own(prog)
    if blob is None and btf_dir is not None:
        types_source, blob = "btf-dir", btf_files.read_from_dir(prog, source, btf_dir)
    if blob is None:
        where = "nor is there one for its release below %s" % btf_dir if btf_dir else "and --btf-dir is not given"
        raise CollectError("no_types", "%s: this kernel has no BTF (or its core lacks it), %s" % (source, where))
    try:
        btf = Btf(prog, blob)
    except BtfError as e:
        raise CollectError("no_types", "%s: its BTF cannot be read: %s" % (source, e)) from e

    # drgn's helpers ask for the same variables again and again.
    @functools.lru_cache(maxsize=None)
    def find_variable(name):
        try:
            symbol = prog.symbol(name)
        except LookupError:
            return None
        declaration = _DECLARATIONS[name]
        # An array before commit 83e3c48729d9 ("mm/sparsemem: Allocate mem_section at runtime for
        # CONFIG_SPARSEMEM_EXTREME=y") (in v4.15).
        if name == "mem_section" and symbol.size > prog["PAGE_SIZE"].value_():
            declaration = "struct mem_section *[]"
        return Object(prog, declaration, address=symbol.address)

    def find_object(prog, name, flags, filename):
        if filename is not None:
            return None
        try:
            if flags & FindObjectFlags.VARIABLE and name in _DECLARATIONS:
                return find_variable(name)
            if flags & FindObjectFlags.FUNCTION and name in _FUNCTIONS:
                function_type = prog.function_type(prog.void_type(), (), True)
                return Object(prog, function_type, address=prog.symbol(name).address)
        except LookupError:
            return None
        return btf.find_constant(name) if flags & FindObjectFlags.CONSTANT else None

    prog.register_type_finder("btf", btf.find_type, enable_index=0)
    prog.register_object_finder("btf", find_object, enable_index=-1)
    return types_source


def _system_maps(prog, source):
    """Return candidate paths of the System.map: beside the core, and those of distributions' packages."""
    core_directories = () if is_running(prog) else (os.path.dirname(source),)
    name = "System.map-" + prog["UTS_RELEASE"].string_().decode(errors="backslashreplace")
    return [os.path.join(directory, name) for directory in (*core_directories, "/boot", "/usr/lib/debug/boot")]
