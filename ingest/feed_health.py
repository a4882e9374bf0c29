"""How what brings files fares: since when a feed works or fails, and why; every command and metric tells it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from ingest.database import feed_health, upsert

WEBHOOK, FOLDER = "webhook", "drop"
"""Kinds that no feed has: a door that is shut, a folder that cannot be read."""
NOTED_AGAIN_S = 60.0
"""How exact the time is at which a feed worked last."""
MESSAGE_CHARS_MAX = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedState:
    """One feed. Times: seconds since 1970; ``failing_since`` None: it works; ``worked_at`` 0: never yet."""

    source: str
    kind: str
    worked_at: float
    failing_since: float | None
    failures: int
    reason: str
    message: str


class FeedHealth:
    """The feeds' states in a database. Any thread may call."""

    def __init__(self, engine: Engine, now: Callable[[], float]) -> None:
        self._engine = engine
        self._now = now
        self._worked: dict[tuple[str, str], float] = {}

    def works(self, source: str, kind: str) -> None:
        """Note that it works; while nothing changed, once a minute."""
        now = self._now()
        worked_at = self._worked.get((source, kind))
        if worked_at is not None and now - worked_at < NOTED_AGAIN_S:
            return
        with self._engine.begin() as connection:
            insert = upsert(connection, feed_health).values(
                source=source, kind=kind, worked_at=now, failing_since=None, failures=0, reason="", message=""
            )
            new = {"worked_at": now, "failing_since": None, "failures": 0, "reason": "", "message": ""}
            connection.execute(insert.on_conflict_do_update(index_elements=["source", "kind"], set_=new))
        self._worked[source, kind] = now

    def fails(self, source: str, kind: str, reason: str, message: str) -> None:
        """Note that it fails; since when is kept while it does."""
        now = self._now()
        self._worked.pop((source, kind), None)
        with self._engine.begin() as connection:
            insert = upsert(connection, feed_health).values(
                source=source,
                kind=kind,
                worked_at=0.0,
                failing_since=now,
                failures=1,
                reason=reason[:64],
                message=message[:MESSAGE_CHARS_MAX],
            )
            kept = feed_health.c
            connection.execute(
                insert.on_conflict_do_update(
                    index_elements=["source", "kind"],
                    set_={
                        "failing_since": sa.func.coalesce(kept.failing_since, now),
                        "failures": kept.failures + 1,
                        "reason": reason[:64],
                        "message": message[:MESSAGE_CHARS_MAX],
                    },
                )
            )

    def all(self, source: str = "") -> list[FeedState]:
        """Return the states, by source and kind."""
        query = sa.select(feed_health).order_by(feed_health.c.source, feed_health.c.kind)
        if source:
            query = query.where(feed_health.c.source == source)
        with self._engine.connect() as connection:
            return [FeedState(**row) for row in connection.execute(query).mappings()]
