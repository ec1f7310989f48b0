-- Statements of billing.

-- enrol: Know that a cluster counts from now on, or does not any more.
INSERT INTO cluster AS c (uid, enrolled, retired)
VALUES ($1, NOT $2, $2)
    ON CONFLICT (uid) DO UPDATE
   SET enrolled = true, retired = $2;

-- unenrol: Know nothing of what is enrolled, before it is folded anew.
UPDATE cluster
   SET enrolled = false, retired = false;

-- keep_replicas: Know of replicas whose they are, and since when they are bound, told to end, and gone.
INSERT INTO replica AS r (
    uid, cluster, project, owner, owner_uid, kind, user_uid, workload, attempt, role, rank, purchase,
    labels, gpu_type, gpu_milli, cpu_milli, memory_bytes, limit_nanos, limit_currency, subject_position,
    scheduled_ms, scheduled_position, scheduled_evidence, drain_ms, drain_cause, drain_position,
    drain_evidence, released_ms, released_position, released_evidence
)
SELECT *
  FROM unnest(
       $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::integer[], $7::text[],
       $8::text[], $9::integer[], $10::text[], $11::integer[], $12::integer[], $13::jsonb[],
       $14::text[], $15::bigint[], $16::bigint[], $17::bigint[], $18::bigint[], $19::text[],
       $20::bigint[], $21::bigint[], $22::bigint[], $23::integer[], $24::bigint[], $25::integer[],
       $26::bigint[], $27::integer[], $28::bigint[], $29::bigint[], $30::integer[]
       )
    ON CONFLICT (uid) DO UPDATE
   -- Of two that say whose it is, what was said first.
   SET (owner, owner_uid, kind, user_uid, workload, attempt, role, rank, purchase, labels, gpu_type,
        gpu_milli, cpu_milli, memory_bytes, limit_nanos, limit_currency, subject_position)
       = (SELECT w.*
            FROM (VALUES (r.owner, r.owner_uid, r.kind, r.user_uid, r.workload, r.attempt, r.role,
                          r.rank, r.purchase, r.labels, r.gpu_type, r.gpu_milli, r.cpu_milli,
                          r.memory_bytes, r.limit_nanos, r.limit_currency, r.subject_position),
                         (EXCLUDED.owner, EXCLUDED.owner_uid, EXCLUDED.kind, EXCLUDED.user_uid,
                          EXCLUDED.workload, EXCLUDED.attempt, EXCLUDED.role, EXCLUDED.rank,
                          EXCLUDED.purchase, EXCLUDED.labels, EXCLUDED.gpu_type, EXCLUDED.gpu_milli,
                          EXCLUDED.cpu_milli, EXCLUDED.memory_bytes, EXCLUDED.limit_nanos,
                          EXCLUDED.limit_currency, EXCLUDED.subject_position)
                 ) AS w (owner, owner_uid, kind, user_uid, workload, attempt, role, rank, purchase,
                         labels, gpu_type, gpu_milli, cpu_milli, memory_bytes, limit_nanos,
                         limit_currency, subject_position)
           ORDER BY w.subject_position
           LIMIT 1),
       scheduled_ms = coalesce(r.scheduled_ms, EXCLUDED.scheduled_ms),
       scheduled_position = coalesce(r.scheduled_position, EXCLUDED.scheduled_position),
       scheduled_evidence = coalesce(r.scheduled_evidence, EXCLUDED.scheduled_evidence),
       drain_ms = coalesce(r.drain_ms, EXCLUDED.drain_ms),
       drain_cause = coalesce(r.drain_cause, EXCLUDED.drain_cause),
       drain_position = coalesce(r.drain_position, EXCLUDED.drain_position),
       drain_evidence = coalesce(r.drain_evidence, EXCLUDED.drain_evidence),
       released_ms = coalesce(r.released_ms, EXCLUDED.released_ms),
       released_position = coalesce(r.released_position, EXCLUDED.released_position),
       released_evidence = coalesce(r.released_evidence, EXCLUDED.released_evidence);

