-- That nobody knows of a replica is told beside where it stood, for it stands there again when it is found.
ALTER TABLE replica ADD COLUMN lost boolean NOT NULL DEFAULT false;
-- Of what is lost just now it is not known any more; it ran. (6 is LOST, 2 is RUNNING.)
UPDATE replica SET lost = true, state = 2 WHERE state = 6;
