"""Follow the log into the journal: every record once, in order, its chain proved. One ``step`` at a time, one thread.

Its place is written with its rows, and told to the ledger afterwards: trimming never passes what the database has. It
keeps one batch in memory and nothing else, so a database that is away costs the ledger's log, never this process. A
failover that took records back is told by the log itself (`replica.order`); the journal takes them back too. Records
that the log no longer has leave a gap that is noted, with everything as it stands after it. Who builds it: `app`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

import structlog

from availability.domain.version import ZERO, Version
from availability.history.database import DatabaseUnreachable
from availability.history.journal import START, Baseline, Journal, Place, PlaceMoved
from availability.history.rows import Rows, add_entry
from availability.ledger.errors import LedgerError
from availability.ledger.reader import Head, LedgerReader
from availability.ledger.record import Entry
from availability.replica.errors import ForkSeen, LedgerNotServable, RecordsMissing, ResyncNeeded
from availability.replica.order import EpochFork, checked

_LOG = structlog.get_logger(__name__)
CONSUMER = "historian"
"""Its name among the log's consumers."""
_SEQ_MAX = (1 << 44) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HistorianSettings:
    """Limits of one historian. Times in milliseconds."""

    batch_records: int = 5_000
    """Most records of one read of the log, and so of one transaction."""
    batch_bytes: int = 8 << 20
    """About as many bytes of records in memory: reads get smaller where records are large."""
    batch_changes: int = 20_000
    """About as many rows in one transaction."""
    block_ms: int = 250
    """How long a read of the log waits for the first record."""
    gather_ms: int = 50
    """Pause after a read that did not fill a batch: a transaction costs much the same for 1 and 100 records."""
    checkpoint_ms: int = 1_000
    """Least time between two notes of the place in the ledger, and the age of what `lag` tells."""
    backoff_min_ms: int = 100
    backoff_max_ms: int = 5_000


class Checkpoints(Protocol):
    """Where the ledger keeps how far its consumers are. Raises LedgerError."""

    def note(self, version: Version) -> None:
        """Note that everything up to a version is safe: only that may be trimmed."""
        ...


class Observer(Protocol):
    """Who is told what the historian does."""

    def wrote(self, records: int, seconds: float) -> None: ...

    def failed(self, cause: str) -> None: ...


