"""The authority: Redis functions, keys, calls and the log. Nothing outside this package names a Redis key."""
