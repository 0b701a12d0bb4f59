-- Times are microseconds since 1970, durations microseconds; lists and maps are JSON.

-- The revision of the last change. Every mutation updates it first, in its own transaction, and
-- so waits for the one before it: revisions become visible in the order of their numbers.
CREATE TABLE log_head (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    revision BIGINT NOT NULL,
    -- 32 random hexadecimal digits: which log the revisions are of. A restored backup gets another
    -- one, because it gives the same revisions to other changes.
    store_id TEXT NOT NULL
);
INSERT INTO log_head (one, revision, store_id) VALUES (1, 0, replace(gen_random_uuid()::text, '-', ''));

CREATE TABLE tenants (
    tenant_id                 TEXT PRIMARY KEY,
    display_name              TEXT NOT NULL,
    suspended                 BOOLEAN NOT NULL,
    key_prefix                TEXT NOT NULL,
    scope_catalog             TEXT NOT NULL,
    default_ttl               BIGINT,
    max_ttl                   BIGINT,
    require_expiry            BOOLEAN NOT NULL,
    max_active_keys_per_owner BIGINT NOT NULL,
    replace_oldest            BOOLEAN NOT NULL,
    require_owner             BOOLEAN NOT NULL,
    required_owner_scope      TEXT,
    basic_usernames           TEXT NOT NULL,
    revision                  BIGINT NOT NULL
);
INSERT INTO tenants
    (tenant_id, display_name, suspended, key_prefix, scope_catalog, require_expiry,
     max_active_keys_per_owner, replace_oldest, require_owner, basic_usernames, revision)
VALUES
    ('default', 'Default', FALSE, '', '[]', FALSE, 0, FALSE, FALSE, '[]', 0),
    ('system', 'gatekey itself', FALSE, '', '[]', FALSE, 0, FALSE, FALSE, '[]', 0);

CREATE TABLE owners (
    tenant_id    TEXT NOT NULL REFERENCES tenants (tenant_id),
    owner_id     TEXT NOT NULL,
    scopes       TEXT NOT NULL,
    audiences    TEXT NOT NULL,
    suspended    BOOLEAN NOT NULL,
    display_name TEXT NOT NULL,
    revision     BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, owner_id)
);

CREATE TABLE keys (
    key_id           TEXT COLLATE "C" PRIMARY KEY,
    tenant_id        TEXT NOT NULL REFERENCES tenants (tenant_id),
    owner_id         TEXT NOT NULL,
    label            TEXT NOT NULL,
    description      TEXT NOT NULL,
    prefix           TEXT NOT NULL,
    scopes           TEXT NOT NULL,
    audiences        TEXT NOT NULL,
    allowed_cidrs    TEXT NOT NULL,
    metadata         TEXT NOT NULL,
    suspended        BOOLEAN NOT NULL,
    created_at       BIGINT NOT NULL,
    created_by       TEXT NOT NULL,
    expires_at       BIGINT,
    revoked_at       BIGINT,
    revoked_by       TEXT,
    revoke_reason    TEXT,
    rotated_from     TEXT,
    rotated_to       TEXT,
    request_id       TEXT,
    hash_version     TEXT NOT NULL,
    secret_phc       TEXT NOT NULL,
    secret_mac       BYTEA,
    mac_pepper       TEXT,
    created_revision BIGINT NOT NULL,
    revision         BIGINT NOT NULL
);
CREATE UNIQUE INDEX keys_by_tenant ON keys (tenant_id, created_revision);
CREATE INDEX keys_by_owner ON keys (tenant_id, owner_id, created_revision);
CREATE UNIQUE INDEX keys_by_request ON keys (tenant_id, request_id) WHERE request_id IS NOT NULL;
-- Counts the keys that each pepper is still needed for.
CREATE INDEX keys_by_pepper ON keys (mac_pepper, expires_at) WHERE revoked_at IS NULL;

CREATE TABLE events (
    revision  BIGINT PRIMARY KEY,
    at        BIGINT NOT NULL,
    actor     TEXT NOT NULL,
    kind      TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    key_id    TEXT,
    owner_id  TEXT,
    details   TEXT NOT NULL,
    trace_id  TEXT
);
CREATE INDEX events_by_tenant ON events (tenant_id, revision);
CREATE INDEX events_by_key ON events (key_id, revision) WHERE key_id IS NOT NULL;

-- The peppers that were used with this database.
CREATE TABLE peppers (
    pepper_id    TEXT PRIMARY KEY,
    -- Grows in the order in which they were first used.
    ordinal      BIGINT NOT NULL UNIQUE,
    -- Keys with a created_revision up to this may have no MAC under a known pepper, and are then
    -- checked by secret_phc: they were made without a pepper, or under one that is lost.
    argon2_until BIGINT NOT NULL,
    -- A MAC of a known text and argon2_until, to detect a wrong pepper and a changed record.
    check_value  BYTEA NOT NULL
);
