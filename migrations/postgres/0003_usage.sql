-- When, from where and how often a key was used. Apart from `keys`, so that what changes all the
-- time does not bloat what is read all the time; without a foreign key, which would lock a row of
-- `keys` for each use.
CREATE TABLE key_usage (
    key_id       TEXT COLLATE "C" PRIMARY KEY,
    last_used_at BIGINT NOT NULL,
    -- Of the last use, if whoever asked said where from.
    last_used_ip TEXT,
    uses         BIGINT NOT NULL
);
CREATE INDEX key_usage_by_time ON key_usage (last_used_at);

-- Lists of keys: newest first with all that is filtered by, so that what does not match is passed over
-- without being read; and the few that are revoked, suspended or about to expire.
DROP INDEX keys_by_tenant;
CREATE UNIQUE INDEX keys_by_tenant ON keys (tenant_id, created_revision)
    INCLUDE (key_id, label, expires_at, revoked_at, suspended);
CREATE INDEX keys_revoked ON keys (tenant_id, created_revision)
    INCLUDE (key_id, label, expires_at, revoked_at, suspended)
    WHERE revoked_at IS NOT NULL;
CREATE INDEX keys_suspended ON keys (tenant_id, created_revision)
    INCLUDE (key_id, label, expires_at, revoked_at, suspended)
    WHERE suspended AND revoked_at IS NULL;
CREATE INDEX keys_by_expiry ON keys (tenant_id, expires_at) WHERE expires_at IS NOT NULL;
