"""Follow the ledger: bootstrap, tail, compare, and know when to start over. One ``step`` at a time, one
thread.

What may be served is decided here: memory that is a right past of the ledger goes on being served (its age
tells), memory in doubt is not, and a ledger that went back or is another one never is. It does no waiting but
inside the reader's calls: ``step`` returns how long to pause. ``replica`` owns the thread and the readers'
side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Protocol

from availability.domain.version import Version
from availability.ledger.errors import LedgerError
from availability.ledger.reader import Head, LedgerReader
from availability.ledger.record import Entry
from availability.replica.bootstrap import Bootstrap, Progress
from availability.replica.digest import Asked, Digest
from availability.replica.errors import (
    Disagreement,
    ForkSeen,
    LedgerNotServable,
    RecordsMissing,
    ResyncNeeded,
    UnreadableRecord,
)
from availability.replica.order import EpochFork, checked
from availability.replica.settings import ReplicaSettings
from availability.replica.state import Prepared, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """Versions after ``kept_seq`` up to ``seen`` were read here, and the ledger no longer has them.

    ``kept_seq`` is -1 where only a broken chain told: then any of the latest versions may be lost.
    """

    epoch: int
    kept_seq: int
    seen: Version
    reason: str


class Sink(Protocol):
    """What the follower needs of the side that answers."""

    @property
    def state(self) -> State: ...

    def publish(self, prepared: Prepared) -> None: ...

    def replace(self, state: State) -> None: ...

    def proved(self, at: float) -> None:
        """Memory held the whole log at this monotonic time (seconds)."""
        ...

    def trust(self) -> None: ...

    def distrust(self, reason: str) -> None: ...

    def ended(self, endings: dict[int, int]) -> None:
        """Epochs ended: epoch → last seq. Later versions of them are lost."""
        ...

    def forked(self, fork: Fork) -> None: ...

    def resynced(self, reason: str) -> None: ...


class Follower:
    """Keeps a sink's state equal to the ledger. ``step`` and ``stopped`` are all the thread needs."""

    def __init__(
        self,
        reader: LedgerReader,
        settings: ReplicaSettings,
        sink: Sink,
        monotonic: Callable[[], float],
        random_source: Random,
        digest: Digest,
        *,
        progress: Callable[[Progress], None],
        stopped: Callable[[], bool],
    ) -> None:
        self._reader = reader
        self._settings = settings
        self._sink = sink
        self._monotonic = monotonic
        self._random = random_source
        self._digest = digest
        self._progress = progress
        self._stopped = stopped
        self._seen = False
        self._resync = "the replica starts"
        self._failures = 0
        self._doubted_at: float | None = None
        self._asked: Asked | None = None
        self._reported: Version | None = None

    def step(self) -> float:
        """Do one piece of work; return the seconds to pause before the next."""
        pause = 0.0
        try:
            if self._resync:
                self._bootstrap()
            else:
                pause = self._tail()
        except LedgerError as error:
            # Memory stays a right past; its age says the rest.
            if not self._seen:
                self._sink.distrust(f"the ledger cannot be read: {error}")
            return self._pause()
        except LedgerNotServable as refusal:
            self._sink.distrust(str(refusal))
            return self._pause()
        except ResyncNeeded as need:
            return self._need_resync(need)
        except Exception as error:  # a bug here must stop the answers, not only this thread
            self._resync = f"internal: {type(error).__name__}: {error}"
            self._sink.distrust(self._resync)
            return self._pause()
        self._failures = 0
        return pause

    # --- Starting over -----------------------------------------------------------------------------------

    def _bootstrap(self) -> None:
        head = self._reader.head()
        self._check_identity(head)
        old = self._sink.state
        if self._seen and head.version < old.version:
            raise LedgerNotServable(f"the ledger is at {head.version}, but {old.version} was read before")
        bootstrap = Bootstrap(
            self._reader, self._settings, self._random, progress=self._progress, stopped=self._stopped
        )
        state = bootstrap.run(head, old if self._seen else None)
        if self._seen:
            self._report_lost(bootstrap.endings, old.version)
        self._sink.ended(bootstrap.endings)
        self._sink.replace(state)
        self._sink.resynced(self._resync)
        self._sink.trust()
        self._seen, self._resync, self._asked = True, "", None

    def _need_resync(self, need: ResyncNeeded) -> float:
        now = self._monotonic()
        again = False
        if isinstance(need, UnreadableRecord | Disagreement):
            window = self._settings.doubt_window_ms / 1000
            again = self._doubted_at is not None and now - self._doubted_at < window
            self._doubted_at = now
        if self._seen and isinstance(need, ForkSeen) and not self._resync:
            self._report_fork(need)
        failed = bool(self._resync)  # a bootstrap that must be repeated is not hurried
        self._resync = need.reason
        self._asked = None
        if need.in_doubt or again:
            self._sink.distrust(need.reason)
        return self._pause() if failed or again else 0.0

    def _report_fork(self, need: ForkSeen) -> None:
        seen = self._reported = self._sink.state.version
        kept = -1
        if isinstance(need, EpochFork):
            kept = need.body.last_seq
            self._sink.ended({need.body.old_epoch: kept})
        self._sink.forked(Fork(epoch=seen.epoch, kept_seq=kept, seen=seen, reason=need.reason))

    def _report_lost(self, endings: dict[int, int], seen: Version) -> None:
        """A failover that was only noticed after the fact is told all the same."""
        kept = endings.get(seen.epoch)
        if kept is not None and kept < seen.seq and self._reported != seen:
            reason = f"epoch {seen.epoch} ended at {kept}, but {seen} was read"
            self._sink.forked(Fork(epoch=seen.epoch, kept_seq=kept, seen=seen, reason=reason))

    def _check_identity(self, head: Head) -> None:
        known = self._sink.state.ledger_id
        if not head.ledger_id:
            raise LedgerNotServable("there is no ledger here")
        if self._seen and head.ledger_id != known:
            raise LedgerNotServable(
                f"another ledger ({head.ledger_id!r} instead of {known!r}); a server that starts says what to do"
            )

    def _pause(self) -> float:
        """Back off, with jitter so that many replicas do not come back together."""
        self._failures += 1
        top = self._settings.backoff_max_ms
        backoff_ms: int = min(top, self._settings.backoff_min_ms * 2 ** min(self._failures - 1, 16))
        return backoff_ms * (0.5 + self._random.random() / 2) / 1000

    # --- Going on ----------------------------------------------------------------------------------------

    def _tail(self) -> float:
        """Apply what came. Returns the seconds to let more gather: a recompute costs much the same for 1 and 100."""
        state = self._sink.state
        if self._asked is None and self._digest.due():
            self._read_back(state)
        count = self._settings.batch_records
        asked_at = self._monotonic()
        entries = self._reader.read(state.version, count, self._settings.block_ms)
        if not entries:
            self._poll_head()
            return 0.0
        self._apply(entries)
        if len(entries) < count:
            self._sink.proved(asked_at)
            return self._settings.gather_ms / 1000
        return 0.0

    def _poll_head(self) -> None:
        """Nothing came: is there nothing, or do we listen to a log that is gone?"""
        state = self._sink.state
        asked_at = self._monotonic()
        head = self._reader.head()
        self._check_identity(head)
        if head.version < state.version:
            raise LedgerNotServable(f"the ledger is at {head.version}, but {state.version} was read before")
        if head.version > state.version:
            entries = self._reader.read(state.version, self._settings.batch_records, 0)
            if not entries:
                raise RecordsMissing(
                    f"the ledger is at {head.version}, and its log has nothing after {state.version}"
                )
            self._apply(entries)
            return
        if head.chain != state.chain:
            raise ForkSeen(f"the ledger has another history at {head.version}")
        self._sink.trust()
        self._sink.proved(asked_at)

    def _apply(self, entries: list[Entry]) -> None:
        state = self._sink.state
        bodies = checked(state.version, state.chain, entries)
        asked = self._asked
        if asked is not None:
            due = [entry for entry in entries if entry.version <= asked.version]
            if due:
                self._sink.publish(state.prepare(due))
            if state.version == asked.version:
                self._digest.compare(state, asked)
            if state.version[:2] >= asked.version[:2] or bodies:
                self._asked = None  # an epoch that ended before that point: what was asked saw what is lost
            entries = entries[len(due) :]
        if entries:
            self._sink.publish(state.prepare(entries))
        if bodies:
            self._sink.ended({body.old_epoch: body.last_seq for body in bodies})
        self._sink.trust()

    def _read_back(self, state: State) -> None:
        """Compare a piece with the ledger, at the version at which it answers."""
        asked = self._digest.ask(self._reader, state)
        self._check_identity(asked.head)
        if asked.version == state.version:
            self._digest.compare(state, asked)
        elif asked.version > state.version:
            self._asked = asked  # compared when the log has brought us there
