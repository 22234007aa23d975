#!/usr/bin/env bash
# The whole stack from nothing, and `kill -9` for each container's main process on the host, in turn, under load.
#
# Says how long the first correct answer takes, how long each container and the answers take to recover and what keeps answering
# meanwhile, whether any acknowledged feedback is lost, and how long the stack takes from `down` to its first answer with all its
# state. The last line is a JSON document. Exit code 1 when something recovers too late, is lost or is never well. A project,
# network and ports of its own; nothing is left behind. Needs root, for the kills. VICTIMS="redis gateway" kills those only.
set -euo pipefail
cd "$(dirname "$0")/../.."
export COMPOSE_PROJECT_NAME=degre-stack-drill SERVING_PORT=18000 DASHBOARD_PORT=18265
export SUBNET=172.29.78.0/24 DYNAMIC_ADDRESSES=172.29.78.128/25 HEAD_ADDRESS=172.29.78.2 REDIS_ADDRESS=172.29.78.3
export SERVING_TOKEN=${SERVING_TOKEN:-drill} RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(openssl rand -hex 32)} REDIS_PASSWORD=${REDIS_PASSWORD:-drill}
image=${DEGRE_IMAGE:-degre}
rate=${RATE:-20}
victims=${VICTIMS:-collect retrain serve gateway ray-worker ray-head redis}
scratch=$(mktemp -d)
chmod 777 "$scratch"

