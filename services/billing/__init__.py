"""The bill: what ran, what it costs by which prices, and why."""
