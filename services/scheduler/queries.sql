-- enqueue: Show a workload that waits; said again it gets a new reason and labels, and keeps its place.
INSERT INTO queue (workload_uid, project, owner, kind, attempt, user_uid, reason, labels, queue_time)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8::text::jsonb, $9)
    ON CONFLICT (workload_uid) DO UPDATE SET reason = excluded.reason, labels = excluded.labels;

-- explain: Show another reason why it waits.
UPDATE queue
   SET reason = $2
 WHERE workload_uid = $1;

-- dequeue: Take a workload out that does not wait any more.
DELETE FROM queue
 WHERE workload_uid = $1;

-- list_queue: Read a page of a project's queue, longest waiting first.
SELECT *
  FROM queue
 WHERE project = $1
   AND ($2::timestamptz IS NULL OR (queue_time, workload_uid) > ($2, $3::text))
 ORDER BY queue_time, workload_uid
 LIMIT $4;

-- enter: Have a workload that waits; said again it gets new labels.
INSERT INTO entry AS e (uid, project, owner, workload, queue_time, code, said_time, cluster, replicas, nodes, gpu_type, admit_time, revoked)
VALUES ($1, $2, $3, $4, $5, $6, $7, '', '{}'::jsonb, '{}'::jsonb, '', NULL, false)
    ON CONFLICT (uid) DO UPDATE SET workload = excluded.workload, code = excluded.code, said_time = excluded.said_time;

-- say: Show the kind of reason that was stated last.
UPDATE entry
   SET code = $2, said_time = $3
 WHERE uid = $1;

-- hold: Show where a workload was admitted, or with how many replicas from now on.
UPDATE entry
   SET workload = $2, cluster = $3, replicas = $4::text::jsonb, nodes = $5::text::jsonb,
       gpu_type = $6, admit_time = coalesce(admit_time, $7), code = 'ARRIVED'
 WHERE uid = $1;

-- let_go: Show that a workload was told to end.
UPDATE entry
   SET revoked = true
 WHERE uid = $1;

-- leave: Have a workload no more.
DELETE FROM entry
 WHERE uid = $1;

-- declare_volume: Have a volume that waits for its first workload.
INSERT INTO volume (uid, volume, cluster, withdrawn)
VALUES ($1, $2, $3, false)
    ON CONFLICT (uid) DO UPDATE SET volume = excluded.volume, cluster = excluded.cluster;

-- withdraw_volume: Show that a volume was told to go.
UPDATE volume
   SET withdrawn = true
 WHERE uid = $1;

-- drop_volume: Have a volume no more.
DELETE FROM volume
 WHERE uid = $1;

-- know_project: Know a project, and so that its quota has been read.
INSERT INTO project (name, uid, position)
VALUES ($1, $2, $3)
    ON CONFLICT (name) DO UPDATE SET uid = excluded.uid, position = excluded.position;

-- set_quota: Have these limits for a scope.
INSERT INTO quota (scope, limits, position)
VALUES ($1, $2, $3)
    ON CONFLICT (scope) DO UPDATE SET limits = excluded.limits, position = excluded.position;

-- enrol: Let work go to a cluster, or no more.
INSERT INTO enrolled (cluster, retired, position)
VALUES ($1, $2, $3)
    ON CONFLICT (cluster) DO UPDATE SET retired = excluded.retired, position = excluded.position;

-- register: Know what a cluster honours.
INSERT INTO cluster (uid, capabilities, position)
VALUES ($1, $2, $3)
    ON CONFLICT (uid) DO UPDATE SET capabilities = excluded.capabilities, position = excluded.position;

-- report: Know what a node has; nothing: that it is not there any more.
INSERT INTO node (cluster, node, body, position)
VALUES ($1, $2, $3, $4)
    ON CONFLICT (cluster, node) DO UPDATE SET body = excluded.body, position = excluded.position;

-- bind_replica: Know a replica that its cluster has bound.
INSERT INTO replica (uid, workload, role, node, released)
VALUES ($1, $2, $3, $4, false)
    ON CONFLICT (uid) DO NOTHING;

-- release_replica: Know that a replica is gone.
UPDATE replica
   SET released = true
 WHERE uid = $1;

-- progress: Know that something happened to a workload.
INSERT INTO progress AS p (workload, began, ended, journal, position)
VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (workload) DO UPDATE
   SET began = coalesce(p.began, excluded.began), ended = p.ended OR excluded.ended, position = excluded.position;

-- store: Know what became of a volume.
INSERT INTO stored AS s (volume, node, bound, gone, journal, position)
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

-- forget_workload: What is known of the replicas of a workload whose hold is free.
DELETE FROM replica
 WHERE workload = $1;

-- forget_progress: What is known of a workload whose hold is free.
DELETE FROM progress
 WHERE workload = $1;

-- entries: Everything that waits or is held; of some, where uids are given.
SELECT *
  FROM entry
 WHERE $1::text[] IS NULL OR uid = ANY ($1)
 ORDER BY uid;

-- owned_entries: What an owner has that waits or is held, newest attempt first.
SELECT *
  FROM entry
 WHERE owner = $1
 ORDER BY queue_time DESC;

-- volumes: Every volume; some, where uids are given.
SELECT *
  FROM volume
 WHERE $1::text[] IS NULL OR uid = ANY ($1)
 ORDER BY uid;

-- bound_replicas: Replicas that are bound and not released; of some workloads, where uids are given.
SELECT uid, workload, role, node
  FROM replica
 WHERE NOT released
   AND ($1::text[] IS NULL OR workload = ANY ($1));

-- progress_of: What happened to workloads; to some, where uids are given.
SELECT workload, began, ended
  FROM progress
 WHERE $1::text[] IS NULL OR workload = ANY ($1);

-- stored_of: What became of volumes; of some, where uids are given.
SELECT volume, node, bound, gone
  FROM stored
 WHERE $1::text[] IS NULL OR volume = ANY ($1);

-- progressed: Workloads to which something happened behind a position of a journal.
SELECT workload, position
  FROM progress
 WHERE journal = $1
   AND position > $2
 ORDER BY position;

-- restored: Volumes to which something happened behind a position of a journal.
SELECT volume, position
  FROM stored
 WHERE journal = $1
   AND position > $2
 ORDER BY position;

-- projects: Names and uids of all projects.
SELECT name, uid
  FROM project;

-- quotas: Limits of all scopes that have any.
SELECT scope, limits
  FROM quota
 WHERE limits IS NOT NULL;

-- clusters: Clusters that work may go to, and what they honour.
SELECT c.uid, c.capabilities
  FROM cluster AS c
  JOIN enrolled AS e ON e.cluster = c.uid AND NOT e.retired
 ORDER BY c.uid;

-- nodes: All nodes.
SELECT cluster, node, body
  FROM node
 ORDER BY cluster, node;

-- foreign: How far the tables of others' facts have come, as they are read anew only then.
SELECT (SELECT coalesce(max(position), 0) FROM project) AS projects, (SELECT coalesce(max(position), 0) FROM quota) AS quotas,
       (SELECT coalesce(max(position), 0) FROM enrolled) AS enrolled, (SELECT coalesce(sum(position), 0) FROM cluster) AS clusters,
       (SELECT coalesce(sum(position), 0) FROM node) AS nodes;

-- journals: Journals of executors that something was read of.
SELECT DISTINCT journal
  FROM (SELECT journal FROM progress UNION ALL SELECT journal FROM stored) AS read;

-- find_queued: Some of those that wait, by their uids.
SELECT *
  FROM queue
 WHERE workload_uid = ANY ($1::text[]);
