"""list-lru-audit: find the memory that eager list_lru allocation wastes across a fleet."""

import os

__version__ = "0.1.0"

# In a checkout and an editable install jobs/ lies beside the package, in a wheel inside it.
_checkout = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if os.path.isfile(os.path.join(_checkout, "setup.cfg")):
    __path__.append(_checkout)
