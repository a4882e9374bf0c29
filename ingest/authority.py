"""Which source speaks for a position: the table of cutovers, asked for every delta.

A cutover moves nodes or skus from one source to another at a stated point of each. Of the old source everything up to
its point counts, and what comes after is refused; of the new one nothing up to its point counts, for the old one has
told it, and everything after does. Nothing is written to the ledger by it, so sellable does not jump.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from availability.v1 import stock_pb2 as pb
from ingest.database import cutovers
from ingest.rows import Category, RowRefused

NOT_GIVEN = -1


class Word(Enum):
    """What a delta is worth."""

    COUNTS = "COUNTS"
    COMPARED = "COMPARED"
    BEFORE = "BEFORE"
    """The new source told it before its point: the old one has told it too."""
    AFTER = "AFTER"
    """The old source tells it after its point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A place in what a source tells: the last number of a stream ('': of any), a time, or both."""

    stream: str = ""
    sequence: int = NOT_GIVEN
    at_time: float = 0.0

    def passed(self, stream: str, sequence: int, occurred: float) -> bool:
        """Tell whether an event lies after the point. One that neither number nor time can place lies after it."""
        if self.sequence != NOT_GIVEN and sequence and (not self.stream or self.stream == stream):
            return sequence > self.sequence
        if self.at_time and occurred:
            return occurred > self.at_time
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutover:
    """One move of authority. Empty ``nodes`` or ``skus``: all."""

    from_source: str
    from_point: Point
    to_source: str
    to_point: Point
    nodes: frozenset[str]
    skus: frozenset[str]
    reason: str
    made_at: float
    cutover_id: int = 0

    def covers(self, sku: str, node: str) -> bool:
        """Tell whether a position belongs to it. A fact without a node belongs where skus alone are named."""
        return (not self.nodes or node in self.nodes) and (not self.skus or sku in self.skus)


class Authority:
    """The cutovers that concern one source, and what they make of its deltas."""

    def __init__(self, engine: Engine, source: str, *, shadow: bool = False) -> None:
        self._engine = engine
        self._source = source
        self._otherwise = Word.COMPARED if shadow else Word.COUNTS
        self._cutovers: Sequence[Cutover] = ()
        self._read: tuple[int, int] = (0, 0)
        self.refresh()

    def refresh(self) -> None:
        """Read the table again: a cutover may have been made meanwhile."""
        latest = sa.select(sa.func.coalesce(sa.func.max(cutovers.c.cutover_id), 0), sa.func.count())
        with self._engine.connect() as connection:
            last, count = connection.execute(latest.select_from(cutovers)).one()
        if (last, count) == self._read:
            return
        self._read = last, count
        self._cutovers = [
            one for one in read_cutovers(self._engine) if self._source in (one.from_source, one.to_source)
        ]

    @property
    def simple(self) -> bool:
        """Whether every delta just counts."""
        return not self._cutovers and self._otherwise is Word.COUNTS

    @property
    def sends(self) -> bool:
        """Whether anything of the source can reach the ledger."""
        return self._otherwise is Word.COUNTS or bool(self._cutovers)

    def word(self, delta: pb.Delta, stream: str, sequence: int) -> Word:
        """Say what a delta is worth; ``stream`` and ``sequence`` are its place in the source's own numbers."""
        occurred = delta.occurred_time.seconds + delta.occurred_time.nanos / 1e9
        before = False
        for one in self._cutovers:
            if not one.covers(delta.sku, delta.node):
                continue
            if one.to_source == self._source:
                if one.to_point.passed(stream, sequence, occurred):
                    return Word.COUNTS
                before = True
            elif one.from_point.passed(stream, sequence, occurred):
                return Word.BEFORE if before else Word.AFTER
            else:
                return Word.COUNTS
        return Word.BEFORE if before else self._otherwise

    def refusal(self, delta: pb.Delta) -> RowRefused:
        """Return the error of a delta that lies after the point of its source."""
        return RowRefused(
            Category.AUTHENTICATION,
            "NOT_AUTHORITY",
            f"{self._source} does not speak for {delta.sku or delta.order_ref} at {delta.node or 'any node'} any more",
        )


def read_cutovers(engine: Engine) -> list[Cutover]:
    """Return every cutover, the newest first."""
    query = sa.select(cutovers).order_by(cutovers.c.cutover_id.desc())
    with engine.connect() as connection:
        return [
            Cutover(
                from_source=row["from_source"],
                from_point=Point(
                    stream=row["from_stream"], sequence=row["from_sequence"], at_time=row["at_time"]
                ),
                to_source=row["to_source"],
                to_point=Point(stream=row["to_stream"], sequence=row["to_sequence"], at_time=row["at_time"]),
                nodes=frozenset(json.loads(row["nodes"])),
                skus=frozenset(json.loads(row["skus"])),
                reason=row["reason"],
                made_at=row["made_at"],
                cutover_id=row["cutover_id"],
            )
            for row in connection.execute(query).mappings()
        ]


def record_cutover(engine: Engine, one: Cutover) -> int:
    """Keep a cutover, which counts from now on; return its number."""
    with engine.begin() as connection:
        made = connection.execute(
            sa.insert(cutovers).values(
                from_source=one.from_source,
                from_stream=one.from_point.stream,
                from_sequence=one.from_point.sequence,
                to_source=one.to_source,
                to_stream=one.to_point.stream,
                to_sequence=one.to_point.sequence,
                at_time=one.from_point.at_time,
                nodes=_listed(one.nodes),
                skus=_listed(one.skus),
                reason=one.reason,
                made_at=one.made_at,
            )
        )
        key = made.inserted_primary_key
        assert key is not None
        return int(key[0])


def withdraw_cutover(engine: Engine, cutover_id: int) -> None:
    """Take back a cutover that came too late."""
    with engine.begin() as connection:
        connection.execute(sa.delete(cutovers).where(cutovers.c.cutover_id == cutover_id))


def _listed(names: Collection[str]) -> str:
    return json.dumps(sorted(names), ensure_ascii=False)
