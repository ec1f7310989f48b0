-- What was stated of workloads, replicas and the cluster; folded from this service's own facts.

CREATE TABLE work (
    uid      text    PRIMARY KEY,
    finished boolean NOT NULL
);
CREATE INDEX work_open ON work (uid) WHERE NOT finished;

CREATE TABLE replica (
    uid           text        PRIMARY KEY,
    workload_uid  text        NOT NULL,
    project       text        NOT NULL,
    owner         text        NOT NULL,
    owner_uid     text        NOT NULL,
    attempt       integer     NOT NULL,
    role          text        NOT NULL,
    rank          integer     NOT NULL,
    node          text        NOT NULL,
    -- A number of fermion.api.executor.v1.ReplicaState.
    state         integer     NOT NULL,
    ready         boolean     NOT NULL,
    -- A serialized fermion.api.workload.v1.Reason.
    reason        bytea,
    run           integer     NOT NULL,
    exit_code     integer,
    signal        integer     NOT NULL,
    addresses     jsonb       NOT NULL,
    -- A serialized fermion.api.workload.v1.Sku.
    sku           bytea       NOT NULL,
    schedule_time timestamptz NOT NULL,
    start_time    timestamptz,
    end_time      timestamptz,
    released      boolean     NOT NULL
);
CREATE INDEX replica_owner ON replica (owner, schedule_time);
CREATE INDEX replica_workload ON replica (workload_uid);

CREATE TABLE cluster (
    uid          text PRIMARY KEY,
    -- A serialized fermion.api.workload.v1.Capabilities.
    capabilities bytea,
    through      timestamptz
);

CREATE TABLE node (
    cluster text  NOT NULL,
    node    text  NOT NULL,
    -- A serialized fermion.api.workload.v1.Node.
    body    bytea NOT NULL,
    PRIMARY KEY (cluster, node)
);
