#!/usr/bin/env bash
# The watched stack from nothing, and each alert of deploy/prometheus/alerts.yml brought about in it, until Prometheus says that it fires.
#
# The rules are the real ones but for time: FACTOR (10) divides every `for` and every window; thresholds, scrapes and evaluation stay.
# First: every target up, promtool content, nothing fires while all is well. Then a table of how each alert was provoked and
# the seconds until it fired. The last line is a JSON document. Exit code 1 when one did not fire, or one fires while all is well. A project,
# network and ports of its own; nothing is left behind. PHASES="redis nodes" provokes the alerts of those alone, see below.
# Grafana is not started.
set -euo pipefail
cd "$(dirname "$0")/../.."
export COMPOSE_PROJECT_NAME=degre-alert-drill SERVING_PORT=18100 DASHBOARD_PORT=18365 PROMETHEUS_PORT=19190
export SUBNET=172.29.79.0/24 DYNAMIC_ADDRESSES=172.29.79.128/25 HEAD_ADDRESS=172.29.79.2 REDIS_ADDRESS=172.29.79.3
export COMPOSE_FILE=docker-compose.yml:deploy/docker/alert-drill.yaml COMPOSE_PROFILES=observe
. deploy/docker/stack-functions.sh
export DRILL=$scratch
factor=${FACTOR:-10}
phases=${PHASES:-requests overload state redis nodes}
prometheus=http://127.0.0.1:$PROMETHEUS_PORT

