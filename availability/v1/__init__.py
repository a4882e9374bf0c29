"""The wire contract as Python: generated from proto/availability/v1, never edited."""
