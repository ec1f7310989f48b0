-- enter: Have a workload that waits; said again it gets new labels and numbers, and keeps its age.
INSERT INTO entry (uid, project, owner, workload, version, waits, reason, said_time, queue_time, arrive_time, cluster, replicas, nodes, gpu_type, admit_time, revoked)
VALUES ($1, $2, $3, $4, $5, true, $6, $7, $8, $7, '', '{}'::jsonb, '{}'::text[], '', NULL, false)
    ON CONFLICT (uid) DO UPDATE
   SET workload = excluded.workload, version = excluded.version, waits = true, reason = excluded.reason, said_time = excluded.said_time;

-- explain: Show another reason why it waits.
UPDATE entry
   SET version = $2, waits = true, reason = $3, said_time = $4
 WHERE uid = $1;

-- hold: Show where a workload was admitted, or with how many replicas from now on.
UPDATE entry
   SET workload = $2, version = $3, waits = $4, reason = NULL, cluster = $5, replicas = $6::text::jsonb, nodes = $7::text[],
       gpu_type = $8, admit_time = coalesce(admit_time, $9)
 WHERE uid = $1;

-- let_go: Show that a workload was told to end.
UPDATE entry
   SET version = $2, waits = false, revoked = true
 WHERE uid = $1;

-- leave: Have a workload no more.
DELETE FROM entry
 WHERE uid = $1;

-- declare_volume: Have a volume, without a cluster until the first workload that mounts it is admitted.
INSERT INTO volume (uid, volume, version, cluster, withdrawn)
VALUES ($1, $2, $3, $4, false)
    ON CONFLICT (uid) DO UPDATE SET volume = excluded.volume, version = excluded.version, cluster = excluded.cluster;

-- withdraw_volume: Show that a volume was told to go.
UPDATE volume
   SET version = $2, withdrawn = true
 WHERE uid = $1;

-- drop_volume: Have a volume no more.
DELETE FROM volume
 WHERE uid = $1;

-- know_project: Know a project, and so that its quota has been read.
INSERT INTO project (name, uid)
VALUES ($1, $2)
    ON CONFLICT (name) DO UPDATE SET uid = excluded.uid;

-- set_quota: Have these limits for a scope.
INSERT INTO quota (scope, limits)
VALUES ($1, $2)
    ON CONFLICT (scope) DO UPDATE SET limits = excluded.limits;

-- clear_quota: Have no limits of its own for a scope.
DELETE FROM quota
 WHERE scope = $1;

-- enrol: Let work go to a cluster, or no more.
INSERT INTO enrolled (cluster, retired)
VALUES ($1, $2)
    ON CONFLICT (cluster) DO UPDATE SET retired = excluded.retired;

-- register: Know what a cluster honours.
INSERT INTO cluster (uid, capabilities)
VALUES ($1, $2)
    ON CONFLICT (uid) DO UPDATE SET capabilities = excluded.capabilities;

-- report_node: Know what a node has; nothing: that it is not there any more.
INSERT INTO node (cluster, node, body, position)
VALUES ($1, $2, $3, $4)
    ON CONFLICT (cluster, node) DO UPDATE SET body = excluded.body, position = excluded.position;

-- prove: A node is gone, or was heard again: what was given up with it is gone, and that happened to its workloads.
WITH gone AS (
    DELETE FROM replica
     WHERE cluster = $1
       AND node = $2
       AND unproven
    RETURNING workload
)
UPDATE progress
   SET position = greatest(position, $3)
 WHERE workload IN (SELECT workload FROM gone);

-- bind_replica: Know a replica that its cluster has bound.
INSERT INTO replica (uid, workload, role, cluster, node, released, unproven)
VALUES ($1, $2, $3, $4, $5, false, false)
    ON CONFLICT (uid) DO NOTHING;

-- release_replica: Know that a replica is gone, or that it was given up with its node.
UPDATE replica
   SET released = true, unproven = $2
 WHERE uid = $1;

-- forget_replicas: What is gone of a workload that has ended.
DELETE FROM replica
 WHERE workload = $1
   AND released
   AND NOT unproven;

-- note_progress: Know that something happened to a workload.
INSERT INTO progress AS p (workload, cluster, began, ended, position)
VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (workload) DO UPDATE
   SET began = least(p.began, excluded.began), ended = p.ended OR excluded.ended, position = greatest(p.position, excluded.position);

-- store: Know what became of a volume.
INSERT INTO stored AS s (volume, cluster, node, bound, gone, position)
VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT (volume) DO UPDATE
   SET node = CASE WHEN excluded.bound THEN excluded.node ELSE s.node END, bound = s.bound OR excluded.bound,
       gone = s.gone OR excluded.gone, position = excluded.position;

