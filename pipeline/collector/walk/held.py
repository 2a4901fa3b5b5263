"""Bytes that a kernel holds now, by the state of the memory cgroups that they are for."""

from collections import namedtuple


class Held(namedtuple("Held", "online_bytes dying_bytes left_bytes")):
    """Bytes as allocated: of online memcgs, of dying ones, and of no memcg that exists."""

    __slots__ = ()

    @classmethod
    def of_memcgs(cls, bytes_by_memcg):
        """Return the Held of memcgs that exist, by Memcg."""
        online_bytes = sum(size for memcg, size in bytes_by_memcg.items() if memcg.online)
        return cls(online_bytes, sum(bytes_by_memcg.values()) - online_bytes, 0)

    @property
    def total_bytes(self):
        return sum(self)
