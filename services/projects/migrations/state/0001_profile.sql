-- Who a user is as a person. Not a fact, so that a person can be forgotten.

CREATE TABLE profile (
    uid          text        PRIMARY KEY,
    display_name text        NOT NULL,
    email        text        NOT NULL,
    at           timestamptz NOT NULL DEFAULT now()
);
