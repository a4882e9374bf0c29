"""Is this really the next piece of our log? Order, epoch and chain of entries that were read.

Pure: it reads nothing and decides nothing but that. ``follow`` acts on the answer. Rule: within an epoch ids
are dense; an epoch begins with a record that names the point where the one before ended (DESIGN, Epoch).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from availability.domain.version import Version
from availability.ledger.record import Entry, EpochBody, Kind, chain_after, decode_body
from availability.replica.errors import ForkSeen, RecordsMissing, UnreadableRecord


class EpochFork(ForkSeen):
    """An epoch ended before the point that we had read."""

    def __init__(self, body: EpochBody, seen: Version) -> None:
        super().__init__(f"epoch {body.old_epoch} ended at {body.last_seq}, but {seen} was read")
        self.body = body


def checked(version: Version, chain: str, entries: Sequence[Entry]) -> list[EpochBody]:
    """Check that entries continue the log after (version, chain); return the epoch changes among them.

    Raises RecordsMissing for a gap, ForkSeen for another history, UnreadableRecord for an epoch record that
    cannot be decoded.
    """
    epochs: list[EpochBody] = []
    for entry in entries:
        at = entry.version
        if at.epoch == version.epoch:
            if at.seq != version.seq + 1:
                raise RecordsMissing(f"the log goes on with {at} after {version}")
        else:
            epochs.append(_epoch_change(version, chain, entry))
        if chain_after(chain, f"{at.epoch}-{at.seq}", entry.raw) != entry.chain:
            raise ForkSeen(f"the chain breaks at {at}")
        version, chain = at, entry.chain
    return epochs


def _epoch_change(version: Version, chain: str, entry: Entry) -> EpochBody:
    at = entry.version
    if at.epoch < version.epoch:
        raise ForkSeen(f"the log goes back to {at} after {version}")
    try:
        record = entry.record()
        body: EpochBody | None = decode_body(record) if record.kind == Kind.EPOCH else None
    except (msgspec.DecodeError, KeyError) as error:
        raise UnreadableRecord(at, f"{type(error).__name__}: {error}") from error
    if body is None:
        raise ForkSeen(f"epoch {at.epoch} goes on at {at}, and its beginning is not in the log")
    if body.old_epoch == version.epoch and body.last_seq < version.seq:
        raise EpochFork(body, version)
    if body.old_epoch == version.epoch and body.last_seq > version.seq:
        raise RecordsMissing(f"the log goes on with {at} after {version}")
    if (body.old_epoch, body.last_seq) != version[:2]:
        raise ForkSeen(f"epoch {at.epoch} follows {body.old_epoch}-{body.last_seq}, but {version} was read")
    if body.last_chain != chain:
        raise EpochFork(body, version)
    return body
