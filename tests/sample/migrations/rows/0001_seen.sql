CREATE TABLE seen (
    uid      text   PRIMARY KEY,
    project  text   NOT NULL,
    facts    bigint NOT NULL,
    attempts bigint NOT NULL
);
