"""Makes one cluster run what was admitted, and is the only witness of what really ran."""