-- keep_runs: Know when runs began and ended.
INSERT INTO run AS r (replica, run, start_ms, start_position, start_evidence, end_ms, end_position, end_evidence)
SELECT *
  FROM unnest(
       $1::text[], $2::integer[], $3::bigint[], $4::bigint[], $5::integer[], $6::bigint[], $7::bigint[],
       $8::integer[]
       )
    ON CONFLICT (replica, run) DO UPDATE
   SET start_ms = coalesce(r.start_ms, EXCLUDED.start_ms),
       start_position = coalesce(r.start_position, EXCLUDED.start_position),
       start_evidence = coalesce(r.start_evidence, EXCLUDED.start_evidence),
       end_ms = coalesce(r.end_ms, EXCLUDED.end_ms),
       end_position = coalesce(r.end_position, EXCLUDED.end_position),
       end_evidence = coalesce(r.end_evidence, EXCLUDED.end_evidence);

-- keep_gaps: Know since when nobody knew whether replicas lived, and since when somebody does.
INSERT INTO gap AS r (replica, n, lost_ms, lost_position, lost_evidence, found_ms, found_position, found_evidence)
SELECT *
  FROM unnest(
       $1::text[], $2::integer[], $3::bigint[], $4::bigint[], $5::integer[], $6::bigint[], $7::bigint[],
       $8::integer[]
       )
    ON CONFLICT (replica, n) DO UPDATE
   SET lost_ms = coalesce(r.lost_ms, EXCLUDED.lost_ms),
       lost_position = coalesce(r.lost_position, EXCLUDED.lost_position),
       lost_evidence = coalesce(r.lost_evidence, EXCLUDED.lost_evidence),
       found_ms = coalesce(r.found_ms, EXCLUDED.found_ms),
       found_position = coalesce(r.found_position, EXCLUDED.found_position),
       found_evidence = coalesce(r.found_evidence, EXCLUDED.found_evidence);

-- keep_volumes: Know of volumes whose they are, since when they are there, and since when gone.
INSERT INTO volume AS r (
    uid, cluster, project, owner, owner_uid, kind, user_uid, purchase, labels, storage_bytes, bound_ms,
    bound_position, bound_evidence, deleted_ms, deleted_position, deleted_evidence
)
SELECT *
  FROM unnest(
       $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::integer[], $7::text[],
       $8::integer[], $9::jsonb[], $10::bigint[], $11::bigint[], $12::bigint[], $13::integer[],
       $14::bigint[], $15::bigint[], $16::integer[]
       )
    ON CONFLICT (uid) DO UPDATE
   SET owner = coalesce(r.owner, EXCLUDED.owner),
       owner_uid = coalesce(r.owner_uid, EXCLUDED.owner_uid),
       kind = coalesce(r.kind, EXCLUDED.kind),
       user_uid = coalesce(r.user_uid, EXCLUDED.user_uid),
       purchase = coalesce(r.purchase, EXCLUDED.purchase),
       labels = coalesce(r.labels, EXCLUDED.labels),
       storage_bytes = coalesce(r.storage_bytes, EXCLUDED.storage_bytes),
       bound_ms = coalesce(r.bound_ms, EXCLUDED.bound_ms),
       bound_position = coalesce(r.bound_position, EXCLUDED.bound_position),
       bound_evidence = coalesce(r.bound_evidence, EXCLUDED.bound_evidence),
       deleted_ms = coalesce(r.deleted_ms, EXCLUDED.deleted_ms),
       deleted_position = coalesce(r.deleted_position, EXCLUDED.deleted_position),
       deleted_evidence = coalesce(r.deleted_evidence, EXCLUDED.deleted_evidence);

-- keep_changes: Know other labels or resources of replicas, from a moment on.
INSERT INTO change (replica, resized, n, at_ms, position, evidence, labels, gpu_type, gpu_milli, cpu_milli, memory_bytes)
SELECT *
  FROM unnest(
       $1::text[], $2::boolean[], $3::integer[], $4::bigint[], $5::bigint[], $6::integer[], $7::jsonb[],
       $8::text[], $9::bigint[], $10::bigint[], $11::bigint[]
       )
    ON CONFLICT (replica, resized, n) DO NOTHING;

