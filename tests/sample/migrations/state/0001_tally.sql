CREATE TABLE tally (
    uid   text   PRIMARY KEY,
    facts bigint NOT NULL
);
