-- What scopes may hold, and where work may run.

-- Scope: `projects/<uid>` or `users/<uid>`, its uid again to find the name by; `-` for each that has no
-- limits of its own. Limits: a serialised message, or null since they were cleared.
CREATE TABLE quota (
    scope   text   PRIMARY KEY,
    uid     text   NOT NULL,
    version bigint NOT NULL,
    limits  bytea
);

CREATE TABLE cluster (
    uid         text        PRIMARY KEY,
    enrol_time  timestamptz NOT NULL,
    retire_time timestamptz
);