-- forget_projects: Before all is folded anew.
DELETE FROM project;

-- forget_quotas: Before all is folded anew.
DELETE FROM quota;

-- forget_enrolled: Before all is folded anew.
DELETE FROM enrolled;

-- forget_cluster: Before what it said is folded anew.
DELETE FROM cluster
 WHERE uid = $1;

-- forget_nodes: Before what a cluster said is folded anew.
DELETE FROM node
 WHERE cluster = $1;

-- forget_bound: Before what a cluster said is folded anew.
DELETE FROM replica
 WHERE cluster = $1;

-- forget_progress: Before what a cluster said is folded anew.
DELETE FROM progress
 WHERE cluster = $1;

-- forget_stored: Before what a cluster said is folded anew.
DELETE FROM stored
 WHERE cluster = $1;

-- list_queue: Read a page of a project's queue, longest waiting first.
SELECT *
  FROM entry
 WHERE project = $1
   AND waits
   AND ($2::timestamptz IS NULL OR (queue_time, uid) > ($2, $3::text))
 ORDER BY queue_time, uid
 LIMIT $4;

-- queue_by_reason: How many wait for the same, and since when the first; who has some, since he wanted more.
SELECT reason, count(*) AS waiting, min(CASE WHEN admit_time IS NULL THEN arrive_time ELSE said_time END) AS since
  FROM entry
 WHERE waits
 GROUP BY reason;

-- find_queued: Some of those that wait, by their uids.
SELECT *
  FROM entry
 WHERE uid = ANY ($1::text[])
   AND waits;

-- entries_of: What an owner has that waits or is held, the newest first.
SELECT *
  FROM entry
 WHERE owner = $1
 ORDER BY arrive_time DESC, uid;

-- entries: Some of what waits or is held, by their uids.
SELECT *
  FROM entry
 WHERE uid = ANY ($1::text[]);

-- all_entries: Everything that waits or is held.
SELECT *
  FROM entry;

-- volumes: Some volumes, by their uids.
SELECT *
  FROM volume
 WHERE uid = ANY ($1::text[]);

-- all_volumes: Every volume.
SELECT *
  FROM volume;

-- replicas: Replicas of some workloads that are not known to be gone.
SELECT uid, workload, role, node, unproven
  FROM replica
 WHERE workload = ANY ($1::text[])
   AND (unproven OR NOT released);

-- all_replicas: All replicas that are not known to be gone.
SELECT uid, workload, role, node, unproven
  FROM replica
 WHERE unproven OR NOT released;

-- progress: What happened to some workloads.
SELECT workload, began, ended
  FROM progress
 WHERE workload = ANY ($1::text[]);

-- all_progress: What happened to all workloads that are in the books.
SELECT p.workload, p.began, p.ended
  FROM progress AS p
  JOIN entry AS e ON e.uid = p.workload;

-- stored: What became of some volumes.
SELECT volume, node, bound, gone
  FROM stored
 WHERE volume = ANY ($1::text[]);

-- all_stored: What became of all volumes that are in the books.
SELECT s.volume, s.node, s.bound, s.gone
  FROM stored AS s
  JOIN volume AS v ON v.uid = s.volume;

-- progressed: Workloads and volumes to which something happened in a cluster behind a position.
SELECT workload AS uid
  FROM progress
 WHERE cluster = $1
   AND position > $2
 UNION ALL
SELECT volume
  FROM stored
 WHERE cluster = $1
   AND position > $2;

-- nodes: Nodes of a cluster of which something was said behind a position.
SELECT node, body
  FROM node
 WHERE cluster = $1
   AND position > $2;

-- projects: Names and uids of all projects.
SELECT name, uid
  FROM project;

-- quotas: Limits of all scopes that have any.
SELECT scope, limits
  FROM quota;

-- clusters: Clusters that work may go to, and what they honour.
SELECT c.uid, c.capabilities
  FROM cluster AS c
  JOIN enrolled AS e ON e.cluster = c.uid AND NOT e.retired;

-- read_so_far: How far others' journals were folded.
SELECT reader, journal, epoch, position
  FROM checkpoint
 WHERE reader = ANY ($1::text[]);

-- settle_head: Wait until every append that was under way has ended.
SELECT position
  FROM head
 WHERE log = $1
   FOR UPDATE;

-- waited_before: What waited before there were books.
SELECT workload_uid
  FROM queue_before;

-- forget_before: All of that is in the books by now.
DELETE FROM queue_before;
