"""The files of the kernels to upgrade to (pipeline/collector/model/v6_12.py), from the kernels' own types.

The types come from DWARF, of which a kernel's BTF is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from drgn import Architecture, Platform, Program, TypeKind, sizeof

from pipeline.collector.model.target_kernels import TargetKernel
from tests.lab.kernels import SUITES, Kernel, LabError

FLAGS: dict[str, Callable[[Program], bool]] = {
    "has_memcg_v1": lambda prog: _has(prog.variable, "mem_cgroup_legacy_files"),
    "has_memcg_caches": lambda prog: _has(prog.variable, "memcg_cachep"),
    "has_objcg_of_nodes": lambda prog: prog.type("struct mem_cgroup_per_node").has_member("objcg"),
    "reparents_folios": lambda prog: _has(prog.function, "lru_reparent_memcg"),
}


def debian_build(name: str, kernel: Callable[[str], Kernel]) -> tuple[str, list[Path]]:
    """Debian's build of a release such as 6.12, in words, and its file with DWARF.

    :param kernel: returns the kernel of a series, a key of SUITES, with DWARF.
    :raises LabError: no suite has one.
    """
    for series in SUITES:
        if f"{name}.".startswith(f"{series}.") and (build := kernel(series)).release.startswith(f"{name}."):
            assert build.vmlinux
            return f"Debian's {build.release}", [build.vmlinux]
    raise LabError(f"Debian has no kernel {name}; give the file of one with --vmlinux")


def fields(files: Sequence[Path]) -> dict[str, int | bool | None]:
    """The fields of a TargetKernel but its name.

    :param files: a vmlinux with DWARF, or object files of one build.
    """
    prog = Program(Platform(Architecture.X86_64))
    for file in files:
        prog.extra_module(str(file), create=True).try_file(str(file), force=True)
    structs = [name for name in TargetKernel._fields if name != "name" and name not in FLAGS]
    return {**{name: _size(prog, name) for name in structs}, **{name: flag(prog) for name, flag in FLAGS.items()}}


def text(name: str, build: str, values: dict[str, int | bool | None]) -> str:
    """The file of a kernel.

    :param build: whose types these are.
    """
    lines = (f'    "{field}": {value},\n' for field, value in values.items())
    docstring = f"What v{name} allocates, from the types of {build}.\n\n``python -m tests.lab target-kernel {name}``"
    return f'"""{docstring} prints this file.\n"""\n\nFIELDS = {{\n{"".join(lines)}}}\n'


def _size(prog: Program, name: str) -> int | None:
    """Size of a struct, or None if the kernel does not have it, or only as a part of mem_cgroup_per_node."""
    node = prog.type("struct mem_cgroup_per_node")
    if node.has_member(name) and node.member(name).type.kind is TypeKind.STRUCT:
        return None
    try:
        return sizeof(prog.type(f"struct {name}"))
    except LookupError:
        return None


def _has(find: Callable[[str], object], name: str) -> bool:
    try:
        find(name)
    except LookupError:
        return False
    return True
