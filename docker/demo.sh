#!/usr/bin/env bash
# From nothing to a trained checkpoint, in containers: build the image, start the SuperLink, its proxy and three sites (compose.yaml), train over the sample
# speech, copy the run's folder to $OUT, and end the containers, also when interrupted. Run again, it goes on where it was.
# Settings: ROUNDS (4), STEPS (75; at least 10, since a site lets no update of fewer than 30 s of audio leave, and a step has up to 8),
# NAME (of the run; a run keeps its settings, so others begin one of another name), OUT (outputs/docker-NAME), KEEP=1 (leave the federation running),
# GPU=1 (compose.gpu.yaml), SKIP_BUILD=1 (the image is there).
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${ROUNDS:-4} steps=${STEPS:-75}
name=${NAME:-demo-${rounds}x$steps}
out=${OUT:-outputs/docker-$name}
if [ "$steps" -lt 10 ]; then
  echo "STEPS=$steps: at least 10, or the sites refuse (update.min_seconds in fedhubert/federation/site/README.md)" >&2
  exit 2
fi

file=docker/compose.yaml scratch=
if docker compose version >/dev/null 2>&1; then
  compose=(docker compose)
else # docker-compose 1 takes no `name:` in a file
  compose=(docker-compose -p fedhubert --project-directory docker)
  scratch=$(mktemp)
  sed '/^name:/d' "$file" >"$scratch"
  file=$scratch
fi
compose+=(-f "$file")
if [ "${GPU:-}" = 1 ]; then compose+=(-f docker/compose.gpu.yaml --env-file docker/gpu.env); fi

finish() {
  code=$?
  trap - EXIT
  [ "${KEEP:-}" = 1 ] || "${compose[@]}" down
  [ -z "$scratch" ] || rm -f "$scratch"
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

[ "${SKIP_BUILD:-}" = 1 ] || "${compose[@]}" build certs
"${compose[@]}" up -d

flwr() { "${compose[@]}" run --rm -T flwr "$@" </dev/null; }
keys="federated.signing_key=/certs/coordinator.key federated.node_keys=/certs"
overrides="experiment=demo_fedavg federated.num_clients=3 federated.num_rounds=$rounds client.local_steps=$steps targets.max_iterations=4 checkpoint.every=1 out=/runs/$name resume=auto $keys"
submitted=$(flwr run /app --format json --run-config "overrides=\"$overrides\"")
run=$(sed -n 's/.*"run-id": *"\{0,1\}\([0-9]*\).*/\1/p' <<<"$submitted")
[ -n "$run" ] || { echo "flwr run said: $submitted" >&2; exit 1; }
flwr log "$run" --stream & # `wait`, where a command in the foreground would hold signals back
wait $!
status=$(flwr list --run-id "$run" --format json | sed -n 's/.*"status": *"\([^"]*\)".*/\1/p')
echo "run $run: $status"

mkdir -p "$out"
docker cp "$("${compose[@]}" ps -q superlink-exec):/runs/$name/." "$out"
[ "$status" = finished:completed ]
echo "checkpoints: $out/checkpoints"
