"""Reads of kernel structures: superblocks, memory cgroups, list_lrus, slab caches and slab objects."""
