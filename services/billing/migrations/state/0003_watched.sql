-- What is open, and what ended lately, without a look at all that ever was: operators watch it all the time.

-- The new one begins with what this one had.
DROP INDEX replica_cluster;
CREATE INDEX replica_recent ON replica (cluster, coalesce(released_ms, 9223372036854775807));
CREATE INDEX volume_open ON volume (cluster) WHERE deleted_position IS NULL;
