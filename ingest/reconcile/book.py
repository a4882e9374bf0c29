"""The ledger's side of a snapshot, from its pages onto the disk: positions and open order lines as of the point."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from availability.client import Client, ClientError
from availability.v1 import stock_pb2 as pb

if TYPE_CHECKING:
    import polars as pl

PART_ROWS = 500_000
STREAM_S = 3_600.0
RETRY_S = 1.0
WAITED_BY_SERVER_S = 60.0
"""So long a server waits itself before it says that a point is not reached."""
_SETTLED = pb.SETTLING_SETTLED
POINT_KINDS = {pb.POINT_KIND_SEQUENCES: "SEQUENCES", pb.POINT_KIND_MARKS: "MARKS"}


class NotReached(Exception):
    """The ledger has not applied what the snapshot contains, in the time that was given."""

    reason = "SNAPSHOT_NOT_REACHED"


class LedgerSide(Protocol):
    """What reconciliation asks of the server; `ClientLedger` is the real one."""

    def positions(self, request: pb.ReadPositionsRequest) -> Iterable[pb.ReadPositionsResponse]: ...
    def order_lines(self, request: pb.ReadOrderLinesRequest) -> Iterable[pb.ReadOrderLinesResponse]: ...
    def snapshot(self, snapshot_id: str) -> pb.Snapshot | None: ...
    def snapshot_rows(self, snapshot_id: str) -> Iterable[pb.ReadSnapshotResponse]: ...
    def close(self, snapshot_id: str) -> None: ...
    def order(self, order_source: str, order_ref: str) -> pb.GetOrderResponse: ...
    def apply(self, source: str, deltas: Sequence[pb.Delta]) -> pb.ApplyDeltasResponse: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The ledger's side on the disk. ``version``: of its last page. ``point_kind``: SEQUENCES, MARKS or empty."""

    positions: tuple[Path, ...]
    reasons: Path
    point_kind: str
    version: str
    rows: int


