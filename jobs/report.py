"""Scheduled report: `python -m pipeline.jobs.report --format html -o waste.html`, the same as `lru-audit report`.

Runs after an audit. `-o` replaces the file atomically, so that a web server or node_exporter never reads a partial one.
"""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
