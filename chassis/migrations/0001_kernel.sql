-- The journal of one service and what hangs on it. `log` is the shard.

CREATE TABLE head (
    log      text   PRIMARY KEY,
    epoch    bigint NOT NULL,
    position bigint NOT NULL
);

CREATE TABLE epoch (
    log            text        NOT NULL,
    epoch          bigint      NOT NULL,
    first_position bigint      NOT NULL,
    at             timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (log, epoch)
);

CREATE TABLE project_head (
    log      text   NOT NULL,
    project  text   NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (log, project)
) WITH (fillfactor = 70);

CREATE TABLE event (
    log              text        NOT NULL,
    position         bigint      NOT NULL,
    project          text        NOT NULL,
    project_position bigint      NOT NULL,
    stream           text        NOT NULL,
    version          bigint      NOT NULL,
    type             text        NOT NULL,
    statement        uuid,
    data             bytea       NOT NULL,
    meta             bytea       NOT NULL,
    batch            uuid        NOT NULL,
    at               timestamptz NOT NULL,
    PRIMARY KEY (log, position)
);
CREATE UNIQUE INDEX event_stream ON event (log, stream, version);
CREATE UNIQUE INDEX event_project ON event (log, project, project_position);

CREATE TABLE stream_head (
    log     text   NOT NULL,
    stream  text   NOT NULL,
    version bigint NOT NULL,
    PRIMARY KEY (log, stream)
) WITH (fillfactor = 70);

CREATE TABLE statement (
    log text NOT NULL,
    id  uuid NOT NULL,
    PRIMARY KEY (log, id)
);

CREATE TABLE command (
    log        text        NOT NULL,
    scope      text        NOT NULL,
    method     text        NOT NULL,
    request_id text        NOT NULL,
    digest     bytea       NOT NULL,
    stream     text        NOT NULL,
    version    bigint      NOT NULL,
    position   bigint      NOT NULL,
    at         timestamptz NOT NULL,
    PRIMARY KEY (log, scope, method, request_id)
);
CREATE INDEX command_at ON command (at);

CREATE TABLE claim (
    scope text NOT NULL,
    name  text NOT NULL,
    uid   text NOT NULL,
    PRIMARY KEY (scope, name)
);

