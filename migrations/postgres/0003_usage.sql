-- When, from where and how often a key was used. Apart from `keys`, so that what changes all the
-- time does not bloat what is read all the time; without a foreign key, which would lock a row of
-- `keys` for each use.
CREATE TABLE key_usage (
    key_id       TEXT PRIMARY KEY,
    last_used_at BIGINT NOT NULL,
    -- Of the last use, if whoever asked said where from.
    last_used_ip TEXT,
    uses         BIGINT NOT NULL
);
CREATE INDEX key_usage_by_time ON key_usage (last_used_at);
