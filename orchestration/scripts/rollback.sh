#!/bin/sh
# One step back in one line: a running experiment ends, or the champion before the present one serves again.
#   DEGRE_REDIS__URL=redis://… orchestration/scripts/rollback.sh "clicks fell"
set -eu
degre rollout rollback --why "${1:-rolled back by hand}"
