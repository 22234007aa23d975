# Sourced by the drills: a stack of their own, a scratch folder, what they say and wait for. Before: COMPOSE_PROJECT_NAME, ports
# and addresses of its own. After: $image, $scratch, and nothing left behind at the end.
export SERVING_TOKEN=${SERVING_TOKEN:-drill} RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(openssl rand -hex 32)} REDIS_PASSWORD=${REDIS_PASSWORD:-drill}
image=${DEGRE_IMAGE:-degre}
scratch=$(mktemp -d)
chmod 777 "$scratch"

compose() { docker compose "$@" >>"$scratch/compose.log" 2>&1 || { tail -50 "$scratch/compose.log" >&2; return 1; }; }
container() { docker ps -aq --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" --filter "label=com.docker.compose.service=$1"; }
of() { docker inspect --format "$2" "$(container "$1")"; }
now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN {printf "%.1f", b - a}'; }
say() { printf '%s %s\n' "$(date +%T)" "$*" >&2; }
in_network() { # a container in the stack's network, with its secrets; $scratch is its /out
  docker run --rm --network "${COMPOSE_PROJECT_NAME}_default" -v "$scratch:/out" -v "$PWD/deploy/docker/stack_load.py:/stack_load.py:ro" \
    -e SERVING_TOKEN -e RAY_AUTH_TOKEN -e "DEGRE_REDIS__URL=redis://:$REDIS_PASSWORD@redis:6379/0" "$@"
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
