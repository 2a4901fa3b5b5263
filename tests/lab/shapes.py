"""Shapes that the lab can boot: a kernel series, a machine, and the state to bring it into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A kernel to boot, and the state to bring it into before its core is dumped.

    The counts are those of the guest's init; the kernel and init's own mounts add to them (about 20 superblocks).
    """

    name: str
    series: str
    """Kernel series, a key of kernels.SUITES."""
    nodes: int
    """NUMA nodes; the memory is divided evenly among them."""
    memory_mb: int
    """Memory of the guest in MiB."""
    memcgs: int
    """First-level memory cgroups that exist at the same time; memcg_nr_cache_ids keeps this maximum."""
    kept: int
    """Memory cgroups that are not removed, spread evenly over all `memcgs`."""
    arch: str = "amd64"
    """Debian's name of the architecture, a key of boot.MACHINES."""
    flavour: str = "cloud"
    """Debian's flavour of the kernel, a key of kernels.FLAVOURS."""
    possible_cpus: int = 2
    """CPUs of the machine; two of them are online."""
    offline_nodes: int = 0
    """Nodes that the firmware declares, but that have no memory: possible, not online."""
    nested: tuple[int, ...] = ()
    """Children at each level below every kept memcg, created before any memcg is removed."""
    dying: int = 0
    """Removed memcgs that still exist because a page in a tmpfs is charged to them."""
    tmpfs: int = 0
    ext4: int = 0
    overlay: int = 0
    users: int = 0
    """Leaf memcgs with a task that uses one mount of every kind."""
    files: int = 0
    """Files that each user creates and reads on each of its mounts."""
    proc: int = 0
    """Users with their own pid and mount namespaces and a private proc."""
    sockets: int = 0
    """Users with a listening socket."""
    growing: bool = False
    """Whether the guest stops while a memcg's creation doubles memcg_nr_cache_ids (guest/grow)."""
    dump: str = ""
    """Shell commands by which a capture kernel writes the core, as `vmcore`. It is bundled as it was written; without
    them QEMU's core is bundled, reduced."""

    @property
    def has_references(self) -> bool:
        """Whether the reference walks read its core: for 187 million objects they would take 45 minutes."""
        return self.memcgs < 5000

    def assignments(self) -> str:
        """The shape as shell assignments, one per line, for the guest's init."""
        values = {**vars(self), "nested": " ".join(map(str, self.nested))}
        del values["arch"], values["flavour"], values["growing"], values["dump"], values["possible_cpus"]
        return "".join(f"{key}='{value}'\n" for key, value in values.items())


# fmt: off
# The same work on three layouts: the prediction of an audit of 5.10 is compared with the memory that 6.1 uses.
_MIX: dict[str, Any] = {
    "nodes": 2, "memcgs": 300, "kept": 40, "tmpfs": 36, "ext4": 3, "overlay": 2,
    "users": 8, "files": 6, "proc": 2, "sockets": 3,
}

BUNDLED_SHAPES = (
    # 190 ids; nested and dying memcgs.
    Shape("deb510-n1", "5.10", nodes=1, memory_mb=192, memcgs=90, kept=12, nested=(2, 1), dying=4,
          tmpfs=10, users=6, files=3),
    # 382 ids; every kind of mount, sockets.
    Shape("deb510-n2", "5.10", memory_mb=256, **_MIX),
    # 1534 ids: pointer arrays too large for a slab cache.
    Shape("deb510-n4", "5.10", nodes=4, possible_cpus=8, memory_mb=384, memcgs=800, kept=60,
          tmpfs=24, ext4=2, overlay=1, users=10, files=10, proc=1, sockets=2),
    # 46 ids; eager arrays also on a node that is not online; per-CPU memory of many CPUs.
    Shape("deb510-offline", "5.10", nodes=1, offline_nodes=1, possible_cpus=64, memory_mb=192, memcgs=40, kept=5,
          tmpfs=4, ext4=1, users=3, files=3),
    # 766 ids, half way to 1534: all of them are in use, and one memcg more is being created.
    Shape("deb510-growing", "5.10", nodes=2, memory_mb=384, memcgs=766, kept=766,
          tmpfs=100, users=6, files=3, growing=True),
    # A list_lru_one takes 128 bytes: kmalloc has no smaller cache on arm64 before 6.5.
    Shape("deb510-arm64", "5.10", arch="arm64", memory_mb=320, **_MIX),
    Shape("deb61-n2", "6.1", memory_mb=256, **_MIX),
    # Objects of four nodes; nested and dying memcgs.
    Shape("deb612-n4", "6.12", nodes=4, possible_cpus=8, memory_mb=384, memcgs=200, kept=20, nested=(2, 2), dying=5,
          tmpfs=12, ext4=2, overlay=2, users=12, files=8, proc=1, sockets=2),
    # A lock in every list_lru_one. No dying memcgs: on 7.2 a charged page does not keep a memcg alive.
    Shape("deb7-n2", "7", memory_mb=320, **_MIX),
    # A dump of makedumpfile as it was written. Its pages are not compressed, so that xz compresses the whole dump.
    Shape("deb510-kdump", "5.10", nodes=2, memory_mb=128, memcgs=90, kept=12, nested=(2, 1), dying=4,
          tmpfs=10, users=6, files=3, dump="makedumpfile -d 31 /proc/vmcore vmcore"),
    # The server of the commit message of 5abc1e37afa0: 24574 ids, 4 nodes, 952 superblocks.
    Shape("bytedance", "5.10", nodes=4, memory_mb=10240, memcgs=12300, kept=480, tmpfs=930),
)

LAB_SHAPES = (
    # Pages of 64 KB, the memmap in vmalloc's page tables.
    Shape("deb612-ppc64el", "6.12", arch="ppc64el", flavour="64k", memory_mb=512, **_MIX),
    # Big-endian, without NUMA; the kernel's addresses are random, those of memory are low.
    Shape("deb612-s390x", "6.12", arch="s390x", flavour="generic", memory_mb=512, **{**_MIX, "nodes": 1}),
)
"""Shapes whose cores are made for each test."""
# fmt: on

SHAPES = {shape.name: shape for shape in BUNDLED_SHAPES + LAB_SHAPES}