CREATE TABLE lease (
    name         text        PRIMARY KEY,
    holder       text        NOT NULL,
    writer_epoch bigint      NOT NULL,
    expires_at   timestamptz NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE checkpoint (
    reader      text    NOT NULL,
    journal     text    NOT NULL,
    epoch       bigint  NOT NULL,
    position    bigint  NOT NULL,
    folded      bigint  NOT NULL,
    passed_over bigint  NOT NULL,
    skipped     bigint  NOT NULL DEFAULT 0,
    halted      text,
    decides     boolean NOT NULL,
    PRIMARY KEY (reader, journal)
) WITH (fillfactor = 50);

CREATE TABLE parked (
    reader   text        NOT NULL,
    journal  text        NOT NULL,
    position bigint      NOT NULL,
    stream   text        NOT NULL,
    project  text        NOT NULL,
    type     text        NOT NULL,
    reason   text        NOT NULL,
    record   bytea       NOT NULL,
    at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (reader, journal, position)
);
CREATE INDEX parked_stream ON parked (reader, journal, stream, position);

-- Commits a numbered batch, or tells why it may not.
--
-- Row (0, 'head', …): the journal is elsewhere than the committer thought; number again.
-- Rows (command, kind, …): refused; nothing was written; take them out, number again.
-- Row (0, 'done', …): written; `moment` is the time that all of its facts were recorded.
--
-- Names that a command frees are free before it claims any; `c_freed` marks a name that it does both to.
--
-- Keys are looked up by scalar subqueries and never by joins, with sequential scans switched off:
-- a plan made while the tables are still empty would otherwise be kept when they have grown.
CREATE FUNCTION append(
    p_log text, p_epoch bigint, p_before bigint, p_after bigint, p_batch uuid,
    q_command int[], q_scope text[], q_method text[], q_id text[], q_digest bytea[], q_stream text[], q_version bigint[],
    a_command int[], a_reader text[], a_journal text[], a_epoch bigint[], a_after bigint[], a_to bigint[], a_folded bigint[], a_passed bigint[],
    u_command int[], u_reader text[], u_journal text[], u_position bigint[], u_skipped boolean[],
    w_command int[], w_lease text[], w_epoch bigint[],
    s_reader text[], s_journal text[],
    e_command int[], e_stream text[], e_version bigint[],
    f_command int[], f_project text[], f_place bigint[], f_stream text[], f_version bigint[], f_type text[], f_statement uuid[], f_data bytea[], f_meta bytea[],
    c_command int[], c_scope text[], c_name text[], c_uid text[], c_freed boolean[],
    r_scope text[], r_name text[],
    h_project text[], h_place bigint[],
    v_stream text[], v_version bigint[]
)
RETURNS TABLE (command int, kind text, detail text, number bigint, blob bytea, moment timestamptz)
LANGUAGE plpgsql
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_head   head%ROWTYPE;
    v_at     timestamptz;
    v_found  boolean := false;
BEGIN
    SELECT * INTO v_head FROM head WHERE head.log = p_log FOR UPDATE;
    IF v_head.position IS DISTINCT FROM p_before OR v_head.epoch IS DISTINCT FROM p_epoch THEN
        RETURN QUERY SELECT 0, 'head'::text, NULL::text, v_head.position, NULL::bytea, NULL::timestamptz;
        RETURN QUERY SELECT 0, 'epoch'::text, NULL::text, v_head.epoch, NULL::bytea, NULL::timestamptz;
        RETURN;
    END IF;

    IF cardinality(q_command) > 0 THEN
        RETURN QUERY
        SELECT asked.command, 'remembered'::text, asked.stream, asked.version, asked.digest, NULL::timestamptz
          FROM (SELECT q.command,
                       (SELECT c.stream  FROM command AS c WHERE c.log = p_log AND c.scope = q.scope AND c.method = q.method AND c.request_id = q.id) AS stream,
                       (SELECT c.version FROM command AS c WHERE c.log = p_log AND c.scope = q.scope AND c.method = q.method AND c.request_id = q.id) AS version,
                       (SELECT c.digest  FROM command AS c WHERE c.log = p_log AND c.scope = q.scope AND c.method = q.method AND c.request_id = q.id) AS digest
                  FROM unnest(q_command, q_scope, q_method, q_id) AS q (command, scope, method, id)) AS asked
         WHERE asked.stream IS NOT NULL;
        v_found := v_found OR FOUND;
    END IF;
    IF cardinality(a_command) > 0 THEN
        RETURN QUERY
        SELECT a.command, 'overtaken'::text, a.reader, NULL::bigint, NULL::bytea, NULL::timestamptz
          FROM unnest(a_command, a_reader, a_journal, a_epoch, a_after) AS a (command, reader, journal, epoch, after)
         WHERE (SELECT k.position FROM checkpoint AS k
                 WHERE k.reader = a.reader AND k.journal = a.journal AND k.halted IS NULL AND (k.epoch = a.epoch OR k.position = 0))
               IS DISTINCT FROM a.after;
        v_found := v_found OR FOUND;
    END IF;
    IF cardinality(u_command) > 0 THEN
        RETURN QUERY
        SELECT u.command, 'overtaken'::text, u.reader, NULL::bigint, NULL::bytea, NULL::timestamptz
          FROM unnest(u_command, u_reader, u_journal, u_position) AS u (command, reader, journal, place)
         WHERE (SELECT k.position FROM parked AS k WHERE k.reader = u.reader AND k.journal = u.journal AND k.position = u.place) IS NULL;
        v_found := v_found OR FOUND;
    END IF;
    IF cardinality(w_command) > 0 THEN
        RETURN QUERY
        SELECT w.command, 'fenced'::text, w.lease, NULL::bigint, NULL::bytea, NULL::timestamptz
          FROM unnest(w_command, w_lease, w_epoch) AS w (command, lease, epoch)
         WHERE (SELECT k.writer_epoch FROM lease AS k WHERE k.name = w.lease) IS DISTINCT FROM w.epoch;
        v_found := v_found OR FOUND;
    END IF;
    IF cardinality(e_command) > 0 THEN
        RETURN QUERY
        SELECT e.command, 'stale'::text, e.stream, NULL::bigint, NULL::bytea, NULL::timestamptz
          FROM unnest(e_command, e_stream, e_version) AS e (command, stream, version)
         WHERE coalesce((SELECT k.version FROM stream_head AS k WHERE k.log = p_log AND k.stream = e.stream), 0) <> e.version;
        v_found := v_found OR FOUND;
    END IF;
    IF EXISTS (SELECT 1 FROM unnest(f_statement) AS s (id) WHERE s.id IS NOT NULL) THEN
        RETURN QUERY
        SELECT said.command, CASE WHEN bool_and(said.said) THEN 'said' ELSE 'stated' END, NULL::text, NULL::bigint, NULL::bytea, NULL::timestamptz
          FROM (SELECT f.command, f.id IS NOT NULL AND (SELECT k.id FROM statement AS k WHERE k.log = p_log AND k.id = f.id) IS NOT NULL AS said
                  FROM unnest(f_command, f_statement) AS f (command, id)) AS said
         GROUP BY said.command
        HAVING bool_or(said.said);
        v_found := v_found OR FOUND;
    END IF;
    IF cardinality(c_command) > 0 THEN
        RETURN QUERY
        SELECT held.command, 'claimed'::text, held.scope || E'\n' || held.name, NULL::bigint, NULL::bytea, NULL::timestamptz
          FROM (SELECT c.command, c.scope, c.name, c.uid,
                       (SELECT k.uid FROM claim AS k WHERE k.scope = c.scope AND k.name = c.name) AS holder
                  FROM unnest(c_command, c_scope, c_name, c_uid, c_freed) AS c (command, scope, name, uid, freed)
                 WHERE NOT c.freed) AS held
         WHERE held.holder <> held.uid;
        v_found := v_found OR FOUND;
    END IF;
    IF v_found THEN
        RETURN;
    END IF;

    v_at := clock_timestamp();
    IF p_after <> p_before THEN
        UPDATE head SET position = p_after WHERE head.log = p_log;
        INSERT INTO project_head AS k (log, project, position)
        SELECT p_log, h.project, h.place FROM unnest(h_project, h_place) AS h (project, place)
            ON CONFLICT (log, project) DO UPDATE SET position = excluded.position;
    END IF;
    IF cardinality(a_command) > 0 THEN
        UPDATE checkpoint AS k
           SET position = a.place, epoch = a.epoch, folded = k.folded + a.folded, passed_over = k.passed_over + a.passed
          FROM unnest(a_reader, a_journal, a_epoch, a_to, a_folded, a_passed) AS a (reader, journal, epoch, place, folded, passed)
         WHERE k.reader = a.reader AND k.journal = a.journal;
    END IF;
    IF cardinality(u_command) > 0 THEN
        UPDATE checkpoint AS k
           SET folded = k.folded + u.folded, skipped = k.skipped + u.skipped
          FROM (SELECT n.reader, n.journal, count(*) FILTER (WHERE NOT n.skipped) AS folded, count(*) FILTER (WHERE n.skipped) AS skipped
                  FROM unnest(u_reader, u_journal, u_skipped) AS n (reader, journal, skipped)
                 GROUP BY n.reader, n.journal) AS u
         WHERE k.reader = u.reader AND k.journal = u.journal;
        DELETE FROM parked AS k USING unnest(u_reader, u_journal, u_position) AS u (reader, journal, place)
         WHERE k.reader = u.reader AND k.journal = u.journal AND k.position = u.place;
    END IF;
    IF cardinality(s_reader) > 0 THEN
        UPDATE checkpoint AS k SET halted = NULL
          FROM unnest(s_reader, s_journal) AS s (reader, journal)
         WHERE k.reader = s.reader AND k.journal = s.journal;
    END IF;
    IF p_after <> p_before THEN
        INSERT INTO event (log, position, project, project_position, stream, version, type, statement, data, meta, batch, at)
        SELECT p_log, p_before + f.place, f.project, f.project_place, f.stream, f.version, f.type, f.statement, f.data, f.meta, p_batch, v_at
          FROM unnest(f_project, f_place, f_stream, f_version, f_type, f_statement, f_data, f_meta)
               WITH ORDINALITY AS f (project, project_place, stream, version, type, statement, data, meta, place);
        INSERT INTO stream_head AS k (log, stream, version)
        SELECT p_log, v.stream, v.version FROM unnest(v_stream, v_version) AS v (stream, version)
            ON CONFLICT (log, stream) DO UPDATE SET version = excluded.version;
        INSERT INTO statement (log, id)
        SELECT p_log, s.id FROM unnest(f_statement) AS s (id) WHERE s.id IS NOT NULL;
    END IF;
    IF cardinality(r_scope) > 0 THEN
        DELETE FROM claim AS k USING unnest(r_scope, r_name) AS r (scope, name)
         WHERE k.scope = r.scope AND k.name = r.name;
    END IF;
    IF cardinality(c_command) > 0 THEN
        INSERT INTO claim (scope, name, uid)
        SELECT c.scope, c.name, c.uid FROM unnest(c_scope, c_name, c_uid) AS c (scope, name, uid)
            ON CONFLICT (scope, name) DO NOTHING;
    END IF;
    IF cardinality(q_command) > 0 THEN
        INSERT INTO command (log, scope, method, request_id, digest, stream, version, position, at)
        SELECT p_log, q.scope, q.method, q.id, q.digest, q.stream, q.version, p_after, v_at
          FROM unnest(q_scope, q_method, q_id, q_digest, q_stream, q_version) AS q (scope, method, id, digest, stream, version);
    END IF;
    RETURN QUERY SELECT 0, 'done'::text, NULL::text, p_after, NULL::bytea, v_at;
END
$$;
