-- What the scheduler wants of this cluster; folded from its journal, so no rebuild of our own facts touches it.

CREATE TABLE wanted_workload (
    uid      text    PRIMARY KEY,
    -- A serialized fermion.api.workload.v1.Workload, as it was admitted last.
    workload bytea   NOT NULL,
    -- Admitted replicas by role.
    replicas jsonb   NOT NULL,
    -- Why it shall end; 0 while it shall run.
    cause    integer NOT NULL,
    grace_ms bigint  NOT NULL,
    position bigint  NOT NULL
);

CREATE TABLE wanted_volume (
    uid      text    PRIMARY KEY,
    -- A serialized fermion.api.workload.v1.Volume.
    volume   bytea   NOT NULL,
    -- Whether it, and what is on it, shall be gone.
    revoked  boolean NOT NULL,
    position bigint  NOT NULL
);

-- What replicas have used, for an hour: a reading, and no fact.
CREATE TABLE usage (
    replica          text        NOT NULL,
    at               timestamptz NOT NULL,
    cpu_ms           bigint      NOT NULL,
    memory_bytes     bigint      NOT NULL,
    gpu_milli        bigint,
    gpu_memory_bytes bigint,
    PRIMARY KEY (replica, at)
);
CREATE INDEX usage_at ON usage (at);
