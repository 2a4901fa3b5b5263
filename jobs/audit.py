"""A scheduled audit: `python -m pipeline.jobs.audit -i fleet.yaml -w /data/warehouse`, otherwise `lru-audit run`.

For cron, systemd timers and `ray job submit`: a line of progress now and then on stderr, the ranking on stdout, and
the exit code says whether every target was good (`lru-audit --help` lists them).
"""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
