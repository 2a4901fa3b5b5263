#!/bin/sh
# An audit as a job of a Ray cluster that runs already: submit.sh ARGUMENTS, those of `lru-audit run`.
# In the current folder: nightly.sh, the wheel of list-lru-audit, and what ARGUMENTS name, such as the inventory. All of
# it goes to the nodes, where pip installs the wheel and what it needs for this job only. Wants RAY_API_SERVER_ADDRESS,
# and RAY_AUTH_MODE=token with RAY_AUTH_TOKEN_PATH. The warehouse is a path of the head, below LRU_AUDIT_DATA.
set -eu

wheel=$(ls list_lru_audit-*.whl)
packages="[\"\${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/$wheel\"]"
variables="{\"LRU_AUDIT_DATA\": \"${LRU_AUDIT_DATA:-/var/lib/lru-audit}\"}"
exec ray job submit --working-dir . --runtime-env-json "{\"pip\": $packages, \"env_vars\": $variables}" -- \
    sh nightly.sh --quiet "$@"
