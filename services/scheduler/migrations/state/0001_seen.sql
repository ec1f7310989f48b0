-- What projects and executors say, folded from their journals; no rebuild of our own facts touches it.

CREATE TABLE project (
    name     text   PRIMARY KEY,
    uid      text   NOT NULL,
    position bigint NOT NULL
);

CREATE TABLE quota (
    scope    text   PRIMARY KEY,
    -- A serialized fermion.api.projects.v1.Limits; none where the scope has none of its own any more.
    limits   bytea,
    position bigint NOT NULL
);

CREATE TABLE enrolled (
    cluster  text    PRIMARY KEY,
    retired  boolean NOT NULL,
    position bigint  NOT NULL
);

CREATE TABLE cluster (
    uid          text   PRIMARY KEY,
    -- A serialized fermion.api.workload.v1.Capabilities.
    capabilities bytea  NOT NULL,
    position     bigint NOT NULL
);

CREATE TABLE node (
    cluster  text   NOT NULL,
    node     text   NOT NULL,
    -- A serialized fermion.api.workload.v1.Node; none where it is not there any more.
    body     bytea,
    position bigint NOT NULL,
    PRIMARY KEY (cluster, node)
);

CREATE TABLE replica (
    uid      text    PRIMARY KEY,
    workload text    NOT NULL,
    role     text    NOT NULL,
    node     text    NOT NULL,
    released boolean NOT NULL
);
CREATE INDEX replica_workload ON replica (workload) WHERE NOT released;

CREATE TABLE progress (
    workload text        PRIMARY KEY,
    began    timestamptz,
    ended    boolean     NOT NULL,
    journal  text        NOT NULL,
    -- Position of the last fact about it.
    position bigint      NOT NULL
);
CREATE INDEX progress_position ON progress (journal, position);

CREATE TABLE stored (
    volume   text    PRIMARY KEY,
    node     text    NOT NULL,
    bound    boolean NOT NULL,
    gone     boolean NOT NULL,
    journal  text    NOT NULL,
    position bigint  NOT NULL
);
CREATE INDEX stored_position ON stored (journal, position);
