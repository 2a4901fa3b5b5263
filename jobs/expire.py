"""Scheduled expiry of old runs: `python -m pipeline.jobs.expire --keep-daily 14`, the same as `lru-audit expire`."""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main(["expire", *sys.argv[1:]]))
