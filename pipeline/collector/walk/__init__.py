"""The structures of the kernel: superblocks, memory cgroups, list_lrus, slab caches and what they hold."""
