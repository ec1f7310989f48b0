-- open_head: Make the journal's head where there is none; the first epoch is 1.
INSERT INTO head (log, epoch, position)
VALUES ($1, 1, 0)
    ON CONFLICT (log) DO NOTHING;

-- open_epoch: Remember the lineage's first row.
INSERT INTO epoch (log, epoch, first_position)
VALUES ($1, 1, 1)
    ON CONFLICT (log, epoch) DO NOTHING;

-- read_head: Lineage and last position.
SELECT epoch, position
  FROM head
 WHERE log = $1;

-- lock_head: Lineage and last position, once every older transaction on them has ended.
SELECT epoch, position
  FROM head
 WHERE log = $1
   FOR UPDATE;

-- append: Commit a numbered batch, or tell why it may not.
SELECT command, kind, detail, number, blob, moment
  FROM append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38, $39, $40, $41, $42, $43, $44, $45, $46, $47, $48, $49, $50, $51, $52);

-- project_heads: Last project position of each of these projects.
SELECT asked.project,
       (SELECT h.position FROM project_head AS h WHERE h.log = $1 AND h.project = asked.project) AS position
  FROM unnest($2::text[]) AS asked (project);

-- stream_heads: Version of each of these streams.
SELECT asked.stream,
       (SELECT h.version FROM stream_head AS h WHERE h.log = $1 AND h.stream = asked.stream) AS version
  FROM unnest($2::text[]) AS asked (stream);

-- batch_at: The batch whose fact stands at a position.
SELECT batch, at
  FROM event
 WHERE log = $1
   AND position = $2;

-- load_streams: Whole streams, oldest fact first.
SELECT e.position, e.project, e.project_position, e.stream, e.version, e.type, e.statement, e.data, e.meta, e.at
  FROM unnest($2::text[]) AS asked (stream)
 CROSS JOIN LATERAL (
       SELECT *
         FROM event
        WHERE event.log = $1
          AND event.stream = asked.stream
        ORDER BY event.version
       ) AS e;

-- read_stream: Part of one stream, oldest first, and nothing recorded after a time.
SELECT position, project, project_position, stream, version, type, statement, data, meta, at
  FROM event
 WHERE log = $1
   AND stream = $2
   AND version > $3
   AND ($4::timestamptz IS NULL OR at <= $4)
 ORDER BY version
 LIMIT $5;

-- read_log: Facts after a position, in order.
SELECT position, project, project_position, stream, version, type, statement, data, meta, at
  FROM event
 WHERE log = $1
   AND position > $2
 ORDER BY position
 LIMIT $3;

-- read_project: Facts of one project after a project position, in order.
SELECT position, project, project_position, stream, version, type, statement, data, meta, at
  FROM event
 WHERE log = $1
   AND project = $2
   AND project_position > $3
 ORDER BY project_position
 LIMIT $4;

-- project_head: Last project position of one project.
SELECT position
  FROM project_head
 WHERE log = $1
   AND project = $2;

-- remembered: What a request led to.
SELECT stream, version, digest
  FROM command
 WHERE log = $1
   AND scope = $2
   AND method = $3
   AND request_id = $4;

-- forget_requests: Let go of requests that nobody will retry any more, some at a time.
DELETE FROM command
 WHERE ctid = ANY (ARRAY(SELECT c.ctid FROM command AS c WHERE c.at < now() - interval '30 days' LIMIT 1000));

-- holder: The uid that holds a name.
SELECT uid
  FROM claim
 WHERE scope = $1
   AND name = $2;

-- take_lease: Take a lease that nobody holds, or renew one's own; a new holder gets a new writer epoch.
INSERT INTO lease AS held (name, holder, writer_epoch, expires_at)
VALUES ($1, $2, 1, clock_timestamp() + $3::interval)
    ON CONFLICT (name) DO UPDATE
   SET holder = excluded.holder,
       writer_epoch = CASE WHEN held.holder = excluded.holder THEN held.writer_epoch ELSE held.writer_epoch + 1 END,
       expires_at = excluded.expires_at
 WHERE held.holder = excluded.holder
    OR held.expires_at < clock_timestamp()
RETURNING writer_epoch;

-- leave_lease: Let go of a lease, so that the next one need not wait.
UPDATE lease
   SET expires_at = '-infinity'
 WHERE name = $1
   AND holder = $2;
