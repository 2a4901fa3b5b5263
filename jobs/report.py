"""A scheduled report: `python -m pipeline.jobs.report --format html -o waste.html`, otherwise `lru-audit report`.

For what follows an audit: with `-o` the file is replaced whole, so that a web server or node_exporter never sees half.
"""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
