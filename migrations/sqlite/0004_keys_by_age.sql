-- The newest keys are read into memory before a replica is ready.
CREATE INDEX keys_by_age ON keys (created_revision);
