"""Parquet: read by row groups through polars, a slice at a time."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import orjson
from pydantic import BaseModel, ConfigDict

from ingest.formats.compression import peek
from ingest.formats.json_lines import JsonLinesDecoder, JsonLinesSettings
from ingest.rows import ArtifactRefused, BadRow, Block, Row, rows_of

if TYPE_CHECKING:
    import polars as pl

SLICE_ROWS = 10_000
BLOCK_ROWS = 1_000
"""What is wrong with one row costs the others of its block the short way."""


class ParquetSettings(BaseModel):
    """Parquet describes itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["parquet"] = "parquet"


class ParquetDecoder:
    """Reads slices of rows; keeps one slice in memory. Positions are row numbers from 1.

    A row's raw form is a JSON object; such lines are read as an artifact too, so that a dead letter can be replayed.
    """

    context = b""

    def __init__(self, _: ParquetSettings) -> None:
        self._lines = JsonLinesDecoder(JsonLinesSettings())

    def rows(self, artifact: BinaryIO, columns: Sequence[str]) -> Iterator[Row | BadRow]:
        """Yield rows with the columns asked for. Raises ArtifactRefused for what is no Parquet file."""
        return rows_of(self.pieces(artifact, columns))

    def pieces(self, artifact: BinaryIO, columns: Sequence[str]) -> Iterator[Block | Row | BadRow]:
        """Yield the same rows, in blocks. Raises ArtifactRefused for what is no Parquet file."""
        if peek(artifact, 1) == b"{":
            yield from self._lines.pieces(artifact, columns)
            return
        yield from self._table(artifact, columns)

    def _table(self, artifact: BinaryIO, columns: Sequence[str]) -> Iterator[Block | BadRow]:
        import polars as pl

        path = Path(str(getattr(artifact, "name", "")))
        with tempfile.TemporaryDirectory() as folder:
            if not path.is_file():  # a stream: Parquet is read from its end
                path = Path(folder) / "artifact.parquet"
                with path.open("wb") as copy:
                    shutil.copyfileobj(artifact, copy)
            try:
                lazy = pl.scan_parquet(path)
                names = lazy.collect_schema().names()
                total = lazy.select(pl.len()).collect().item()
            except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
                raise ArtifactRefused(f"this is no Parquet file that can be read: {error}") from error
            missing = [column for column in columns if column not in names]
            if missing:
                raise ArtifactRefused(
                    f"columns are missing: {', '.join(missing)}; there are {', '.join(names)}"
                )
            wanted = list(dict.fromkeys(columns))
            for first in range(0, total, SLICE_ROWS):
                try:
                    cells = lazy.select(wanted).slice(first, SLICE_ROWS).collect().select(columns)
                # The library panics at some damage, which is no Exception; other slices may be good.
                except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
                    last = min(total, first + SLICE_ROWS)
                    yield BadRow(
                        first + 1, "UNREADABLE", f"rows {first + 1} to {last} cannot be read: {error}", b""
                    )
                    continue
                kinds = cells.dtypes
                plain = all(kind == pl.String or kind == pl.Datetime or kind.is_integer() for kind in kinds)
                for at in range(0, len(cells), BLOCK_ROWS):
                    part = cells.slice(at, BLOCK_ROWS)
                    by_column = [part[column].to_list() for column in columns]
                    yield Block(first + at + 1, by_column, cache(partial(_lines, part)), 0, plain)


def _lines(cells: pl.DataFrame) -> Sequence[bytes]:
    """Return the rows as JSON objects: all at once where their types leave no choice, which costs a fifth."""
    import polars as pl

    if all(kind in (pl.String, pl.Boolean) or kind.is_integer() for kind in cells.dtypes):
        return cells.write_ndjson().encode().splitlines()
    return [orjson.dumps(row, default=str) for row in cells.iter_rows(named=True)]
