#!/bin/sh
# An A/B test of the champion against BUNDLE on half of the users each, after a look in shadow. Nothing is promoted: it ends
# when the figures decide. Exit 0: better, and `degre rollout promote` makes it the champion; 3: rolled back.
#   DEGRE_REDIS__URL=redis://… orchestration/scripts/ab.sh BUNDLE ID [SMALLEST_EFFECT] [MIN_SECONDS] [MIN_USERS]
set -eu
bundle=${1:?BUNDLE} id=${2:?ID} effect=${3:-0.01} seconds=${4:-604800} users=${5:-1000}
design=$(mktemp)
trap 'rm -f "$design"' EXIT
cat > "$design" <<YAML
id: $id
stages:
- {name: shadow, share: 0.0, min_seconds: 60, min_samples: 100}
- {name: half, share: 0.5, min_seconds: $seconds, min_samples: $users}
primary: {objective: ${OBJECTIVE:-click}, smallest_effect: $effect}
promote: false
YAML
degre rollout start "$bundle" --plan "$design" --why "${WHY:-A/B test}"
degre rollout run --id "$id" --until-ready --json
