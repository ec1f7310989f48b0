-- What waits and what is held; folded from this service's own facts, so it can be rebuilt.

CREATE TABLE entry (
    uid        text        PRIMARY KEY,
    project    text        NOT NULL,
    owner      text        NOT NULL,
    -- A serialized fermion.api.workload.v1.Workload, with its labels as they are now.
    workload   bytea       NOT NULL,
    queue_time timestamptz NOT NULL,
    -- The kind of reason that was stated last.
    code       text        NOT NULL,
    said_time  timestamptz NOT NULL,
    -- Where it was admitted; empty: it waits.
    cluster    text        NOT NULL,
    -- Admitted replicas by role.
    replicas   jsonb       NOT NULL,
    -- Nodes of the admitted replicas, by role.
    nodes      jsonb       NOT NULL,
    gpu_type   text        NOT NULL,
    admit_time timestamptz,
    revoked    boolean     NOT NULL
);
CREATE INDEX entry_owner ON entry (owner);

CREATE TABLE volume (
    uid       text    PRIMARY KEY,
    -- A serialized fermion.api.workload.v1.Volume.
    volume    bytea   NOT NULL,
    cluster   text    NOT NULL,
    withdrawn boolean NOT NULL
);
