"""Checks that types belong to the kernel that is read: another build's types would give wrong numbers without a sign.

VMCOREINFO has what the compiler and the linker of the kernel computed: sizes, offsets, lengths of arrays, constants and
addresses. The types of the same build have the same values, and through them init_uts_ns has the kernel's release.
A difference outside of these structs is seen only by the build id or the version.
"""

import re
from collections import namedtuple

from drgn import FaultError, TypeKind, offsetof, sizeof

from .. import formats
from . import kallsyms, utsname
from .memory import has_member, text

_LAYOUT = re.compile(r"^((SIZE|OFFSET|LENGTH|NUMBER)\((\w+)(?:\.(\w+))?\))=(-?\d+|0x[0-9a-f]+)$", re.MULTILINE)

# Differences that a message names; a vmlinux of another release has dozens.
_MAX_DIFFERENCES = 3


class Build(namedtuple("Build", "release version")):
    """Identity of a kernel's build: ``uname -r`` and ``uname -v``. The version is None if its memory is missing."""

    __slots__ = ()

    @property
    def vmlinux(self):
        """Name of its vmlinux for a message, with the package that has it where the distribution is certain."""
        package = self._debug_package()
        return "the vmlinux of %s" % self.release + (" (package %s)" % package if package else "")

    def _debug_package(self):
        version = self.version or ""
        if re.search(r"-[\d.]+\.(el|fc|amzn)\d[\d_]*\.\w+$", self.release):
            return "kernel-debuginfo-" + self.release
        if re.search(r"\.el\d+uek\.\w+$", self.release):
            return "kernel-uek-debuginfo-" + self.release
        if " Debian " in version:
            return "linux-image-%s-dbg" % self.release
        if "-Ubuntu " in version:
            return "linux-image-unsigned-%s-dbgsym" % self.release
        return None


def read_build(prog):
    """Return the Build of a kernel, read without its types."""
    uts = utsname.read(prog)
    return Build(text(prog["UTS_RELEASE"].string_())[0], uts and text(uts.version)[0])


def describe(differences):
    """Return the first differences as text for a message."""
    first_differences = ", ".join(differences[:_MAX_DIFFERENCES])
    hidden_count = len(differences) - _MAX_DIFFERENCES
    return first_differences + (" and %d more" % hidden_count if hidden_count > 0 else "")


def type_differences(prog, types):
    """Return what types say otherwise than the kernel, as a list of texts.

    Types, members and enumerators that ``types`` lacks are passed over, as BTF has no macros and leaves out unused
    types. But a struct that lacks a member which VMCOREINFO has is of another build.

    :param prog: program of the kernel.
    :param types: program with the types; may be ``prog``.
    """
    differences = []
    for label, kind, name, member, number in _LAYOUT.findall(prog["VMCOREINFO"].string_().decode(errors="replace")):
        value = int(number, 16 if number.startswith("0x") else 10)
        try:
            own_value = _LAYOUT_VALUES[kind](types, name, member)
        except (LookupError, TypeError):  # TypeError: the type is incomplete
            continue
        if own_value != value:
            differences.append("%s is %s, not %d" % (label, own_value, value))
    release = _read_release(prog, types)
    if release not in (None, prog["UTS_RELEASE"].string_()):
        differences.append("init_uts_ns has no release %s" % text(prog["UTS_RELEASE"].string_())[0])
    return differences


def symbol_differences(prog):
    """Return the symbols of a program's vmlinux with other addresses than in VMCOREINFO, as a list of texts."""
    differences = []
    for name, address in kallsyms.vmcoreinfo_symbols(prog).items():
        own_addresses = [symbol.address for symbol in prog.symbols(name)]
        if own_addresses and address not in own_addresses and not _is_value(prog, name, address):
            differences.append("%s is at %#x, not %#x" % (name, own_addresses[0], address))
    return differences


def _is_value(prog, name, value):
    """Whether a number is a pointer's value: VMCOREINFO_SYMBOL_ARRAY() stores that of mem_section."""
    try:
        variable = prog.variable(name)
        return variable.type_.kind is TypeKind.POINTER and variable.value_() == value
    except LookupError:
        return False
    except FaultError:
        return True


def _struct_or_typedef(types, name):
    try:
        return types.type("struct " + name)
    except LookupError:
        return types.type(name)


def _offset(types, name, member):
    struct_type = _struct_or_typedef(types, name)
    return offsetof(struct_type, member) if has_member(struct_type, member) else "missing"


def _length(types, name, member):
    array_type = _struct_or_typedef(types, name).member(member).type if member else types.variable(name).type_
    if array_type.kind is not TypeKind.ARRAY:  # mem_section is a pointer with CONFIG_SPARSEMEM_EXTREME
        raise LookupError(name)
    return array_type.length


_LAYOUT_VALUES = {
    "SIZE": lambda types, name, _: sizeof(_struct_or_typedef(types, name)),
    "OFFSET": _offset,
    "LENGTH": _length,
    "NUMBER": lambda types, name, _: types.constant(name).value_(),
}


def _read_release(prog, types):
    """Return the release in init_uts_ns, read through types, or None if they lack it or its memory is missing."""
    try:
        offset = offsetof(types.type("struct uts_namespace"), "name.release")
        data = prog.read(kallsyms.vmcoreinfo_symbols(prog)["init_uts_ns"] + offset, formats.UTS_FIELD_BYTES)
    except (LookupError, TypeError, FaultError):
        return None
    return data.split(b"\0")[0]
