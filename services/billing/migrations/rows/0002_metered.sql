-- The metering fold, as a function of the slots; `metering.py` says the same in Python, and a test
-- holds the two equal on random histories.
--
-- Its tables lie in two schemas, so its body is only looked at when it is called.
SET LOCAL check_function_bodies = off;

-- What replicas and volumes did between two moments, cut wherever anything changes.
--
-- p_caps: by cluster, up to when what is open is looked at; other clusters are not.
-- p_cut: by cluster, and by uid for what is disputed, the last position that is looked at; none for
-- all.
-- p_book: the last price book that is looked at. p_step: also cut at multiples of so many ms.
-- p_slack: what its cluster could not prove alive is looked at for so long behind its last proof.
CREATE FUNCTION metered(
    p_project text, p_owner text, p_workload text, p_from bigint, p_to bigint,
    p_caps jsonb, p_cut jsonb, p_book integer, p_step bigint, p_slack bigint
) RETURNS TABLE (
    uid text, run integer, state integer, billed boolean, start_ms bigint, end_ms bigint,
    open boolean, book integer, gpu_type text, gpu_milli bigint, cpu_milli bigint,
    memory_bytes bigint, storage_bytes bigint, labels jsonb, project text, owner text,
    owner_uid text, kind integer, user_uid text, workload text, attempt integer
) LANGUAGE sql STABLE AS $$
WITH life AS (
    SELECT r.*,
           least(p_to, (p_caps ->> r.cluster)::bigint, n.proved_ms + p_slack) AS cap,
           coalesce(
               least((p_cut ->> r.cluster)::bigint, (p_cut ->> r.uid)::bigint), 9223372036854775807
           ) AS cut
      FROM replica AS r
      LEFT JOIN unproven AS n ON n.cluster = r.cluster AND n.replica = r.uid
     WHERE (p_project IS NULL OR r.project = p_project)
       AND (p_owner IS NULL OR r.owner = p_owner)
       AND (p_workload IS NULL OR r.workload = p_workload)
       -- At an older cut it was not released yet, whenever that was.
       AND (coalesce(r.released_ms, 9223372036854775807) >= p_from
            OR r.released_position > (SELECT min(value::bigint) FROM jsonb_each_text(p_cut)))
       AND p_caps ? r.cluster
       AND r.subject_position
           <= coalesce(
               least((p_cut ->> r.cluster)::bigint, (p_cut ->> r.uid)::bigint), 9223372036854775807
           )
),
-- As they were at the cut.
replicas AS (
    SELECT l.uid, l.cap, l.cut, l.purchase,
           CASE WHEN l.scheduled_position <= l.cut THEN l.scheduled_ms END AS scheduled,
           CASE WHEN l.drain_position <= l.cut THEN l.drain_ms END AS drain,
           CASE WHEN l.drain_position <= l.cut THEN l.drain_cause END AS cause,
           CASE WHEN l.released_position <= l.cut THEN l.released_ms END AS released
      FROM life AS l
),
corrected AS (
    SELECT r.uid, r.cap, r.scheduled, r.released, u.run,
           coalesce(
               (SELECT c.start_ms FROM correction AS c
                 WHERE c.replica = u.replica AND c.run = u.run AND c.position <= r.cut
                   AND c.start_ms IS NOT NULL
                 ORDER BY c.n DESC LIMIT 1),
               u.start_ms
           ) AS start,
           coalesce(
               (SELECT c.end_ms FROM correction AS c
                 WHERE c.replica = u.replica AND c.run = u.run AND c.position <= r.cut
                   AND c.end_ms IS NOT NULL
                 ORDER BY c.n DESC LIMIT 1),
               CASE WHEN u.end_position <= r.cut THEN u.end_ms END
           ) AS ended
      FROM replicas AS r
      JOIN run AS u ON u.replica = r.uid
     WHERE u.start_position <= r.cut
),
runs AS (
    SELECT c.*,
           lead(c.start) OVER one AS following,
           row_number() OVER one AS place,
           -- NULL where it is open: neither ended nor followed.
           CASE WHEN coalesce(c.ended, lead(c.start) OVER one) IS NOT NULL
                THEN greatest(c.start, least(c.ended, lead(c.start) OVER one)) END AS stop
      FROM corrected AS c
    WINDOW one AS (PARTITION BY c.uid ORDER BY c.start, c.run)
),
-- Nobody knows whether it lives: until it is found, or another run of it starts.
gaps AS (
    SELECT g.replica AS uid, g.lost_ms AS lost,
           least(
               CASE WHEN g.found_position <= r.cut THEN g.found_ms END,
               (SELECT min(u.start) FROM runs AS u WHERE u.uid = r.uid AND u.start > g.lost_ms)
           ) AS found
      FROM replicas AS r
      JOIN gap AS g ON g.replica = r.uid
     WHERE g.lost_position <= r.cut
),
spans AS (
    SELECT u.uid, u.run, 1 AS state, u.start AS first, least(coalesce(u.stop, u.cap), u.cap) AS last,
           u.stop IS NULL OR u.stop > u.cap AS open
      FROM runs AS u
     WHERE u.start < u.cap
     UNION ALL
    SELECT r.uid, -1, 4, r.scheduled, least(u.start, r.released, r.cap),
           coalesce(u.start, r.released) IS NULL OR coalesce(u.start, r.released) > r.cap
      FROM replicas AS r
      LEFT JOIN runs AS u ON u.uid = r.uid AND u.place = 1
     WHERE r.scheduled < least(u.start, r.released, r.cap)
     UNION ALL
    SELECT u.uid, -1, 5, u.stop, least(u.following, u.released, u.cap),
           coalesce(u.following, u.released) IS NULL OR coalesce(u.following, u.released) > u.cap
      FROM runs AS u
     WHERE u.stop < least(u.following, u.released, u.cap)
     UNION ALL
    SELECT v.uid, -1, 7, v.bound_ms, least(v.deleted, v.cap), v.deleted IS NULL OR v.deleted > v.cap
      FROM (SELECT w.uid, w.bound_ms,
                   least(p_to, (p_caps ->> w.cluster)::bigint) AS cap,
                   CASE WHEN w.deleted_position <= k.cut THEN w.deleted_ms END AS deleted
              FROM volume AS w
             CROSS JOIN LATERAL (
                   SELECT coalesce(
                              least((p_cut ->> w.cluster)::bigint, (p_cut ->> w.uid)::bigint),
                              9223372036854775807
                          ) AS cut
             ) AS k
             WHERE (p_project IS NULL OR w.project = p_project)
               AND (p_owner IS NULL OR w.owner = p_owner)
               AND p_workload IS NULL
               AND (coalesce(w.deleted_ms, 9223372036854775807) >= p_from
                    OR w.deleted_position > (SELECT min(value::bigint) FROM jsonb_each_text(p_cut)))
               AND p_caps ? w.cluster
               AND w.bound_position <= k.cut) AS v
     WHERE v.bound_ms < v.cap
),
seen AS (
    SELECT s.*, greatest(s.first, p_from) AS from_ms
      FROM spans AS s
     WHERE s.last > p_from OR (s.first = s.last AND s.first >= p_from)
),
points AS (
    SELECT s.uid, s.run, s.state, s.first, p.at
      FROM seen AS s
      LEFT JOIN replicas AS r ON r.uid = s.uid
     CROSS JOIN LATERAL (
           SELECT s.from_ms AS at
            UNION
           SELECT b.effective_ms FROM price_book AS b WHERE b.number <= p_book
            UNION
           SELECT s.first + f.free_ms FROM rule AS f
            WHERE f.state = s.state AND f.number <= p_book
            UNION
           SELECT step FROM generate_series(
               (s.from_ms / nullif(p_step, 0) + 1) * p_step, s.last - 1, nullif(p_step, 0)
           ) AS step
            UNION
           SELECT c.at_ms FROM change AS c
            WHERE c.replica = s.uid AND c.position <= r.cut
            UNION
           SELECT greatest(s.first, r.drain) + f.free_ms FROM rule AS f
            WHERE s.state = 1 AND f.state IN (2, 3) AND f.number <= p_book
            UNION
           SELECT r.drain WHERE s.state = 1
            UNION
           SELECT unnest(ARRAY[g.lost, g.found]) FROM gaps AS g
            WHERE s.state = 1 AND g.uid = s.uid
            UNION
           SELECT g.lost + f.free_ms FROM gaps AS g, rule AS f
            WHERE s.state = 1 AND g.uid = s.uid AND f.state = 6 AND f.number <= p_book
     ) AS p
     WHERE p.at = s.from_ms OR (p.at > s.from_ms AND p.at < s.last)
),
pieces AS (
    SELECT s.uid, s.run, s.state, s.first, s.last, s.open, p.at AS begin,
           coalesce(
               lead(p.at) OVER (PARTITION BY s.uid, s.run, s.state, s.first ORDER BY p.at), s.last
           ) AS stop
      FROM seen AS s
      JOIN points AS p USING (uid, run, state, first)
),
stated AS (
    SELECT p.*, b.number AS book, g.lost,
           CASE WHEN p.state <> 1 THEN p.state
                WHEN g.lost IS NOT NULL THEN 6
                WHEN r.drain <= p.begin THEN
                     CASE WHEN EXISTS (SELECT FROM platform_cause AS c
                                        WHERE c.number = b.number AND c.cause = r.cause)
                          THEN 3 ELSE 2 END
                ELSE 1 END AS what,
           r.drain, r.cut, r.purchase
      FROM pieces AS p
      LEFT JOIN replicas AS r ON r.uid = p.uid
     CROSS JOIN LATERAL (
           SELECT k.number FROM price_book AS k
            WHERE (k.number = 1 OR k.effective_ms <= p.begin) AND k.number <= p_book
            ORDER BY k.number DESC LIMIT 1
     ) AS b
      LEFT JOIN LATERAL (
           SELECT min(h.lost) AS lost FROM gaps AS h
            WHERE p.state = 1 AND h.uid = p.uid AND h.lost <= p.begin
              AND (h.found IS NULL OR p.begin < h.found)
     ) AS g ON true
)
SELECT s.uid, s.run, s.what,
       f.billed
           AND coalesce(s.purchase, v.purchase) IS DISTINCT FROM 4
           AND s.begin >= f.free_ms + CASE s.what WHEN 6 THEN s.lost
                                                  WHEN 2 THEN greatest(s.drain, s.first)
                                                  WHEN 3 THEN greatest(s.drain, s.first)
                                                  ELSE s.first END,
       s.begin, s.stop, s.open AND s.stop = s.last, s.book,
       CASE WHEN z.resized THEN z.gpu_type ELSE coalesce(l.gpu_type, '') END,
       CASE WHEN z.resized THEN z.gpu_milli ELSE coalesce(l.gpu_milli, 0) END,
       CASE WHEN z.resized THEN z.cpu_milli ELSE coalesce(l.cpu_milli, 0) END,
       CASE WHEN z.resized THEN z.memory_bytes ELSE coalesce(l.memory_bytes, 0) END,
       coalesce(v.storage_bytes, 0),
       coalesce(t.labels, l.labels, v.labels),
       coalesce(l.project, v.project), coalesce(l.owner, v.owner),
       coalesce(l.owner_uid, v.owner_uid), coalesce(l.kind, v.kind),
       coalesce(l.user_uid, v.user_uid), coalesce(l.workload, ''), coalesce(l.attempt, 0)
  FROM stated AS s
  JOIN rule AS f ON f.number = s.book AND f.state = s.what
  LEFT JOIN life AS l ON l.uid = s.uid
  LEFT JOIN volume AS v ON v.uid = s.uid
  LEFT JOIN LATERAL (
       SELECT c.* FROM change AS c
        WHERE c.replica = s.uid AND c.resized AND c.at_ms <= s.begin AND c.position <= s.cut
        ORDER BY c.n DESC LIMIT 1
  ) AS z ON true
  LEFT JOIN LATERAL (
       SELECT c.labels FROM change AS c
        WHERE c.replica = s.uid AND NOT c.resized AND c.at_ms <= s.begin AND c.position <= s.cut
        ORDER BY c.n DESC LIMIT 1
  ) AS t ON true
$$;
