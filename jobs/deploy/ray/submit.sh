#!/bin/sh
# Runs an audit as a job of a running Ray cluster: submit.sh ARGUMENTS, with the arguments of `lru-audit run`.
# The current directory must hold nightly.sh, the list-lru-audit wheel and the files that ARGUMENTS name, such as the
# inventory. Ray sends the directory to the nodes, where pip installs the wheel and its dependencies for this job only.
# Requires RAY_API_SERVER_ADDRESS, and RAY_AUTH_MODE=token with RAY_AUTH_TOKEN_PATH. The warehouse is a directory on the
# head node, below LRU_AUDIT_DATA.
set -eu

wheel=$(ls list_lru_audit-*.whl)
packages="[\"\${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/$wheel\"]"
variables="{\"LRU_AUDIT_DATA\": \"${LRU_AUDIT_DATA:-/var/lib/lru-audit}\"}"
exec ray job submit --working-dir . --runtime-env-json "{\"pip\": $packages, \"env_vars\": $variables}" -- \
    sh nightly.sh --quiet "$@"
