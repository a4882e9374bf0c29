"""CSV: any dialect and encoding; a bad line is one bad row, never the end of the file."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field

from ingest.rows import ArtifactRefused, BadRow, Row

LINE_BYTES_MAX = 1_000_000
"""A longer physical line is one bad row: a quote that never closes must not eat the file."""
ROW_LINES_MAX = 100


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
    """Reads by lines; keeps one row in memory."""

    def __init__(self, settings: CsvSettings) -> None:
        self._settings = settings
        encoding = codecs.lookup(settings.encoding).name
        self._encoding = "utf-8" if encoding == "utf-8-sig" else encoding
        self.context = b"\n" * settings.skip_lines

    def rows(self, artifact: BinaryIO, columns: Sequence[str]) -> Iterator[Row | BadRow]:
        """Yield rows with the columns asked for. Raises ArtifactRefused where one is missing."""
        settings = self._settings
        lines = _Lines(artifact, self._encoding)
        for _ in range(settings.skip_lines):
            next(lines, None)
        reader = csv.reader(
            lines,
            delimiter=settings.delimiter,
            quotechar=settings.quote or None,
            quoting=csv.QUOTE_MINIMAL if settings.quote else csv.QUOTE_NONE,
            strict=True,
        )
        names: Sequence[str] = settings.columns
        if not names:
            lines.begin_row()
            try:
                names = [name.strip() for name in next(reader, [])]
            except csv.Error as error:
                raise ArtifactRefused(f"the line with the column names cannot be read: {error}") from error
            self.context = b"\n" * settings.skip_lines + lines.raw()
        pick = picker(_places(names, columns))
        width = len(names)
        while True:
            lines.begin_row()
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield lines.bad("MALFORMED_ROW", str(error))
                continue
            if cells is None:
                return
            if lines.undecodable:
                yield lines.bad("ENCODING", f"the line is not {self._encoding}")
            elif len(cells) != width:
                if cells:  # an empty line is nothing
                    yield lines.bad("COLUMN_COUNT", f"{len(cells)} columns instead of {width}")
            else:
                yield Row(lines.first, pick(cells), lines.raw())


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
    """Physical lines as text, remembering those of the row being read."""

    def __init__(self, artifact: BinaryIO, encoding: str) -> None:
        self._artifact = artifact
        self._wide = codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))
        self._encoding = encoding
        self._text: Iterator[bytes] = (
            iter(codecs.getreader(encoding)(artifact, "replace")) if self._wide else artifact
        )
        self._line = 0
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
            self._line += 1
            self._parts.append(wide.encode("utf-8", "replace"))
            return wide
        raw = self._artifact.readline(LINE_BYTES_MAX)
        if not raw:
            raise StopIteration
        if len(raw) == LINE_BYTES_MAX and not raw.endswith(b"\n"):
            while raw and not raw.endswith(b"\n"):
                raw = self._artifact.readline(LINE_BYTES_MAX)
            self._line += 1
            raise csv.Error(f"a line of more than {LINE_BYTES_MAX} bytes")
        if self._line == 0 and raw.startswith(codecs.BOM_UTF8):
            raw = raw[len(codecs.BOM_UTF8) :]
        self._line += 1
        self._parts.append(raw)
        try:
            return raw.decode(self._encoding)
        except UnicodeDecodeError:
            self.undecodable = True
            return raw.decode(self._encoding, "replace")

    def begin_row(self) -> None:
        self._parts.clear()
        self.first = self._line + 1
        self.undecodable = False

    def raw(self) -> bytes:
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def bad(self, reason: str, message: str) -> BadRow:
        return BadRow(self.first, reason, message, self.raw())
