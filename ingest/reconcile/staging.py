"""From a snapshot's file to typed rows on the disk: by ingest's formats and mappings, in columns where it can be.

CSV and Parquet are translated in columns (``columns``). A row for which the columns do not give a certain answer is
translated by the mapper, one by one, as every row of the other formats is: both ways say the same of each row (a
property test compares them), and what is refused is refused with the same sentence.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from availability.domain.limits import REFERENCE_BYTES_MAX
from availability.domain.text import text_problem
from availability.v1 import stock_pb2 as pb
from ingest.formats import decoder_for
from ingest.formats.compression import Truncated, opened
from ingest.formats.csv_text import CsvSettings
from ingest.formats.parquet import ParquetSettings
from ingest.mapping import Mapper
from ingest.reconcile.columns import ORDER_COLUMNS, POSITION_COLUMNS, Translation, plain_pattern
from ingest.reconcile.settings import SnapshotSettings
from ingest.rows import ArtifactRefused, BadRow, Category, Row, RowRefused, Value

if TYPE_CHECKING:
    import polars as pl

EXAMPLES_MAX = 20
SLICE_ROWS = 50_000
READ_BYTES = 1 << 20
HEAD_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedRow:
    """One row that is left out. ``position``: its line or record number in the file."""

    position: int
    category: Category
    reason: str
    message: str
    raw: bytes


@dataclass(slots=True, kw_only=True)
class Staged:
    """What a file became. ``path`` holds the ``good`` rows, in the columns that ``columns`` names and perhaps more;
    ``examples`` are the first refused ones."""

    path: Path
    rows: int = 0
    good: int = 0
    ignored: int = 0
    by_columns: bool = False
    refused: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[RefusedRow] = field(default_factory=list)

    def refuse(self, position: int, why: RowRefused, raw: bytes) -> None:
        """Count a row that is left out."""
        self.refused += 1
        self.reasons[why.reason] += 1
        if len(self.examples) < EXAMPLES_MAX:
            row = RefusedRow(
                position=position,
                category=why.category,
                reason=why.reason,
                message=why.message,
                raw=raw[:1_000],
            )
            self.examples.append(row)


class _NotInColumns(Exception):
    """Polars cannot read the file as a table, or not as the decoder does."""


def stage(
    file: Path,
    settings: SnapshotSettings,
    target: Path,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> Staged:
    """Translate a file into ``target``, a Parquet file of typed rows. ``progress`` is told rows.

    Raises ArtifactRefused where the file as a whole cannot be taken: columns missing, half written, too many rows.
    """
    mapper = Mapper(settings.source, settings.mapping)
    if isinstance(settings.format, CsvSettings | ParquetSettings):
        with _uncompressed(file, target.with_suffix(".plain")) as plain:
            try:
                staged = _by_columns(plain, settings, mapper, target)
            except _NotInColumns:
                pass
            else:
                progress(staged.rows)
                return staged
    return _by_rows(file, settings, mapper, target, progress)


class _uncompressed:  # noqa: N801 -- a context manager, used as a function
    """The file itself, or a copy without its compression for as long as it is needed."""

    def __init__(self, file: Path, copy: Path) -> None:
        self._file, self._copy = file, copy

    def __enter__(self) -> Path:
        with self._file.open("rb") as raw:
            content = opened(raw)
            if content is raw:
                return self._file
            try:
                with self._copy.open("wb") as out:
                    shutil.copyfileobj(content, out, READ_BYTES)
            except Truncated as error:
                self._copy.unlink(missing_ok=True)
                raise ArtifactRefused(f"the file is half written: {error}") from error
        return self._copy

    def __exit__(self, *_: object) -> None:
        self._copy.unlink(missing_ok=True)


# --- In columns -------------------------------------------------------------------------------------------


def _by_columns(path: Path, settings: SnapshotSettings, mapper: Mapper, target: Path) -> Staged:
    import polars as pl

    if settings.mapping.sku_pattern and not plain_pattern(settings.mapping.sku_pattern):
        raise _NotInColumns
    csv = settings.format if isinstance(settings.format, CsvSettings) else None
    parts = target.with_suffix(".parts")
    names = ORDER_COLUMNS if settings.kind == "ORDERS" else POSITION_COLUMNS
    try:
        lazy = _scan(path, csv, mapper.columns)
        translation = Translation(settings, lazy)
        if not translation.possible:
            raise _NotInColumns
        translation.typed().sink_parquet(parts, compression="lz4", statistics=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        parts.unlink(missing_ok=True)
        if csv is None:
            raise ArtifactRefused(f"this is no whole Parquet file: {error}") from error
        raise _NotInColumns from error  # a line that polars cannot read: the decoder refuses that one alone
    made = pl.scan_parquet(parts)
    flags = made.select(
        short=pl.col("short").any(),
        ignored=(pl.col("certain") & pl.col("ignored")).sum(),
        uncertain=(~pl.col("certain")).sum(),
        total=pl.len(),
    )
    short, ignored, uncertain, total = flags.collect().row(0)
    if csv is not None and short:
        parts.unlink()
        raise _NotInColumns  # an empty last cell, or none at all: polars does not tell them apart
    certain = made.filter(pl.col("certain") & ~pl.col("ignored")).select(names)
    counted = total - uncertain - ignored
    staged = Staged(path=target, rows=counted + ignored, ignored=ignored, by_columns=True)
    sink = _Sink(settings, staged)
    if uncertain:
        cells = [name for name in lazy.collect_schema().names() if name != "row"]
        places = [cells.index(name) for name in mapper.columns]
        numbers = made.filter(~pl.col("certain")).select("row").collect()["row"]
        left = lazy.filter(pl.col("row").is_in(numbers.implode())).collect(engine="streaming").sort("row")
        if left.height != uncertain:
            parts.unlink()
            raise ArtifactRefused("the file changed while it was read")
        for number, *values in left.iter_rows():
            sink.take(Row(number, [values[place] for place in places], _said(values)), mapper)
    _bounded(staged, settings)
    staged.good = counted + sink.count
    if not uncertain and not ignored:
        os.replace(parts, target)
        return staged
    pl.concat([certain, sink.frame().lazy()]).sink_parquet(target, compression="lz4", statistics=False)
    parts.unlink()
    return staged


def _scan(path: Path, csv: CsvSettings | None, columns: Sequence[str]) -> pl.LazyFrame:
    """Return the file's cells behind the decoder's row number. Raises _NotInColumns where only that can tell."""
    import polars as pl

    head = csv.skip_lines + (not csv.columns) if csv is not None else 0
    if csv is None:
        lazy = pl.scan_parquet(path)
        names = lazy.collect_schema().names()
        missing = [column for column in columns if column not in names]
        if missing:
            raise ArtifactRefused(f"columns are missing: {', '.join(missing)}; there are {', '.join(names)}")
        wanted = lazy.select(list(dict.fromkeys(columns)))
    else:
        if (
            csv.encoding.lower().replace("_", "-") not in ("utf-8", "utf8", "utf-8-sig", "ascii")
            or not csv.quote
        ):
            raise _NotInColumns
        names = list(csv.columns) or _names(path, csv)
        if any(column not in names for column in columns):
            raise _NotInColumns  # the decoder says it in its own words
        wanted = pl.scan_csv(
            path,
            has_header=not csv.columns,
            new_columns=names,
            separator=csv.delimiter,
            quote_char=csv.quote,
            skip_lines=csv.skip_lines,
            infer_schema=False,
            truncate_ragged_lines=False,
        )
    if "row" in names:
        raise _NotInColumns
    return wanted.with_row_index("row", 1 + head)


def _names(path: Path, csv: CsvSettings) -> list[str]:
    with path.open("rb") as start:
        for _ in range(csv.skip_lines):
            start.readline(HEAD_BYTES_MAX)
        first = start.readline(HEAD_BYTES_MAX)
    try:
        text = first.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise _NotInColumns from None
    names = [name.strip() for name in text.split(csv.delimiter)]
    if csv.quote in text or len(set(names)) < len(names) or len(names) < 2:
        raise _NotInColumns
    return names


def _said(values: Sequence[object]) -> bytes:
    return ";".join("" if value is None else str(value) for value in values).encode()


# --- Row by row -------------------------------------------------------------------------------------------


def _by_rows(
    file: Path, settings: SnapshotSettings, mapper: Mapper, target: Path, progress: Callable[[int], None]
) -> Staged:
    staged = Staged(path=target)
    with file.open("rb") as raw:
        parts = _parts(opened(raw), settings, mapper, staged, progress)
        try:
            frames = list(parts)
        except Truncated as error:
            raise ArtifactRefused(f"the file is half written: {error}") from error
    import polars as pl

    _bounded(staged, settings)
    frame = pl.concat(frames)
    staged.good = frame.height
    frame.write_parquet(target, compression="lz4")
    return staged


def _parts(
    content: BinaryIO,
    settings: SnapshotSettings,
    mapper: Mapper,
    staged: Staged,
    progress: Callable[[int], None],
) -> Iterator[pl.DataFrame]:
    sink = _Sink(settings, staged)
    yield sink.frame()
    for row in decoder_for(settings.format).rows(content, mapper.columns):
        if isinstance(row, BadRow):
            staged.rows += 1
            staged.refuse(row.position, RowRefused(Category.VALIDATION, row.reason, row.message), row.raw)
        else:
            sink.take(row, mapper)
        if sink.count >= SLICE_ROWS:
            _bounded(staged, settings)
            progress(staged.rows)
            yield sink.frame()
            sink = _Sink(settings, staged)
    yield sink.frame()


def _bounded(staged: Staged, settings: SnapshotSettings) -> None:
    if staged.rows > settings.rows_max:
        raise ArtifactRefused(f"the file has more than {settings.rows_max:,} rows")


class _Sink:
    """Typed rows that the mapper made, as columns."""

    def __init__(self, settings: SnapshotSettings, staged: Staged) -> None:
        self._settings = settings
        self._staged = staged
        self._orders = settings.kind == "ORDERS"
        self._rows: list[tuple[Any, ...]] = []  # Any: cells of the columns, in their order

    @property
    def count(self) -> int:
        return len(self._rows)

    def take(self, row: Row, mapper: Mapper) -> None:
        """Translate a row, or count why it is refused."""
        self._staged.rows += 1
        try:
            delta = mapper.delta(row, "-")
            if delta is None:
                self._staged.ignored += 1
                return
            self._rows.append(self._order(row, delta) if self._orders else self._position(row, delta))
        except RowRefused as refused:
            self._staged.refuse(row.position, refused, row.raw)

    def _position(self, row: Row, delta: pb.Delta) -> tuple[Value, ...]:
        _checked((delta.sku, "sku"), (delta.node, "node"))
        quarantine = delta.type == pb.DELTA_TYPE_QUARANTINE
        if delta.type not in (pb.DELTA_TYPE_QUARANTINE, pb.DELTA_TYPE_SET_ON_HAND):
            name = pb.DeltaType.Name(delta.type).removeprefix("DELTA_TYPE_")
            raise RowRefused(Category.MAPPING, "MOVEMENT_CODE", f"a snapshot has no rows of {name}")
        if delta.reason or quarantine:
            _checked((delta.reason, "the reason of a quarantine"))
        if quarantine and delta.quantity < 0:
            raise RowRefused(Category.VALIDATION, "QUANTITY", f"{delta.quantity} units are quarantined")
        return row.position, delta.sku, delta.node, delta.quantity, quarantine, delta.reason

    def _order(self, row: Row, delta: pb.Delta) -> tuple[Value, ...]:
        source = delta.order_source or self._settings.source
        _checked((delta.sku, "sku"), (delta.node, "node"), (source, "order_source"))
        _checked((delta.order_ref, "order_ref"), bytes_max=REFERENCE_BYTES_MAX)
        if delta.line:
            _checked((delta.line, "line"))
        if delta.quantity < 0:
            raise RowRefused(Category.VALIDATION, "QUANTITY", f"{delta.quantity} units are open")
        return row.position, source, delta.order_ref, delta.line, delta.sku, delta.node, delta.quantity

    def frame(self) -> pl.DataFrame:
        """Return what was taken."""
        import polars as pl

        kinds = {"row": pl.UInt32, "quantity": pl.Int64, "quarantine": pl.Boolean}
        names = ORDER_COLUMNS if self._orders else POSITION_COLUMNS
        schema = {name: kinds.get(name, pl.String) for name in names}
        return pl.DataFrame(self._rows, schema=schema, orient="row")


def _checked(*texts: tuple[str, str], bytes_max: int = 64) -> None:
    for value, what in texts:
        problem = text_problem(value, what, bytes_max=bytes_max)
        if problem is not None:
            raise RowRefused(Category.VALIDATION, "TEXT", problem)
