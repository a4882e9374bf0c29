"""Reads an artifact of lines by blocks of whole lines, and line by line where a block is out of the ordinary."""

from __future__ import annotations

import io
from typing import BinaryIO

from ingest.formats.compression import Truncated

BLOCK_BYTES = 1 << 16
"""About a batch of common rows: what is wrong with one of them costs the others of its block the short way."""
LINE_BYTES_MAX = 1_000_000
"""A longer line is one bad row."""


class LineBlocks:
    """Whole lines of an artifact. Memory: a block and the longest line."""

    def __init__(self, artifact: BinaryIO) -> None:
        self._artifact = artifact
        # At most one call of what is below: else bytes that came before a damaged place would be lost with it.
        self._read = getattr(artifact, "read1", artifact.read)
        self._held = io.BytesIO()
        self._held_bytes = 0
        self._failure: Truncated | None = None

    def block(self) -> bytes:
        """Return the next whole lines, nothing at the end; the last may lack its end. Raises Truncated.

        A line that is too long ends the block within it: look at its length. What was given back comes first, by lines.
        """
        assert not self.holding
        if self._failure is not None:
            raise self._failure
        data = self._read(BLOCK_BYTES)
        if data and not data.endswith(b"\n"):
            try:
                data += self._artifact.readline(LINE_BYTES_MAX)
            except Truncated as failure:
                self._failure = failure
                data = data[: data.rfind(b"\n") + 1]
                if not data:
                    raise
        return data

    def give_back(self, data: bytes) -> None:
        """Read it again, line by line."""
        self._held, self._held_bytes = io.BytesIO(data), len(data)

    @property
    def holding(self) -> bool:
        """Whether anything that was given back is left."""
        return self._held.tell() < self._held_bytes

    def readline(self, limit: int = LINE_BYTES_MAX) -> bytes:
        """Return a line as files do, nothing at the end. Raises Truncated."""
        line = self._held.readline(limit) if self.holding else b""
        if line.endswith(b"\n") or len(line) == limit:
            return line
        if self._failure is not None:
            raise self._failure
        return line + self._artifact.readline(limit - len(line))
