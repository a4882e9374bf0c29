"""One artifact through everything: read → decode → map → batch → StreamDeltas → settle.

Exactly once without a transaction over two systems: every delta has a name of its own (the source's, or the artifact's
checksum and the row's place), the ledger knows names, and how far an artifact is settled is noted only after the
ledger's durable ack. Killed anywhere, it is sent again from the last note, and what had arrived is a DUPLICATE.
Memory is bounded: rows are read as the ledger takes them.
"""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from sqlalchemy.engine import Engine

from availability.client import Acked, ClientError, SequenceGapError
from availability.encoded_deltas import EncodedDeltas
from availability.v1 import stock_pb2 as pb
from ingest.authority import Authority, Word
from ingest.batches import Batch
from ingest.batching import Batching
from ingest.kits import KitBook, Recipes
from ingest.letters import KeptLetter, Letter, Letters
from ingest.marks import Marks
from ingest.reader import Reader
from ingest.rows import ArtifactRefused, BadRow, Category, Row, RowRefused
from ingest.runs import DONE, OPEN, REFUSED, Outcome, Progress, Run, Runs, checksum_of, shown_name
from ingest.settings import SourceSettings
from ingest.settling import Settling
from ingest.shadow import OnHand, Shadow


class Sender(Protocol):
    """What deltas go to: ``availability.client.DeltaSender``."""

    def send(self, deltas: Sequence[pb.Delta], *, timeout_s: float = ...) -> int: ...
    def flush(self, *, timeout_s: float = ...) -> None: ...
    def close(self, *, drain: bool = ..., timeout_s: float = ...) -> None: ...


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
        self._send_timeout_s = send_timeout_s
        self._stopped = stopped
        self._runs = Runs(settings, engine, now=now, new_run_id=new_run_id)
        self._reader = Reader(settings)
        self.marks = Marks(engine, settings.source)
        self._authority = Authority(engine, settings.source, shadow=settings.mode == "shadow")
        self._shadow = Shadow(engine, settings.source, on_hand)
        self._kits = (
            KitBook(engine, settings.source, recipes)
            if recipes is not None and settings.mapping.explode_kits
            else None
        )
        self._batching = Batching(settings, self._reader, self._authority, self._kits, now=now)
        self._settling = Settling(engine, self._reader, letters, self.marks, self._shadow, now=now)

    def carry(self, path: Path, *, watch: Callable[[Progress], None] = lambda _: None) -> Outcome:
        """Bring a file into the ledger. Raises OSError, ClientError; called again it goes on where it was.

        Once ``stopped`` says so it ends after the batch in hand, with a ClientError: CANCELLED.
        """
        checksum, size = checksum_of(path)
        name = shown_name(path)
        run = self._runs.begin(name, checksum, size)
        progress = Progress(name, bytes_total=size)
        if run.state != OPEN:
            return Outcome(
                run_id=run.run_id, state=run.state, known=True, reason=run.reason, progress=progress
            )
        try:
            if self._settings.all_or_nothing:
                self._prove(path, run, progress)
            self._send(path, run, progress, watch)
        except ArtifactRefused as error:
            self._runs.end(run.run_id, REFUSED, str(error))
            return Outcome(
                run_id=run.run_id, state=REFUSED, known=False, reason=str(error), progress=progress
            )
        except SequenceGapError as gap:
            self.marks.parked(gap.stream, gap.expected_sequence, self._now())
            raise
        self._runs.end(run.run_id, DONE, "")
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
        """Yield each row with what it becomes, as the reader does. Sends nothing. Raises ArtifactRefused."""
        return self._reader.translated(artifact, checksum)

    def parts(self, delta: pb.Delta) -> list[pb.Delta]:
        """Return what is sent of a delta: itself, or the parts of a kit. Raises RowRefused, ClientError."""
        return self._batching.parts(delta)

    def _prove(self, path: Path, run: Run, progress: Progress) -> None:
        """Read everything first: with one bad row the artifact is refused, and its bad rows are the letters."""
        letters: list[Letter] = []
        with path.open("rb") as artifact:
            for row, _, refused in self.translated(artifact, run.checksum):
                if refused is not None:
                    letters.append(self._reader.letter(run, row, refused))
                    if len(letters) >= 1_000:
                        break
        if letters:
            with self._engine.begin() as connection:
                self._letters.put(connection, letters, self._now())
            progress.refused = len(letters)
            raise ArtifactRefused(f"{len(letters)} bad rows, and the source says all or nothing")

    def _send(self, path: Path, run: Run, progress: Progress, watch: Callable[[Progress], None]) -> None:
        waiting: queue.SimpleQueue[Batch] = queue.SimpleQueue()
        settled = threading.Lock()

        def acked(ack: Acked) -> None:
            with settled:
                self._settling.settle(run, waiting.get_nowait(), ack.answer, progress)
            watch(progress)

        self._authority.refresh()
        if self._kits is not None:
            self._kits.forget()
        sender: Sender = self._open_sender(acked) if self._authority.sends else _Unsent(acked)
        try:
            with path.open("rb", buffering=0) as artifact:  # `opened` has a larger buffer
                for batch in self._batching.batches(run, artifact, progress):
                    self._hand_on(batch, waiting, sender)
            sender.flush(timeout_s=self._send_timeout_s)
        except BaseException:
            sender.close(drain=False)
            raise
        sender.close()

    def _hand_on(self, batch: Batch, waiting: queue.SimpleQueue[Batch], sender: Sender) -> None:
        if batch.compared:
            batch.bases = self._shadow.bases(part for _, part in batch.compared)
        if self._stopped():
            raise ClientError("CANCELLED", "CANCELLED", "stopped within a file; it goes on where it was")
        waiting.put(batch)
        sender.send(EncodedDeltas(batch.deltas), timeout_s=self._send_timeout_s)
        self._authority.refresh()
