"""Dead letters: what could not be applied, kept with its reason until a person replays or discards it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from ingest.database import dead_letters, upsert
from ingest.redaction import Redactor
from ingest.rows import Category

RAW_BYTES_MAX = 100_000
IN_MAX = 1_000
"""Names of one query."""
WAITING, REPLAYED, DISCARDED = "WAITING", "REPLAYED", "DISCARDED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One thing that could not be applied. ``context`` and ``raw`` together are an artifact of one row.

    ``event_id`` is the name under which it is replayed: one effect, however often.
    """

    source: str
    artifact: str
    run_id: str
    position: int
    category: Category
    reason: str
    message: str
    raw: bytes
    context: bytes
    event_id: str
    correlation_id: str = ""

    @property
    def letter_id(self) -> str:
        """The same content refused for the same reason is one letter."""
        key = b"\0".join((self.source.encode(), self.reason.encode(), self.raw))
        return hashlib.sha256(key).hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptLetter:
    """A letter as it is kept."""

    letter_id: str
    source: str
    artifact: str
    run_id: str
    position: int
    category: str
    reason: str
    message: str
    raw: bytes
    context: bytes
    event_id: str
    correlation_id: str
    first_seen_at: float
    last_seen_at: float
    count: int
    state: str
    closed_at: float | None
    closed_reason: str


class Letters:
    """The dead letters of a database. ``redact``: by source, what of its rows is not kept."""

    def __init__(self, engine: Engine, redact: Mapping[str, Redactor] | None = None) -> None:
        self._engine = engine
        self._redact = redact or {}

    def put(self, connection: Connection, letters: Iterable[Letter], now: float) -> int:
        """Keep letters within the caller's transaction; a repeat only counts. Returns how many."""
        count = 0
        for letter in letters:
            raw, message = letter.raw, letter.message
            redactor = self._redact.get(letter.source)
            if redactor:
                raw, message = redactor.kept(raw, message)
            statement = upsert(connection, dead_letters).values(
                letter_id=letter.letter_id,
                source=letter.source,
                artifact=letter.artifact[:1024],
                run_id=letter.run_id,
                position=letter.position,
                category=letter.category.value,
                reason=letter.reason,
                message=message[:2000],
                raw=raw[:RAW_BYTES_MAX],
                context=letter.context,
                event_id=letter.event_id,
                correlation_id=letter.correlation_id,
                first_seen_at=now,
                last_seen_at=now,
                count=1,
                state=WAITING,
                closed_reason="",
            )
            # Seen again at the same place of the same run: a restart, not a repeat.
            again = sa.or_(
                dead_letters.c.run_id != statement.excluded.run_id,
                dead_letters.c.position != statement.excluded.position,
            )
            # Replayed, and refused again as another event: it waits again, to be replayed under that one's name. One
            # in conflict is the same event in whatever file it comes, and was replayed under a name that no file has.
            anew = sa.and_(
                dead_letters.c.state == REPLAYED,
                dead_letters.c.event_id != statement.excluded.event_id,
                statement.excluded.category != Category.CONFLICT.value,
            )
            own = dead_letters.c
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["letter_id"],
                    set_={
                        "count": own.count + sa.case((again, 1), else_=0),
                        "last_seen_at": statement.excluded.last_seen_at,
                        "run_id": statement.excluded.run_id,
                        "position": statement.excluded.position,
                        "artifact": statement.excluded.artifact,
                        "state": sa.case((anew, WAITING), else_=own.state),
                        "event_id": sa.case((anew, statement.excluded.event_id), else_=own.event_id),
                        "closed_at": sa.case((anew, sa.null()), else_=own.closed_at),
                    },
                )
            )
            count += 1
        return count

    def unknown(self, connection: Connection, letters: Sequence[Letter]) -> list[Letter]:
        """Return those whose event of that source no letter is about, open or closed."""
        table, known = dead_letters, set[tuple[str, str]]()
        for first in range(0, len(letters), IN_MAX):
            part = letters[first : first + IN_MAX]
            query = sa.select(table.c.source, table.c.event_id).where(
                table.c.source.in_({letter.source for letter in part}),
                table.c.event_id.in_([letter.event_id for letter in part]),
            )
            known.update((source, event_id) for source, event_id in connection.execute(query))
        return [letter for letter in letters if (letter.source, letter.event_id) not in known]

    def find(
        self,
        *,
        source: str = "",
        category: str = "",
        state: str = WAITING,
        run_id: str = "",
        letter_id: str = "",
        limit: int = 100,
    ) -> list[KeptLetter]:
        """Return letters, the oldest first. ``letter_id`` may be the beginning of one."""
        table = dead_letters
        query = sa.select(table).order_by(table.c.first_seen_at, table.c.position).limit(limit)
        for column, value in (
            (table.c.source, source),
            (table.c.category, category),
            (table.c.run_id, run_id),
        ):
            if value:
                query = query.where(column == value)
        if state:
            query = query.where(table.c.state == state)
        if letter_id:
            query = query.where(table.c.letter_id.startswith(letter_id, autoescape=True))
        with self._engine.connect() as connection:
            return [KeptLetter(**row) for row in connection.execute(query).mappings()]

    def counts(self) -> dict[tuple[str, str], int]:
        """Return waiting letters by (source, category)."""
        table = dead_letters
        query = (
            sa.select(table.c.source, table.c.category, sa.func.count())
            .where(table.c.state == WAITING)
            .group_by(table.c.source, table.c.category)
        )
        with self._engine.connect() as connection:
            return {(source, category): count for source, category, count in connection.execute(query)}

    def close(self, letter_ids: Sequence[str], state: str, reason: str, now: float) -> int:
        """Mark waiting letters as replayed or discarded; return how many those were."""
        table = dead_letters
        with self._engine.begin() as connection:
            return connection.execute(
                sa.update(table)
                .where(table.c.letter_id.in_(letter_ids), table.c.state == WAITING)
                .values(state=state, closed_at=now, closed_reason=reason)
            ).rowcount

    def forget(self, source: str, before: float) -> int:
        """Delete a source's letters that were closed before a time (seconds since 1970); return how many."""
        table = dead_letters
        with self._engine.begin() as connection:
            return connection.execute(
                sa.delete(table).where(
                    table.c.source == source, table.c.state != WAITING, table.c.closed_at < before
                )
            ).rowcount
