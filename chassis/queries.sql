-- open_head: Make the journal's head where there is none; the first epoch is 1.
INSERT INTO head (log, epoch, position)
VALUES ($1, 1, 0)
    ON CONFLICT (log) DO NOTHING;

-- open_epoch: Remember the lineage's first row.
INSERT INTO epoch (log, epoch, first_position)
VALUES ($1, 1, 1)
    ON CONFLICT (log, epoch) DO NOTHING;

-- read_head: Lineage, its first position, and last position.
SELECT h.epoch, h.position,
       (SELECT e.first_position FROM epoch AS e WHERE e.log = h.log AND e.epoch = h.epoch) AS epoch_first
  FROM head AS h
 WHERE h.log = $1;

-- lock_head: Lineage and last position, once every older transaction on them has ended.
SELECT epoch, position
  FROM head
 WHERE log = $1
   FOR UPDATE;

-- begin_epoch: Begin the next lineage of a journal whose head is locked.
INSERT INTO epoch (log, epoch, first_position, lost_through)
VALUES ($1, $2, $3, $4);

-- enter_epoch: Let the head be of a lineage.
UPDATE head
   SET epoch = $2
 WHERE log = $1;

-- enter_schema: Find tables in one schema, until the transaction ends.
SELECT set_config('search_path', quote_ident($1), true);

-- export_snapshot: Let another connection see what this one sees.
SELECT pg_export_snapshot();

-- kept_tables: Where heads of journals and applied migrations stand, but in a read model that is being built.
SELECT schemaname, tablename
  FROM pg_tables
 WHERE tablename IN ('head', 'schema_migrations')
   AND schemaname !~ '_(new|old)$'
 ORDER BY schemaname, tablename;

-- heads: Lineage and last position of every journal of a schema.
SELECT log, epoch, position
  FROM head
 ORDER BY log;

-- migrations: What was applied to a schema.
SELECT version
  FROM schema_migrations
 ORDER BY version;

-- begin_restored: Begin a lineage of every journal behind its head, as restored from a backup.
INSERT INTO epoch (log, epoch, first_position, backup)
SELECT log, greatest(epoch + 1, $1), position + 1, $2
  FROM head;

-- enter_restored: Let every head be of the lineage that was begun.
UPDATE head
   SET epoch = greatest(epoch + 1, $1);

-- end_leases: Let nobody hold a lease any more.
UPDATE lease
   SET expires_at = '-infinity';

-- forget_relays: Know of no relay that stands still.
DELETE FROM relay;

-- read_epoch: Where a lineage begins, and what it came from.
SELECT first_position, backup, lost_through
  FROM epoch
 WHERE log = $1
   AND epoch = $2;

-- append: Commit a numbered batch, or tell why it may not.
SELECT command, kind, detail, number, blob, moment
  FROM append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38, $39, $40, $41, $42, $43, $44, $45, $46, $47, $48, $49, $50, $51, $52, $53);

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
SELECT e.position, e.project, e.project_position, e.stream, e.version, e.type,
       coalesce(e.statement::text, '') AS statement, e.data, e.meta, e.at
  FROM unnest($2::text[]) AS asked (stream)
 CROSS JOIN LATERAL (
       SELECT *
         FROM event
        WHERE event.log = $1
          AND event.stream = asked.stream
        ORDER BY event.version
       ) AS e;

-- read_stream: Part of one stream, oldest first, nothing recorded after a time; of large facts fewer, and one at least.
SELECT position, project, project_position, stream, version, type,
       coalesce(statement::text, '') AS statement, data, meta, at
  FROM (
       SELECT *, sum(octet_length(data)) OVER (ORDER BY version ROWS UNBOUNDED PRECEDING) AS bytes
         FROM event
        WHERE log = $1
          AND stream = $2
          AND version > $3
          AND ($4::timestamptz IS NULL OR at <= $4)
        ORDER BY version
        LIMIT $5
       ) AS page
 WHERE bytes - octet_length(data) < $6
 ORDER BY version;

-- read_log: Facts after a position, in order; of large ones fewer, and one at least.
SELECT position, project, project_position, stream, version, type,
       coalesce(statement::text, '') AS statement, data, meta, at
  FROM (
       SELECT *, sum(octet_length(data)) OVER (ORDER BY position ROWS UNBOUNDED PRECEDING) AS bytes
         FROM event
        WHERE log = $1
          AND position > $2
        ORDER BY position
        LIMIT $3
       ) AS page
 WHERE bytes - octet_length(data) < $4
 ORDER BY position;

