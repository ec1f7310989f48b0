-- What reads of projects use; folded from this service's own facts, so it can be rebuilt.

-- Names and mail addresses live in the table `profile`, outside the facts and so outside a rebuild.
CREATE TABLE account (
    uid           text        PRIMARY KEY,
    name          text        NOT NULL,
    platform_role integer     NOT NULL,
    generation    bigint      NOT NULL,
    create_time   timestamptz NOT NULL
);
CREATE INDEX account_name ON account (name);
CREATE INDEX account_create_time ON account (create_time, uid);

CREATE TABLE project (
    uid          text        PRIMARY KEY,
    name         text        NOT NULL,
    display_name text        NOT NULL,
    description  text        NOT NULL,
    labels       jsonb       NOT NULL,
    state        integer     NOT NULL,
    vacated_by   text[]      NOT NULL,
    generation   bigint      NOT NULL,
    create_time  timestamptz NOT NULL,
    update_time  timestamptz NOT NULL
);
CREATE INDEX project_name ON project (name);
CREATE INDEX project_create_time ON project (create_time, uid);

CREATE TABLE member (
    project_uid text        NOT NULL,
    project     text        NOT NULL,
    user_uid    text        NOT NULL,
    role        integer     NOT NULL,
    update_time timestamptz NOT NULL,
    PRIMARY KEY (project_uid, user_uid)
);
CREATE INDEX member_user ON member (user_uid);

CREATE TABLE token (
    uid         text        PRIMARY KEY,
    user_uid    text        NOT NULL,
    description text        NOT NULL,
    issue_time  timestamptz NOT NULL,
    expire_time timestamptz NOT NULL,
    revoked     boolean     NOT NULL
);
CREATE INDEX token_user ON token (user_uid, uid);

CREATE TABLE signing_key (
    kid         text        PRIMARY KEY,
    public_key  bytea       NOT NULL,
    create_time timestamptz NOT NULL
);
