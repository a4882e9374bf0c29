"""Days of the journal as Parquet files: record by record with bytes and chain, so that all else can be made again.

A day is a folder of parts; it is written beside its place and moved there when it is whole and on the disk. What it
held is proved by its digest (`journal_days.archive_digest`) and by its chain (`prove`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from availability.history.database import HistoryError
from availability.history.rows import Row
from availability.history.tables import journal

PART_RECORDS = 200_000
"""Records of one part: what is in memory at once."""
_COLUMNS = tuple(column.name for column in journal.c)


class ArchiveFailed(HistoryError):
    """An archived day cannot be written or read; the message names the file."""

    reason = "ARCHIVE_FAILED"


def write_day(folder: Path, name: str, chunks: Iterable[Sequence[Row]]) -> str:
    """Write a day's journal rows as ``folder/name``; return the digest of its parts. Raises ArchiveFailed."""
    draft, final = folder / f".{name}.tmp", folder / name
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for number, rows in enumerate(_parts(chunks)):
            _write_part(draft / f"part-{number:04}.parquet", rows)
        if final.exists():  # of a run that was ended before the database knew
            shutil.rmtree(final)
        os.replace(draft, final)
        _sync(folder)
    except OSError as error:
        raise ArchiveFailed(
            f"cannot write the archive of {name} in {folder}: {error.strerror or error}"
        ) from error
    return digest_of(final)


def digest_of(folder: Path) -> str:
    """Return the digest over all parts of a day. Raises ArchiveFailed."""
    digest = hashlib.sha256()
    for part in _files(folder):
        try:
            with part.open("rb") as file:
                digest.update(part.name.encode() + hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise ArchiveFailed(f"cannot read {part}: {error.strerror or error}") from error
    return digest.hexdigest()


def read_day(folder: Path) -> Iterator[list[tuple[Any, ...]]]:  # Any: a row of the journal
    """Yield a day's journal rows, a part at a time. Raises ArchiveFailed."""
    import polars

    for part in _files(folder):
        try:
            frame = polars.read_parquet(part)
        except (OSError, polars.exceptions.PolarsError) as error:
            raise ArchiveFailed(f"cannot read {part}: {type(error).__name__}") from error
        yield frame.select(_COLUMNS).rows()


def _files(folder: Path) -> list[Path]:
    parts = sorted(folder.glob("part-*.parquet"))
    if not parts:
        raise ArchiveFailed(f"there is no archive {folder}")
    return parts


def _parts(chunks: Iterable[Sequence[Row]]) -> Iterator[list[Row]]:
    part: list[Row] = []
    for rows in chunks:
        part += rows
        if len(part) >= PART_RECORDS:
            yield part
            part = []
    if part:
        yield part


def _write_part(path: Path, rows: list[Row]) -> None:
    import polars

    types = {
        "BIGINT": polars.Int64,
        "INTEGER": polars.Int32,
        "SMALLINT": polars.Int16,
        "TEXT": polars.String,
        "BLOB": polars.Binary,
    }
    schema = {column.name: types[str(column.type)] for column in journal.c}
    polars.DataFrame(rows, schema=schema, orient="row").write_parquet(path)
    _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
