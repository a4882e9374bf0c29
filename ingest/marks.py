"""How far each stream of a source is settled, and since when it waits for missing numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from availability.v1 import stock_pb2 as pb
from ingest.database import stream_marks, upsert


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One stream ('' for events that have no sequence). Times: seconds since 1970; 0: never."""

    source: str
    stream: str
    watermark: float
    settled_at: float
    parked_at: float | None
    waits_for: int


_NOTHING = (0.0, 0)


class Marks:
    """The marks of one source."""

    def __init__(self, engine: Engine, source: str) -> None:
        self._engine = engine
        self._source = source

    def settled(self, connection: Connection, deltas: Iterable[pb.Delta], now: float) -> None:
        """Note within the caller's transaction that these are settled: what they waited for has come."""
        latest: dict[str, tuple[float, int]] = {}
        for delta in deltas:
            stream, moment, number = delta.stream, delta.occurred_time, delta.source_sequence
            seconds = moment.seconds
            watermark, sequence = latest.get(stream, _NOTHING)
            if seconds >= watermark or number > sequence or stream not in latest:
                if seconds >= watermark:
                    watermark = max(watermark, seconds + moment.nanos / 1e9)
                latest[stream] = watermark, max(number, sequence)
        for stream, (watermark, sequence) in latest.items():
            insert = upsert(connection, stream_marks).values(
                source=self._source,
                stream=stream,
                watermark=watermark,
                settled_at=now,
                parked_at=None,
                waits_for=0,
            )
            said, kept = insert.excluded, stream_marks.c
            later = sa.case((said.watermark > kept.watermark, said.watermark), else_=kept.watermark)
            connection.execute(
                insert.on_conflict_do_update(
                    index_elements=["source", "stream"],
                    set_={
                        "watermark": later,
                        "settled_at": said.settled_at,
                        "parked_at": sa.case((kept.waits_for > sequence, kept.parked_at), else_=None),
                        "waits_for": sa.case((kept.waits_for > sequence, kept.waits_for), else_=0),
                    },
                )
            )

    def parked(self, stream: str, waits_for: int, now: float) -> None:
        """Note that a stream waits; since when is kept while it waits for the same number."""
        with self._engine.begin() as connection:
            insert = upsert(connection, stream_marks).values(
                source=self._source,
                stream=stream,
                watermark=0.0,
                settled_at=0.0,
                parked_at=now,
                waits_for=waits_for,
            )
            kept = stream_marks.c
            same = sa.and_(kept.waits_for == waits_for, kept.parked_at.is_not(None))
            connection.execute(
                insert.on_conflict_do_update(
                    index_elements=["source", "stream"],
                    set_={
                        "parked_at": sa.case((same, kept.parked_at), else_=insert.excluded.parked_at),
                        "waits_for": waits_for,
                    },
                )
            )

    def skipped(self, stream: str) -> None:
        """Note that missing numbers were given up."""
        here = (stream_marks.c.source == self._source) & (stream_marks.c.stream == stream)
        with self._engine.begin() as connection:
            connection.execute(sa.update(stream_marks).where(here).values(parked_at=None, waits_for=0))

    def all(self) -> list[Mark]:
        """Return every stream's mark, by name."""
        query = (
            sa.select(stream_marks)
            .where(stream_marks.c.source == self._source)
            .order_by(stream_marks.c.stream)
        )
        with self._engine.connect() as connection:
            return [Mark(**row) for row in connection.execute(query).mappings()]
