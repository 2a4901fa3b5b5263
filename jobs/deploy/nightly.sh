#!/bin/sh
# An audit, then its metrics, its report and the end of old runs: nightly.sh ARGUMENTS, those of `lru-audit run`.
# For cron, `ray job submit` and Kubernetes; the account's python has list-lru-audit. Exits as the audit did, but with 0
# where it was published and some targets are not good (3), as metrics and report name them.
set -u

data=${LRU_AUDIT_DATA:-/var/lib/lru-audit}
export LRU_AUDIT_WAREHOUSE="${LRU_AUDIT_WAREHOUSE:-$data/warehouse}"

python -m pipeline.jobs.audit --audit nightly "$@"
code=$?

# Also after an audit that failed: it may have published (4, 5); if not, they say how old the newest run is.
after=0
python -m pipeline.jobs.report --audit nightly --format prometheus -o "${LRU_AUDIT_METRICS:-$data/lru-audit.prom}" &&
    python -m pipeline.jobs.report --audit nightly --format html -o "$data/waste.html" &&
    python -m pipeline.jobs.expire --keep-daily 14 --keep-weekly 8 --keep-monthly 24 || after=1

case $code in
    0 | 3) exit $after ;;
    *) exit $code ;;
esac
