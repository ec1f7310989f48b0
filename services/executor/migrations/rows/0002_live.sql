-- Replicas that are there, which are few beside all that ever were; counted again and again for operators.
CREATE INDEX replica_live ON replica (state) WHERE NOT released;
