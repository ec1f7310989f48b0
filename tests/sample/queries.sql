-- see_fact: Count one fact of a thing.
INSERT INTO seen AS s (uid, project, facts, attempts)
VALUES ($1, $2, 1, 0)
    ON CONFLICT (uid) DO UPDATE SET facts = s.facts + 1;

-- see_attempt: Keep the greatest attempt of a thing that is counted.
UPDATE seen
   SET attempts = greatest(attempts, $2)
 WHERE uid = $1;

-- read_seen: What is counted, by uid.
SELECT uid, facts, attempts
  FROM seen
 ORDER BY uid;

-- add_to_tally: Count one fact that another service said.
INSERT INTO tally AS t (uid, facts)
VALUES ($1, 1)
    ON CONFLICT (uid) DO UPDATE SET facts = t.facts + 1;

-- clear_tally: Forget all that was counted.
DELETE FROM tally;

-- read_tally: What is counted of another service, by uid.
SELECT uid, facts
  FROM tally
 ORDER BY uid;
