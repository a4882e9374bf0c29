"""The point of a snapshot: as of when it is true. A small JSON file beside it, or options of the command."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from availability.v1 import stock_pb2 as pb
from ingest.reconcile.journal import sequence_marks
from ingest.reconcile.settings import SnapshotSettings
from ingest.rows import ArtifactRefused

READ_BYTES = 1 << 20
POINT_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """``as_of``: the last number that the snapshot contains, by STREAM or SOURCE/STREAM; or ``snapshot_id``: as begun
    and ended at the server. Without either nothing is corrected. ``taken_at``: seconds since 1970."""

    as_of: Mapping[str, int] = field(default_factory=dict)
    snapshot_id: str = ""
    rows: int | None = None
    taken_at: float | None = None

    @property
    def given(self) -> bool:
        return bool(self.as_of or self.snapshot_id)


def read_point(path: Path) -> Point:
    """Read ``{"as_of": {"STREAM": NUMBER}}`` or ``{"snapshot_id": "…"}``, with ``rows`` and ``taken_at`` where told.

    Raises ArtifactRefused for anything else.
    """
    try:
        if path.stat().st_size > POINT_BYTES_MAX:
            raise ArtifactRefused(f"{path.name} is no point: it is too large")
        found: Any = json.loads(path.read_text(encoding="utf-8"))  # Any: JSON's own types
    except (ValueError, UnicodeDecodeError) as error:
        raise ArtifactRefused(f"{path.name} is no JSON: {error}") from error
    if not isinstance(found, dict) or found.keys() - {"as_of", "snapshot_id", "rows", "taken_at"}:
        raise ArtifactRefused(f"{path.name} may say as_of, snapshot_id, rows and taken_at, and nothing else")
    as_of, rows, taken = found.get("as_of", {}), found.get("rows"), found.get("taken_at")
    if not isinstance(as_of, dict) or not all(type(one) is int and one >= 0 for one in as_of.values()):
        raise ArtifactRefused(f"{path.name}: as_of is a number for each stream")
    if as_of and found.get("snapshot_id"):
        raise ArtifactRefused(f"{path.name}: as_of or snapshot_id, not both")
    if rows is not None and (type(rows) is not int or rows < 0):
        raise ArtifactRefused(f"{path.name}: rows is a number")
    return Point(
        as_of=as_of,
        snapshot_id=str(found.get("snapshot_id", "")),
        rows=rows,
        taken_at=moment(str(taken)) if taken is not None else None,
    )


def moment(text: str) -> float:
    """Read an ISO 8601 time with its zone. Raises ArtifactRefused."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ArtifactRefused(f"{text!r} is no time in ISO 8601") from None
    if found.tzinfo is None:
        raise ArtifactRefused(f"{text!r} names no time zone")
    return found.timestamp()


def check_streams(point: Point, settings: SnapshotSettings) -> None:
    """See that a point by sequences names every stream that it must. Raises ArtifactRefused."""
    if point.as_of:
        missing = [name for name in settings.streams if name not in point.as_of]
        if missing:
            raise ArtifactRefused(
                f"the point does not name the streams {', '.join(missing)}, which move these positions"
            )


def marks_of(point: Point, source: str) -> list[pb.SequenceMark]:
    """Return the numbers as the API takes them."""
    return [
        pb.SequenceMark(source=whose, stream=stream, source_sequence=sequence)
        for (whose, stream), sequence in sorted(sequence_marks(point.as_of, source).items())
    ]


def checksum_of(file: Path, point: Point) -> str:
    """Name a file with its point: the same content as of another point is another snapshot."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(READ_BYTES):
            digest.update(block)
    digest.update(json.dumps([sorted(point.as_of.items()), point.snapshot_id]).encode())
    return digest.hexdigest()
