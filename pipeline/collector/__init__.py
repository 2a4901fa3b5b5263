"""What runs beside the kernel: drgn and the standard library only, Python 3.6 and newer.

kernel opens it, layouts tells how it stores lists, superblocks, memcgs and list_lrus walk, slab sizes, cost models,
snapshot makes rows, and ``python -m`` on this package prints them in a frame. remote does that where ssh sends it.
"""

__version__ = "0.1.0"
