-- Who serves: what each replica has applied of the log, and how often it has said so. Written
-- every few seconds by each, and so with room in its pages; a lost row would be a lost promise,
-- and so logged as everything else.
CREATE TABLE replicas (
    id               TEXT PRIMARY KEY,
    applied_revision BIGINT NOT NULL,
    renewals         BIGINT NOT NULL,
    lease            BIGINT NOT NULL
) WITH (fillfactor = 50);
