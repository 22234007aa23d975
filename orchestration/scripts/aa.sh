#!/bin/sh
# An A/A test: the champion against itself on half of the users each. It shows that assignment, logging and statistics are
# sound before an experiment is trusted to them: no mismatch, no breach, no difference. Exit 0: nothing was found in SECONDS.
#   DEGRE_REDIS__URL=redis://… orchestration/scripts/aa.sh CHAMPION_BUNDLE ID [SECONDS]
set -eu
bundle=${1:?CHAMPION_BUNDLE} id=${2:?ID} seconds=${3:-86400}
design=$(mktemp)
trap 'rm -f "$design"' EXIT
cat > "$design" <<YAML
id: $id
stages: [{name: half, share: 0.5, min_seconds: 31536000}]
promote: false
YAML
degre rollout start "$bundle" --plan "$design" --why "${WHY:-A/A test}"
code=0
timeout --signal=TERM "$seconds" degre rollout run --id "$id" || code=$?
if [ "$code" -ne 124 ]; then
    echo "the A/A test was ended: see degre rollout status" >&2
    exit "$code"
fi
degre rollout status
degre rollout abort --why "A/A test is over, nothing was found"
