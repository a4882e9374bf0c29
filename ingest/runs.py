"""Runs: each artifact of a source, how far it is settled, and what became of its rows; kept in the database.

Nothing but a transaction that follows the ledger's durable ack may move a run on (settling.py).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from ingest.database import artifacts, run_settings, unapplied_rows, upsert
from ingest.settings import SourceSettings

READ_BYTES = 1 << 20
OPEN, DONE, REFUSED = "OPEN", "DONE", "REFUSED"


@dataclass(slots=True)
class Progress:
    """How far an artifact is: rows, and what became of them."""

    name: str
    bytes_read: int = 0
    bytes_total: int = 0
    rows: int = 0
    applied: int = 0
    repeated: int = 0
    refused: int = 0
    ignored: int = 0
    compared: int = 0
    """Of a source in shadow: not applied."""
    before_point: int = 0
    """Told before the source became the authority: the old one has told it."""
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of an artifact. ``known``: it was delivered before, and is not read again."""

    run_id: str
    state: str
    known: bool
    reason: str
    progress: Progress


@dataclass(frozen=True, slots=True)
class Run:
    """One artifact on its way. ``position``: the last row that is settled."""

    run_id: str
    name: str
    checksum: str
    position: int
    state: str
    reason: str


class Runs:
    """The runs of one source."""

    def __init__(
        self,
        settings: SourceSettings,
        engine: Engine,
        *,
        now: Callable[[], float],
        new_run_id: Callable[[], str],
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._now = now
        self._new_run_id = new_run_id

    def begin(self, name: str, checksum: str, size: int) -> Run:
        """Note a delivery of an artifact; one that is known has the run that it had."""
        table, source = artifacts, self._settings.source
        here = (table.c.source == source) & (table.c.checksum == checksum)
        with self._engine.begin() as connection:
            found = connection.execute(sa.select(table).where(here)).mappings().first()
            if found is not None:
                if found["state"] != OPEN:
                    connection.execute(sa.update(table).where(here).values(deliveries=table.c.deliveries + 1))
                return Run(
                    found["run_id"],
                    found["name"],
                    checksum,
                    found["position"],
                    found["state"],
                    found["reason"],
                )
            run_id = self._new_run_id()
            connection.execute(
                sa.insert(table).values(
                    source=source,
                    checksum=checksum,
                    run_id=run_id,
                    name=name,
                    bytes=size,
                    state=OPEN,
                    position=0,
                    applied=0,
                    repeated=0,
                    refused=0,
                    ignored=0,
                    deliveries=1,
                    mapping_version=self._settings.mapping.version,
                    reason="",
                    begun_at=self._now(),
                )
            )
            kept = self._settings.model_dump_json(include={"source", "format", "mapping"})
            connection.execute(sa.insert(run_settings).values(run_id=run_id, source=source, settings=kept))
        return Run(run_id, name, checksum, 0, OPEN, "")

    def end(self, run_id: str, state: str, reason: str) -> None:
        """Note what became of an artifact."""
        with self._engine.begin() as connection:
            connection.execute(
                sa.update(artifacts)
                .where(artifacts.c.run_id == run_id)
                .values(state=state, reason=reason, ended_at=self._now())
            )


_MOVE_ON = (
    sa.update(artifacts)
    .where(artifacts.c.run_id == sa.bindparam("of_run"))
    .values(
        position=sa.bindparam("last"),
        **{
            name: artifacts.c[name] + sa.bindparam(f"more_{name}")
            for name in ("applied", "repeated", "refused", "ignored")
        },
    )
)
"""Notes how far a run is settled. Made once: making it costs more than carrying it out."""


def move_on(
    connection: Connection, run: Run, last: int, *, applied: int, repeated: int, refused: int, ignored: int
) -> None:
    """Note that a run is settled up to a row, and what became of the rows since."""
    counted_rows = {
        "of_run": run.run_id,
        "last": last,
        "more_applied": applied,
        "more_repeated": repeated,
        "more_refused": refused,
        "more_ignored": ignored,
    }
    connection.execute(_MOVE_ON, counted_rows)


def keep_unapplied(connection: Connection, run: Run, found: list[tuple[int, str]]) -> None:
    """Keep rows without effect as ranges of places."""
    ranges: list[tuple[int, int, str]] = []
    for position, result in sorted(set(found)):
        if ranges and ranges[-1][1] + 1 == position and ranges[-1][2] == result:
            ranges[-1] = (ranges[-1][0], position, result)
        elif not ranges or ranges[-1][1] < position:
            ranges.append((position, position, result))
    for first, last, result in ranges:
        connection.execute(
            upsert(connection, unapplied_rows)
            .values(run_id=run.run_id, first_position=first, last_position=last, result=result)
            .on_conflict_do_nothing()
        )


def shown_name(path: Path) -> str:
    """Return a file's name as text that can be kept and printed: what is no UTF-8 in it stands as \\xNN."""
    return os.fsencode(path.name).decode("utf-8", "backslashreplace")


def checksum_of(path: Path) -> tuple[str, int]:
    """SHA-256 of a file's bytes, and how many those are."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as artifact:
        while block := artifact.read(READ_BYTES):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size
