"""The highest point of the ledger that this machine has seen, in a file: a Redis that came back with less is noticed.

Without it, a primary that restarted empty would be taken for a new ledger and every storefront would show zero.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from availability.ledger.reader import Head

FILE_NAME = "ledger-seen.json"


class LedgerLost(Exception):
    """Redis holds no ledger, or another one, than this machine worked with; the message says what to do."""


class Seen(msgspec.Struct, frozen=True):
    ledger_id: str
    epoch: int
    seq: int


class LastSeen:
    """Reads and writes the file. ``note`` is cheap when nothing moved."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / FILE_NAME
        self._noted: Seen | None = None

    def check(self, head: Head) -> tuple[int, int] | None:
        """Compare with what Redis holds before anything is written. Raises LedgerLost.

        Returns the first and last sequence number that are missing, where the same ledger ends earlier than it did.
        """
        seen = self._read()
        if seen is None:
            return None
        if head.ledger_id != seen.ledger_id:
            found = "another ledger" if head.ledger_id else "no ledger"
            raise LedgerLost(
                f"Redis holds {found}, this machine worked with {seen.ledger_id} up to {seen.epoch}-{seen.seq}: "
                f"restore it, or remove {self._path} to begin anew"
            )
        if (head.epoch, head.seq) < (seen.epoch, seen.seq):
            return head.seq + 1, seen.seq
        return None

    def note(self, head: Head) -> None:
        """Write the point, where it is further. Raises OSError, LedgerLost.

        Another ledger than the noted one is left alone: a server that is started anew by itself must not take it.
        """
        if not head.ledger_id:
            return
        noted = self._noted = self._noted or self._read()
        seen = Seen(head.ledger_id, head.epoch, head.seq)
        if noted is not None and (
            noted.ledger_id != seen.ledger_id or (noted.epoch, noted.seq) >= (seen.epoch, seen.seq)
        ):
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(".tmp")
        draft.write_bytes(msgspec.json.encode(seen))
        os.replace(draft, self._path)
        self._noted = seen

    def _read(self) -> Seen | None:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Seen)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise LedgerLost(f"{self._path} cannot be read ({error}); repair or remove it") from error
