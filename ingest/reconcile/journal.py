"""What the journal says of positions and orders: the evidence behind causes. Reads only; the historian writes it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from availability.domain.version import Version
from availability.history.database import reading
from availability.history.gaps import given_up
from availability.history.tables import deltas, historian, journal_days, packed, positions
from ingest.reconcile.causes import Move

NAMES_AT_ONCE = 500
MOVES_MAX = 2_000
"""Deltas of one position that are looked at, the latest."""
_MOVE = tuple(Move.__slots__)


class Journal:
    """The journal in a history database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def reached(self) -> int:
        """Return the packed version up to which the journal is written; 0: nobody writes one."""
        with reading(self._engine) as connection:
            found = connection.execute(sa.select(sa.func.max(historian.c.version))).scalar()
        return int(found or 0)

    def moves(
        self, places: Iterable[tuple[str, str]], after: int, transfers: bool = True
    ) -> dict[tuple[str, str], list[Move]]:
        """Return the deltas of positions since a packed version, in order. A TRANSFER_OUT counts at both its nodes."""
        wanted = set(places)
        skus = sorted({sku for sku, _ in wanted})
        found: dict[tuple[str, str], list[Move]] = defaultdict(list)
        columns = [deltas.c[name] for name in _MOVE]
        with reading(self._engine) as connection:
            recent = sa.and_(deltas.c.version > after, deltas.c.day >= self._first_day(connection, after))
            for first in range(0, len(skus), NAMES_AT_ONCE):
                query = (
                    sa.select(*columns)
                    .where(deltas.c.sku.in_(skus[first : first + NAMES_AT_ONCE]), recent)
                    .order_by(deltas.c.version, deltas.c.number)
                )
                for row in connection.execute(query):
                    move = Move(**dict(zip(_MOVE, row, strict=True)))
                    places_of = {(move.sku, move.node)}
                    if transfers and move.to_node:
                        places_of.add((move.sku, move.to_node))
                    for place in places_of & wanted:
                        found[place].append(move)
        return {place: moves[-MOVES_MAX:] for place, moves in found.items()}

    def order_moves(self, lines: Iterable[tuple[str, str, str]]) -> dict[tuple[str, str, str], list[Move]]:
        """Return the deltas that named order lines, by (order source, order, sku), in order."""
        wanted = set(lines)
        skus = sorted({sku for _, _, sku in wanted})
        refs = {ref for _, ref, _ in wanted}
        found: dict[tuple[str, str, str], list[Move]] = defaultdict(list)
        columns = [deltas.c[name] for name in _MOVE]
        with reading(self._engine) as connection:
            for first in range(0, len(skus), NAMES_AT_ONCE):
                query = (
                    sa.select(*columns)
                    .where(deltas.c.sku.in_(skus[first : first + NAMES_AT_ONCE]), deltas.c.order_ref != "")
                    .order_by(deltas.c.version, deltas.c.number)
                )
                for row in connection.execute(query):
                    if row.order_ref in refs:
                        move = Move(**dict(zip(_MOVE, row, strict=True)))
                        if (*move.order, move.sku) in wanted:
                            found[*move.order, move.sku].append(move)
        return found

    def known_skus(self, skus: Iterable[str]) -> set[str]:
        """Return which skus the journal has ever named."""
        wanted, found = sorted(set(skus)), set()
        with reading(self._engine) as connection:
            for first in range(0, len(wanted), NAMES_AT_ONCE):
                query = sa.select(positions.c.sku).where(
                    positions.c.sku.in_(wanted[first : first + NAMES_AT_ONCE])
                )
                found |= set(connection.execute(query).scalars())
        return found

    def point(self, as_of: Mapping[tuple[str, str], int]) -> tuple[int, int]:
        """Return the packed version at which the last of these numbers was applied, and when, in microseconds.

        0 for what the journal does not know.
        """
        version = moment = 0
        with reading(self._engine) as connection:
            for (source, stream), sequence in as_of.items():
                query = (
                    sa.select(deltas.c.version, deltas.c.clock_ms, deltas.c.occurred_us)
                    .where(
                        deltas.c.source == source,
                        deltas.c.stream == stream,
                        deltas.c.source_sequence <= sequence,
                    )
                    .order_by(deltas.c.source_sequence.desc())
                    .limit(1)
                )
                row = connection.execute(query).one_or_none()
                if row is not None:
                    version = max(version, row.version)
                    moment = max(moment, row.occurred_us or row.clock_ms * 1_000)
        return version, moment

    def gaps(self, source: str, after: int) -> list[str]:
        """Return what was given up of a source's streams since a packed version, as sentences."""
        return [
            f"numbers of stream {one.stream} up to {one.source_sequence:,} were given up by {one.author}: {one.reason}"
            for one in given_up(self._engine, source, after)
        ]

    def before_day(self, day: int) -> int:
        """Return the packed version before a day (since 1970), or 0 where the journal does not reach back to it."""
        query = sa.select(sa.func.max(journal_days.c.last_version)).where(journal_days.c.day < day)
        with reading(self._engine) as connection:
            return int(connection.execute(query).scalar() or 0)

    def _first_day(self, connection: Connection, after: int) -> int:
        query = sa.select(sa.func.min(journal_days.c.day)).where(journal_days.c.last_version > after)
        return int(connection.execute(query).scalar() or 0)


def packed_version(text: str) -> int:
    """Return a version of the wire as a packed number; 0 for none."""
    return packed(Version.parse(text)) if text else 0


def sequence_marks(as_of: Mapping[str, int], source: str) -> dict[tuple[str, str], int]:
    """Read STREAM or SOURCE/STREAM → number."""
    found = {}
    for name, sequence in as_of.items():
        whose, slash, stream = name.partition("/")
        found[(whose, stream) if slash else (source, name)] = sequence
    return found
