"""Development environments: created, started, stopped, restarted, changed, deleted."""
