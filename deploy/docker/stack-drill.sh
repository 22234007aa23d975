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
. deploy/docker/stack-functions.sh
rate=${RATE:-20}
victims=${VICTIMS:-collect retrain serve gateway ray-worker ray-head redis}

inside() { in_network -v "${COMPOSE_PROJECT_NAME}_run:/srv/degre:ro" "$@"; } # with its state
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
