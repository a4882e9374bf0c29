"""Why a replica reads everything again or refuses to serve. Internal: callers see ServiceError."""

from __future__ import annotations

from availability.domain.version import Version


class ResyncNeeded(Exception):
    """Following the log cannot go on: read everything again.

    ``in_doubt``: what is in memory may be wrong, so nothing is served meanwhile. Otherwise memory is a right
    past that only ages.
    """

    def __init__(self, reason: str, *, in_doubt: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.in_doubt = in_doubt


class RecordsMissing(ResyncNeeded):
    """The log no longer has the next record: trimmed past us, or deleted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, in_doubt=False)


class ForkSeen(ResyncNeeded):
    """What we read is not the history that the ledger goes on with."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, in_doubt=True)


class UnreadableRecord(ResyncNeeded):
    """A record cannot be decoded or applied. It is never skipped."""

    def __init__(self, version: Version, why: str) -> None:
        super().__init__(f"record {version} cannot be applied ({why})", in_doubt=False)


class Disagreement(ResyncNeeded):
    """Memory and ledger differ at the same version."""

    def __init__(self, what: str, version: Version) -> None:
        super().__init__(f"memory and ledger differ about {what} at {version}", in_doubt=True)


class MemoryReplaced(Exception):
    """What was read of memory is not memory any more; ask again."""


class LedgerNotServable(Exception):
    """The ledger as it is now must not be served: another ledger, or one that went back."""
