"""One artifact through everything: read → decode → map → batch → StreamDeltas → settle.

Exactly once without a transaction over two systems: every delta has a name of its own (the source's, or the artifact's
checksum and the row's place), the ledger knows names, and how far an artifact is settled is noted only after the
ledger's durable ack. Killed anywhere, it is sent again from the last note, and what had arrived is a DUPLICATE.
Memory is bounded: rows are read as the ledger takes them.
"""

from __future__ import annotations

import hashlib
import io
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from availability.client import Acked
from availability.v1 import stock_pb2 as pb
from ingest.database import artifacts
from ingest.formats import decoder_for
from ingest.formats.compression import Truncated, opened
from ingest.letters import KeptLetter, Letter, Letters
from ingest.mapping import Mapper
from ingest.rows import ArtifactRefused, BadRow, Category, Row, RowRefused
from ingest.settings import SourceSettings

READ_BYTES = 1 << 20
BATCH_BYTES_MAX = 1_000_000
"""Of rows as they came: what they become, with what a mapping adds, fits a message, and few batches fit memory."""
OPEN, DONE, REFUSED = "OPEN", "DONE", "REFUSED"
_REJECTED = pb.DELTA_RESULT_REJECTED
_CATEGORIES: Mapping[str, Category] = {
    "UNKNOWN_NODE": Category.UNKNOWN_NODE,
    "CONFLICT": Category.CONFLICT,
    "PERMISSION_DENIED": Category.AUTHENTICATION,
}
"""What the ledger's reasons are; every other one is VALIDATION."""


