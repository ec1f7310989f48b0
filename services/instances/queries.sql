-- add_instance: Add the row of an instance that was created.
INSERT INTO instance (uid, project, instance, owner, display_name, description, labels, spec,
                      generation, state, phase, reason, state_time, attempt, workload_uid, desired,
                      pending_restart, deleting, create_time, update_time)
VALUES ($1, $2, $3, $4, $5, $6, $7::text::jsonb, $8, 1, $9, 0, NULL, $10, 0, '', $9, false, false,
        $10, $10);

-- add_bearer: Remember who bears a name from now on.
INSERT INTO bearer (uid, project, instance, create_time)
VALUES ($1, $2, $3, $4);

-- change_instance: Show what a caller set.
UPDATE instance
   SET generation = $2, spec = $3, display_name = $4, description = $5, labels = $6::text::jsonb,
       pending_restart = $7, update_time = $8
 WHERE uid = $1;

-- want_instance: Show which state is wanted from now on.
UPDATE instance
   SET desired = $2, update_time = $3
 WHERE uid = $1;

-- declare_attempt: Show that an attempt waits for the scheduler.
UPDATE instance
   SET state = $2, phase = $3, reason = NULL, attempt = $4, workload_uid = $5, desired = $6,
       state_time = CASE state WHEN $2 THEN state_time ELSE $7 END, pending_restart = false,
       exit_code = NULL, restarts = 0, addresses = '{}', update_time = $7
 WHERE uid = $1;

-- queue_instance: Show why it waits.
UPDATE instance
   SET phase = $2, reason = $3, update_time = $4
 WHERE uid = $1;

-- show_instance: Show how far its attempt has come, and why it is no further.
UPDATE instance
   SET state = $2, phase = $3, reason = $4,
       state_time = CASE state WHEN $2 THEN state_time ELSE $5 END, update_time = $5
 WHERE uid = $1;

-- begin_run: Show that a run began, and where it is reached.
UPDATE instance
   SET state = $2, phase = 0, reason = NULL, restarts = $3, addresses = $4::text::jsonb,
       state_time = CASE state WHEN $2 THEN state_time ELSE $5 END, update_time = $5
 WHERE uid = $1;

-- end_run: Show how a run ended.
UPDATE instance
   SET exit_code = $2, addresses = '{}', update_time = $3
 WHERE uid = $1;

-- stop_instance: Show that it is told to end, why where nobody asked for that, and what is wanted then.
UPDATE instance
   SET state = $2, phase = 0, reason = $3, desired = $4,
       state_time = CASE state WHEN $2 THEN state_time ELSE $5 END, update_time = $5
 WHERE uid = $1;

-- delete_instance: Show that it will be gone; what lives is told to end, anything else stays what it is.
UPDATE instance
   SET state = CASE WHEN state = ANY ($2::integer[]) THEN $3 ELSE state END,
       phase = CASE WHEN state = ANY ($2::integer[]) THEN 0 ELSE phase END,
       reason = CASE WHEN state = ANY ($2::integer[]) THEN NULL ELSE reason END,
       state_time = CASE WHEN state = ANY ($2::integer[]) AND state <> $3 THEN $5 ELSE state_time END,
       desired = $4, deleting = true, update_time = $5
 WHERE uid = $1;

-- end_instance: Show that it has ended, and why where nobody asked for that.
UPDATE instance
   SET state = $2, phase = 0, reason = $3, desired = $4, pending_restart = false, addresses = '{}',
       state_time = CASE state WHEN $2 THEN state_time ELSE $5 END, update_time = $5
 WHERE uid = $1;

-- touch_instance: Show when something was said of it last.
UPDATE instance
   SET update_time = $2
 WHERE uid = $1;

-- remove_instance: Take the row of a deleted instance away.
DELETE FROM instance
 WHERE uid = $1;

-- set_template: Show a template as it is from now on.
INSERT INTO template (name, hidden, template)
VALUES ($1, $2, $3)
    ON CONFLICT (name) DO UPDATE SET hidden = excluded.hidden, template = excluded.template;

-- close_project: Remember that a project takes no new work.
INSERT INTO closed_project (project, vacated)
VALUES ($1, false)
    ON CONFLICT (project) DO NOTHING;

