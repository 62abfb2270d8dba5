#!/bin/sh
# The steps of compose.yaml, each for one service: init.sh coordinator | keys N | enrol | data | register | proxy | knock | flwr ... Each can run again.
# ROOT comes before every path, and is for tests.
set -eu
ROOT=${ROOT:-}

# At the coordinator: make keys and certificates in /pki and hand every service its own. The signing key goes to the SuperExec, where the ServerApp runs.
coordinator() {
  fedhubert certs --coordinator --host superlink proxy --out "$ROOT/pki"
  cd "$ROOT/certs"
  install -m 0600 "$ROOT/pki/server.key" "$ROOT/pki/superexec.secret" superlink/
  install -m 0644 "$ROOT/pki/server.crt" "$ROOT/pki/ca.crt" superlink/
  install -m 0600 "$ROOT/pki/server.key" proxy/
  install -m 0644 "$ROOT/pki/server.crt" "$ROOT/pki/ca.crt" proxy/
  install -m 0600 "$ROOT/pki/coordinator.key" "$ROOT/pki/superexec.secret" superexec/
  install -m 0644 "$ROOT/pki/ca.crt" superexec/
  install -m 0644 "$ROOT/pki/ca.crt" operator/
  install -m 0644 "$ROOT/pki/ca.crt" "$ROOT/pki/coordinator.pub" "$ROOT/outbox/"
}

# At site $1: make its keys in /pki, which nobody else sees, and hand its two containers what they need; the public halves go out.
keys() {
  fedhubert certs --site "$1" --out "$ROOT/pki"
  cd "$ROOT/certs"
  install -m 0600 "$ROOT/pki/node-$1.key" node/node.key
  install -m 0644 "$ROOT/inbox/ca.crt" node/
  install -m 0600 "$ROOT/pki/site-$1.key" site/
  install -m 0644 "$ROOT/inbox/coordinator.pub" site/
  # what SuperNode and site share
  [ -s secret/superexec.secret ] || (umask 077 && head -c 32 /dev/urandom | od -An -vtx1 | tr -d ' \n' >secret/superexec.secret)
  install -m 0644 "$ROOT/pki/node-$1.pub" "$ROOT/pki/site-$1.pub" "$ROOT/outbox/"
}

# At the coordinator: take the public keys that the sites sent.
enrol() {
  fedhubert certs --enrol "$ROOT"/inbox/*/*.pub --out "$ROOT/pki"
  install -m 0644 "$ROOT"/pki/node-*.pub "$ROOT"/pki/site-*.pub "$ROOT/certs/superexec/"
  install -m 0644 "$ROOT"/pki/node-*.pub "$ROOT/certs/operator/"
}

# Give each site one language of the sample speech, and its own manifest.
data() {
  fedhubert prepare sample --root "$ROOT/data/sample"
  node=0
  for language in en es fr; do
    site=$ROOT/sites/$node
    if [ ! -s "$site/manifest.csv" ]; then
      for voice in "$ROOT"/data/sample/prompts/"$language"_*; do
        cp -r "$voice" "$site/"
      done
      find "$site" -depth -type d -name silence -exec rm -r {} +
      fedhubert prepare folder --root "$site" --out "$site/manifest.csv"
    fi
    node=$((node + 1))
  done
}

# Register every node's public key with the SuperLink, once.
register() {
  for key in "$ROOT"/certs/operator/node-*.pub; do
    name=$(basename "$key" .pub)
    if ! answer=$(flwr supernode register "$key" --name "site-${name#node-}" 2>&1); then
      case $answer in
        *"already in use"*) answer="$name is registered" ;;
        *) echo "$answer" >&2; exit 1 ;;
      esac
    fi
    echo "$answer"
  done
}

# The door, by nginx: proxy/nginx.conf.template filled in. What it refuses is in the service's log.
conf=$ROOT/tmp/nginx.conf
proxy() {
  for temporary in client_body proxy fastcgi uwsgi scgi; do
    paths="${paths:-}${temporary}_temp_path $ROOT/tmp/$temporary; "
  done
  {
    echo "daemon off; worker_processes 2; pid $ROOT/tmp/nginx.pid; error_log stderr; events { worker_connections 2048; }"
    echo "http { access_log off; $paths"
    sed -e "s|\${PROXY_PORT}|8443|; s|\${SUPERLINK}|${SUPERLINK:-superlink:8000}|; s|\${SUPERLINK_NAME}|superlink|; s|\${CERTS}|$ROOT/certs|" \
      "$(dirname "$0")/proxy/nginx.conf.template"
    echo "}"
  } >"$conf"
  exec nginx -e stderr -c "$conf"
}

# Whether the SuperLink answers through the door (to this it says no). nginx looks up names when it starts: where a SuperLink that was made anew has
# another address, it is told to read its configuration again.
knock() {
  python3 - "$ROOT/certs/ca.crt" <<'PYTHON' || { nginx -e stderr -c "$conf" -s reload; exit 1; }
import ssl, sys, urllib.error, urllib.request
try:
    urllib.request.urlopen("https://localhost:8443/v1/fleet/pull-messages", b"", 5, context=ssl.create_default_context(cafile=sys.argv[1]))
except urllib.error.HTTPError as answer:
    sys.exit(answer.code >= 500)
PYTHON
}

case ${1:-} in
  coordinator | enrol | data | proxy | knock) "$1" ;;
  keys) keys "$2" ;;
  register | flwr)
    mkdir -p "$FLWR_HOME"
    printf '[superlink]\ndefault = "compose"\n\n[superlink.compose]\naddress = "superlink:8000"\nroot-certificates = "/certs/operator/ca.crt"\n' >"$FLWR_HOME/config.toml"
    if [ "$1" = flwr ]; then exec "$@"; else register; fi
    ;;
  *) echo "usage: init.sh coordinator|keys N|enrol|data|register|proxy|knock|flwr ..." >&2; exit 2 ;;
esac
