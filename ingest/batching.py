"""Rows into batches: each row as what it is worth. What counts is sent, the rest is compared or kept as a letter.

Memory is bounded: a batch is filled when the one before it was handed on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import BinaryIO

from availability.v1 import stock_pb2 as pb
from ingest.authority import Authority, Word
from ingest.batches import BATCH_BYTES_MAX, BATCH_ROWS_MAX, Batch
from ingest.block_mapping import BlockMapper, EncodedRows
from ingest.kits import KitBook
from ingest.marks import note
from ingest.reader import Reader
from ingest.rows import ArtifactRefused, BadRow, Block, Row, RowRefused
from ingest.runs import Progress, Run
from ingest.settings import SourceSettings

NOT_COUNTED, COMPARED = "NOT_COUNTED", "COMPARED"


class Batching:
    """Makes batches of one source's rows. One thread. ``kits``: None where kits are sent as they are."""

    def __init__(
        self,
        settings: SourceSettings,
        reader: Reader,
        authority: Authority,
        kits: KitBook | None,
        *,
        now: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._reader = reader
        self._mapper = reader.mapper
        self._blocks = BlockMapper(reader.mapper)
        self._authority = authority
        self._kits = kits
        self._now = now

    def batches(self, run: Run, artifact: BinaryIO, progress: Progress) -> Iterator[Batch]:
        """Yield what was not settled before a restart. Raises ArtifactRefused, ClientError."""
        rows_max, batch = min(self._settings.batch_deltas, BATCH_ROWS_MAX), Batch()
        for piece in self._reader.pieces(artifact, by_blocks=True):
            rows: Iterable[Row | BadRow]
            if isinstance(piece, Block):
                done, count = 0, len(piece)
                encoded = self._encoded(piece, run.checksum, self._settings.rows_max - progress.rows)
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
                self._take(run, batch, *self._reader.translate(row, run.checksum))
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
        run: Run,
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
        batch.letters.append(self._reader.letter(run, row, refused, delta if delta is not None else number))
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
