#!/bin/sh
# The one-shot steps of compose.yaml, each for one service: init.sh certs | data | register. Each can run again.
set -eu
NODES=${NODES:-3}

# Make keys and certificates in /pki and hand every service its own: the SuperLink, its SuperExec (which runs others' code and needs no private key),
# whoever calls flwr, and each node.
certs() {
  fedhubert certs --out /pki --host superlink --nodes "$NODES" >/dev/null
  install -m 0600 /pki/server.key /pki/superexec.secret /certs/superlink/
  install -m 0644 /pki/server.crt /pki/ca.crt /certs/superlink/
  install -m 0600 /pki/superexec.secret /certs/superexec/
  install -m 0644 /pki/ca.crt /certs/superexec/
  install -m 0644 /pki/ca.crt /pki/node-*.pub /certs/operator/
  node=0
  while [ "$node" -lt "$NODES" ]; do
    install -m 0600 "/pki/node-$node.key" "/certs/node-$node/node.key"
    install -m 0644 /pki/ca.crt "/certs/node-$node/ca.crt"
    # What a site's SuperNode and its SuperExec share stays at the site.
    [ -s "/certs/secret-$node/superexec.secret" ] ||
      (umask 077 && head -c 32 /dev/urandom | od -An -vtx1 | tr -d ' \n' >"/certs/secret-$node/superexec.secret")
    node=$((node + 1))
  done
  echo "certificates and keys are in place"
}

# Give each site one language of the sample speech, and its own manifest.
data() {
  fedhubert prepare sample --root /data/sample
  node=0
  for language in en es fr; do
    [ "$node" -lt "$NODES" ] || break
    site=/sites/$node
    if [ ! -s "$site/manifest.csv" ]; then
      for voice in /data/sample/prompts/"$language"_*; do
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
  node=0
  while [ "$node" -lt "$NODES" ]; do
    if ! answer=$(flwr supernode register "/certs/operator/node-$node.pub" --name "site-$node" 2>&1); then
      case $answer in
        *"already in use"*) answer="site-$node is registered" ;;
        *) echo "$answer" >&2; exit 1 ;;
      esac
    fi
    echo "$answer"
    node=$((node + 1))
  done
}

mkdir -p "$FLWR_HOME"
printf '[superlink]\ndefault = "compose"\n\n[superlink.compose]\naddress = "superlink:8000"\nroot-certificates = "/certs/operator/ca.crt"\n' >"$FLWR_HOME/config.toml"

case ${1:-} in
  certs | data | register) "$1" ;;
  flwr) exec "$@" ;;
  *) echo "usage: init.sh certs|data|register|flwr ..." >&2; exit 2 ;;
esac
