-- want: Have a workload as it was admitted last; what shall end stays so.
INSERT INTO wanted_workload AS w (uid, workload, replicas, cause, grace_ms, position)
VALUES ($1, $2, $3::text::jsonb, 0, 0, $4)
    ON CONFLICT (uid) DO UPDATE SET workload = excluded.workload, replicas = excluded.replicas, position = excluded.position;

-- revoke: Let a workload end; the first cause stands.
UPDATE wanted_workload
   SET cause = $2, grace_ms = $3, position = $4
 WHERE uid = $1
   AND cause = 0;

-- unwant: Forget a workload that is finished, its hold being free.
DELETE FROM wanted_workload
 WHERE uid = $1;

-- want_volume: Have a volume.
INSERT INTO wanted_volume (uid, volume, revoked, position)
VALUES ($1, $2, false, $3)
    ON CONFLICT (uid) DO NOTHING;

-- revoke_volume: Have no such volume, and nothing that was on it.
UPDATE wanted_volume
   SET revoked = true, position = $2
 WHERE uid = $1;

-- unwant_workloads: Forget every workload, before all are folded anew.
DELETE FROM wanted_workload;

-- unwant_volumes: Forget every volume, before all are folded anew.
DELETE FROM wanted_volume;

-- wanted_workloads: Everything that this cluster is to run, or to end.
SELECT uid, workload, replicas, cause, grace_ms, position
  FROM wanted_workload
 ORDER BY position;

-- wanted_volumes: Everything that this cluster is to hold, or to delete.
SELECT uid, volume, revoked, position
  FROM wanted_volume
 ORDER BY position;

-- drop_wanted_volume: Forget a volume that was deleted.
DELETE FROM wanted_volume
 WHERE uid = $1
   AND revoked;

-- begin_work: Remember a workload that was accepted or rejected.
INSERT INTO work (uid, finished)
VALUES ($1, false)
    ON CONFLICT (uid) DO NOTHING;

-- finish_work: Remember that a workload is finished.
INSERT INTO work (uid, finished)
VALUES ($1, true)
    ON CONFLICT (uid) DO UPDATE SET finished = true;

-- add_replica: Show a replica that is bound to a node.
INSERT INTO replica (uid, workload_uid, project, owner, owner_uid, attempt, role, rank, node, state, ready, reason, run,
                     exit_code, signal, addresses, sku, schedule_time, start_time, end_time, released, lost)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, false, NULL, -1, NULL, 0, '{}'::jsonb, $11, $12, NULL, NULL, false, false);

-- hold_replica: Show why a replica does not run.
UPDATE replica
   SET state = CASE WHEN state = $4 THEN state ELSE $2 END, reason = $3
 WHERE uid = $1;

-- start_replica: Show that a run began.
UPDATE replica
   SET state = CASE WHEN state = $7 THEN state ELSE $2 END, run = $3, addresses = $4::text::jsonb, sku = $5,
       start_time = $6, end_time = NULL, ready = false, reason = NULL, lost = false
 WHERE uid = $1;

-- ready_replica: Show whether its readiness check passes, and why it does not.
UPDATE replica
   SET ready = $2, reason = $3
 WHERE uid = $1;

-- end_run: Show that a run ended.
UPDATE replica
   SET exit_code = $2, signal = $3, reason = $4, end_time = $5, ready = false, lost = false
 WHERE uid = $1;

-- drain_replica: Show that a replica was told to end.
UPDATE replica
   SET state = $2
 WHERE uid = $1;

-- lose_replica: Show whether somebody knows that a replica lives.
UPDATE replica
   SET lost = $2
 WHERE uid = $1;

-- redate_run: Show that a run ended at another time.
UPDATE replica
   SET end_time = $3
 WHERE uid = $1
   AND run = $2;

-- skip_runs: Show that runs came and went unseen.
UPDATE replica
   SET run = $2
 WHERE uid = $1
   AND run < $2;

-- resize_replica: Show what is allocated from now on.
UPDATE replica
   SET sku = $2
 WHERE uid = $1;

-- release_replica: Show that a replica is gone for good.
UPDATE replica
   SET state = $2, released = true, reason = coalesce($3, reason), lost = false
 WHERE uid = $1;

-- register_cluster: Remember what the cluster can honour.
INSERT INTO cluster AS c (uid, capabilities, through)
VALUES ($1, $2, NULL)
    ON CONFLICT (uid) DO UPDATE SET capabilities = excluded.capabilities;

-- advance_cluster: Remember up to when everything has been stated.
INSERT INTO cluster AS c (uid, capabilities, through)
VALUES ($1, NULL, $2)
    ON CONFLICT (uid) DO UPDATE SET through = excluded.through;

-- set_node: Remember what a node has.
INSERT INTO node (cluster, node, body)
VALUES ($1, $2, $3)
    ON CONFLICT (cluster, node) DO UPDATE SET body = excluded.body;

-- remove_node: Forget a node.
DELETE FROM node
 WHERE cluster = $1
   AND node = $2;

-- known_cluster: What was stated of the cluster.
SELECT capabilities, through
  FROM cluster
 WHERE uid = $1;

-- known_nodes: What was stated of its nodes.
SELECT node, body
  FROM node
 WHERE cluster = $1
 ORDER BY node;

-- live_replicas: How many replicas are there, by state.
SELECT CASE WHEN lost THEN $1 ELSE state END AS state, count(*) AS replicas
  FROM replica
 WHERE NOT released
 GROUP BY 1;

-- last_usage: When use was measured last, or since when it could have been; nothing where none runs.
SELECT greatest((SELECT max(at) FROM usage), min(start_time)) AS since
  FROM replica
 WHERE state = $1
   AND NOT released
   AND NOT lost
HAVING count(*) > 0;

-- replicas_of_workloads: Uids of all replicas of these workloads.
SELECT uid
  FROM replica
 WHERE workload_uid = ANY ($1::text[]);

-- newest_owner: Who bore this name last, of those that ever ran, and its newest attempt.
SELECT owner_uid, attempt
  FROM replica
 WHERE owner = $1
 ORDER BY schedule_time DESC, attempt DESC
 LIMIT 1;

-- list_replicas: Replicas of an owner, newest attempt first; of one attempt where one is given.
SELECT *
  FROM replica
 WHERE owner = $1
   AND owner_uid = $2
   AND ($3::integer = 0 OR attempt = $3)
 ORDER BY attempt DESC, role, rank, schedule_time;

-- find_replicas: Some replicas by their uids.
SELECT *
  FROM replica
 WHERE uid = ANY ($1::text[]);

-- owned_replicas: Uids of all replicas that ever ran under a name.
SELECT uid
  FROM replica
 WHERE owner = $1;

-- add_usage: Keep a measurement.
INSERT INTO usage (replica, at, cpu_ms, memory_bytes, gpu_milli, gpu_memory_bytes)
VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT (replica, at) DO NOTHING;

-- forget_usage: Let go of old measurements.
DELETE FROM usage
 WHERE at < $1;

-- list_usage: What these replicas used since a moment, oldest first.
SELECT *
  FROM usage
 WHERE replica = ANY ($1::text[])
   AND at >= $2
 ORDER BY replica, at;
