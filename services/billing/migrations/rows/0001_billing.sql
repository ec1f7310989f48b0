-- What billing itself has stated: prices, and workloads that reached their limit or are settled.

CREATE TABLE price_book (
    number       integer PRIMARY KEY,
    version      text    NOT NULL,
    -- The first one is in force from 0.
    effective_ms bigint  NOT NULL,
    -- A serialized fermion.api.billing.v1.PriceBook.
    body         bytea   NOT NULL
);

CREATE TABLE rule (
    number  integer NOT NULL,
    state   integer NOT NULL,
    billed  boolean NOT NULL,
    free_ms bigint  NOT NULL,
    PRIMARY KEY (number, state)
);

-- Ends of these causes are the platform's doing.
CREATE TABLE platform_cause (
    number integer NOT NULL,
    cause  integer NOT NULL,
    PRIMARY KEY (number, cause)
);

CREATE TABLE charged (
    workload text    PRIMARY KEY,
    project  text    NOT NULL,
    limited  boolean NOT NULL,
    settled  boolean NOT NULL,
    -- Once it is settled; in billionths.
    nanos    bigint
);
