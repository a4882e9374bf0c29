"""Reading an artifact of one source: decoded by its format, mapped to deltas, and a dead letter of what cannot be.

It sends nothing and asks nobody. Where to look next: formats/ for what a file holds, mapping.py for what a cell means.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from availability.v1 import stock_pb2 as pb
from ingest.formats import decoder_for
from ingest.formats.compression import Truncated, opened
from ingest.letters import Letter
from ingest.mapping import Mapper
from ingest.rows import BadRow, Block, BlockDecoder, Category, Row, RowRefused
from ingest.runs import Run
from ingest.settings import SourceSettings


class Reader:
    """Reads artifacts of one source. One thread: the mapper remembers what it read last."""

    def __init__(self, settings: SourceSettings) -> None:
        self._source = settings.source
        self._decoder = decoder_for(settings.format)
        self.mapper = Mapper(settings.source, settings.mapping)

    def translated(
        self, artifact: BinaryIO, checksum: str
    ) -> Iterator[tuple[Row | BadRow, pb.Delta | None, RowRefused | None]]:
        """Yield each row with its delta (None: ignored by its code), or with why it has none. Sends nothing.

        Raises ArtifactRefused.
        """
        for piece in self.pieces(artifact, by_blocks=False):
            assert not isinstance(piece, Block)
            yield self.translate(piece, checksum)

    def translate(
        self, row: Row | BadRow, checksum: str
    ) -> tuple[Row | BadRow, pb.Delta | None, RowRefused | None]:
        """Return a row with its delta (None: ignored by its code), or with why it has none."""
        if isinstance(row, BadRow):
            return row, None, RowRefused(Category.VALIDATION, row.reason, row.message)
        mapper = self.mapper
        name = f"{checksum[:24]}:{row.position}" if mapper.named_by_place else ""
        try:
            return row, mapper.delta(row, name), None
        except RowRefused as refused:
            return row, None, refused

    def pieces(self, artifact: BinaryIO, *, by_blocks: bool) -> Iterator[Block | Row | BadRow]:
        """Yield what an artifact holds; that it ends too early is a bad row at its end. Raises ArtifactRefused."""
        decoder, position = self._decoder, 0
        read = decoder.pieces if by_blocks and isinstance(decoder, BlockDecoder) else decoder.rows
        try:
            for piece in read(opened(artifact), self.mapper.columns):
                position = piece.first + len(piece) - 1 if isinstance(piece, Block) else piece.position
                yield piece
        except Truncated as error:
            yield BadRow(position + 1, "TRUNCATED", str(error), b"")

    def letter(
        self, run: Run, row: Row | BadRow, refused: RowRefused, delta: pb.Delta | None = None
    ) -> Letter:
        """Make the dead letter of a row; ``delta``: what was made of it, where that is known."""
        event_id = f"{run.checksum[:24]}:{row.position}"
        numbered = delta if delta is not None and delta.source_sequence else None
        if numbered is not None and refused.category != Category.CONFLICT:
            # However often and in whatever file the source tells this number, it is replayed once.
            event_id = f"{numbered.stream}:{numbered.source_sequence}"
        return Letter(
            source=self._source,
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
