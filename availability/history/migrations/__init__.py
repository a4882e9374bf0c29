"""Alembic's environment of the history database; `availability.history.database` runs it when it opens one."""
