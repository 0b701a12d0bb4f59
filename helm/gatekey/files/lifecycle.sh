# `helm test` runs this: creates a key, validates it, revokes it, and checks that it is then denied.
# grpcurl reads the token from the environment, so process lists do not show it.
TOKEN=$(cat "$SECRETS/admin-token")
export TOKEN

transport=-plaintext
if [ "$TLS" = true ]; then
    transport=
    if [ -s "$SECRETS/ca.crt" ]; then transport="-cacert $SECRETS/ca.crt"; fi
fi

call() {
    # $transport expands to no, one or two arguments; grpcurl itself expands ${TOKEN}.
    # shellcheck disable=SC2086,SC2016
    grpcurl $transport -connect-timeout 10 -max-time 60 -expand-headers -H 'authorization: Bearer ${TOKEN}' \
        -d @ "$ADDRESS" "gatekey.v1.KeyService/$1"
}

expect() {
    case $2 in
    *"$3"*) echo "ok: $1" ;;
    *)
        echo "FAILED: $1: the response lacks $3:"
        echo "$2" | grep -v plaintextKey
        exit 1
        ;;
    esac
}

field() { echo "$2" | sed -n "s/.*\"$1\": \"\([^\"]*\)\".*/\1/p" | head -n 1; }

response=$(echo '{"tenant_id":"'"$TENANT"'","owner_id":"'"$OWNER"'","label":"helm test","scopes":["'"$SCOPE"'"],"ttl":"600s"}' | call CreateKey)
expect 'CreateKey returns a key' "$response" '"plaintextKey"'
key=$(field plaintextKey "$response")
id=$(field keyId "$response")

response=$(echo '{"key":"'"$key"'","required_scopes":["'"$SCOPE"'"]}' | call Validate)
expect 'Validate allows the key' "$response" '"allowed": true'

response=$(echo '{"tenant_id":"'"$TENANT"'","key_id":"'"$id"'","reason":"helm test"}' | call RevokeKey)
expect 'every replica enforces its revocation' "$response" ENFORCEMENT_STATE_ENFORCED

response=$(echo '{"key":"'"$key"'"}' | call Validate)
expect 'Validate denies the key' "$response" REASON_REVOKED
