-- What is looked up by the loop that compares limits and settles, in the order in which it is read.

-- Of those that are there: the others cannot cost more.
DROP INDEX replica_limit;
CREATE INDEX replica_limit ON replica (workload)
 WHERE limit_nanos IS NOT NULL AND released_position IS NULL;

DROP INDEX finished_cluster;
CREATE INDEX finished_cluster ON finished (cluster, position);
