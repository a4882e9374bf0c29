"""What is sealed of the history's own rows, field by field, and digests of many rows in order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import msgspec

from availability.history.rows import Row

_DAY = (
    *("day", "first_version", "last_version", "records", "first_clock_ms", "last_clock_ms"),
    *("chain_before", "last_chain", "state", "archive", "archive_digest"),
)
_BASELINE = ("version", "day", "clock_ms", "chain", "after_version", "reason", "positions", "digest")
_FORK = ("fork", "kept_version", "seen_version", "records", "reason", "noticed_ms")
_encode = msgspec.msgpack.Encoder().encode


def day_fields(row: Mapping[str, object], ledger_id: str) -> list[object]:
    """Return all of a row of ``journal_days`` but its seal, and whose history it is."""
    return [ledger_id, *(row[name] for name in _DAY)]


def baseline_fields(row: Mapping[str, object]) -> list[object]:
    """Return all of a row of ``baselines`` but its seal."""
    return [row[name] for name in _BASELINE]


def fork_fields(row: Mapping[str, object]) -> list[object]:
    """Return all of a row of ``journal_forks`` but its seal."""
    return [row[name] for name in _FORK]


class RowsDigest:
    """SHA-256 over rows in the order in which they are added, however they were cut into chunks."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, rows: Iterable[Row]) -> None:
        """Take more rows."""
        for row in rows:
            self._hash.update(_encode(tuple(row)))

    def hexdigest(self) -> str:
        """Return the digest of all rows so far."""
        return self._hash.hexdigest()
