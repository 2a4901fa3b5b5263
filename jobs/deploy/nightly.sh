#!/bin/sh
# Runs an audit, then updates its metrics and report and expires old runs: nightly.sh ARGUMENTS, with the arguments of
# `lru-audit run`. For cron, `ray job submit` and Kubernetes; the account's python must have list-lru-audit installed.
# Exits with the code of the audit, except that 3 (published, some targets not good) becomes 0: metrics and report name
# these targets.
set -u

data=${LRU_AUDIT_DATA:-/var/lib/lru-audit}
export LRU_AUDIT_WAREHOUSE="${LRU_AUDIT_WAREHOUSE:-$data/warehouse}"

python -m pipeline.jobs.audit --audit nightly "$@"
code=$?

# Also run after a failed audit: it may have published (4, 5); otherwise they show the age of the newest run.
after=0
python -m pipeline.jobs.report --audit nightly --format prometheus -o "${LRU_AUDIT_METRICS:-$data/lru-audit.prom}" &&
    python -m pipeline.jobs.report --audit nightly --format html -o "$data/waste.html" &&
    python -m pipeline.jobs.expire --keep-daily 14 --keep-weekly 8 --keep-monthly 24 || after=1

case $code in
    0 | 3) exit $after ;;
    *) exit $code ;;
esac