class Sender(Protocol):
    """What deltas go to: ``availability.client.DeltaSender``."""

    def send(self, deltas: list[pb.Delta], *, timeout_s: float = ...) -> int: ...
    def flush(self, *, timeout_s: float = ...) -> None: ...
    def close(self, *, drain: bool = ..., timeout_s: float = ...) -> None: ...


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
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of an artifact. ``known``: it was delivered before, and is not read again."""

    run_id: str
    state: str
    known: bool
    reason: str
    progress: Progress


@dataclass(slots=True)
class _Batch:
    deltas: list[pb.Delta] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)
    numbers_only: set[int] = field(default_factory=set)
    ignored: int = 0
    last: int = 0
    raw_bytes: int = 0


class Pipeline:
    """Carries artifacts of one source. One thread; the sender has its own."""

    def __init__(
        self,
        settings: SourceSettings,
        engine: Engine,
        letters: Letters,
        open_sender: Callable[[Callable[[Acked], None]], Sender],
        *,
        now: Callable[[], float],
        new_run_id: Callable[[], str],
        send_timeout_s: float = 86_400.0,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._letters = letters
        self._open_sender = open_sender
        self._now = now
        self._new_run_id = new_run_id
        self._send_timeout_s = send_timeout_s
        self._mapper = Mapper(settings.source, settings.mapping)
        self._decoder = decoder_for(settings.format)

    def carry(self, path: Path, *, watch: Callable[[Progress], None] = lambda _: None) -> Outcome:
        """Bring a file into the ledger. Raises OSError, ClientError; called again it goes on where it was."""
        checksum, size = checksum_of(path)
        run = self._begin(path.name, checksum, size)
        progress = Progress(path.name, bytes_total=size)
        if run.state != OPEN:
            return Outcome(
                run_id=run.run_id, state=run.state, known=True, reason=run.reason, progress=progress
            )
        try:
            if self._settings.all_or_nothing:
                self._prove(path, run, progress)
            self._send(path, run, checksum, progress, watch)
        except ArtifactRefused as error:
            self._end(run.run_id, REFUSED, str(error))
            return Outcome(
                run_id=run.run_id, state=REFUSED, known=False, reason=str(error), progress=progress
            )
        self._end(run.run_id, DONE, "")
        return Outcome(run_id=run.run_id, state=DONE, known=False, reason="", progress=progress)

    def replayed(self, letter: KeptLetter) -> pb.Delta | None:
        """Translate a dead letter by the mapping as it is now, under the letter's own name. Raises RowRefused."""
        found = list(self.translated(io.BytesIO(letter.context + letter.raw), ""))
        if len(found) != 1:
            raise RowRefused(Category.VALIDATION, "MALFORMED_ROW", f"the letter holds {len(found)} rows")
        _, delta, refused = found[0]
        if refused is not None:
            raise refused
        if delta is not None:
            delta.source_sequence, delta.event_id = 0, letter.event_id
        return delta

    def translated(
        self, artifact: BinaryIO, checksum: str
    ) -> Iterator[tuple[Row | BadRow, pb.Delta | None, RowRefused | None]]:
        """Yield each row with its delta (None: ignored by its code), or with why it has none. Sends nothing.

        Raises ArtifactRefused.
        """
        mapper, prefix = self._mapper, checksum[:24]
        position = 0
        try:
            for row in self._decoder.rows(opened(artifact), mapper.columns):
                position = row.position
                if isinstance(row, BadRow):
                    yield row, None, RowRefused(Category.VALIDATION, row.reason, row.message)
                    continue
                try:
                    yield row, mapper.delta(row, f"{prefix}:{row.position}"), None
                except RowRefused as refused:
                    yield row, None, refused
        except Truncated as error:
            bad = BadRow(position + 1, "TRUNCATED", str(error), b"")
            yield bad, None, RowRefused(Category.VALIDATION, bad.reason, bad.message)

    # --- One run ------------------------------------------------------------------------------------------

    def _prove(self, path: Path, run: _Run, progress: Progress) -> None:
        """Read everything first: with one bad row the artifact is refused, and its bad rows are the letters."""
        letters: list[Letter] = []
        with path.open("rb") as artifact:
            for row, _, refused in self.translated(artifact, run.checksum):
                if refused is not None:
                    letters.append(self._letter(run, row, refused))
                    if len(letters) >= 1_000:
                        break
        if letters:
            with self._engine.begin() as connection:
                self._letters.put(connection, letters, self._now())
            progress.refused = len(letters)
            raise ArtifactRefused(f"{len(letters)} bad rows, and the source says all or nothing")

    def _send(
        self, path: Path, run: _Run, checksum: str, progress: Progress, watch: Callable[[Progress], None]
    ) -> None:
        settings, rows_max = self._settings, self._settings.batch_deltas
        waiting: queue.SimpleQueue[_Batch] = queue.SimpleQueue()
        settled = threading.Lock()

        def acked(ack: Acked) -> None:
            with settled:
                self._settle(run, waiting.get_nowait(), ack.answer, progress)
            watch(progress)

        sender = self._open_sender(acked)
        try:
            with path.open("rb") as artifact:
                batch = _Batch()
                for row, delta, refused in self.translated(artifact, checksum):
                    progress.rows += 1
                    if progress.rows > settings.rows_max:
                        raise ArtifactRefused(f"more than {settings.rows_max} rows")
                    if row.position <= run.position:
                        continue  # settled before the restart
                    batch.last = row.position
                    batch.raw_bytes += len(row.raw)
                    if refused is not None:
                        batch.letters.append(self._letter(run, row, refused))
                        number = self._mapper.number_only(row) if isinstance(row, Row) else None
                        if number is not None:
                            assert isinstance(row, Row)
                            batch.numbers_only.add(len(batch.deltas))
                            batch.deltas.append(number)
                            batch.rows.append(row)
                    elif delta is None:
                        batch.ignored += 1
                    else:
                        assert isinstance(row, Row)
                        batch.deltas.append(delta)
                        batch.rows.append(row)
                    if (
                        len(batch.deltas) >= rows_max
                        or batch.raw_bytes >= BATCH_BYTES_MAX
                        or len(batch.letters) >= rows_max
                    ):
                        progress.bytes_read = artifact.tell()
                        waiting.put(batch)
                        sender.send(batch.deltas, timeout_s=self._send_timeout_s)
                        batch = _Batch()
                if batch.last:
                    progress.bytes_read = progress.bytes_total
                    waiting.put(batch)
                    sender.send(batch.deltas, timeout_s=self._send_timeout_s)
            sender.flush(timeout_s=self._send_timeout_s)
        except BaseException:
            sender.close(drain=False)
            raise
        sender.close()

    def _settle(self, run: _Run, batch: _Batch, answer: pb.StreamDeltasResponse, progress: Progress) -> None:
        """Note what the ledger has taken: dead letters and the place reached, in one transaction."""
        accepted = answer.accepted_count
        parked = accepted < len(batch.deltas)
        last = batch.rows[accepted].position - 1 if parked else batch.last
        letters = [letter for letter in batch.letters if letter.position <= last]
        for detail in answer.details:
            if (
                detail.result == _REJECTED
                and detail.index < accepted
                and detail.index not in batch.numbers_only
            ):
                row = batch.rows[detail.index]
                category = _CATEGORIES.get(detail.reason, Category.VALIDATION)
                refused = RowRefused(category, detail.reason, detail.message)
                letters.append(self._letter(run, row, refused, batch.deltas[detail.index]))
        results = list(answer.results)[:accepted]
        applied = results.count(pb.DELTA_RESULT_APPLIED)
        repeated = results.count(pb.DELTA_RESULT_DUPLICATE) + results.count(pb.DELTA_RESULT_STALE)
        with self._engine.begin() as connection:
            self._letters.put(connection, letters, self._now())
            table = artifacts
            connection.execute(
                sa.update(table)
                .where(table.c.run_id == run.run_id)
                .values(
                    position=last,
                    applied=table.c.applied + applied,
                    repeated=table.c.repeated + repeated,
                    refused=table.c.refused + len(letters),
                    ignored=table.c.ignored + batch.ignored,
                )
            )
        progress.applied += applied
        progress.repeated += repeated
        progress.refused += len(letters)
        progress.ignored += batch.ignored
        for letter in letters:
            progress.reasons[letter.reason] = progress.reasons.get(letter.reason, 0) + 1

    def _letter(
        self, run: _Run, row: Row | BadRow, refused: RowRefused, delta: pb.Delta | None = None
    ) -> Letter:
        event_id = f"{run.checksum[:24]}:{row.position}"
        return Letter(
            source=self._settings.source,
            artifact=run.name,
            run_id=run.run_id,
            position=row.position,
            category=refused.category,
            reason=refused.reason,
            message=refused.message,
            raw=row.raw,
            context=self._decoder.context,
            event_id=f"dl:{event_id}",
            correlation_id=delta.correlation_id if delta is not None else "",
        )

    # --- What is remembered -------------------------------------------------------------------------------

    def _begin(self, name: str, checksum: str, size: int) -> _Run:
        table, source = artifacts, self._settings.source
        here = (table.c.source == source) & (table.c.checksum == checksum)
        with self._engine.begin() as connection:
            found = connection.execute(sa.select(table).where(here)).mappings().first()
            if found is not None:
                if found["state"] != OPEN:
                    connection.execute(sa.update(table).where(here).values(deliveries=table.c.deliveries + 1))
                return _Run(
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
        return _Run(run_id, name, checksum, 0, OPEN, "")

    def _end(self, run_id: str, state: str, reason: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(
                sa.update(artifacts)
                .where(artifacts.c.run_id == run_id)
                .values(state=state, reason=reason, ended_at=self._now())
            )


@dataclass(frozen=True, slots=True)
class _Run:
    run_id: str
    name: str
    checksum: str
    position: int
    state: str
    reason: str


def checksum_of(path: Path) -> tuple[str, int]:
    """SHA-256 of a file's bytes, and how many those are."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as artifact:
        while block := artifact.read(READ_BYTES):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size