-- read_project: Facts of one project after a project position, in order; of large ones fewer, and one at least.
SELECT position, project, project_position, stream, version, type,
       coalesce(statement::text, '') AS statement, data, meta, at
  FROM (
       SELECT *, sum(octet_length(data)) OVER (ORDER BY project_position ROWS UNBOUNDED PRECEDING) AS bytes
         FROM event
        WHERE log = $1
          AND project = $2
          AND project_position > $3
        ORDER BY project_position
        LIMIT $4
       ) AS page
 WHERE bytes - octet_length(data) < $5
 ORDER BY project_position;

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

-- take_lease: Take a lease that nobody holds, or renew one's own; taking it gives a new writer epoch.
INSERT INTO lease AS held (name, holder, writer_epoch, expires_at)
VALUES ($1, $2, 1, clock_timestamp() + $3::interval)
    ON CONFLICT (name) DO UPDATE
   SET holder = excluded.holder,
       writer_epoch = held.writer_epoch + CASE WHEN held.holder = excluded.holder AND held.expires_at >= clock_timestamp() THEN 0 ELSE 1 END,
       expires_at = excluded.expires_at
 WHERE held.holder = excluded.holder
    OR held.expires_at < clock_timestamp()
RETURNING writer_epoch;

-- leave_lease: Let go of a lease, so that the next one need not wait.
UPDATE lease
   SET expires_at = '-infinity'
 WHERE name = $1
   AND holder = $2;

-- open_checkpoint: Make a reader's checkpoint where there is none.
INSERT INTO checkpoint (reader, journal, epoch, position, folded, passed_over, decides)
VALUES ($1, $2, 1, 0, 0, 0, $3)
    ON CONFLICT (reader, journal) DO NOTHING;

-- read_checkpoint: How far a reader got.
SELECT epoch, position, folded, passed_over, skipped, halted, lost_through
  FROM checkpoint
 WHERE reader = $1
   AND journal = $2;

-- lock_checkpoint: How far a reader got, and nobody else moves it until the transaction ends.
SELECT epoch, position, halted, lost_through
  FROM checkpoint
 WHERE reader = $1
   AND journal = $2
   FOR UPDATE;

-- move_checkpoint: Account for facts that were folded or passed over.
UPDATE checkpoint
   SET epoch = $3, position = $4, folded = folded + $5, passed_over = passed_over + $6
 WHERE reader = $1
   AND journal = $2;

-- advance_checkpoint: The same from where it is expected to be; no row where it is elsewhere, or stands still.
UPDATE checkpoint
   SET epoch = $4, position = $5, folded = folded + $6, passed_over = passed_over + $7
 WHERE reader = $1
   AND journal = $2
   AND position = $3
   AND halted IS NULL
RETURNING position;

-- adopt_epoch: Go on in a new lineage, what was read being true in it, too.
UPDATE checkpoint
   SET epoch = $3
 WHERE reader = $1
   AND journal = $2;

-- halt_reader: Let a reader stand still until an operator resumes it, or, where it has used what is lost, accepts that.
UPDATE checkpoint
   SET halted = $3, lost_through = $4
 WHERE reader = $1
   AND journal = $2
   AND halted IS NULL;

-- rewind_checkpoint: Take a reader back to where a new lineage begins; all that it still stands by counts as folded.
UPDATE checkpoint AS c
   SET epoch = $3, position = $4, halted = $5, lost_through = $6, passed_over = 0, skipped = 0,
       folded = $4 - (SELECT count(*) FROM parked AS p WHERE p.reader = c.reader AND p.journal = c.journal)
 WHERE c.reader = $1
   AND c.journal = $2;

-- unpark_past: Forget what was parked of a lineage that is no more.
DELETE FROM parked
 WHERE reader = $1
   AND journal = $2
   AND position > $3;

-- is_parked: Whether anything of a stream waits in a reader's parking.
SELECT EXISTS (SELECT 1 FROM parked WHERE reader = $1 AND journal = $2 AND stream = $3);

-- park: Keep a fact that could not be used.
INSERT INTO parked (reader, journal, position, stream, project, type, reason, record)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8);

-- parked_streams: Streams that wait in a reader's parking.
SELECT DISTINCT stream
  FROM parked
 WHERE reader = $1
   AND journal = $2;

