#!/bin/sh
# A canary from a CI job: start, guide to the end, exit 0 when promoted, 3 when rolled back.
#   DEGRE_REDIS__URL=redis://… orchestration/scripts/canary.sh BUNDLE ID [DESIGN.yaml]
# LIMIT_SECONDS (default 86400): after that it is aborted, exit 4. REGISTRY and MODEL: registry whose aliases follow.
set -eu
bundle=${1:?BUNDLE} id=${2:?ID} design=${3:-}
why="${CI_JOB_URL:-canary from $(hostname)}"
set -- --id "$id" --why "$why"
if [ -n "$design" ]; then set -- "$@" --plan "$design"; fi
degre rollout start "$bundle" "$@"
set -- --id "$id" --json
if [ -n "${REGISTRY:-}" ]; then set -- "$@" --registry "$REGISTRY" --model "${MODEL:?MODEL}"; fi
code=0
timeout --signal=TERM "${LIMIT_SECONDS:-86400}" degre rollout run "$@" || code=$?
if [ "$code" -eq 124 ]; then
    degre rollout abort --why "not decided after ${LIMIT_SECONDS:-86400} seconds"
    exit 4
fi
exit "$code"
