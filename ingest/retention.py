"""What is thrown away when its time is over. Waiting letters, and the checksums of carried files, are kept for ever:
the first wait for a person, and by the others a file that is delivered again is recognised.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from ingest.database import artifacts, run_settings, shadow_events, unapplied_rows
from ingest.letters import Letters
from ingest.settings import SourceSettings

DAY_S = 86_400.0


def clean(engine: Engine, letters: Letters, settings: SourceSettings, now: float) -> tuple[int, int]:
    """Delete what a source's settings do not keep; return how many letters, and of how many runs the details."""
    source, kept = settings.source, settings.retention
    forgotten = letters.forget(source, now - kept.letters_days * DAY_S)
    before = now - kept.runs_days * DAY_S
    ended = sa.select(artifacts.c.run_id).where(artifacts.c.source == source, artifacts.c.ended_at < before)
    with engine.begin() as connection:
        connection.execute(sa.delete(unapplied_rows).where(unapplied_rows.c.run_id.in_(ended)))
        runs = connection.execute(sa.delete(run_settings).where(run_settings.c.run_id.in_(ended))).rowcount
        connection.execute(
            sa.delete(shadow_events).where(shadow_events.c.source == source, shadow_events.c.seen_at < before)
        )
    return forgotten, runs
