-- What projects and executors say, folded from their journals; no rebuild of our own facts touches it.

CREATE TABLE project (
    name     text   PRIMARY KEY,
    uid      text   NOT NULL
);

CREATE TABLE quota (
    scope    text   PRIMARY KEY,
    -- A serialized fermion.api.projects.v1.Limits.
    limits   bytea  NOT NULL
);

CREATE TABLE enrolled (
    cluster  text    PRIMARY KEY,
    retired  boolean NOT NULL
);

CREATE TABLE cluster (
    uid          text   PRIMARY KEY,
    -- A serialized fermion.api.workload.v1.Capabilities.
    capabilities bytea  NOT NULL
);

-- Of what may be much, the position of the last fact about each: who follows reads what is behind his.

CREATE TABLE node (
    cluster  text   NOT NULL,
    node     text   NOT NULL,
    -- A serialized fermion.api.workload.v1.Node; none where it is not there any more.
    body     bytea,
    position bigint NOT NULL,
    PRIMARY KEY (cluster, node)
);
CREATE INDEX node_position ON node (cluster, position);

CREATE TABLE replica (
    uid      text    PRIMARY KEY,
    workload text    NOT NULL,
    role     text    NOT NULL,
    cluster  text    NOT NULL,
    node     text    NOT NULL,
    -- Its cluster has said that it is gone.
    released boolean NOT NULL,
    -- It was given up with its node, and lives there perhaps: it counts until the node is gone or heard.
    unproven boolean NOT NULL
);
CREATE INDEX replica_workload ON replica (workload);
CREATE INDEX replica_unproven ON replica (cluster, node) WHERE unproven;

CREATE TABLE progress (
    workload text        PRIMARY KEY,
    cluster  text        NOT NULL,
    -- When the first of its replicas started.
    began    timestamptz,
    -- No replica of it is there, and none will come.
    ended    boolean     NOT NULL,
    position bigint      NOT NULL
);
CREATE INDEX progress_position ON progress (cluster, position);

CREATE TABLE stored (
    volume   text    PRIMARY KEY,
    cluster  text    NOT NULL,
    node     text    NOT NULL,
    bound    boolean NOT NULL,
    gone     boolean NOT NULL,
    position bigint  NOT NULL
);
CREATE INDEX stored_position ON stored (cluster, position);
