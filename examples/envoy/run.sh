#!/bin/sh
# Starts gatekey, a service and Envoy, and shows three requests: 200, 401 and 403. Needs `gatekey`, `envoy`, `grpcurl`,
# `python3` and `curl`. Everything ends with the script.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
started=
trap 'trap - EXIT; kill $started 2>/dev/null || true; wait; rm -rf "$folder"' EXIT INT TERM
cd "$folder"

# Retries a command for 30 seconds.
await() {
  tries=150
  until "$@" >/dev/null 2>&1; do
    tries=$((tries - 1))
    [ $tries -gt 0 ] || { echo "$* does not succeed" >&2; cat ./*.log >&2; exit 1; }
    sleep 0.2
  done
}

GATEKEY_METRICS_LISTEN=off gatekey >gatekey.log 2>&1 &
started="$started $!"
await gatekey health
export TOKEN="$(cat gatekey-admin.token)"

# Creates a key of a tenant with a scope, and prints it.
create_key() {
  grpcurl -plaintext -expand-headers -H 'authorization: Bearer ${TOKEN}' \
    -d "{\"tenant_id\":\"$1\",\"owner_id\":\"example\",\"label\":\"example\",\"scopes\":[\"$2\"]}" \
    127.0.0.1:50051 gatekey.v1.KeyService/CreateKey |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["plaintextKey"])'
}

export GATEKEY_CREDENTIAL="$(create_key system '*:keys:validate')"
reader=$(create_key default orders:read)
other=$(create_key default jobs:read)

mkdir -p www/orders
echo '["order 7"]' >www/orders/index.html
python3 -m http.server --bind 127.0.0.1 --directory www 8000 2>service.log &
started="$started $!"
envoy --disable-hot-restart -l warn -c "$here/envoy.yaml" 2>envoy.log &
started="$started $!"
await curl -s http://127.0.0.1:8000/
await curl -s http://127.0.0.1:8080/

# Shows the status and the body of a request with a key.
show() {
  echo "$1"
  printf 'header = "authorization: Bearer %s"\n' "$2" |
    curl -s -K - -w '\nHTTP %{http_code}\n\n' http://127.0.0.1:8080/orders/
}

show "A key with the scope orders:read:" "$reader"
show "A key that does not exist:" gk_nothing
show "A key without the scope:" "$other"