def read_positions(
    ledger: LedgerSide,
    request: pb.ReadPositionsRequest,
    folder: Path,
    *,
    wait_s: float,
    progress: Callable[[int, int], None] = lambda *_: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Cut:
    """Read all positions of a point into Parquet files. Waits until the ledger has reached it.

    ``progress`` is told skus read and skus there are. Raises NotReached, ClientError.
    """
    import polars as pl

    folder.mkdir(parents=True, exist_ok=True)
    frames: list[pl.DataFrame] = []
    reasons: list[pl.DataFrame] = [_reason_frame([])]
    paths: list[Path] = []
    rows, total, kind, version = 0, 0, "", ""

    def write() -> None:
        path = folder / f"positions-{len(paths):04}.parquet"
        pl.concat(frames or [book_frame([])]).write_parquet(path, compression="lz4", statistics=False)
        paths.append(path)
        frames.clear()

    for page in _waited(lambda: ledger.positions(request), wait_s, sleep):
        kind, version = POINT_KINDS.get(page.point_kind, ""), page.version or version
        frame, quarantined = _page(page.positions)
        frames.append(frame)
        reasons.append(quarantined)
        rows, total = rows + frame.height, total + frame.height
        progress(page.sku_number, page.sku_count)
        if rows >= PART_ROWS:
            write()
            rows = 0
    if frames or not paths:
        write()
    reason_path = folder / "reasons.parquet"
    pl.concat(reasons).write_parquet(reason_path, compression="lz4")
    return Cut(positions=tuple(paths), reasons=reason_path, point_kind=kind, version=version, rows=total)


def _waited(
    open_pages: Callable[[], Iterable[Any]], wait_s: float, sleep: Callable[[float], None]
) -> Iterator[Any]:
    """Yield pages; before the first one, try again while the ledger has not reached the point. Any: pages."""
    waited = 0.0
    while True:
        began = False
        try:
            for page in open_pages():
                began = True
                yield page
            return
        except ClientError as error:
            if error.reason != "SNAPSHOT_NOT_REACHED" or began:
                raise
            waited += WAITED_BY_SERVER_S if wait_s else 0.0
            if waited >= wait_s:
                raise NotReached(f"{error.message}; waited for {waited:,.0f} s") from error
        sleep(RETRY_S)
        waited += RETRY_S


def _page(columns: pb.PositionColumns) -> tuple[pl.DataFrame, pl.DataFrame]:
    import numpy as np
    import polars as pl

    skus = pl.Series(list(columns.skus), dtype=pl.String)
    nodes = pl.Series(list(columns.nodes), dtype=pl.String)
    count = len(columns.sku_indexes)

    def numbers(values: Sequence[int], missing: int = 0) -> Any:  # Any: an array
        return np.fromiter(values, np.int64, count) if len(values) else np.full(count, missing, np.int64)

    frame = pl.DataFrame(
        {
            "sku": skus.gather(np.fromiter(columns.sku_indexes, np.uint32, count)),
            "node": nodes.gather(np.fromiter(columns.node_indexes, np.uint32, count)),
            "on_hand": numbers(columns.on_hand),
            "quarantined": numbers(columns.quarantined),
            "confirmed": numbers(columns.confirmed),
            "settled": numbers(columns.settling) == _SETTLED,
            "confirmed_settled": numbers(columns.confirmed_settling, _SETTLED) == _SETTLED,
            "reserved": numbers(columns.reserved),
            "committed": numbers(columns.committed),
            "on_hand_now": numbers(columns.on_hand_now),
        }
    )
    rows = [
        (frame["sku"][one.row], frame["node"][one.row], one.reason, one.quantity)
        for one in columns.quarantined_units
    ]
    return frame, _reason_frame(rows)


def book_frame(rows: Sequence[tuple[Any, ...]]) -> pl.DataFrame:  # Any: cells in the order of the columns
    """Return the ledger's positions as a frame."""
    import polars as pl

    flags = {"settled", "confirmed_settled"}
    names = ("sku", "node", "on_hand", "quarantined", "confirmed", *sorted(flags, reverse=True), "reserved")
    schema = {
        name: pl.String if name in ("sku", "node") else pl.Boolean if name in flags else pl.Int64
        for name in (*names, "committed", "on_hand_now")
    }
    return pl.DataFrame(list(rows), schema=schema, orient="row")


def _reason_frame(rows: Sequence[tuple[str, str, str, int]]) -> pl.DataFrame:
    import polars as pl

    schema = {"sku": pl.String, "node": pl.String, "reason": pl.String, "quantity": pl.Int64}
    return pl.DataFrame(list(rows), schema=schema, orient="row")


def read_order_lines(
    ledger: LedgerSide,
    request: pb.ReadOrderLinesRequest,
    *,
    wait_s: float,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[list[pb.OrderLineOpen], str, str]:
    """Return open order lines, the point's kind and the last page's version. One that comes twice: the later counts.

    Raises NotReached, ClientError.
    """
    lines: dict[tuple[str, str, str, str], pb.OrderLineOpen] = {}
    kind = version = ""
    for page in _waited(lambda: ledger.order_lines(request), wait_s, sleep):
        kind, version = POINT_KINDS.get(page.point_kind, ""), page.version or version
        for line in page.lines:
            lines[line.order_source, line.order_ref, line.line, line.sku] = line
    return list(lines.values()), kind, version


class ClientLedger:
    """A server as `LedgerSide`, through the client."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def apply(self, source: str, deltas: Sequence[pb.Delta]) -> pb.ApplyDeltasResponse:
        return self._client.apply_deltas(source, deltas)

    def order(self, order_source: str, order_ref: str) -> pb.GetOrderResponse:
        return self._client.get_order(order_source, order_ref)

    def positions(self, request: pb.ReadPositionsRequest) -> Iterator[pb.ReadPositionsResponse]:
        return self._client.pages(self._client.stock.ReadPositions, request, timeout_s=STREAM_S)

    def order_lines(self, request: pb.ReadOrderLinesRequest) -> Iterator[pb.ReadOrderLinesResponse]:
        return self._client.pages(self._client.stock.ReadOrderLines, request, timeout_s=STREAM_S)

    def snapshot_rows(self, snapshot_id: str) -> Iterator[pb.ReadSnapshotResponse]:
        request = pb.ReadSnapshotRequest(snapshot_id=snapshot_id)
        return self._client.pages(self._client.stock.ReadSnapshot, request, timeout_s=STREAM_S)

    def snapshots(self, source: str = "") -> list[pb.Snapshot]:
        answer = self._client.call(self._client.stock.ListSnapshots, pb.ListSnapshotsRequest(source=source))
        return list(answer.snapshots)

    def snapshot(self, snapshot_id: str) -> pb.Snapshot | None:
        found = [one for one in self.snapshots() if one.snapshot_id == snapshot_id]
        return found[0] if found else None

    def close(self, snapshot_id: str) -> None:
        self._client.call(self._client.stock.CloseSnapshot, pb.CloseSnapshotRequest(snapshot_id=snapshot_id))
