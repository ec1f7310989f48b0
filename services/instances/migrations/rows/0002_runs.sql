-- What is shown of an attempt's runs. The defaults are what a fold of the facts that were said before
-- there were runs gives, so rows need no rebuild.

ALTER TABLE instance
    -- Of the run that ended last in the present attempt; 128 + the signal that ended it.
    ADD COLUMN exit_code integer,
    ADD COLUMN restarts  integer NOT NULL DEFAULT 0,
    -- By port name, while a run is open.
    ADD COLUMN addresses jsonb   NOT NULL DEFAULT '{}';
-- Facts of replicas name their workload only.
CREATE INDEX instance_workload ON instance (workload_uid);
