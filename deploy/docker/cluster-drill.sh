#!/usr/bin/env bash
# Two containers, one Ray cluster: `degre submit retrain` runs across both, and what is killed on the way is made good.
#
# The same night is retrained twice, first undisturbed. The second time the submitter is killed and submits again, and the
# worker container gets SIGKILL in the middle of training and again in the middle of mining. The last line is a JSON document
# of what was found; exit code 1 when a file differs. Needs the image (DEGRE_IMAGE, `degre` when unset); leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")"
export COMPOSE_PROJECT_NAME=degre-drill DEGRE_IMAGE=${DEGRE_IMAGE:-degre}
RAY_AUTH_TOKEN=$(openssl rand -hex 32)
export RAY_AUTH_TOKEN
scratch=$(mktemp -d)
chmod 755 "$scratch"

compose() { docker compose -f two-node.yaml "$@" >>"$scratch/compose.log" 2>&1 || { cat "$scratch/compose.log" >&2; return 1; }; }
node() { docker ps -q --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" --filter "label=com.docker.compose.service=$1"; }
in_head() { docker exec "$(node head)" "$@"; }
say() { printf '%s %s\n' "$(date +%T)" "$*" >&2; }
clean() {
  kill $(jobs -p) 2>/dev/null || true
  docker rm -f degre-drill-submitter >/dev/null 2>&1 || true
  compose down --volumes --timeout 5 || true
  rm -rf "$scratch"
}
trap clean EXIT

await() { # SECONDS CONDITION...: until it holds
  local deadline=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || { say "waited in vain for: $*"; return 1; }
    sleep 0.2
  done
}
healthy() { [[ $(docker inspect --format '{{.State.Health.Status}}' "$(node "$1")") == healthy ]]; }
workers() { docker top "$(node "$1")" -eo pid,args | grep -c 'ray::.*TrainWorker' || true; }
gone() { ! docker inspect "$1"; }
spread() { [[ $(workers head) == 1 && $(workers worker) == 1 ]]; }
shards() { in_head find "/srv/degre/$1" -name 'shard-*.npz' -printf '%f %i %T@\n' | sort; }
training() { spread && in_head sh -c "ls /srv/degre/$1/retrain/*/.evaluator-*/*.pt"; }
mining() { spread && (($(shards "$1" | wc -l) >= 5)); }

submit() { # RUN: from a container of its own, which has the cluster's address, its token and a configuration, nothing else
  docker run --rm --name degre-drill-submitter --network "${COMPOSE_PROJECT_NAME}_default" -v "$scratch/degre.yaml:/degre.yaml:ro" \
    -e RAY_AUTH_TOKEN -e RAY_ADDRESS=http://head:8265 "$DEGRE_IMAGE" \
    degre submit --config /degre.yaml --json retrain "/srv/degre/$1" --json
}

kill_worker() { # WHEN
  say "SIGKILL for the worker container, mid-$1: $(workers head) training process on the head, $(workers worker) on it"
  docker kill --signal KILL "$(node worker)" >/dev/null
  compose up -d worker
}

cat >"$scratch/degre.yaml" <<'YAML'
scaling: {num_workers: 2, cpus_per_worker: 1}
evaluator: {prefix_state: additive, min_steps: 400, togo_steps: 100}
mining: {requests: 2000, shard_size: 20, beam_width: 16}
generator: {epochs: 2}
judge: {epochs: 2, min_steps: 100}
gates: {max_value_loss: 1}   # a night this small does not learn to beat anyone, nor is it asked to
YAML
chmod 644 "$scratch/degre.yaml"

say "two nodes"
compose up -d
await 240 healthy head
await 240 healthy worker
in_head sh -c 'degre data simulate mixed whole/data --size small --train 3000 --validation 500 --test 500 && mkdir killed && cp -r whole/data killed/data' >&2

say "undisturbed"
submit whole 2>"$scratch/whole.log" >"$scratch/whole.json" || { tail -50 "$scratch/whole.log" >&2; exit 1; }

say "with kills"
submit killed >"$scratch/first.log" 2>&1 &
await 600 training killed
kill_worker training
say "SIGKILL for the submitter, and the same line again"
docker kill --signal KILL degre-drill-submitter >/dev/null
wait $! || true
await 60 gone degre-drill-submitter
submit killed 2>"$scratch/killed.log" >"$scratch/killed.json" &
job=$!
await 300 healthy worker
await 600 mining killed
shards killed >"$scratch/committed"
kill_worker mining
wait $job || { tail -50 "$scratch/killed.log" >&2; exit 1; }
grep 'degre: degre-retrain' "$scratch/killed.log" | head -1 >&2

shards killed >"$scratch/after"
docker exec -i "$(node head)" python - "$(cat "$scratch/whole.json")" "$(cat "$scratch/killed.json")" "$(cat "$scratch/committed")" "$(cat "$scratch/after")" <<'PYTHON'
import hashlib, json, sys
from pathlib import Path

whole, killed = (json.loads(text) for text in sys.argv[1:3])
committed, after = (set(text.splitlines()) for text in sys.argv[3:5])
nights = [Path(job["result"]["bundle"]).parent for job in (whole, killed)]


def files(night, pattern):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(night.glob(pattern))}


def losses(night, part):
    curves = json.loads((night / part / "curves.json").read_text())
    return [r[name] for records in curves.values() for r in records for name in ("train", "validation")]


def difference(part):
    ours, theirs = (losses(night, part) for night in nights)
    return max(abs(a / b - 1) for a, b in zip(ours, theirs, strict=True))


document = {
    "status": [job["result"]["status"] for job in (whole, killed)],
    "seconds": [job["seconds"] for job in (whole, killed)],
    "found_again": not killed["submitted"],
    "evaluator_loss_difference": difference("evaluator"),
    "generator_loss_difference": difference("generator"),
    "shards": len(files(nights[0], "mined/shard-*")),
    "shards_whole_at_the_kill": len(committed),
    "shards_recomputed": len(committed - after),
    "shards_equal": files(nights[0], "mined/shard-*") == files(nights[1], "mined/shard-*"),
}
print(json.dumps(document))
sys.exit(not (document["shards_equal"] and document["found_again"] and not document["shards_recomputed"]))
PYTHON