watch() { python3 deploy/docker/alert_watch.py "$@"; }
inside() { # a container of the image with the run folder and the provocations
  in_network -v "${COMPOSE_PROJECT_NAME}_run:/srv/degre" -v "$PWD/deploy/docker/alert_provoke.py:/alert_provoke.py:ro" \
    -v "$PWD/deploy/docker/stack.yaml:/etc/degre/degre.yaml:ro" "$@"
}
tool() { inside "$image" python /alert_provoke.py "$@" || say "$1: exit code $?"; } # the table says what came of it
load() { # KIND RATE, or nothing for none
  docker rm -f "$COMPOSE_PROJECT_NAME-load" >/dev/null 2>&1 || true
  (($# == 0)) || inside -d --name "$COMPOSE_PROJECT_NAME-load" "$image" python /alert_provoke.py load "$@" >/dev/null
}
night() { # WORDS...: one night of retraining here, from lists that are five seconds old; its exit code is 3 at a gate
  inside -e DEGRE_COLLECT__WINDOW_SECONDS=5 -e DEGRE_COLLECT__GRACE_SECONDS=0 "$image" \
    "$@" degre retrain /srv/degre/run --config /etc/degre/degre.yaml >>"$scratch/nights.log" 2>&1
}
provoke() { # ALERT HOW: from now on
  printf '%s\t%s\t%s\n' "$1" "$(now)" "$2" >>"$scratch/provoked"
}
await() { # SECONDS ALERT...: until each has fired since it was provoked; goes on without those that have not
  local deadline=$((SECONDS + $1)) missing
  shift
  while missing=$(watch missing "$scratch" "$@") && [[ -n $missing ]]; do
    ((SECONDS < deadline)) || { say "does not fire: $missing"; return 0; }
    sleep 1
  done
}

requests() { # what requests, features and a challenger do
  say "requests that fail, of strangers, with old features; Redis full and without its file"
  compose stop collect retrain
  tool shadow
  load mixed 30
  provoke DegreFallback "one request in six has a deadline of 1 ms"
  provoke DegreErrors "one in twenty raises an error built into the replicas"
  provoke DegreUnknownEntities "nineteen in twenty come from users who have no features"
  provoke DegreStaleFeatures "a champion with a time to live of a day for features that are older"
  provoke DegreShadowFails "a challenger in shadow whose model fails, built into the replicas"
  provoke DegreRedisMemory "values that fill Redis to 93 %"
  tool memory 0.93
  provoke DegreRedisNotPersistent "CONFIG SET appendonly no"
  tool append no
  await 150 DegreFallback DegreErrors DegreUnknownEntities DegreStaleFeatures DegreShadowFails DegreRedisMemory DegreRedisNotPersistent
  load
  tool memory 0
  tool append yes
}
nights() { # of the requests before
  provoke DegreNightStopped "a night on those requests: the gate drift does not hold"
  provoke DegreDrift "the same night: users' features moved"
  provoke DegreFeatureEmpties "the same night: users' features are missing"
  night || say "the night ends with exit code $?"
  await 60 DegreNightStopped DegreDrift DegreFeatureEmpties
  provoke DegreNightFailed "a night whose item_features.parquet is no parquet"
  night bash -c 'cd /srv/degre/run/data && cp item_features.parquet /out/ && echo broken >item_features.parquet && "$@"' night ||
    say "the night ends with exit code $?"
  inside "$image" cp /out/item_features.parquet /srv/degre/run/data/
  await 60 DegreNightFailed
}
overload() { # needs `requests`
  say "a night that a gate stops, one that fails; more requests than can be answered, and no exporter"
  provoke DegreTargetDown "the exporter stopped"
  compose stop exporter
  provoke DegreShedding "400 callers at once; serving.max_ongoing_requests is 16 here"
  provoke DegreSlow "the same callers, who wait up to three seconds"
  load flood 400
  nights &
  local held=$!
  await 60 DegreTargetDown
  compose start exporter
  await 90 DegreShedding DegreSlow
  load
  wait $held
}
state() { # needs `overload`
  say "work that hangs, a damaged bundle, an unreadable plan, records of nights put back, a stream that nobody collects"
  provoke DegreBundleRefused "a champion in the plan whose generator.onnx was cut short"
  provoke DegreReplicasBehind "the same plan"
  tool refuse
  provoke DegreNightLong "the record of a night under way put back seven hours"
  provoke DegreNoNight "retrain stopped, its nights' records put back 49 hours"
  tool records
  provoke DegreLogBehind "collect stopped, 500,001 small entries appended, as many to each stream"
  tool backlog 500001
  provoke DegreThreadsLost "requests that hang for 90 s, built into the replicas"
  load hanging 10
  await 150 DegreBundleRefused DegreReplicasBehind DegreNightLong DegreNoNight DegreLogBehind DegreThreadsLost
  load
  provoke DegrePlanUnreadable "a plan in Redis that is no JSON"
  tool unreadable
  provoke DegreLogLost "the streams cut with XTRIM"
  tool cut
  await 90 DegrePlanUnreadable DegreLogLost
  tool mend
}
redis() {
  say "Redis hangs"
  load frozen 150
  provoke DegreRedisAway "Redis frozen (docker pause)"
  provoke DegreFeedbackRefused "the same"
  provoke DegreQueueGrows "the same, at 150 requests a second"
  provoke DegreEventLogDrops "the same; serving.log_buffer is 2,000 here"
  docker pause "$(container redis)" >/dev/null
  await 150 DegreRedisAway DegreFeedbackRefused DegreQueueGrows DegreEventLogDrops
  docker unpause "$(container redis)" >/dev/null
  load
}
nodes() {
  say "no node"
  provoke DegreNoReplica "both nodes stopped"
  compose stop --timeout 5 ray-worker ray-head
  await 90 DegreNoReplica
}

mkdir -p "$scratch/prometheus/real"
cp deploy/prometheus/*.yml "$scratch/prometheus/real/"
cp deploy/prometheus/prometheus.yml "$scratch/prometheus/"
watch rules deploy/prometheus/alerts.yml "$scratch/prometheus/alerts.yml" "$factor"
sed 's/serving\.production:build/alert_faults:build/' deploy/docker/application.yaml >"$scratch/application.yaml"
chmod -R a+rX "$scratch"
: >"$scratch/provoked"

say "up; every \`for\` and window of the rules is divided by $factor"
began=$(now)
mapfile -t services < <(docker compose config --services | grep -vxE 'grafana|mlflow')
compose --profile observe up -d "${services[@]}" &
up=$!
first=$(first_answer "$began" 600)
wait $up
say "first correct answer after $first s"
until watch targets "$prometheus" >"$scratch/targets"; do
  (($(since "$began" | cut -d. -f1) < 900)) || { say "not every target is up"; cat "$scratch/targets" >&2; exit 1; }
  sleep 2
done
say "every target is up"
cat "$scratch/targets" >&2
for words in "check config prometheus.yml" "check rules alerts.yml" "check config real/prometheus.yml" "check rules real/alerts.yml" "test rules real/alerts_test.yml"; do
  # shellcheck disable=SC2086 # words
  docker exec --workdir /etc/prometheus "$(container prometheus)" promtool $words >"$scratch/promtool" 2>&1 || { cat "$scratch/promtool" >&2; exit 1; }
  say "promtool $words: content"
done

load well 20
sleep 35   # longer than most windows
watch watch "$prometheus" "$scratch" &
watcher=$!
trap 'kill $watcher 2>/dev/null || true; docker unpause "$(container redis)" >/dev/null 2>&1 || true; clean' EXIT
sleep 3
watch firing "$scratch" >"$scratch/well"
say "fires while all is well: $(paste -sd ' ' "$scratch/well")"
for phase in $phases; do $phase; done
watch summary "$scratch" "$factor"
