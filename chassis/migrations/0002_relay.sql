-- Why the relay of a journal stands still: written by whoever holds its lease, read by everybody.
-- A row is there only while it does.
CREATE TABLE relay (
    log    text        PRIMARY KEY,
    halted text        NOT NULL,
    at     timestamptz NOT NULL DEFAULT now()
);