-- keep_corrections: Know that what was said of runs was wrong.
INSERT INTO correction (replica, n, run, start_ms, end_ms, at_ms, position, evidence)
SELECT *
  FROM unnest(
       $1::text[], $2::integer[], $3::integer[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[],
       $8::integer[]
       )
    ON CONFLICT (replica, n) DO NOTHING;

-- keep_missed: Know that runs were missed; they cost nothing.
INSERT INTO missed (replica, from_run, to_run, from_ms, to_ms, position, evidence)
SELECT *
  FROM unnest(
       $1::text[], $2::integer[], $3::integer[], $4::bigint[], $5::bigint[], $6::bigint[], $7::integer[]
       )
    ON CONFLICT (replica, from_run) DO NOTHING;

-- keep_finished: Know that nothing of some workloads will run any more.
INSERT INTO finished (workload, cluster, project, at_ms, position)
SELECT *
  FROM unnest(
       $1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[]
       )
    ON CONFLICT (workload) DO NOTHING;

-- prove: Know that every open run of a cluster was alive then, but those named.
WITH before AS (
    SELECT uid, proved_ms
      FROM cluster
     WHERE uid = $1
), still AS (
    DELETE FROM unproven
     WHERE cluster = $1
       AND NOT replica = ANY ($4::text[])
), unseen AS (
    INSERT INTO unproven (cluster, replica, proved_ms)
    SELECT $1, name, (SELECT proved_ms FROM before)
      FROM unnest($4::text[]) AS name
        ON CONFLICT (cluster, replica) DO NOTHING
)
INSERT INTO cluster AS c (uid, proved_ms, proved_position)
VALUES ($1, $2, $3)
    ON CONFLICT (uid) DO UPDATE
   SET proved_ms = $2, proved_position = $3
 WHERE c.proved_position < $3;

-- pass: Know that everything in a cluster up to then has been said.
INSERT INTO cluster AS c (uid, through_ms)
VALUES ($1, $2)
    ON CONFLICT (uid) DO UPDATE
   SET through_ms = greatest(c.through_ms, $2);

-- forget_runs: Forget a cluster's runs, before its journal is folded anew.
DELETE FROM run
 USING replica
 WHERE run.replica = replica.uid
   AND replica.cluster = $1;

-- forget_gaps: Forget a cluster's losses, before its journal is folded anew.
DELETE FROM gap
 USING replica
 WHERE gap.replica = replica.uid
   AND replica.cluster = $1;

-- forget_changes: Forget a cluster's changes, before its journal is folded anew.
DELETE FROM change
 USING replica
 WHERE change.replica = replica.uid
   AND replica.cluster = $1;

-- forget_corrections: Forget a cluster's corrections, before its journal is folded anew.
DELETE FROM correction
 USING replica
 WHERE correction.replica = replica.uid
   AND replica.cluster = $1;

-- forget_missed: Forget a cluster's missed runs, before its journal is folded anew.
DELETE FROM missed
 USING replica
 WHERE missed.replica = replica.uid
   AND replica.cluster = $1;

-- forget_replicas: Forget a cluster's replicas, before its journal is folded anew.
DELETE FROM replica
 WHERE cluster = $1;

-- forget_volumes: Forget a cluster's volumes, before its journal is folded anew.
DELETE FROM volume
 WHERE cluster = $1;

-- forget_finished: Forget what was finished in a cluster, before its journal is folded anew.
DELETE FROM finished
 WHERE cluster = $1;

-- forget_unproven: Forget what was not proved in a cluster, before its journal is folded anew.
DELETE FROM unproven
 WHERE cluster = $1;

-- forget_proof: Forget how far a cluster has said everything, before its journal is folded anew.
UPDATE cluster
   SET through_ms = NULL, proved_ms = NULL, proved_position = 0
 WHERE uid = $1;

-- add_price_book: Know a price book.
INSERT INTO price_book (number, version, effective_ms, body)
VALUES ($1, $2, $3, $4);

-- add_rule: Know what a price book says of a state.
INSERT INTO rule (number, state, billed, free_ms)
VALUES ($1, $2, $3, $4);

-- add_platform_cause: Know that a price book takes a cause for the platform's doing.
INSERT INTO platform_cause (number, cause)
VALUES ($1, $2);

-- limit_workload: Show that a workload has cost what it may.
INSERT INTO charged AS c (workload, project, limited, settled)
VALUES ($1, $2, true, false)
    ON CONFLICT (workload) DO UPDATE
   SET limited = true;

-- settle_workload: Show what a workload has cost in all.
INSERT INTO charged AS c (workload, project, limited, settled, nanos)
VALUES ($1, $2, false, true, $3)
    ON CONFLICT (workload) DO UPDATE
   SET settled = true, nanos = $3;

-- price_books: Price books behind a number and up to another, oldest first.
SELECT number, body
  FROM price_book
 WHERE number > $1
   AND number <= $2
 ORDER BY number;

-- in_force: Number of the price book of a moment.
SELECT number
  FROM price_book
 WHERE effective_ms <= $1
 ORDER BY number DESC
 LIMIT 1;

-- list_price_books: Price books before a number, newest first.
SELECT number, body
  FROM price_book
 WHERE number < $1
 ORDER BY number DESC
 LIMIT $2;

-- clusters: How far each enrolled cluster has said everything, and was read.
SELECT c.uid, c.through_ms, c.proved_ms, c.retired, k.epoch, k.position
  FROM cluster AS c
  LEFT JOIN checkpoint AS k ON k.reader = $1 AND k.journal = 'executor/' || c.uid
 WHERE c.enrolled
 ORDER BY c.uid;

-- disputed: The first fact of each that could not be used, of a project or of all.
SELECT stream, project, min(position) AS position
  FROM parked
 WHERE reader = $1
   AND ($2::text IS NULL OR project = $2)
   AND (stream LIKE 'replica/%' OR stream LIKE 'volume/%')
 GROUP BY stream, project
 ORDER BY stream;

-- usage: Sum what was metered, by the keys asked for.
SELECT ARRAY(
           SELECT CASE by
                  WHEN 0 THEN m.workload
                  WHEN 1 THEN m.project
                  WHEN 2 THEN m.user_uid
                  WHEN 3 THEN m.owner
                  WHEN 4 THEN m.kind::text
                  WHEN 5 THEN coalesce(m.labels ->> $13, '')
                  ELSE (date '1970-01-01' + (m.start_ms / 86400000)::integer)::text END
             FROM unnest($11::integer[]) WITH ORDINALITY AS asked (by, place)
            ORDER BY place
       ) AS keys,
       m.state, m.billed, m.book, m.gpu_type, m.open AND $12 AS open,
       sum(m.end_ms - m.start_ms)::bigint AS ms,
       sum((m.end_ms - m.start_ms)::numeric * m.gpu_milli) AS gpu_milli_ms,
       sum((m.end_ms - m.start_ms)::numeric * m.cpu_milli) AS cpu_milli_ms,
       sum((m.end_ms - m.start_ms)::numeric * m.memory_bytes) AS memory_byte_ms,
       sum((m.end_ms - m.start_ms)::numeric * m.storage_bytes) AS storage_byte_ms,
       sum(m.gpu_milli)::bigint AS gpu_milli,
       sum(m.cpu_milli)::bigint AS cpu_milli,
       sum(m.memory_bytes)::numeric AS memory_bytes,
       sum(m.storage_bytes)::numeric AS storage_bytes
  FROM metered($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) AS m
 GROUP BY 1, 2, 3, 4, 5, 6;

-- lines: Sum what was metered, by what a line is.
SELECT m.project, m.owner, m.owner_uid, m.attempt, m.kind, m.user_uid, m.labels, m.state, m.billed,
       m.book, m.gpu_type,
       sum(m.end_ms - m.start_ms)::bigint AS ms,
       sum((m.end_ms - m.start_ms)::numeric * m.gpu_milli) AS gpu_milli_ms,
       sum((m.end_ms - m.start_ms)::numeric * m.cpu_milli) AS cpu_milli_ms,
       sum((m.end_ms - m.start_ms)::numeric * m.memory_bytes) AS memory_byte_ms,
       sum((m.end_ms - m.start_ms)::numeric * m.storage_bytes) AS storage_byte_ms,
       min(m.start_ms) AS start_ms,
       max(m.end_ms) AS end_ms
  FROM metered($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) AS m
 GROUP BY m.project, m.owner, m.owner_uid, m.attempt, m.kind, m.user_uid, m.labels, m.state,
          m.billed, m.book, m.gpu_type
 ORDER BY m.owner, m.attempt, m.state, m.gpu_type, m.book, m.labels::text;

-- segments: What was metered, piece by piece.
SELECT m.*
  FROM metered($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) AS m
 ORDER BY m.start_ms, m.uid, m.run, m.end_ms;

-- replicas_of: All replicas of an owner, in the order of their beginning.
SELECT *
  FROM replica
 WHERE owner = $1
 ORDER BY subject_position, uid;

-- volumes_of: All volumes of an owner, in the order of their beginning.
SELECT *
  FROM volume
 WHERE owner = $1
 ORDER BY bound_position, uid;

-- runs_of: All runs of an owner's replicas.
SELECT s.*
  FROM run AS s
  JOIN replica AS r ON r.uid = s.replica
 WHERE r.owner = $1
 ORDER BY s.run;

-- gaps_of: All losses of an owner's replicas.
SELECT s.*
  FROM gap AS s
  JOIN replica AS r ON r.uid = s.replica
 WHERE r.owner = $1
 ORDER BY s.n;

-- changes_of: All changes of an owner's replicas.
SELECT s.*
  FROM change AS s
  JOIN replica AS r ON r.uid = s.replica
 WHERE r.owner = $1
 ORDER BY s.n;

-- corrections_of: All corrections of an owner's replicas.
SELECT s.*
  FROM correction AS s
  JOIN replica AS r ON r.uid = s.replica
 WHERE r.owner = $1
 ORDER BY s.n;

-- missed_of: All runs that were missed of an owner's replicas.
SELECT s.*
  FROM missed AS s
  JOIN replica AS r ON r.uid = s.replica
 WHERE r.owner = $1
 ORDER BY s.from_run;

-- limited: Workloads that may still reach what they may cost: some replica of theirs is there.
SELECT DISTINCT r.workload, r.project, r.limit_nanos, r.limit_currency
  FROM replica AS r
  LEFT JOIN charged AS c ON c.workload = r.workload
 WHERE r.limit_nanos IS NOT NULL
   AND r.released_position IS NULL
   AND NOT coalesce(c.limited, false)
   AND NOT EXISTS (SELECT FROM finished AS f WHERE f.workload = r.workload);

-- unsettled: Workloads of a cluster that are over and not settled, behind a position and up to another.
SELECT f.workload, f.project, f.at_ms, f.position
  FROM finished AS f
  LEFT JOIN charged AS c ON c.workload = f.workload
 WHERE f.cluster = $1
   AND f.position > $2
   AND f.position <= $3
   AND NOT coalesce(c.settled, false)
 ORDER BY f.position;

-- open_intervals: How many times of a cluster have begun and not ended, by what is open.
SELECT CASE WHEN s.open > 0 THEN 'running' WHEN s.runs > 0 THEN 'backoff' ELSE 'held' END AS state,
       count(*) AS intervals
  FROM replica AS r
 CROSS JOIN LATERAL (
       SELECT count(*) AS runs, count(*) FILTER (WHERE u.end_position IS NULL) AS open
         FROM run AS u
        WHERE u.replica = r.uid
          AND u.start_position IS NOT NULL
       ) AS s
 WHERE r.cluster = $1
   AND coalesce(r.released_ms, 9223372036854775807) = 9223372036854775807
 GROUP BY 1
 UNION ALL
SELECT 'storage', count(*)
  FROM volume AS v
 WHERE v.cluster = $1
   AND v.deleted_position IS NULL;

-- count_unsettled: How many workloads of a cluster are over and not settled behind a position, and the first of them.
SELECT count(*) AS workloads, min(f.at_ms) AS at_ms, min(f.position) AS position
  FROM finished AS f
  LEFT JOIN charged AS c ON c.workload = f.workload
 WHERE f.cluster = $1
   AND f.position > $2
   AND NOT coalesce(c.settled, false);

-- lived: Workloads of a cluster of which some replica was there at a moment, or since.
SELECT DISTINCT workload
  FROM replica
 WHERE cluster = $1
   AND coalesce(released_ms, 9223372036854775807) >= $2
   AND workload IS NOT NULL;

-- missed_ms: How long runs of a cluster may have lasted that were said to have been missed between two positions.
SELECT coalesce(sum(m.to_ms - m.from_ms), 0)::bigint AS ms
  FROM missed AS m
  JOIN replica AS r ON r.uid = m.replica
 WHERE r.cluster = $1
   AND m.position > $2
   AND m.position <= $3;
