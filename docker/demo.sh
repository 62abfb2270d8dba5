#!/usr/bin/env bash
# From nothing to a trained checkpoint, in containers: build the image, start the SuperLink and three sites (compose.yaml), train over the sample
# speech, copy the run's folder to $OUT, stop. Run again, it goes on where it was. Settings: ROUNDS, STEPS, NAME (of the run), OUT, KEEP=1 (leave it running),
# GPU=1 (compose.gpu.yaml), SKIP_BUILD=1 (the image is there).
set -euo pipefail
cd "$(dirname "$0")/.."

compose=(docker-compose)
if docker compose version >/dev/null 2>&1; then compose=(docker compose); fi
compose+=(-p fedhubert)
if [ "${GPU:-}" = 1 ]; then
  compose+=(--env-file docker/gpu.env -f docker/compose.yaml -f docker/compose.gpu.yaml)
else
  compose+=(-f docker/compose.yaml)
fi
out=${OUT:-outputs/docker-demo}

[ "${SKIP_BUILD:-}" = 1 ] || "${compose[@]}" build certs
"${compose[@]}" up -d

flwr() { "${compose[@]}" run --rm -T flwr "$@" </dev/null; }
overrides="experiment=demo federated.num_clients=3 federated.num_rounds=${ROUNDS:-4} client.local_steps=${STEPS:-75} targets.max_iterations=4 checkpoint.every=1 out=/runs/${NAME:-demo} resume=auto"
submitted=$(flwr run /app --format json --run-config "overrides=\"$overrides\"")
run=$(sed -n 's/.*"run-id": *"\{0,1\}\([0-9]*\).*/\1/p' <<<"$submitted")
[ -n "$run" ] || { echo "flwr run said: $submitted" >&2; exit 1; }
flwr log "$run" --stream
status=$(flwr list --run-id "$run" --format json | sed -n 's/.*"status": *"\([^"]*\)".*/\1/p')
echo "run $run: $status"

mkdir -p "$out"
docker cp "$("${compose[@]}" ps -q superlink-exec):/runs/${NAME:-demo}/." "$out"
[ "${KEEP:-}" = 1 ] || "${compose[@]}" down
[ "$status" = finished:completed ]
echo "checkpoints: $out/checkpoints"
