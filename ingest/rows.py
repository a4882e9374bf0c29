"""What decoders give and mappings take: one row of a source's artifact, or one that could not be read.

Positions are what a person finds again in the artifact: line numbers of text from 1, record numbers elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import BinaryIO, Protocol, runtime_checkable

import msgspec

Value = object
"""A cell as the format gives it: text, a number, a time, None where there is nothing."""


class Category(StrEnum):
    """Why something could not be applied: the product's one list for dead letters."""

    MAPPING = "MAPPING"
    VALIDATION = "VALIDATION"
    UNKNOWN_NODE = "UNKNOWN_NODE"
    SEQUENCE_GAP = "SEQUENCE_GAP"
    CONFLICT = "CONFLICT"
    AUTHENTICATION = "AUTHENTICATION"
    DOWNSTREAM = "DOWNSTREAM"


class RowRefused(Exception):
    """This row cannot become a delta; the others can."""

    def __init__(self, category: Category, reason: str, message: str) -> None:
        super().__init__(message)
        self.category = category
        self.reason = reason
        self.message = message


class ArtifactRefused(Exception):
    """The artifact as a whole cannot be read: wrong columns, not this format. Nothing of it is applied."""


class Row(msgspec.Struct, frozen=True, gc=False):
    """One row. ``values`` are in the order of the columns that were asked for; ``raw`` is the row as it came.

    No dataclass: a frozen one takes three times as long to make, and there are millions.
    """

    position: int
    values: Sequence[Value]
    raw: bytes


@dataclass(frozen=True, slots=True)
class BadRow:
    """One row that the decoder could not read."""

    position: int
    reason: str
    message: str
    raw: bytes


class Decoder(Protocol):
    """One format. Memory stays flat however long the artifact is."""

    context: bytes
    """What must stand before a row's raw bytes so that these are an artifact again: a line with column names, say."""

    def rows(self, artifact: BinaryIO, columns: Sequence[str]) -> Iterator[Row | BadRow]:
        """Yield the rows in order. Raises ArtifactRefused."""
        ...


@dataclass(frozen=True, slots=True)
class Block:
    """Rows without a fault that follow each other, by columns: what is done with them is done per column.

    ``columns`` are those that were asked for, each with a cell per row. ``first`` is the first row's position, and each
    other has the next. ``raws`` gives the rows as they came, of which few are ever asked for; ``raw_bytes`` are kept
    for it. ``plain``: every cell is text, a whole number, a time or nothing.
    """

    first: int
    columns: Sequence[Sequence[Value]]
    raws: Callable[[], Sequence[bytes]]
    raw_bytes: int
    plain: bool

    def __len__(self) -> int:
        return len(self.columns[0])

    def rows(self) -> Iterator[Row]:
        """Yield the rows one by one."""
        for position, (values, raw) in enumerate(
            zip(zip(*self.columns, strict=True), self.raws(), strict=True), self.first
        ):
            yield Row(position, values, raw)


@runtime_checkable
class BlockDecoder(Protocol):
    """A format that can be read by blocks as well: the same rows, several times as fast."""

    def pieces(self, artifact: BinaryIO, columns: Sequence[str]) -> Iterator[Block | Row | BadRow]:
        """Yield the rows in order: blocks, and one by one what is out of the ordinary. Raises ArtifactRefused."""
        ...


def rows_of(pieces: Iterable[Block | Row | BadRow]) -> Iterator[Row | BadRow]:
    """Yield the rows of pieces one by one."""
    for piece in pieces:
        if isinstance(piece, Block):
            yield from piece.rows()
        else:
            yield piece
