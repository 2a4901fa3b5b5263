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


class MountTree:
    """A root mount of the chain's file system, and mounts of it on the chain's first dentry, one on the other."""

    def __init__(self, chain: Chain, count: int, *, is_cycle: bool = False) -> None:
        self.addresses = [ADDRESS + 2**32 + i * ROOM for i in range(count)]
        mount = chain.prog.type("struct mount")
        root, mountpoint = chain.addresses[-1], chain.addresses[0]
        self.mounts = superblocks._Mounts(chain.prog, is_singly_linked=False)
        for i, address in enumerate(self.addresses):
            parent = self.addresses[max(0, i - 1)] if i or not is_cycle else self.addresses[-1]
            # Stacked on a mount: at its root.
            members = {"mnt_parent": parent, "mnt_mountpoint": root if i > 1 else mountpoint, "mnt.mnt_root": root}
            data = bytearray(sizeof(mount))
            for member, value in members.items():
                struct.pack_into("<Q", data, offsetof(mount, member), value)
            overlay(chain.prog, address, bytes(data))

    def path(self, number: int) -> bytes | None:
        return self.mounts.path(self.addresses[number])


@pytest.mark.parametrize("names", [1, 16, 17, 1000])
def test_the_path_of_a_mount_is_whole_or_its_end_behind_a_mark(names: int) -> None:
    """Directories can be nested to a longer path than PATH_MAX, 4,096 bytes, with mkdirat()."""
    path = b"/".join([b"", *[NAME] * names])
    tree = MountTree(Chain(names + 1), 3)
    assert tree.path(0) == b"/"
    assert tree.path(1) == tree.path(2) == (path if len(path) <= 4096 else b"//..." + path[-4096:])


def test_a_mount_on_many_others_has_their_path() -> None:
    assert MountTree(Chain(2), 300).path(-1) == b"/" + NAME


def test_mounts_in_a_cycle_and_on_dentries_in_a_cycle_have_no_path() -> None:
    assert MountTree(Chain(2), 3, is_cycle=True).path(-1) is None
    assert MountTree(Chain(3, is_cycle=True), 2).path(1) == b"/" + NAME + b"/" + NAME  # the root is on the cycle
    chain = Chain(3, is_cycle=True)
    tree = MountTree(chain, 2)
    tree.mounts._mounts[tree.addresses[0]] = tree.mounts._mount_at(tree.addresses[0])._replace(root=1)
    assert tree.path(1) is None


@pytest.mark.parametrize(("names", "has_path"), [(16, True), (17, False)])
def test_the_path_of_a_file_is_at_most_as_long_as_the_kernel_gives(names: int, has_path: bool) -> None:
    """PATH_MAX is 4,096 bytes: 16 names of 255 bytes, each behind a slash."""
    chain = Chain(names + 1)
    path = dying_memcg_pages._path(chain.dentries, chain.addresses[0], chain.superblock())
    assert path == (b"/mnt" + b"/".join([b"", *[NAME] * names]) if has_path else None)
