"""How far each stream of a source is settled, and since when it waits for missing numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


def latest_of(deltas: Iterable[pb.Delta]) -> dict[str, list[float]]:
    """Return by stream the latest occurred_time (seconds since 1970; 0: none has one) and the highest number."""
    latest: dict[str, list[float]] = {}
    for delta in deltas:
        moment = delta.occurred_time
        note(latest, delta.stream, moment.seconds + moment.nanos / 1e9, delta.source_sequence)
    return latest


def note(latest: dict[str, list[float]], stream: str, occurred_s: float, number: int) -> None:
    """Note one delta; numbers are exact as floats below 2^53, and the ledger takes none above."""
    known = latest.get(stream)
    if known is None:
        latest[stream] = [occurred_s, number]
        return
    if occurred_s > known[0]:
        known[0] = occurred_s
    if number > known[1]:
        known[1] = number


class Marks:
    """The marks of one source."""

    def __init__(self, engine: Engine, source: str) -> None:
        self._engine = engine
        self._source = source
        self._settle = _settle(engine, source)  # made once: making it costs more than carrying it out

    def settled(self, connection: Connection, latest: Mapping[str, Sequence[float]], now: float) -> None:
        """Note within the caller's transaction what is settled: by stream the latest time and number."""
        rows = [
            {"of_stream": stream, "told": watermark, "number": int(sequence), "at": now}
            for stream, (watermark, sequence) in latest.items()
        ]
        if rows:
            connection.execute(self._settle, rows)

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


def _settle(engine: Engine, source: str) -> sa.Insert:
    """The statement that notes one stream as settled; what it waited for may have come with it."""
    insert = upsert(engine, stream_marks).values(
        source=source,
        stream=sa.bindparam("of_stream"),
        watermark=sa.bindparam("told"),
        settled_at=sa.bindparam("at"),
        parked_at=None,
        waits_for=0,
    )
    said, kept = insert.excluded, stream_marks.c
    number: sa.BindParameter[int] = sa.bindparam("number")
    return insert.on_conflict_do_update(
        index_elements=["source", "stream"],
        set_={
            "watermark": sa.case((said.watermark > kept.watermark, said.watermark), else_=kept.watermark),
            "settled_at": said.settled_at,
            "parked_at": sa.case((kept.waits_for > number, kept.parked_at), else_=None),
            "waits_for": sa.case((kept.waits_for > number, kept.waits_for), else_=0),
        },
    )
