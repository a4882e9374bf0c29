"""One artifact through everything: read → decode → map → batch → StreamDeltas → settle.

Exactly once without a transaction over two systems: every delta has a name of its own (the source's, or the artifact's
checksum and the row's place), the ledger knows names, and how far an artifact is settled is noted only after the
ledger's durable ack. Killed anywhere, it is sent again from the last note, and what had arrived is a DUPLICATE.
Memory is bounded: rows are read as the ledger takes them.
"""

from __future__ import annotations

import hashlib
import io
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from availability.client import Acked, ClientError, SequenceGapError
from availability.encoded_deltas import EncodedDeltas
from availability.v1 import stock_pb2 as pb
from ingest.authority import Authority, Word
from ingest.batches import BATCH_BYTES_MAX, BATCH_ROWS_MAX, Batch
from ingest.block_mapping import BlockMapper, EncodedRows
from ingest.database import artifacts, run_settings, unapplied_rows, upsert
from ingest.formats import decoder_for
from ingest.formats.compression import Truncated, opened
from ingest.kits import KitBook, Recipes
from ingest.letters import KeptLetter, Letter, Letters
from ingest.mapping import Mapper
from ingest.marks import Marks, latest_of, note
from ingest.rows import ArtifactRefused, BadRow, Block, BlockDecoder, Category, Row, RowRefused
from ingest.settings import SourceSettings
from ingest.shadow import OnHand, Shadow

READ_BYTES = 1 << 20
OPEN, DONE, REFUSED = "OPEN", "DONE", "REFUSED"
_REJECTED, _DUPLICATE = pb.DELTA_RESULT_REJECTED, pb.DELTA_RESULT_DUPLICATE
_CATEGORIES: Mapping[str, Category] = {
    "UNKNOWN_NODE": Category.UNKNOWN_NODE,
    "CONFLICT": Category.CONFLICT,
    "PERMISSION_DENIED": Category.AUTHENTICATION,
}
"""What the ledger's reasons are; every other one is VALIDATION."""
_NO_EFFECT = {
    pb.DELTA_RESULT_DUPLICATE: "REPEATED",
    pb.DELTA_RESULT_STALE: "STALE",
    pb.DELTA_RESULT_REJECTED: "REFUSED",
}
NOT_COUNTED, COMPARED = "NOT_COUNTED", "COMPARED"


class Sender(Protocol):
    """What deltas go to: ``availability.client.DeltaSender``."""

    def send(self, deltas: Sequence[pb.Delta], *, timeout_s: float = ...) -> int: ...
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


