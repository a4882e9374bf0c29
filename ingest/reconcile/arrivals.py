"""Snapshots that have arrived: files that are complete, with their points, and those streamed to the server."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from availability.v1 import stock_pb2 as pb
from ingest.formats.parquet import ParquetSettings
from ingest.mapping_settings import MappingSettings, Movement
from ingest.reconcile.points import Point, read_point
from ingest.reconcile.settings import SnapshotSettings
from ingest.rows import ArtifactRefused

if TYPE_CHECKING:
    import polars as pl

ARCHIVE, REJECTED = "archive", "rejected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A file with its point. ``problem``: why its point cannot be read; then the file is refused."""

    file: Path
    point: Point
    point_file: Path | None
    problem: str = ""


def arrived(settings: SnapshotSettings, now: float) -> list[Arrived]:
    """Return the files of a snapshot that are complete, the oldest first. No folder: none."""
    files, found = settings.files, []
    if not files.folder.is_dir():
        return []
    for entry in os.scandir(files.folder):
        name = entry.name
        if not entry.is_file(follow_symlinks=False) or name.startswith("."):
            continue
        if name.endswith((*files.unfinished, files.point_suffix)) or not fnmatch.fnmatch(name, files.pattern):
            continue
        point_file = Path(entry.path + files.point_suffix)
        has_point = point_file.exists()
        if files.point_required and not has_point:
            continue
        changed = max(entry.stat().st_mtime, point_file.stat().st_mtime if has_point else 0.0)
        if changed > now - files.settle_ms / 1_000:
            continue
        found.append((changed, name, _read(Path(entry.path), point_file if has_point else None)))
    return [one for _, _, one in sorted(found, key=lambda item: item[:2])]


def _read(file: Path, point_file: Path | None) -> Arrived:
    if point_file is None:
        return Arrived(file=file, point=Point(), point_file=None)
    try:
        return Arrived(file=file, point=read_point(point_file), point_file=point_file)
    except (ArtifactRefused, OSError) as error:
        return Arrived(file=file, point=Point(), point_file=point_file, problem=str(error))


def put_away(one: Arrived, run_id: str, refused: str, now: float) -> Path:
    """Move a file and its point beside the others of its kind; return where. ``refused``: why; empty: taken."""
    folder = one.file.parent / (REJECTED if refused else ARCHIVE)
    folder.mkdir(parents=True, exist_ok=True)
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    target = folder / f"{stamp}_{run_id[:8]}_{one.file.name}"
    if refused:
        target.with_name(target.name + ".reason").write_text(refused + "\n", encoding="utf-8")
    if one.point_file is not None:
        one.point_file.replace(target.with_name(target.name + ".point"))
    one.file.replace(target)
    return target


# --- Streamed to the server -------------------------------------------------------------------------------


def streamed(settings: SnapshotSettings, snapshots: Iterable[pb.Snapshot]) -> list[pb.Snapshot]:
    """Return the ended snapshots that these settings are of and whose rows the server keeps, the oldest first."""
    orders = settings.kind == "ORDERS"
    content = pb.SNAPSHOT_CONTENT_OPEN_ORDERS if orders else pb.SNAPSHOT_CONTENT_POSITIONS
    basis = pb.SNAPSHOT_BASIS_NET if settings.basis == "NET" else pb.SNAPSHOT_BASIS_PHYSICAL
    return [
        one
        for one in snapshots
        if one.source == settings.source
        and one.state == pb.SNAPSHOT_STATE_ENDED
        and one.row_count
        and (one.content or pb.SNAPSHOT_CONTENT_POSITIONS) == content
        and (orders or (one.basis or pb.SNAPSHOT_BASIS_PHYSICAL) == basis)
        and sorted(one.nodes) == sorted(settings.nodes)
    ]


def write_streamed(
    settings: SnapshotSettings, chunks: Iterable[pb.ReadSnapshotResponse], target: Path
) -> SnapshotSettings:
    """Write the rows of a streamed snapshot as a Parquet file; return the settings by which that is read.

    Codes and units are the ledger's own there. Quarantine is compared where every row says all of it, else left alone.
    """
    import polars as pl

    frames, quarantine = [], True
    for chunk in chunks:
        if settings.kind == "ORDERS":
            frames.append(_order_frame(chunk.order_rows, settings.source))
        else:
            frame, has = _position_frame(chunk.rows)
            frames.append(frame)
            quarantine = quarantine and has
    empty = _order_frame([], "") if settings.kind == "ORDERS" else _position_frame([])[0]
    target.parent.mkdir(parents=True, exist_ok=True)
    rows = pl.concat([empty, *frames])
    if settings.kind == "POSITIONS" and not quarantine:
        rows = rows.filter(pl.col("type") == "ON_HAND")
    rows.write_parquet(target, compression="lz4")
    return read_as_streamed(settings, quarantine=quarantine)


def read_as_streamed(settings: SnapshotSettings, *, quarantine: bool) -> SnapshotSettings:
    """Return the settings by which the file of `write_streamed` is read."""
    names = ["sku", "node", "quantity"]
    names += ["order_source", "order_ref", "line"] if settings.kind == "ORDERS" else ["type", "reason"]
    constants = {"type": "ORDER_ALLOCATED"} if settings.kind == "ORDERS" else {}
    movements = {
        "ON_HAND": Movement(type="SET_ON_HAND"),
        "QUARANTINED": Movement(type="QUARANTINE", reason="unknown"),
    }
    mapping = MappingSettings(
        version=settings.mapping.version,
        author=settings.mapping.author,
        columns={name: name for name in names},
        constants=constants,
        movements={} if settings.kind == "ORDERS" else movements,
        units=settings.mapping.units,
    )
    update: dict[str, object] = {"format": ParquetSettings(), "mapping": mapping}
    if settings.kind == "POSITIONS":
        update["quarantine"] = "INCLUDED" if quarantine and settings.basis == "PHYSICAL" else "LEFT"
    return settings.model_copy(update=update)


def _position_frame(rows: Iterable[pb.SnapshotRow]) -> tuple[pl.DataFrame, bool]:
    import polars as pl

    made: list[tuple[str, str, int, str, str]] = []
    quarantine = True
    for row in rows:
        made.append((row.sku, row.node, row.on_hand, "ON_HAND", ""))
        quarantine = quarantine and row.quarantine_known
        made += [(row.sku, row.node, one.quantity, "QUARANTINED", one.reason) for one in row.quarantined]
    schema = {
        "sku": pl.String,
        "node": pl.String,
        "quantity": pl.Int64,
        "type": pl.String,
        "reason": pl.String,
    }
    return pl.DataFrame(made, schema=schema, orient="row"), quarantine


def _order_frame(rows: Iterable[pb.OpenOrderRow], source: str) -> pl.DataFrame:
    import polars as pl

    made = [
        (row.sku, row.node, row.open_quantity, row.order_source or source, row.order_ref, row.line)
        for row in rows
    ]
    names = ("sku", "node", "quantity", "order_source", "order_ref", "line")
    schema = {name: pl.Int64 if name == "quantity" else pl.String for name in names}
    return pl.DataFrame(made, schema=schema, orient="row")
