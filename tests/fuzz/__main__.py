"""Command line of the campaigns.

    python -m tests.fuzz CAMPAIGN [ARGUMENT...]

Run a campaign, a module of this package with a function `main(arguments) -> int`. Exit 1 if it finds a fault.
"""

from __future__ import annotations

import importlib
import sys

CAMPAIGNS = ("cores", "parsers")

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in CAMPAIGNS:
        sys.exit(f"usage: python -m tests.fuzz {{{','.join(CAMPAIGNS)}}} [ARGUMENT...]")
    sys.exit(importlib.import_module(f"tests.fuzz.{sys.argv[1]}").main(sys.argv[2:]))
