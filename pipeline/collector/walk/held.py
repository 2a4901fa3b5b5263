"""Bytes that a kernel holds now, by the state of the memory cgroups that they are for."""

from collections import namedtuple


class Held(namedtuple("Held", "online_bytes dying_bytes left_bytes")):
    """Bytes as allocated: of online memcgs, of dying ones, and of no memcg that exists."""

    __slots__ = ()

    @property
    def total_bytes(self):
        return sum(self)
