"""Projects, the people in them, their roles, tokens, and the keys that tokens are checked with."""
