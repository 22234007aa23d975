#!/usr/bin/env bash
# A backup of the running stack: run folder and Redis in one file. deploy/docker/backup.sh FILE.tar
# A night of retraining must not be under way.
set -euo pipefail
target=$(realpath "${1:?which file? deploy/docker/backup.sh FILE.tar}")
cd "$(dirname "$0")/../.."
trap 'rm -f "$target.part"' EXIT
docker compose exec -T collect degre backup /srv/degre/run - >"$target.part"
mv "$target.part" "$target"
