"""A batch on its way to the ledger: encoded deltas, the rows behind them, and what stays here."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from availability.v1 import stock_pb2 as pb
from ingest.block_mapping import EncodedRows
from ingest.letters import Letter
from ingest.rows import Block, Row

BATCH_ROWS_MAX = 4_000
"""The last row of a batch may be a kit of many parts."""
BATCH_BYTES_MAX = 1_000_000
"""Of rows as they came: what they become, with what a mapping adds, fits a message, and few batches fit memory."""


class RowsBehind:
    """The rows behind a batch's deltas, by the index of the delta. Those of a block are made when asked for."""

    def __init__(self) -> None:
        self._count = 0
        self._begins: list[int] = []
        """Index of the first delta of each run."""
        self._runs: list[list[Row] | _Run] = []

    def __len__(self) -> int:
        return self._count

    def append(self, row: Row) -> None:
        """Put the row behind the next delta."""
        last = self._runs[-1] if self._runs else None
        if isinstance(last, list):
            last.append(row)
        else:
            self._begins.append(self._count)
            self._runs.append([row])
        self._count += 1

    def extend(self, block: Block, first: int, last: int) -> None:
        """Put a slice of a block behind the next deltas."""
        self._begins.append(self._count)
        self._runs.append(_Run(block.first + first, first, block.raws))
        self._count += last - first

    def position(self, index: int) -> int:
        """Return a row's position."""
        run, at = self._find(index)
        return run[at].position if isinstance(run, list) else run.position + at

    def __getitem__(self, index: int) -> Row:
        """Return a row, of a block without its cells."""
        run, at = self._find(index)
        return run[at] if isinstance(run, list) else Row(run.position + at, (), run.raws()[run.first + at])

    def _find(self, index: int) -> tuple[list[Row] | _Run, int]:
        if not 0 <= index < self._count:
            raise IndexError(index)
        number = bisect_right(self._begins, index) - 1
        return self._runs[number], index - self._begins[number]


@dataclass(frozen=True, slots=True)
class _Run:
    position: int
    first: int
    raws: Callable[[], Sequence[bytes]]


@dataclass(slots=True)
class Batch:
    """Rows that are sent and settled together."""

    deltas: list[bytes] = field(default_factory=list)
    """Encoded."""
    rows: RowsBehind = field(default_factory=RowsBehind)
    letters: list[Letter] = field(default_factory=list)
    numbers_only: set[int] = field(default_factory=set)
    ignored: list[int] = field(default_factory=list)
    kept_out: list[tuple[int, str]] = field(default_factory=list)
    compared: list[tuple[int, pb.Delta]] = field(default_factory=list)
    bases: dict[tuple[str, str], int] = field(default_factory=dict)
    latest: dict[str, list[float]] | None = field(default_factory=dict)
    """By stream, of deltas as they came (`marks.note`); None: some are others, and all have to be asked."""
    last: int = 0
    """Position of the last row that it covers."""
    raw_bytes: int = 0

    def __len__(self) -> int:
        return max(len(self.deltas), len(self.letters), len(self.compared), len(self.kept_out))

    def put(self, delta: pb.Delta, row: Row) -> None:
        """Take a delta that is sent, and the row behind it."""
        self.deltas.append(delta.SerializeToString())
        self.rows.append(row)

    def put_block(self, block: Block, encoded: EncodedRows, first: int, last: int) -> None:
        """Take a slice of a block, whose deltas all are sent."""
        self.deltas += encoded.deltas[first:last]
        self.rows.extend(block, first, last)
        if self.latest is not None:
            encoded.note(self.latest, first, last)
        self.last = block.first + last - 1
        self.raw_bytes += max(
            block.raw_bytes * (last - first) // len(block), sum(map(len, encoded.deltas[first:last]))
        )
