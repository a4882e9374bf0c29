"""Who is refused under load, and who never is. Pure: measurements in, decision out.

Two pressures, two answers. A long queue before the threads means that the processor is short: reads go
first, reserves later. A long commit queue means that the ledger is slow: refusing reserves helps, refusing
reads from memory does not, so their limit on it is off unless set. Snapshots and audits go at half of what reads
(by the ledger: reserves) may wait. Commits, releases, extends, order facts
and operators are never refused here. What is refused tells the caller when to try again.

The caller is `grpc_pipeline`; the queues are `pool` and the ledger's group commit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class CallClass(Enum):
    """What a call is, for the order of refusing."""

    SNAPSHOT = "snapshot"  # nightly work: it can wait
    READ = "read"
    RESERVE = "reserve"
    ORDER = "order"  # commit, release, extend: somebody has paid, or stock comes back
    INGEST = "ingest"  # order facts among them
    ADMIN = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """From where on a class is refused. Reads may not outlast reserves; 0 switches a limit off."""

    reads_queue_wait_ms: int = 250
    reserves_queue_wait_ms: int = 1_000
    reads_commit_queue_max: int = 0
    reserves_commit_queue_max: int = 2_000
    reads_blocked_max: int = 32
    reserves_blocked_max: int = 96
    retry_after_ms: int = 100
    retry_after_ms_max: int = 1_600

    def __post_init__(self) -> None:
        for reads, reserves, what in (
            (self.reads_queue_wait_ms, self.reserves_queue_wait_ms, "queue_wait_ms"),
            (self.reads_commit_queue_max, self.reserves_commit_queue_max, "commit_queue_max"),
            (self.reads_blocked_max, self.reserves_blocked_max, "blocked_max"),
        ):
            if min(reads, reserves) < 0:
                raise ValueError(f"{what}: a limit is at least 0 (0: off)")
            if reads and reserves and reads > reserves:
                raise ValueError(
                    f"reads_{what} ({reads}) is above reserves_{what} ({reserves}): reads are refused first"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Overload:
    """A refusal: what was too long, and when to come again."""

    cause: str
    retry_after_ms: int


class Admission:
    """Decide by the limits; the commit queue's length comes from the gauge that is handed in."""

    def __init__(self, limits: AdmissionLimits, commit_queue_length: Callable[[], int] = lambda: 0) -> None:
        self.limits = limits
        self._commit_queue_length = commit_queue_length
        self._wait_ms_max = {
            CallClass.SNAPSHOT: limits.reads_queue_wait_ms // 2,
            CallClass.READ: limits.reads_queue_wait_ms,
            CallClass.RESERVE: limits.reserves_queue_wait_ms,
        }
        self._commit_queue_max = {
            CallClass.SNAPSHOT: limits.reserves_commit_queue_max // 2,
            CallClass.READ: limits.reads_commit_queue_max,
            CallClass.RESERVE: limits.reserves_commit_queue_max,
        }

    def check(self, call_class: CallClass, queue_wait_ms: float) -> Overload | None:
        """Return why a call that was queued so long is refused, or None."""
        wait_ms_max = self._wait_ms_max.get(call_class, 0)
        if wait_ms_max and queue_wait_ms > wait_ms_max:
            return self._overload("calls wait too long for a thread", queue_wait_ms / wait_ms_max)
        queue_max = self._commit_queue_max.get(call_class, 0)
        if queue_max:
            length = self._commit_queue_length()
            if length > queue_max:
                return self._overload("too many writes wait for the ledger", length / queue_max)
        return None

    def blocked_max(self, call_class: CallClass) -> int | None:
        """Return how many calls may wait at once where one of this class would wait too, or None."""
        if call_class in (CallClass.READ, CallClass.SNAPSHOT):
            return self.limits.reads_blocked_max or None
        if call_class is CallClass.RESERVE:
            return self.limits.reserves_blocked_max or None
        return None

    def _overload(self, cause: str, pressure: float) -> Overload:
        # Steps of two, so that there are few different answers: they are kept encoded.
        after_ms = self.limits.retry_after_ms
        while pressure >= 2 and after_ms < self.limits.retry_after_ms_max:
            after_ms *= 2
            pressure /= 2
        return Overload(cause=cause, retry_after_ms=min(after_ms, self.limits.retry_after_ms_max))
