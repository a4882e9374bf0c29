"""CSV: any dialect and encoding; a bad line is one bad row, never the end of the file.

Lines without quotes in which nothing is wrong are read by blocks, which costs a fraction; any other block line by line.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from operator import itemgetter, methodcaller
from typing import BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field

from ingest.formats.line_blocks import LINE_BYTES_MAX, LineBlocks
from ingest.rows import ArtifactRefused, BadRow, Block, Row, rows_of

ROW_LINES_MAX = 100
"""And a longer physical line is one bad row: a quote that never closes must not eat the file."""
FIELD_MAX = 131_072
"""The csv module's longest cell."""
BY_BLOCKS = ("utf-8", "ascii", "iso8859", "cp125", "koi8")
"""Encodings in which a line's end is one byte that is part of nothing else, and no line depends on those before."""


class CsvSettings(BaseModel):
    """How a source writes CSV. Without ``columns`` the first line names them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["csv"] = "csv"
    encoding: str = Field("utf-8", description="Encoding, as Python names it.")
    delimiter: str = Field(",", min_length=1, max_length=1, description="Sign between cells.")
    quote: str = Field('"', max_length=1, description="Sign around cells; empty: none.")
    columns: tuple[str, ...] = Field((), description="Names of the columns; none: the first line names them.")
    skip_lines: int = Field(0, ge=0, le=1_000, description="Lines before anything counts.")


class CsvDecoder:
    """Reads by blocks of lines; keeps one block or one row in memory."""

    def __init__(self, settings: CsvSettings) -> None:
        self._settings = settings
        encoding = codecs.lookup(settings.encoding).name
        self._encoding = "utf-8" if encoding == "utf-8-sig" else encoding
        self.context = b"\n" * settings.skip_lines

    def rows(self, artifact: BinaryIO, columns: Sequence[str]) -> Iterator[Row | BadRow]:
        """Yield rows with the columns asked for. Raises ArtifactRefused where one is missing."""
        return rows_of(self.pieces(artifact, columns))

    def pieces(self, artifact: BinaryIO, columns: Sequence[str]) -> Iterator[Block | Row | BadRow]:
        """Yield the same rows, in blocks where nothing is wrong. Raises ArtifactRefused where a column is missing."""
        settings = self._settings
        source = LineBlocks(artifact)
        lines = _Lines(source, artifact, self._encoding)
        for _ in range(settings.skip_lines):
            next(lines, None)
        reader = self._reader(lines)
        names: Sequence[str] = settings.columns
        if not names:
            lines.begin_row()
            try:
                names = [name.strip() for name in next(reader, [])]
            except csv.Error as error:
                told = str(error).partition(" - ")[0]  # what follows is advice to a programmer
                why = f"is not {self._encoding}" if lines.undecodable else f"cannot be read: {told}"
                raise ArtifactRefused(f"the line with the column names {why}") from error
            if lines.undecodable:
                raise ArtifactRefused(f"the line with the column names is not {self._encoding}")
            self.context = b"\n" * settings.skip_lines + lines.raw()
        places = _places(names, columns)
        pick = picker(places)
        width = len(names)
        by_blocks = self._encoding.startswith(BY_BLOCKS) and settings.delimiter not in "\r\n"
        while True:
            if by_blocks and not source.holding:
                data = source.block()
                if not data:
                    return
                cells = self._regular(data, width) if lines.line else None
                if cells is not None:
                    wanted = [cells[place::width] for place in places]
                    yield Block(
                        lines.line + 1, wanted, cache(partial(data.splitlines, True)), len(data), True
                    )
                    lines.line += len(wanted[0])
                    continue
                source.give_back(data)
            lines.begin_row()
            try:
                row = next(reader, None)
            except csv.Error as error:
                yield lines.bad("MALFORMED_ROW", str(error))
                continue
            if row is None:
                return
            if lines.undecodable:
                yield lines.bad("ENCODING", f"the line is not {self._encoding}")
            elif len(row) != width:
                if row:  # an empty line is nothing
                    yield lines.bad("COLUMN_COUNT", f"{len(row)} columns instead of {width}")
            else:
                yield Row(lines.first, pick(row), lines.raw())

    def _reader(self, lines: Iterable[str]) -> Iterator[list[str]]:
        settings = self._settings
        return csv.reader(
            lines,
            delimiter=settings.delimiter,
            quotechar=settings.quote or None,
            quoting=csv.QUOTE_MINIMAL if settings.quote else csv.QUOTE_NONE,
            strict=True,
        )

    def _regular(self, data: bytes, width: int) -> list[str] | None:
        """Return the cells of lines of which each is a row of ``width`` cells, one after the other; None: it is not so.

        Without quotes a delimiter is a delimiter, and what csv.reader would give is what is between them.
        """
        if len(data) > FIELD_MAX or data.count(b"\r") != data.count(b"\r\n"):
            return None
        try:
            text = data.decode(self._encoding)
        except UnicodeDecodeError:
            return None
        if self._settings.quote and self._settings.quote in text:
            return None
        delimiter = self._settings.delimiter
        text = text.replace("\r\n", "\n").removesuffix("\n")
        lines = text.split("\n")
        if {*map(methodcaller("count", delimiter), lines)} != {width - 1} or (width == 1 and "" in lines):
            return None
        return text.replace("\n", delimiter).split(delimiter)


def picker(places: Sequence[int]) -> Callable[[Sequence[str]], Sequence[str]]:
    """Return what takes the cells of some places, in their order."""
    if len(places) > 1:
        return itemgetter(*places)
    return lambda cells: [cells[place] for place in places]


def _places(names: Sequence[str], columns: Sequence[str]) -> list[int]:
    index = {name: place for place, name in enumerate(names)}
    missing = [column for column in columns if column not in index]
    if missing:
        raise ArtifactRefused(
            f"columns are missing: {', '.join(missing)}; there are {', '.join(names) or 'none'}"
        )
    if len(index) < len(names):
        raise ArtifactRefused("a column name comes twice")
    return [index[column] for column in columns]


class _Lines:
    """Physical lines as text, remembering those of the row being read. ``line``: how many there were."""

    def __init__(self, source: LineBlocks, artifact: BinaryIO, encoding: str) -> None:
        self._source = source
        self._wide = codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))
        self._encoding = encoding
        self._text: Iterator[bytes] = (
            iter(codecs.getreader(encoding)(artifact, "replace")) if self._wide else iter(())
        )
        self.line = 0
        self._parts: list[bytes] = []
        self.first = 1
        self.undecodable = False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if len(self._parts) >= ROW_LINES_MAX:
            raise csv.Error(f"a row of more than {ROW_LINES_MAX} lines: is a quote not closed?")
        if self._wide:
            try:
                wide: str = next(self._text)  # type: ignore[assignment]
            except UnicodeError as error:
                raise ArtifactRefused(f"this is not {self._encoding}: {error}") from error
            self.undecodable = "\ufffd" in wide
            self.line += 1
            self._parts.append(wide.encode("utf-8", "replace"))
            return wide
        raw = self._source.readline(LINE_BYTES_MAX)
        if not raw:
            raise StopIteration
        if len(raw) == LINE_BYTES_MAX and not raw.endswith(b"\n"):
            while raw and not raw.endswith(b"\n"):
                raw = self._source.readline(LINE_BYTES_MAX)
            self.line += 1
            raise csv.Error(f"a line of more than {LINE_BYTES_MAX} bytes")
        if self.line == 0 and raw.startswith(codecs.BOM_UTF8):
            raw = raw[len(codecs.BOM_UTF8) :]
        self.line += 1
        self._parts.append(raw)
        try:
            return raw.decode(self._encoding)
        except UnicodeDecodeError:
            self.undecodable = True
            return raw.decode(self._encoding, "replace")

    def begin_row(self) -> None:
        self._parts.clear()
        self.first = self.line + 1
        self.undecodable = False

    def raw(self) -> bytes:
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def bad(self, reason: str, message: str) -> BadRow:
        return BadRow(self.first, reason, message, self.raw())