compose() { docker compose "$@" >>"$scratch/compose.log" 2>&1 || { tail -50 "$scratch/compose.log" >&2; return 1; }; }
container() { docker ps -aq --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" --filter "label=com.docker.compose.service=$1"; }
of() { docker inspect --format "$2" "$(container "$1")"; }
now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN {printf "%.1f", b - a}'; }
say() { printf '%s %s\n' "$(date +%T)" "$*" >&2; }
inside() { # a container of the image in the stack's network, with its state
  docker run --rm --network "${COMPOSE_PROJECT_NAME}_default" -v "${COMPOSE_PROJECT_NAME}_run:/srv/degre:ro" -v "$scratch:/out" \
    -v "$PWD/deploy/docker/stack_load.py:/stack_load.py:ro" -e SERVING_TOKEN -e RAY_AUTH_TOKEN \
    -e "DEGRE_REDIS__URL=redis://:$REDIS_PASSWORD@redis:6379/0" "$@"
}
clean() {
  if [[ -n ${KEEP_LOGS:-} ]]; then
    mkdir -p "$KEEP_LOGS"
    docker compose logs --no-color >"$KEEP_LOGS/containers.log" 2>&1 || true
    cp "$scratch"/* "$KEEP_LOGS/" 2>/dev/null || true
  fi
  docker rm -f "$COMPOSE_PROJECT_NAME-load" >/dev/null 2>&1 || true
  compose down --volumes --timeout 10 || true
  rm -rf "$scratch"
}
trap clean EXIT

answer() { # a list by the model for the example request, or nothing
  curl -s -m 3 -H "Authorization: Bearer $SERVING_TOKEN" -H 'Content-Type: application/json' -d "$1" \
    "http://127.0.0.1:$SERVING_PORT/v1/rerank" | grep -o '"source":"\(generator\|cache\)"'
}
first_answer() { # BEGAN SECONDS: seconds until the first list by the model
  local example=""
  until [[ -n $example ]] && answer "$example" >/dev/null; do
    (($(since "$1" | cut -d. -f1) < $2)) || { say "no answer after $2 s"; docker compose ps >&2; docker compose logs --tail 30 >&2; return 1; }
    [[ -n $example ]] || example=$(docker exec "$(container collect)" cat /srv/degre/run/request.json 2>/dev/null || true)
    sleep 0.3
  done
  since "$1"
}
well_since() { read -r at good <"$scratch/state" && awk -v now="$at" -v good="$good" -v span="$1" 'BEGIN {exit !(good > 0 && now - good >= span)}'; }
await_well() { # SECONDS FOR: until all has been well for so long
  local deadline=$((SECONDS + $1))
  until well_since "$2" 2>/dev/null; do
    ((SECONDS < deadline)) || { say "not well after $1 s: $(cat "$scratch/state")"; return 1; }
    sleep 0.3
  done
}

say "up"
began=$(now)
compose up -d &
up=$!
first=$(first_answer "$began" 600)
wait $up
say "first correct answer after $first s"

inside -d --name "$COMPOSE_PROJECT_NAME-load" "$image" python /stack_load.py load /out "$rate" >/dev/null
await_well 120 10
failed=0
for service in $victims; do
  before=$(of "$service" '{{.State.StartedAt}}')
  pid=$(of "$service" '{{.State.Pid}}')
  killed=$(now)
  kill -9 "$pid"
  until [[ $(of "$service" '{{.State.StartedAt}} {{.State.Running}}') != "$before"* && $(of "$service" '{{.State.Running}}') == true ]]; do
    (($(since "$killed" | cut -d. -f1) < 120)) || { say "$service does not come back"; exit 1; }
    sleep 0.1
  done
  back=$(now)
  case $service in ray-*|redis) noticing=15 ;; *) noticing=3 ;; esac   # a replica's death is noticed after a moment
  noticed=$SECONDS
  until ! well_since 0 || ((SECONDS - noticed >= noticing)); do sleep 0.2; done
  await_well 180 8 || failed=1
  read -r at good <"$scratch/state"
  printf '{"service": "%s", "killed": %s, "back": %s, "good_since": %s, "well": %s}\n' "$service" "$killed" "$back" "$good" "$at" >>"$scratch/marks"
  say "$service: container back after $(awk -v a="$killed" -v b="$back" 'BEGIN {printf "%.1f", b - a}') s, all well since $(awk -v a="$killed" -v b="$good" 'BEGIN {printf "%.1f", b - a}') s after the kill"
done
docker kill --signal TERM "$COMPOSE_PROJECT_NAME-load" >/dev/null
docker wait "$COMPOSE_PROJECT_NAME-load" >/dev/null 2>&1 || true
kills=$(inside "$image" python /stack_load.py summary /out /out/marks)
accounts=$(inside "$image" python /stack_load.py accounts /out)
say "accounts $accounts"

say "down and up again"
[[ -z ${KEEP_LOGS:-} ]] || { mkdir -p "$KEEP_LOGS"; docker compose logs --no-color >"$KEEP_LOGS/killed.log" 2>&1 || true; }
compose down --timeout 20
again=$(now)
compose up -d
second=$(first_answer "$again" 300)
kept=$(inside "$image" python /stack_load.py accounts /out)
boot=$(docker logs "$(container bootstrap)" 2>/dev/null | tail -1)
say "first answer again after $second s; bootstrap: $boot"

python3 - "$first" "$second" "$kills" "$accounts" "$kept" "$boot" "$failed" "$rate" <<'PYTHON'
import json, sys

first, second, kills, accounts, kept, boot, failed, rate = sys.argv[1:]
kills, accounts, kept = json.loads(kills), json.loads(accounts), json.loads(kept)
limits = {"ray-head": 60}
late = [name for name, told in kills.items() if told["recovery_seconds"] > limits.get(name, 30)]
document = {
    "first_answer_seconds": float(first),
    "again_seconds": float(second),
    "state_kept": kept["lost"] == 0 and kept["epoch"] == accounts["epoch"] and kept["served_lists"] >= accounts["served_lists"],
    "bootstrap_again": boot,
    "rate": float(rate),
    "kills": kills,
    "late": late,
    "accounts": accounts,
    "invalid_lists": sum(told["invalid"] for told in kills.values()),
}
print(json.dumps(document))
sys.exit(bool(int(failed) or late or accounts["lost"] or document["invalid_lists"] or not document["state_kept"]))
PYTHON
