"""One file per change of the tables, in a single line: each names the one before it."""
