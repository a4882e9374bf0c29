"""Numbers of a stream that an operator gave up, or a stream that was begun anew, as the journal has them."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from availability.history.database import reading
from availability.history.tables import journal
from availability.ledger.record import Kind, Record, StreamBody, decode_body

GAPS_MAX = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp:
    """A gap that was skipped (SKIP_GAP), or a stream that was reset (RESET); the mark after it. Version: packed."""

    version: int
    clock_ms: int
    source: str
    stream: str
    action: str
    source_sequence: int
    reason: str
    author: str


def given_up(engine: Engine, source: str, after: int) -> list[GivenUp]:
    """Return what was given up of a source since a packed version, the latest first, GAPS_MAX at most."""
    query = (
        sa.select(journal.c.version, journal.c.clock_ms, journal.c.raw, journal.c.author)
        .where(journal.c.kind == int(Kind.STREAM), journal.c.version > after)
        .order_by(journal.c.version.desc())
        .limit(GAPS_MAX)
    )
    with reading(engine) as connection:
        rows = connection.execute(query).all()
    found = []
    for version, clock_ms, raw, author in rows:
        body = decode_body(msgspec.msgpack.decode(raw, type=Record))
        if isinstance(body, StreamBody) and body.source == source:
            found.append(
                GivenUp(
                    version=version,
                    clock_ms=clock_ms,
                    source=body.source,
                    stream=body.stream,
                    action=body.action,
                    source_sequence=body.source_sequence,
                    reason=body.reason,
                    author=author,
                )
            )
    return found
