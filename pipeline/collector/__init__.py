"""The collector: audits one kernel on the host, with drgn and the standard library only, on Python 3.6 and newer.

access opens a kernel and reads its memory, walk follows its structures, model computes bytes, snapshot makes the rows
of an audit, and ``python -m`` on this package prints them in a frame. remote runs all of it on a host that ssh reaches.
"""

__version__ = "0.1.0"