class _Unsent:
    """The sender of a source whose deltas all stay here: a batch is settled at once."""

    def __init__(self, acked: Callable[[Acked], None]) -> None:
        self._acked = acked
        self._number = 0

    def send(self, deltas: Sequence[pb.Delta], *, timeout_s: float = 0.0) -> int:
        """Settle a batch. Deltas in it are a bug."""
        assert not deltas, "a source in shadow has something to send"
        self._number += 1
        answer = pb.StreamDeltasResponse(batch_number=self._number)
        self._acked(Acked(batch_number=self._number, deltas=(), answer=answer))
        return self._number

    def flush(self, *, timeout_s: float = 0.0) -> None:
        """Everything is settled."""

    def close(self, *, drain: bool = True, timeout_s: float = 0.0) -> None:
        """Nothing is open."""


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
        recipes: Recipes | None = None,
        on_hand: OnHand | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._letters = letters
        self._open_sender = open_sender
        self._now = now
        self._new_run_id = new_run_id
        self._send_timeout_s = send_timeout_s
        self._stopped = stopped
        self._mapper = Mapper(settings.source, settings.mapping)
        self._blocks = BlockMapper(self._mapper)
        self._decoder = decoder_for(settings.format)
        self.marks = Marks(engine, settings.source)
        self._authority = Authority(engine, settings.source, shadow=settings.mode == "shadow")
        self._shadow = Shadow(engine, settings.source, on_hand)
        self._kits = (
            KitBook(engine, settings.source, recipes)
            if recipes is not None and settings.mapping.explode_kits
            else None
        )

    def carry(self, path: Path, *, watch: Callable[[Progress], None] = lambda _: None) -> Outcome:
        """Bring a file into the ledger. Raises OSError, ClientError; called again it goes on where it was.

        Once ``stopped`` says so it ends after the batch in hand, with a ClientError: CANCELLED.
        """
        checksum, size = checksum_of(path)
        name = shown_name(path)
        run = self._begin(name, checksum, size)
        progress = Progress(name, bytes_total=size)
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
        except SequenceGapError as gap:
            self.marks.parked(gap.stream, gap.expected_sequence, self._now())
            raise
        self._end(run.run_id, DONE, "")
        return Outcome(run_id=run.run_id, state=DONE, known=False, reason="", progress=progress)

    def replayed(self, letter: KeptLetter) -> list[pb.Delta]:
        """Translate a dead letter by the mapping as it is now; a kit is its parts.

        It keeps the event id that its source gave it: the source may send it again, and the ledger has not taken it. A
        numbered one, one without a name and one in conflict with another of its name go under the letter's own.
        Nothing where the row is ignored by its code. Raises RowRefused, ClientError.
        """
        found = list(self.translated(io.BytesIO(letter.context + letter.raw), ""))
        if len(found) != 1:
            raise RowRefused(Category.VALIDATION, "MALFORMED_ROW", f"the letter holds {len(found)} rows")
        row, delta, refused = found[0]
        if refused is not None:
            raise refused
        if delta is None:
            return []
        stream, sequence = delta.stream, delta.source_sequence
        if delta.event_id == f":{row.position}":
            delta.event_id = letter.event_id.removeprefix("dl:")
        self._authority.refresh()
        parts = self.parts(delta)
        named = "event_id" in self._settings.mapping.columns and letter.category != Category.CONFLICT
        if parts == [delta]:  # parts of a kit keep their names: some may have been applied
            delta.source_sequence = 0
            if not named or not delta.event_id:
                delta.event_id = letter.event_id
        for part in parts:
            word = self._authority.word(part, stream, sequence)
            if word is Word.COMPARED:
                raise RowRefused(Category.VALIDATION, "SHADOW", "the source is in shadow: nothing is applied")
            if word is not Word.COUNTS:
                raise self._authority.refusal(part)
        return parts

    def translated(
        self, artifact: BinaryIO, checksum: str
    ) -> Iterator[tuple[Row | BadRow, pb.Delta | None, RowRefused | None]]:
        """Yield each row with its delta (None: ignored by its code), or with why it has none. Sends nothing.

        Raises ArtifactRefused.
        """
        for piece in self._pieces(artifact, by_blocks=False):
            assert not isinstance(piece, Block)
            yield self._translated(piece, checksum)

    def _translated(
        self, row: Row | BadRow, checksum: str
    ) -> tuple[Row | BadRow, pb.Delta | None, RowRefused | None]:
        if isinstance(row, BadRow):
            return row, None, RowRefused(Category.VALIDATION, row.reason, row.message)
        mapper = self._mapper
        name = f"{checksum[:24]}:{row.position}" if mapper.named_by_place else ""
        try:
            return row, mapper.delta(row, name), None
        except RowRefused as refused:
            return row, None, refused

    def _pieces(self, artifact: BinaryIO, *, by_blocks: bool) -> Iterator[Block | Row | BadRow]:
        """Yield what an artifact holds; that it ends too early is a bad row at its end. Raises ArtifactRefused."""
        decoder, position = self._decoder, 0
        read = decoder.pieces if by_blocks and isinstance(decoder, BlockDecoder) else decoder.rows
        try:
            for piece in read(opened(artifact), self._mapper.columns):
                position = piece.first + len(piece) - 1 if isinstance(piece, Block) else piece.position
                yield piece
        except Truncated as error:
            yield BadRow(position + 1, "TRUNCATED", str(error), b"")

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
        waiting: queue.SimpleQueue[Batch] = queue.SimpleQueue()
        settled = threading.Lock()

        def acked(ack: Acked) -> None:
            with settled:
                self._settle(run, waiting.get_nowait(), ack.answer, progress)
            watch(progress)

        self._authority.refresh()
        if self._kits is not None:
            self._kits.forget()
        sender: Sender = self._open_sender(acked) if self._authority.sends else _Unsent(acked)
        try:
            with path.open("rb", buffering=0) as artifact:  # `opened` has a larger buffer
                for batch in self._batches(run, artifact, checksum, progress):
                    self._hand_on(batch, waiting, sender)
            sender.flush(timeout_s=self._send_timeout_s)
        except BaseException:
            sender.close(drain=False)
            raise
        sender.close()

    def _batches(self, run: _Run, artifact: BinaryIO, checksum: str, progress: Progress) -> Iterator[Batch]:
        """Yield what was not settled before a restart. Raises ArtifactRefused, ClientError."""
        rows_max, batch = min(self._settings.batch_deltas, BATCH_ROWS_MAX), Batch()
        for piece in self._pieces(artifact, by_blocks=True):
            rows: Iterable[Row | BadRow]
            if isinstance(piece, Block):
                done, count = 0, len(piece)
                encoded = self._encoded(piece, checksum, self._settings.rows_max - progress.rows)
                if encoded is not None:
                    done = min(count, max(0, run.position - piece.first + 1))
                    while done < count and self._authority.simple:
                        more = min(count - done, rows_max - len(batch))
                        batch.put_block(piece, encoded, done, done + more)
                        done += more
                        if len(batch) >= rows_max or batch.raw_bytes >= BATCH_BYTES_MAX:
                            progress.bytes_read = artifact.tell()
                            yield batch
                            batch = Batch()
                    progress.rows += done
                rows = islice(piece.rows(), done, None) if done < count else ()
            else:
                rows = (piece,)
            for row in rows:
                progress.rows += 1
                if progress.rows > self._settings.rows_max:
                    raise ArtifactRefused(f"more than {self._settings.rows_max} rows")
                if row.position <= run.position:
                    continue  # settled before the restart
                self._take(run, batch, *self._translated(row, checksum))
                if len(batch) >= rows_max or batch.raw_bytes >= BATCH_BYTES_MAX:
                    progress.bytes_read = artifact.tell()
                    yield batch
                    batch = Batch()
        progress.bytes_read = progress.bytes_total
        if batch.last:
            yield batch

    def _encoded(self, block: Block, checksum: str, rows_left: int) -> EncodedRows | None:
        """Translate a block that just counts; None: go row by row. Raises ClientError."""
        if not self._authority.simple or len(block) > rows_left:
            return None
        is_kit = self._kits.known if self._kits is not None else None
        encoded = self._blocks.encode(block, checksum[:24], is_kit=is_kit)
        return encoded if encoded is not None and encoded.size <= BATCH_BYTES_MAX else None

    def _take(
        self,
        run: _Run,
        batch: Batch,
        row: Row | BadRow,
        delta: pb.Delta | None,
        refused: RowRefused | None,
    ) -> None:
        """Put a row into a batch, as what it is worth."""
        batch.last = row.position
        batch.raw_bytes += len(row.raw)
        if delta is not None and self._authority.simple and not (self._mapper.of_orders and delta.order_ref):
            mapper = self._mapper
            batch.put(delta, row)  # type: ignore[arg-type]  # what has a delta is a Row
            if batch.latest is not None:
                note(batch.latest, mapper.stream, mapper.occurred_s, mapper.number)
            return
        batch.latest = None
        if refused is None:
            if delta is None:
                batch.ignored.append(row.position)
                return
            assert isinstance(row, Row)
            try:
                self._place(batch, row, delta)
            except RowRefused as error:
                refused = error
            else:
                return
        number = self._mapper.number_only(row) if isinstance(row, Row) else None
        batch.letters.append(self._letter(run, row, refused, delta if delta is not None else number))
        if number is not None and self._authority.sends:
            assert isinstance(row, Row)
            self._number(batch, row, number.stream, number.source_sequence)

    def _place(self, batch: Batch, row: Row, delta: pb.Delta) -> None:
        """Ask who speaks for it, and what its parts are. Raises RowRefused, ClientError."""
        parts = self.parts(delta)
        if parts == [delta] and self._authority.simple:
            batch.put(delta, row)
            return
        stream, sequence = delta.stream, delta.source_sequence
        words = [self._authority.word(part, stream, sequence) for part in parts]
        if Word.AFTER in words:
            raise self._authority.refusal(parts[words.index(Word.AFTER)])
        sent = [part for part, word in zip(parts, words, strict=True) if word is Word.COUNTS]
        if sent != [delta] and sequence and self._authority.sends:
            self._number(batch, row, stream, sequence)
        for part in sent:
            batch.put(part, row)
        for part, word in zip(parts, words, strict=True):
            if word is Word.COMPARED:
                batch.compared.append((row.position, part))
                batch.kept_out.append((row.position, COMPARED))
            elif word is Word.BEFORE:
                batch.kept_out.append((row.position, NOT_COUNTED))

    def parts(self, delta: pb.Delta) -> list[pb.Delta]:
        """Return what is sent of a delta: itself, or the parts of a kit. Raises RowRefused, ClientError."""
        return [delta] if self._kits is None else self._kits.parts(delta, self._now())

    def _number(self, batch: Batch, row: Row, stream: str, sequence: int) -> None:
        """Use up a number whose delta is not sent, so that the next one is no gap."""
        batch.numbers_only.add(len(batch.deltas))
        batch.put(pb.Delta(source=self._settings.source, stream=stream, source_sequence=sequence), row)

    def _hand_on(self, batch: Batch, waiting: queue.SimpleQueue[Batch], sender: Sender) -> None:
        if batch.compared:
            batch.bases = self._shadow.bases(part for _, part in batch.compared)
        if self._stopped():
            raise ClientError("CANCELLED", "CANCELLED", "stopped within a file; it goes on where it was")
        waiting.put(batch)
        sender.send(EncodedDeltas(batch.deltas), timeout_s=self._send_timeout_s)
        self._authority.refresh()

    def _settle(self, run: _Run, batch: Batch, answer: pb.StreamDeltasResponse, progress: Progress) -> None:
        """Note what the ledger has taken: dead letters and the place reached, in one transaction."""
        accepted = answer.accepted_count
        parked = accepted < len(batch.deltas)
        last = batch.rows.position(accepted) - 1 if parked else batch.last
        letters = [letter for letter in batch.letters if letter.position <= last]
        again: list[Letter] = []
        for detail in answer.details:
            if not detail.reason or detail.index >= accepted or detail.index in batch.numbers_only:
                continue
            # A DUPLICATE with a reason was rejected when it came first: perhaps nobody lived to note it.
            if detail.result == _REJECTED or detail.result == _DUPLICATE:
                row = batch.rows[detail.index]
                category = _CATEGORIES.get(detail.reason, Category.VALIDATION)
                refused = RowRefused(category, detail.reason, detail.message)
                letter = self._letter(run, row, refused, pb.Delta.FromString(batch.deltas[detail.index]))
                (letters if detail.result == _REJECTED else again).append(letter)
        results = list(answer.results[:accepted])
        for index in batch.numbers_only:
            if index < accepted:
                results[index] = pb.DELTA_RESULT_UNSPECIFIED
        applied = results.count(pb.DELTA_RESULT_APPLIED)
        repeated = results.count(pb.DELTA_RESULT_DUPLICATE) + results.count(pb.DELTA_RESULT_STALE)
        ignored = sum(position <= last for position in batch.ignored)
        kept_out = [(position, why) for position, why in batch.kept_out if position <= last]
        compared = [part for position, part in batch.compared if position <= last]
        now = self._now()
        with self._engine.begin() as connection:
            if again:
                lost = self._letters.unknown(connection, again)
                letters += lost
                repeated -= len(lost)
            self._letters.put(connection, letters, now)
            latest = batch.latest
            if latest is None or parked:
                latest = latest_of(chain(map(pb.Delta.FromString, batch.deltas[:accepted]), compared))
            self.marks.settled(connection, latest, now)
            counted = self._shadow.add(connection, compared, batch.bases, now) if compared else 0
            if applied < accepted or kept_out:
                without_effect = [
                    (batch.rows.position(index), _NO_EFFECT[result])
                    for index, result in enumerate(results)
                    if result in _NO_EFFECT
                ]
                _keep_unapplied(connection, run.run_id, [*without_effect, *kept_out])
            counted_rows = {
                "of_run": run.run_id,
                "last": last,
                "more_applied": applied,
                "more_repeated": repeated,
                "more_refused": len(letters),
                "more_ignored": ignored + len(kept_out),
            }
            connection.execute(_MOVE_ON, counted_rows)
        progress.applied += applied
        progress.repeated += repeated
        progress.refused += len(letters)
        progress.ignored += ignored
        progress.compared += counted
        progress.before_point += sum(why == NOT_COUNTED for _, why in kept_out)
        for letter in letters:
            progress.reasons[letter.reason] = progress.reasons.get(letter.reason, 0) + 1

    def _letter(
        self, run: _Run, row: Row | BadRow, refused: RowRefused, delta: pb.Delta | None = None
    ) -> Letter:
        event_id = f"{run.checksum[:24]}:{row.position}"
        numbered = delta if delta is not None and delta.source_sequence else None
        if numbered is not None and refused.category != Category.CONFLICT:
            # However often and in whatever file the source tells this number, it is replayed once.
            event_id = f"{numbered.stream}:{numbered.source_sequence}"
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
            kept = self._settings.model_dump_json(include={"source", "format", "mapping"})
            connection.execute(sa.insert(run_settings).values(run_id=run_id, source=source, settings=kept))
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


def _keep_unapplied(connection: Connection, run_id: str, found: list[tuple[int, str]]) -> None:
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
            .values(run_id=run_id, first_position=first, last_position=last, result=result)
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
