-- add_account: Add the row of a user who was registered.
INSERT INTO account (uid, name, platform_role, generation, create_time)
VALUES ($1, $2, $3, 1, $4);

-- count_profile: Show that a profile was changed.
UPDATE account
   SET generation = $2
 WHERE uid = $1;

-- set_platform_role: Show what a user may do on the whole platform.
UPDATE account
   SET platform_role = $2
 WHERE uid = $1;

-- remove_account: Take the row of a deleted user away.
DELETE FROM account
 WHERE uid = $1;

-- remove_memberships: A deleted user has no roles.
DELETE FROM member
 WHERE user_uid = $1;

-- add_project: Add the row of a project that was created.
INSERT INTO project (uid, name, display_name, description, labels, state, vacated_by, generation,
                     create_time, update_time)
VALUES ($1, $2, $3, $4, $5::text::jsonb, 1, '{}', 1, $6, $6);

-- change_project: Show what a caller set.
UPDATE project
   SET display_name = $2, description = $3, labels = $4::text::jsonb, generation = $5, update_time = $6
 WHERE uid = $1;

-- archive_project: Show that a project takes no new work.
UPDATE project
   SET state = $2, update_time = $3
 WHERE uid = $1;

-- vacate_project: Show that one service has left a project.
UPDATE project
   SET vacated_by = ARRAY(SELECT DISTINCT s FROM unnest(vacated_by || $2::text) AS s ORDER BY s), update_time = $3
 WHERE uid = $1;

-- remove_project: Take the row of a deleted project away.
DELETE FROM project
 WHERE uid = $1;

-- remove_members: A deleted project has no members.
DELETE FROM member
 WHERE project_uid = $1;

-- set_member: Show a user's role in a project.
INSERT INTO member (project_uid, user_uid, project, role, update_time)
VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (project_uid, user_uid) DO UPDATE SET role = excluded.role, update_time = excluded.update_time;

-- remove_member: Show that a user has no role in a project.
DELETE FROM member
 WHERE project_uid = $1 AND user_uid = $2;

-- add_token: Show a token that was issued.
INSERT INTO token (uid, user_uid, description, issue_time, expire_time, revoked)
VALUES ($1, $2, $3, $4, $5, false);

-- revoke_token: Show that a token is refused.
UPDATE token
   SET revoked = true
 WHERE uid = $1;

-- add_key: Show a key that tokens are checked with.
INSERT INTO signing_key (kid, public_key, create_time)
VALUES ($1, $2, $3);

-- remove_key: Show that a key is not accepted any more.
DELETE FROM signing_key
 WHERE kid = $1;

-- set_quota: Show the limits that a scope has of its own.
INSERT INTO quota (scope, uid, version, limits)
VALUES ($1, $2, $3, $4)
    ON CONFLICT (scope) DO UPDATE SET version = excluded.version, limits = excluded.limits;

-- clear_quota: Show that a scope has no limits of its own; its version counts on.
UPDATE quota
   SET version = $2, limits = NULL
 WHERE scope = $1;

-- remove_quota: Take the quota of a deleted project or user away.
DELETE FROM quota
 WHERE scope = $1;

-- enrol_cluster: Show that work may run on a cluster.
INSERT INTO cluster (uid, enrol_time)
VALUES ($1, $2)
    ON CONFLICT (uid) DO UPDATE SET enrol_time = excluded.enrol_time, retire_time = NULL;

-- retire_cluster: Show that a cluster gets no more work.
UPDATE cluster
   SET retire_time = $2
 WHERE uid = $1;

-- write_profile: Keep who a user is as a person.
INSERT INTO profile (uid, display_name, email)
VALUES ($1, $2, $3)
    ON CONFLICT (uid) DO UPDATE SET display_name = excluded.display_name, email = excluded.email;

-- forget_profile: Forget a person.
DELETE FROM profile
 WHERE uid = $1;

-- forget_strays: Forget profiles whose users were never registered, or are gone, some time ago.
DELETE FROM profile AS p
 WHERE p.at < now() - interval '1 hour'
   AND NOT EXISTS (SELECT FROM account AS a WHERE a.uid = p.uid);

-- find_user: Read one user by name.
SELECT a.*, p.display_name, p.email
  FROM account AS a
  LEFT JOIN profile AS p USING (uid)
 WHERE a.name = $1;

-- find_account: Read one user by uid.
SELECT a.*, p.display_name, p.email
  FROM account AS a
  LEFT JOIN profile AS p USING (uid)
 WHERE a.uid = $1;

-- find_admin: Read one of those who have a platform role, if there is any.
SELECT a.uid
  FROM account AS a
 WHERE a.platform_role = $1
 LIMIT 1;

-- list_users_by_name: Read a page of users, by name.
SELECT a.*, p.display_name, p.email
  FROM account AS a
  LEFT JOIN profile AS p USING (uid)
 WHERE ($1::text IS NULL OR a.name = $1)
   AND starts_with(a.name, $2)
   AND ($3::timestamptz IS NULL OR a.create_time > $3)
   AND ($4::timestamptz IS NULL OR a.create_time < $4)
   AND ($5::text IS NULL OR (CASE WHEN $7 THEN a.name < $5 ELSE a.name > $5 END))
 ORDER BY CASE WHEN $7 THEN a.name END DESC, CASE WHEN NOT $7 THEN a.name END
 LIMIT $6;