class Historian:
    """Keeps a journal equal to the log. ``step`` is all that a thread needs to call."""

    def __init__(
        self,
        reader: LedgerReader,
        checkpoints: Checkpoints,
        journal: Journal,
        settings: HistorianSettings,
        *,
        baseline: Callable[[Head], Baseline],
        monotonic: Callable[[], float],
        wall_ms: Callable[[], int],
        random_source: Random,
        observer: Observer,
    ) -> None:
        self._reader = reader
        self._checkpoints = checkpoints
        self._journal = journal
        self._settings = settings
        self._baseline = baseline
        self._monotonic = monotonic
        self._wall_ms = wall_ms
        self._random = random_source
        self._observer = observer
        self._place: Place | None = None
        self._failures = 0
        self._noted: Version | None = None
        self._noted_at = 0.0
        self._bytes_each = 0
        self._proved_at = monotonic()
        self._head_seq = 0
        self.caught_up = False
        """The last read found nothing more, and the ledger's head agreed."""

    @property
    def place(self) -> Place | None:
        """How far the journal has come; None while that is not known."""
        return self._place

    def lag(self) -> tuple[float, int]:
        """Return (seconds since everything was known to be written, records that were behind at the last look)."""
        behind = 0 if self._place is None else max(0, self._head_seq - self._place.version.seq)
        return self._monotonic() - self._proved_at, behind

    def step(self) -> float:
        """Do one piece of work; return the seconds to pause before the next.

        Raises HistoryError (but DatabaseUnreachable, which it waits out) and bugs: then it must be started anew.
        """
        try:
            pause = self._work()
        except LedgerError as error:
            return self._failed("ledger", str(error))
        except (LedgerNotServable, ResyncNeeded) as error:
            return self._failed("ledger", str(error))
        except DatabaseUnreachable as error:
            self._place = None  # whether the last transaction counts is unknown: the database knows
            return self._failed("database", str(error))
        except PlaceMoved as error:
            self._place = None
            return self._failed("place", str(error))
        if self._failures:
            _LOG.info("history goes on", place=str(self._place.version) if self._place else "")
        self._failures = 0
        return pause

    def _failed(self, cause: str, message: str) -> float:
        """Tell it once, count each, and back off with jitter."""
        self.caught_up = False
        if not self._failures:
            _LOG.warning("history waits", cause=cause, reason=message)
        self._observer.failed(cause)
        self._failures += 1
        top = self._settings.backoff_max_ms
        backoff_ms: int = min(top, self._settings.backoff_min_ms * 2 ** min(self._failures - 1, 16))
        return backoff_ms * (0.5 + self._random.random() / 2) / 1000

    # --- Going on ----------------------------------------------------------------------------------------

    def _work(self) -> float:
        place = self._place
        if place is None:
            place = self._place = self._start()
        count = self._count()
        entries: list[Entry] = []
        try:
            self._note(place)
            entries = self._reader.read(place.version, count, self._settings.block_ms)
            if not entries:
                return self._nothing_came(place)
            checked(place.version, place.chain, entries)
        except ResyncNeeded as need:
            self._begin_anew(place, entries, need)
            return 0.0
        self._write(place, entries)
        full = len(entries) >= count
        self.caught_up = False
        return 0.0 if full else self._settings.gather_ms / 1000

    def _count(self) -> int:
        """Return how many records to read: fewer where the last ones were large."""
        most = self._settings.batch_records
        if self._bytes_each <= 0:
            return min(most, 100)
        return max(1, min(most, self._settings.batch_bytes // self._bytes_each))

    def _start(self) -> Place:
        """Find the place in the database. The first thing told to the ledger: what may not be trimmed."""
        head = self._reader.head()
        if not head.ledger_id:
            raise LedgerNotServable("there is no ledger here yet")
        place = self._journal.place(head.ledger_id)
        self._noted = None
        _LOG.info("history begins at", place=str(place.version), head=str(head.version))
        return place

    def _note(self, place: Place) -> None:
        now = self._monotonic()
        if self._noted is not None and now - self._noted_at < self._settings.checkpoint_ms / 1000:
            return
        head = self._reader.head()
        if head.version < place.version:
            # A failover. Any write makes the ledger say where the epoch ended; this one lets nothing be trimmed.
            self._checkpoints.note(START)
            head = self._reader.head()
            if head.version < place.version:
                raise ForkSeen(f"the ledger is at {head.version}, but {place.version} was read")
        else:
            # Also where nothing is new: a checkpoint says that somebody is there.
            self._checkpoints.note(place.version)
        self._noted, self._noted_at = place.version, now
        self._head_seq = head.seq

    def _nothing_came(self, place: Place) -> float:
        """Nothing came: is there nothing, or do we listen to a log that is gone?"""
        asked_at = self._monotonic()
        head = self._reader.head()
        if head.ledger_id != place.ledger_id:
            raise LedgerNotServable(f"another ledger ({head.ledger_id!r} instead of {place.ledger_id!r})")
        if head.version < place.version:
            self._noted = None  # looked into at once
            raise LedgerNotServable(f"the ledger is at {head.version}, but {place.version} was read before")
        if head.version > place.version:
            if self._reader.read(place.version, 1, 0):
                return 0.0
            raise RecordsMissing(
                f"the ledger is at {head.version}, and its log has nothing after {place.version}"
            )
        if head.chain != place.chain:
            raise ForkSeen(f"the ledger has another history at {head.version}")
        self._head_seq, self._proved_at, self.caught_up = head.seq, asked_at, True
        return 0.0

    def _write(self, place: Place, entries: Sequence[Entry]) -> None:
        """Write entries, in several transactions where they make many rows."""
        self._bytes_each = max(1, sum(len(entry.raw) for entry in entries) // len(entries))
        rows, began, first = Rows(), self._monotonic(), 0
        clock_ms = place.clock_ms
        for number, entry in enumerate(entries, start=1):
            clock_ms = add_entry(rows, entry, clock_ms)
            if number < len(entries) and rows.changes < self._settings.batch_changes:
                continue
            after = Place(
                ledger_id=place.ledger_id, version=entry.version, chain=entry.chain, clock_ms=clock_ms
            )
            self._journal.append(place, rows, after)
            now = self._monotonic()
            self._observer.wrote(number - first, now - began)
            if rows.unreadable:
                _LOG.error(
                    "records cannot be read by this release", count=rows.unreadable, up_to=str(entry.version)
                )
            place = self._place = after
            rows, began, first = Rows(), now, number

    # --- Forks and gaps ----------------------------------------------------------------------------------

    def _begin_anew(self, place: Place, entries: Sequence[Entry], need: ResyncNeeded) -> None:
        """The log does not continue the journal: take back what it took back, or note what is missing."""
        self.caught_up = False
        if isinstance(need, ForkSeen):
            kept, chain = self._common(place, entries, need)
            if (kept, chain) != (place.version, place.chain):
                self._place = self._journal.rewind(
                    place, kept, chain, reason=need.reason, noticed_ms=self._wall_ms()
                )
                _LOG.error("history_lost", reason=need.reason, kept=str(kept), seen=str(place.version))
                self._noted = None
                return
        if not isinstance(need, ForkSeen | RecordsMissing):
            raise need
        head = self._reader.head()
        baseline = self._baseline(head)
        self._place = self._journal.rebase(place, baseline)
        self._noted = None
        _LOG.error("history_gap", reason=need.reason, after=str(place.version), goes_on=str(baseline.version))

    def _common(self, place: Place, entries: Sequence[Entry], need: ForkSeen) -> tuple[Version, str]:
        """Return the last point that journal and log share.

        The log says it where an epoch ended; else records of both are compared. Where they share none, everything is
        kept that the log does not contradict.
        """
        if isinstance(need, EpochFork):
            kept = Version(need.body.old_epoch, need.body.last_seq)
            if self._journal.chain_at(kept) == need.body.last_chain:
                return kept, need.body.last_chain
        oldest = self._reader.read(ZERO, 1, 0)
        limit = oldest[0].version if oldest else place.version
        if not oldest or not self._shared(oldest[0]):
            before = self._journal.last_before(min(limit, place.version))
            return before, self._journal.chain_at(before) or ""
        # Chains are equal up to the last common record and differ after it.
        low, high = oldest[0], place.version
        while low.version < high:
            if high.seq == 0:
                high = Version(high.epoch - 1, _SEQ_MAX)
                continue
            first = low.version.seq + 1 if high.epoch == low.version.epoch else 1
            middle = first + (high.seq - first + 1) // 2
            found = self._reader.read(Version(high.epoch, middle - 1), 1, 0)
            if found and found[0].version <= high and self._shared(found[0]):
                low = found[0]
            else:
                high = Version(high.epoch, middle - 1)
        return low.version, low.chain

    def _shared(self, entry: Entry) -> bool:
        return self._journal.chain_at(entry.version) == entry.chain
