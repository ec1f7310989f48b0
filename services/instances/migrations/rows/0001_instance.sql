-- What reads of instances use; folded from this service's own facts, so it can be rebuilt.

CREATE TABLE instance (
    uid             text        PRIMARY KEY,
    project         text        NOT NULL,
    instance        text        NOT NULL,
    owner           text        NOT NULL,
    display_name    text        NOT NULL,
    description     text        NOT NULL,
    labels          jsonb       NOT NULL,
    -- A serialized fermion.api.instances.v1.Spec.
    spec            bytea       NOT NULL,
    generation      bigint      NOT NULL,
    state           integer     NOT NULL,
    phase           integer     NOT NULL,
    -- A serialized fermion.api.workload.v1.Reason.
    reason          bytea,
    state_time      timestamptz NOT NULL,
    attempt         integer     NOT NULL,
    workload_uid    text        NOT NULL,
    desired         integer     NOT NULL,
    pending_restart boolean     NOT NULL,
    deleting        boolean     NOT NULL,
    create_time     timestamptz NOT NULL,
    update_time     timestamptz NOT NULL
);
-- Not unique: the claim on the name is, and one batch may free a name and give it away again.
CREATE INDEX instance_name ON instance (project, instance);
CREATE INDEX instance_create_time ON instance (project, create_time, uid);

-- Who bore a name since when, also after its deletion: the past is asked for by name.
CREATE TABLE bearer (
    uid         text        PRIMARY KEY,
    project     text        NOT NULL,
    instance    text        NOT NULL,
    create_time timestamptz NOT NULL
);
CREATE INDEX bearer_name ON bearer (project, instance, create_time);

CREATE TABLE template (
    name     text    PRIMARY KEY,
    hidden   boolean NOT NULL,
    -- A serialized fermion.api.instances.v1.Template.
    template bytea   NOT NULL
);

-- Projects that take no new work.
CREATE TABLE closed_project (
    project text    PRIMARY KEY,
    vacated boolean NOT NULL
);