-- list_users_by_create_time: Read a page of users, by age.
SELECT a.*, p.display_name, p.email
  FROM account AS a
  LEFT JOIN profile AS p USING (uid)
 WHERE ($1::text IS NULL OR a.name = $1)
   AND starts_with(a.name, $2)
   AND ($3::timestamptz IS NULL OR a.create_time > $3)
   AND ($4::timestamptz IS NULL OR a.create_time < $4)
   AND ($5::text IS NULL OR (CASE WHEN $7 THEN a.uid < $5 ELSE a.uid > $5 END))
 ORDER BY CASE WHEN $7 THEN a.uid END DESC, CASE WHEN NOT $7 THEN a.uid END
 LIMIT $6;

-- find_project: Read one project by name.
SELECT *
  FROM project
 WHERE name = $1;

-- find_projects: Read some projects by uid, those only that a caller may see.
SELECT p.*
  FROM project AS p
 WHERE p.uid = ANY ($1::text[])
   AND ($2::text IS NULL OR EXISTS (SELECT FROM member AS m WHERE m.project_uid = p.uid AND m.user_uid = $2));

-- list_all_projects: Read every project that a caller may see.
SELECT p.*
  FROM project AS p
 WHERE $1::text IS NULL OR EXISTS (SELECT FROM member AS m WHERE m.project_uid = p.uid AND m.user_uid = $1)
 ORDER BY p.name;

-- list_projects: Read a page of the projects that a caller may see; by name, or by uid, which is by age.
SELECT p.*
  FROM project AS p
 WHERE ($1::text IS NULL OR EXISTS (SELECT FROM member AS m WHERE m.project_uid = p.uid AND m.user_uid = $1))
   AND ($2::text IS NULL OR p.name = $2)
   AND starts_with(p.name, $3)
   AND p.labels @> $4::text::jsonb
   AND (cardinality($5::integer[]) = 0 OR p.state = ANY ($5))
   AND ($6::timestamptz IS NULL OR p.create_time > $6)
   AND ($7::timestamptz IS NULL OR p.create_time < $7)
   AND ($8::text IS NULL
        OR CASE WHEN $9 THEN CASE WHEN $10 THEN p.name < $8 ELSE p.name > $8 END
                ELSE CASE WHEN $10 THEN p.uid < $8 ELSE p.uid > $8 END END)
 ORDER BY CASE WHEN $9 AND NOT $10 THEN p.name END, CASE WHEN $9 AND $10 THEN p.name END DESC,
          CASE WHEN NOT $9 AND NOT $10 THEN p.uid END, CASE WHEN NOT $9 AND $10 THEN p.uid END DESC
 LIMIT $11;

-- list_members: Read a page of a project's members, by user name.
SELECT m.*, a.name AS user_name
  FROM member AS m
  JOIN account AS a ON a.uid = m.user_uid
 WHERE m.project = $1
   AND a.name > $2
 ORDER BY a.name
 LIMIT $3;

-- find_member: Read one member.
SELECT m.*, a.name AS user_name
  FROM member AS m
  JOIN account AS a ON a.uid = m.user_uid
 WHERE m.project_uid = $1
   AND m.user_uid = $2;

-- list_memberships: Read every role of a user.
SELECT m.*, a.name AS user_name
  FROM member AS m
  JOIN account AS a ON a.uid = m.user_uid
 WHERE m.user_uid = $1
 ORDER BY m.project;

-- list_tokens: Read a page of a user's tokens, newest first.
SELECT *
  FROM token
 WHERE user_uid = $1
   AND ($2::text = '' OR uid < $2)
 ORDER BY uid DESC
 LIMIT $3;

-- list_keys: Read the keys that tokens are checked with.
SELECT *
  FROM signing_key
 ORDER BY kid;

-- find_quotas: Read what some scopes have of their own.
SELECT *
  FROM quota
 WHERE scope = ANY ($1::text[]);

-- list_quotas: Read a page of the limits that were set and that a caller may see, by name; those of all are seen by all.
WITH named AS (
    SELECT q.*,
           CASE WHEN q.uid = '-' THEN q.scope
                WHEN p.uid IS NOT NULL THEN 'projects/' || p.name
                ELSE 'users/' || a.name END || '/quota' AS name
      FROM quota AS q
      LEFT JOIN project AS p ON p.uid = q.uid
      LEFT JOIN account AS a ON a.uid = q.uid
     WHERE q.limits IS NOT NULL
       AND ($1::text IS NULL
            OR q.uid IN ('-', $1)
            OR EXISTS (SELECT FROM member AS m
                        WHERE m.project_uid = q.uid AND m.user_uid = $1 AND m.role = ANY ($2::integer[])))
)
SELECT *
  FROM named
 WHERE name > $3
 ORDER BY name
 LIMIT $4;

-- list_clusters: Read a page of the clusters, by name.
SELECT *
  FROM cluster
 WHERE uid > $1
 ORDER BY uid
 LIMIT $2;
