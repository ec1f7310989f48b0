-- What a lost tail leaves behind: where a lineage came from, and who had used what is gone.

-- The backup that a lineage was restored from, and the last position known of the one before.
ALTER TABLE epoch ADD COLUMN backup text NOT NULL DEFAULT '';
ALTER TABLE epoch ADD COLUMN lost_through bigint NOT NULL DEFAULT 0;

-- Of a reader that stands still because its journal lost what it had used: up to where.
ALTER TABLE checkpoint ADD COLUMN lost_through bigint NOT NULL DEFAULT 0;

-- Whether the relay stands still because stream and journal have parted.
ALTER TABLE relay ADD COLUMN parted boolean NOT NULL DEFAULT false;
