-- What executors say happened, one slot a fact: folding is idempotent, and its order does not matter.
--
-- Every slot has the position of the fact that filled it, so that a statement may look at all of it
-- as it was at a cut. Times are milliseconds since 1970, half-open.

CREATE TABLE cluster (
    uid             text    PRIMARY KEY,
    enrolled        boolean NOT NULL DEFAULT false,
    retired         boolean NOT NULL DEFAULT false,
    -- Everything up to then has been said.
    through_ms      bigint,
    -- Every open run was alive then, but those in `unproven`.
    proved_ms       bigint,
    proved_position bigint  NOT NULL DEFAULT 0
);

CREATE TABLE unproven (
    cluster   text   NOT NULL,
    replica   text   NOT NULL,
    -- When it was proved alive last; none: not since it started.
    proved_ms bigint,
    PRIMARY KEY (cluster, replica)
);

CREATE TABLE replica (
    uid                text   PRIMARY KEY,
    cluster            text   NOT NULL,
    project            text   NOT NULL,
    -- Of its Subject; none as long as no fact with one was folded.
    owner              text,
    owner_uid          text,
    kind               integer,
    user_uid           text,
    workload           text,
    attempt            integer,
    role               text,
    rank               integer,
    purchase           integer,
    labels             jsonb,
    gpu_type           text,
    gpu_milli          bigint,
    cpu_milli          bigint,
    memory_bytes       bigint,
    -- What its workload may cost, in billionths; none for no limit.
    limit_nanos        bigint,
    limit_currency     text,
    subject_position   bigint,
    scheduled_ms       bigint,
    scheduled_position bigint,
    scheduled_evidence integer,
    drain_ms           bigint,
    drain_cause        integer,
    drain_position     bigint,
    drain_evidence     integer,
    released_ms        bigint,
    released_position  bigint,
    released_evidence  integer
);
CREATE INDEX replica_project
    ON replica (project, coalesce(released_ms, 9223372036854775807));
CREATE INDEX replica_released ON replica (project, released_position);
CREATE INDEX replica_owner ON replica (owner);
CREATE INDEX replica_workload ON replica (workload);
CREATE INDEX replica_cluster ON replica (cluster);
CREATE INDEX replica_limit ON replica (workload) WHERE limit_nanos IS NOT NULL;

CREATE TABLE run (
    replica        text    NOT NULL,
    run            integer NOT NULL,
    start_ms       bigint,
    start_position bigint,
    start_evidence integer,
    end_ms         bigint,
    end_position   bigint,
    end_evidence   integer,
    PRIMARY KEY (replica, run)
);

CREATE TABLE gap (
    replica        text    NOT NULL,
    n              integer NOT NULL,
    lost_ms        bigint,
    lost_position  bigint,
    lost_evidence  integer,
    found_ms       bigint,
    found_position bigint,
    found_evidence integer,
    PRIMARY KEY (replica, n)
);

-- Other labels, or other resources, from a moment on.
CREATE TABLE change (
    replica      text    NOT NULL,
    resized      boolean NOT NULL,
    n            integer NOT NULL,
    at_ms        bigint  NOT NULL,
    position     bigint  NOT NULL,
    evidence     integer NOT NULL,
    labels       jsonb,
    gpu_type     text,
    gpu_milli    bigint,
    cpu_milli    bigint,
    memory_bytes bigint,
    PRIMARY KEY (replica, resized, n)
);

CREATE TABLE correction (
    replica  text    NOT NULL,
    n        integer NOT NULL,
    run      integer NOT NULL,
    start_ms bigint,
    end_ms   bigint,
    at_ms    bigint  NOT NULL,
    position bigint  NOT NULL,
    evidence integer NOT NULL,
    PRIMARY KEY (replica, n)
);
CREATE INDEX correction_run ON correction (replica, run, n);

CREATE TABLE missed (
    replica  text    NOT NULL,
    from_run integer NOT NULL,
    to_run   integer NOT NULL,
    from_ms  bigint  NOT NULL,
    to_ms    bigint  NOT NULL,
    position bigint  NOT NULL,
    evidence integer NOT NULL,
    PRIMARY KEY (replica, from_run)
);

CREATE TABLE volume (
    uid              text    PRIMARY KEY,
    cluster          text    NOT NULL,
    project          text    NOT NULL,
    owner            text,
    owner_uid        text,
    kind             integer,
    user_uid         text,
    purchase         integer,
    labels           jsonb,
    storage_bytes    bigint,
    bound_ms         bigint,
    bound_position   bigint,
    bound_evidence   integer,
    deleted_ms       bigint,
    deleted_position bigint,
    deleted_evidence integer
);
CREATE INDEX volume_project ON volume (project, coalesce(deleted_ms, 9223372036854775807));
CREATE INDEX volume_deleted ON volume (project, deleted_position);
CREATE INDEX volume_owner ON volume (owner);
CREATE INDEX volume_cluster ON volume (cluster);

CREATE TABLE finished (
    workload text   PRIMARY KEY,
    cluster  text   NOT NULL,
    project  text   NOT NULL,
    at_ms    bigint NOT NULL,
    position bigint NOT NULL
);
CREATE INDEX finished_cluster ON finished (cluster, at_ms);
