-- What waits for admission; folded from this service's own facts, so it can be rebuilt.

CREATE TABLE queue (
    workload_uid text        PRIMARY KEY,
    project      text        NOT NULL,
    owner        text        NOT NULL,
    kind         integer     NOT NULL,
    attempt      integer     NOT NULL,
    user_uid     text        NOT NULL,
    -- A serialized fermion.api.workload.v1.Reason.
    reason       bytea       NOT NULL,
    labels       jsonb       NOT NULL,
    queue_time   timestamptz NOT NULL
);
CREATE INDEX queue_order ON queue (project, queue_time, workload_uid);
