"""`python -m pipeline` is `lru-audit`."""

import sys

from pipeline.cli import main

sys.exit(main())
