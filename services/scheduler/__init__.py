"""The queue: what was declared, what it waits for, and its admission."""