-- vacate_project: Remember that nothing lives in a closed project any more.
UPDATE closed_project
   SET vacated = true
 WHERE project = $1;

-- find_instance: Read one instance by its name.
SELECT *
  FROM instance
 WHERE project = $1 AND instance = $2;

-- find_bearer: Find who bore a name at a time: the last one that took it until then.
SELECT uid
  FROM bearer
 WHERE project = $1 AND instance = $2 AND create_time <= $3
 ORDER BY create_time DESC, uid DESC
 LIMIT 1;

-- find_bearers: Find all who ever bore a name.
SELECT uid
  FROM bearer
 WHERE project = $1 AND instance = $2;

-- find_names: Tell the names of instances, also of those that are gone.
SELECT uid, project, instance
  FROM bearer
 WHERE uid = ANY ($1::text[]);

-- find_instances: Read some instances by their uids.
SELECT *
  FROM instance
 WHERE uid = ANY ($1::text[]);

-- find_workload: Find whose present attempt a workload is.
SELECT uid, project
  FROM instance
 WHERE workload_uid = $1;

-- find_project: Read all instances of a project.
SELECT *
  FROM instance
 WHERE project = $1
 ORDER BY instance;

-- list_by_name: Read a page of a project's instances, by name.
SELECT *
  FROM instance
 WHERE project = $1
   AND ($2::text IS NULL OR instance = $2)
   AND starts_with(instance, $3)
   AND labels @> $4::text::jsonb
   AND (cardinality($5::integer[]) = 0 OR state = ANY ($5))
   AND ($6::timestamptz IS NULL OR create_time > $6)
   AND ($7::timestamptz IS NULL OR create_time < $7)
   AND ($8::text IS NULL OR instance > $8)
 ORDER BY instance
 LIMIT $9;

-- list_by_name_desc: Read a page of a project's instances, by name, last first.
SELECT *
  FROM instance
 WHERE project = $1
   AND ($2::text IS NULL OR instance = $2)
   AND starts_with(instance, $3)
   AND labels @> $4::text::jsonb
   AND (cardinality($5::integer[]) = 0 OR state = ANY ($5))
   AND ($6::timestamptz IS NULL OR create_time > $6)
   AND ($7::timestamptz IS NULL OR create_time < $7)
   AND ($8::text IS NULL OR instance < $8)
 ORDER BY instance DESC
 LIMIT $9;

-- list_by_create_time: Read a page of a project's instances, oldest first.
SELECT *
  FROM instance
 WHERE project = $1
   AND ($2::text IS NULL OR instance = $2)
   AND starts_with(instance, $3)
   AND labels @> $4::text::jsonb
   AND (cardinality($5::integer[]) = 0 OR state = ANY ($5))
   AND ($6::timestamptz IS NULL OR create_time > $6)
   AND ($7::timestamptz IS NULL OR create_time < $7)
   AND ($8::timestamptz IS NULL OR (create_time, uid) > ($8, $9::text))
 ORDER BY create_time, uid
 LIMIT $10;

-- list_by_create_time_desc: Read a page of a project's instances, newest first.
SELECT *
  FROM instance
 WHERE project = $1
   AND ($2::text IS NULL OR instance = $2)
   AND starts_with(instance, $3)
   AND labels @> $4::text::jsonb
   AND (cardinality($5::integer[]) = 0 OR state = ANY ($5))
   AND ($6::timestamptz IS NULL OR create_time > $6)
   AND ($7::timestamptz IS NULL OR create_time < $7)
   AND ($8::timestamptz IS NULL OR (create_time, uid) < ($8, $9::text))
 ORDER BY create_time DESC, uid DESC
 LIMIT $10;

-- find_template: Read one template by the last part of its name.
SELECT template
  FROM template
 WHERE name = $1;

-- list_templates: Read the templates that are offered, or all.
SELECT template
  FROM template
 WHERE $1 OR NOT hidden
 ORDER BY name;

-- any_lives: Tell whether a project that is closed and not vacated holds anything that lives.
SELECT EXISTS (SELECT FROM instance WHERE project = $1 AND state = ANY ($2::integer[])) AS lives
  FROM closed_project
 WHERE project = $1 AND NOT vacated;
