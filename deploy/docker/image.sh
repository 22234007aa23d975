#!/usr/bin/env bash
# Builds the image and says what it is: size, layers, user, what its history holds, seconds to the first word of `degre`.
# The last line is a JSON document; exit code 1 when the history shows a secret or a layer a package cache or a compiler.
set -euo pipefail
cd "$(dirname "$0")/../.."
image=${DEGRE_IMAGE:-degre}
docker build -f deploy/docker/Dockerfile ${PYTHON_IMAGE:+--build-arg PYTHON="$PYTHON_IMAGE"} --build-arg DEVICE="${DEVICE:-cpu}" -t "$image" . >&2

now() { date +%s.%N; }
began=$(now)
docker run --rm "$image" degre --help >/dev/null
seconds=$(awk -v a="$began" -v b="$(now)" 'BEGIN {printf "%.1f", b - a}')
docker history --format '{{.Size}}\t{{.CreatedBy}}' "$image" >&2
history=$(docker history --no-trunc --format '{{.CreatedBy}}' "$image")
secrets=$(grep -ciE '(password|passwd|secret|token|credential)[a-z_]*=[^ ]*[a-z0-9]{8,}' <<<"$history" || true)
inside=$(docker run --rm --user 0 "$image" sh -c '
  caches=0; for place in /root/.cache /home/degre/.cache; do [ -e "$place" ] && caches=$((caches + 1)); done
  compilers=0; for name in gcc cc g++ c++ clang; do command -v $name >/dev/null && compilers=$((compilers + 1)); done
  echo "$caches $compilers"')
read -r caches compilers <<<"$inside"
printf '{"image": "%s", "megabytes": %d, "layers": %d, "user": "%s", "start_seconds": %s, "secrets_in_history": %d, "caches": %d, "compilers": %d}\n' \
  "$image" "$(($(docker image inspect --format '{{.Size}}' "$image") / 1000000))" \
  "$(docker image inspect --format '{{len .RootFS.Layers}}' "$image")" \
  "$(docker image inspect --format '{{.Config.User}}' "$image")" "$seconds" "$secrets" "$caches" "$compilers"
((secrets == 0 && compilers == 0 && caches == 0))
