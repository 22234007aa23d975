#!/usr/bin/env bash
# Puts a backup in the place of the stack's state, and starts the stack. deploy/docker/restore.sh FILE.tar [--replace]
# Without --replace only into a stack that has none, as after `docker compose down --volumes`.
set -euo pipefail
source=$(realpath "${1:?which file? deploy/docker/restore.sh FILE.tar [--replace]}")
shift
cd "$(dirname "$0")/../.."
docker compose down
docker compose up -d redis
until docker compose exec -T redis redis-cli ping 2>/dev/null | grep -q PONG; do sleep 1; done   # it may be reading its file
docker compose run --rm -T --no-deps bootstrap degre restore /srv/degre/run - "$@" <"$source"
docker compose up -d
