-- What waits and what is held; folded from this service's own facts, so it can be rebuilt.

-- It takes the place of the queue, which had only what is shown: what waited there is folded anew at the next start.
ALTER TABLE queue RENAME TO queue_before;

CREATE TABLE entry (
    uid         text        PRIMARY KEY,
    project     text        NOT NULL,
    owner       text        NOT NULL,
    -- A serialized fermion.api.workload.v1.Workload, with its labels and numbers as they are now.
    workload    bytea       NOT NULL,
    -- Of its stream: who decides on this row expects it.
    version     bigint      NOT NULL,
    waits       boolean     NOT NULL,
    -- A serialized fermion.api.workload.v1.Reason, as it was stated last.
    reason      bytea,
    said_time   timestamptz NOT NULL,
    queue_time  timestamptz NOT NULL,
    arrive_time timestamptz NOT NULL,
    -- Where it was admitted; empty: it was not.
    cluster     text        NOT NULL,
    -- Admitted replicas by role.
    replicas    jsonb       NOT NULL,
    -- Nodes of the admitted replicas, in the order of groups.
    nodes       text[]      NOT NULL,
    gpu_type    text        NOT NULL,
    admit_time  timestamptz,
    revoked     boolean     NOT NULL
);
CREATE INDEX entry_owner ON entry (owner);
CREATE INDEX entry_queue ON entry (project, queue_time, uid) WHERE waits;

CREATE TABLE volume (
    uid       text    PRIMARY KEY,
    -- A serialized fermion.api.workload.v1.Volume.
    volume    bytea   NOT NULL,
    version   bigint  NOT NULL,
    -- Where it was admitted; empty: it waits for the first workload that mounts it.
    cluster   text    NOT NULL,
    withdrawn boolean NOT NULL
);
