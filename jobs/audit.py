"""Scheduled audit: `python -m pipeline.jobs.audit -i fleet.yaml -w /data/warehouse`, the same as `lru-audit run`.

For cron, systemd timers and `ray job submit`: prints a line of progress every few seconds on stderr and the ranking on
stdout. The exit code tells whether every target was good (`lru-audit --help` lists the codes).
"""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
