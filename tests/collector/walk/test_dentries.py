"""Paths of dentries made by hand: as deep as a file system allows, and broken ones."""

from __future__ import annotations

import struct

import pytest
from drgn import Program, offsetof, sizeof

from pipeline.collector.access import kernel
from pipeline.collector.walk import dying_memcg_pages, superblocks
from pipeline.collector.walk.dentries import Dentries
from tests.collector.conftest import CORES
from tests.collector.made import overlay

CORE = next(core for core in CORES if core.name == "deb510-n1")
ADDRESS = 0xFFFF888400000000
"""Of the dentries: beyond the memory of the core."""
ROOM = 4096
NAME = b"n" * 255


class Chain:
    """Dentries with long names, each the parent of the one before it; the last one is its own parent."""

    def __init__(self, length: int, *, is_cycle: bool = False) -> None:
        self.prog: Program = kernel.open_kernel(str(CORE.path)).prog
        self.addresses = [ADDRESS + i * ROOM for i in range(length)]
        parents = [*self.addresses[1:], self.addresses[0] if is_cycle else self.addresses[-1]]
        dentry = self.prog.type("struct dentry")
        for address, parent in zip(self.addresses, parents, strict=True):
            data = bytearray(ROOM)
            name = sizeof(dentry)
            for member, value in (("d_parent", parent), ("d_name.name", address + name)):
                struct.pack_into("<Q", data, offsetof(dentry, member), value)
            data[name : name + len(NAME)] = NAME
            overlay(self.prog, address, bytes(data))
        self.dentries = Dentries(self.prog)
        self.dentries.load(self.addresses[:1])

    def superblock(self) -> superblocks.SuperBlock:
        """A filesystem with the last dentry as its root, mounted at /mnt."""
        sb = superblocks.SuperBlock(0, b"tmpfs", b"", 0, 0)
        sb.mountpoint, sb.mount_root = b"/mnt", self.addresses[-1]
        return sb


def test_a_path_goes_up_to_the_root() -> None:
    chain = Chain(3)
    first, second, root = chain.addresses
    assert chain.dentries.path(first, root) == b"/" + NAME + b"/" + NAME
    assert chain.dentries.path(first, second) == b"/" + NAME
    assert chain.dentries.path(first, first) == b"/"
    assert chain.dentries.path(second, first) is None


def test_a_cycle_has_no_path() -> None:
    chain = Chain(3, is_cycle=True)
    assert chain.dentries.path(chain.addresses[0], ADDRESS - ROOM) is None


@pytest.mark.parametrize(("names", "has_path"), [(16, True), (17, False)])
def test_the_path_of_a_file_is_at_most_as_long_as_the_kernel_gives(names: int, has_path: bool) -> None:
    """PATH_MAX is 4,096 bytes: 16 names of 255 bytes, each behind a slash."""
    chain = Chain(names + 1)
    path = dying_memcg_pages._path(chain.dentries, chain.addresses[0], chain.superblock())
    assert path == (b"/mnt" + b"/".join([b"", *[NAME] * names]) if has_path else None)
