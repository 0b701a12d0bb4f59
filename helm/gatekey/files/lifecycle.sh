# What `helm test` runs: a key is made, is good, is revoked, and is refused.
# The token goes by the environment, so that no process list shows it.
TOKEN=$(cat "$SECRETS/admin-token")
export TOKEN

transport=-plaintext
if [ "$TLS" = true ]; then
    transport=
    if [ -s "$SECRETS/ca.crt" ]; then transport="-cacert $SECRETS/ca.crt"; fi
fi

call() {
    # The transport is no word, or one or two; grpcurl itself puts the token in.
    # shellcheck disable=SC2086,SC2016
    grpcurl $transport -connect-timeout 10 -max-time 60 -expand-headers -H 'authorization: Bearer ${TOKEN}' \
        -d @ "$ADDRESS" "gatekey.v1.KeyService/$1"
}

expect() {
    case $2 in
    *"$3"*) echo "ok: $1" ;;
    *)
        echo "FAILED: $1: no $3 in the answer:"
        echo "$2" | grep -v plaintextKey
        exit 1
        ;;
    esac
}

field() { echo "$2" | sed -n "s/.*\"$1\": \"\([^\"]*\)\".*/\1/p" | head -n 1; }

answer=$(echo '{"tenant_id":"'"$TENANT"'","owner_id":"'"$OWNER"'","label":"helm test","scopes":["'"$SCOPE"'"],"ttl":"600s"}' | call CreateKey)
expect 'a key is made' "$answer" '"plaintextKey"'
key=$(field plaintextKey "$answer")
id=$(field keyId "$answer")

answer=$(echo '{"key":"'"$key"'","required_scopes":["'"$SCOPE"'"]}' | call Validate)
expect 'it is good' "$answer" '"allowed": true'

answer=$(echo '{"tenant_id":"'"$TENANT"'","key_id":"'"$id"'","reason":"helm test"}' | call RevokeKey)
expect 'it is revoked on every replica' "$answer" ENFORCEMENT_STATE_ENFORCED

answer=$(echo '{"key":"'"$key"'"}' | call Validate)
expect 'it is refused' "$answer" REASON_REVOKED