-- parked_of_stream: What waits of one stream, in order.
SELECT position, type, reason, record
  FROM parked
 WHERE reader = $1
   AND journal = $2
   AND stream = $3
 ORDER BY position;

-- parked_fact: One fact that waits.
SELECT journal, position, stream, project, type, reason, record, at
  FROM parked
 WHERE reader = $1
   AND journal = $2
   AND position = $3;

-- list_parked: Everything that waits in this service's parking.
SELECT reader, journal, position, stream, project, type, reason, at
  FROM parked
 ORDER BY reader, journal, position;

-- list_checkpoints: This service's readers, with what waits in their parking.
SELECT c.reader, c.journal, c.epoch, c.position, c.folded, c.passed_over, c.skipped, c.halted, c.lost_through,
       p.facts AS parked, p.streams AS parked_streams, p.since AS parked_since
  FROM checkpoint AS c
 CROSS JOIN LATERAL (
       SELECT count(*) AS facts, count(DISTINCT k.stream) AS streams, min(k.at) AS since
         FROM parked AS k
        WHERE k.reader = c.reader
          AND k.journal = c.journal
       ) AS p
 ORDER BY c.reader, c.journal;

-- halt_relay: Tell every process why the relay stands still, since the first time that it said so. Not where journal and stream are said to have parted in an epoch that has ended meanwhile.
INSERT INTO relay AS r (log, halted, parted)
SELECT h.log, $2, $3
  FROM head AS h
 WHERE h.log = $1
   AND (h.epoch = $4 OR NOT $3)
   FOR SHARE
    ON CONFLICT (log) DO UPDATE SET halted = excluded.halted, parted = excluded.parted, at = now()
 WHERE r.halted <> excluded.halted;

-- resume_relay: Tell every process that the relay goes on.
DELETE FROM relay
 WHERE log = $1;

-- read_relay: Why the relay stands still; no row where it does not.
SELECT halted, parted
  FROM relay
 WHERE log = $1;

-- audit_events: What the event table holds in all.
SELECT count(*) AS events, coalesce(min(position), 0) AS first, coalesce(max(position), 0) AS last,
       count(statement) AS statements
  FROM event
 WHERE log = $1;

-- audit_streams: Streams whose versions are not 1..N, or whose head says otherwise.
SELECT coalesce(sum(CASE WHEN e.facts = e.last AND e.events = e.last AND e.first = 1 AND h.version = e.last THEN 0 ELSE 1 END), 0) AS wrong,
       count(*) AS streams
  FROM (SELECT stream, count(*) AS facts, count(DISTINCT version) AS events, min(version) AS first, max(version) AS last
          FROM event
         WHERE log = $1
         GROUP BY stream) AS e
  FULL JOIN (SELECT stream, version FROM stream_head WHERE log = $1 AND version > 0) AS h USING (stream);

-- audit_projects: Projects whose positions are not 1..N, or whose head says otherwise.
SELECT coalesce(sum(CASE WHEN e.facts = e.last AND e.events = e.last AND e.first = 1 AND h.position = e.last THEN 0 ELSE 1 END), 0) AS wrong,
       count(*) AS projects
  FROM (SELECT project, count(*) AS facts, count(DISTINCT project_position) AS events, min(project_position) AS first, max(project_position) AS last
          FROM event
         WHERE log = $1
         GROUP BY project) AS e
  FULL JOIN (SELECT project, position FROM project_head WHERE log = $1) AS h USING (project);

-- audit_requests: Remembered requests that point past the log, or to a stream that has not got so far.
SELECT count(*)
  FROM command AS c
 WHERE c.log = $1
   AND (c.position > $2
        OR c.version > coalesce((SELECT h.version FROM stream_head AS h WHERE h.log = c.log AND h.stream = c.stream), 0));

-- audit_statements: How many statement ids are kept.
SELECT count(*)
  FROM statement
 WHERE log = $1;

-- unpark: Take one fact out of the parking.
DELETE FROM parked
 WHERE reader = $1
   AND journal = $2
   AND position = $3
RETURNING position;

-- count_unparked: Count one parked fact as folded.
UPDATE checkpoint
   SET folded = folded + 1
 WHERE reader = $1
   AND journal = $2;

-- tables_of: The tables of a schema, the migrations' own apart.
SELECT tablename AS name
  FROM pg_tables
 WHERE schemaname = $1
   AND tablename <> 'schema_migrations'
 ORDER BY tablename;
