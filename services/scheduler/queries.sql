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
