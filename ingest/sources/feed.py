"""What the feeds that are fetched have in common: files in the source's drop folder, a durable place, back-off.

A feed brings what is new elsewhere into the drop folder, from where it is carried like anything else: an outage of the
ledger lets files wait, and when they fill their allowance nothing more is fetched. A chunk of events is written, synced
and noted before it gets its name; the place where the feed stands is *settled* only when the pipeline has noted the
chunk as carried, which it does after the ledger's durable ack. Killed anywhere, a feed goes on where it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection, Engine

from ingest.database import artifacts, chunks, feeds
from ingest.feed_health import FeedHealth

_LOG = structlog.get_logger(__name__)

BACKOFF_S = 1.0
BACKOFF_MAX_S = 300.0
JOIN_S = 1.0
"""For all feeds together."""
_OPEN = "OPEN"


class FeedFailed(Exception):
    """Nothing can be fetched now. ``retry_after_s``: the least wait before another try makes sense."""

    def __init__(self, reason: str, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s


class Feed(Protocol):
    """Brings what is new into the drop folder."""

    source: str
    kind: str
    interval_s: float
    eager: bool
    """Whether to ask again at once where something came; else only after the interval."""

    def fetch(self, *, once: bool) -> int:
        """Fetch what is there and return how many files that made; more may be there. Raises FeedFailed.

        ``once``: nobody asks again, so what needs a second look is looked at twice.
        """
        ...


def backoff_s(attempt: int, rand: Callable[[], float] = random.random) -> float:
    """Return a jittered wait before an attempt, counted from 1: half to whole of 1, 2, 4 … 300 s."""
    return float(min(BACKOFF_MAX_S, BACKOFF_S * 2 ** min(attempt - 1, 16)) * (0.5 + rand() / 2))


class FeedThread:
    """Fetches until stopped, in a thread of its own, so that a slow other side keeps nobody else waiting."""

    def __init__(
        self,
        feed: Feed,
        *,
        told: Callable[[str], None],
        health: FeedHealth | None = None,
        rand: Callable[[], float] = random.random,
        waited: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._feed = feed
        self._told = told
        self._health = health
        self._rand = rand
        self._waited = waited
        self._stop = threading.Event()
        self.bug: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"{feed.kind}-{feed.source}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask it to end after what it does now."""
        self._stop.set()

    def join(self, timeout_s: float) -> None:
        """Wait for its end; what it leaves unfinished is finished by the next start."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self._fetch_on()
        except Exception as error:  # nobody sees a thread end: whoever started it does
            self.bug = error

    def _fetch_on(self) -> None:
        feed, failures = self._feed, 0
        while not self._stop.is_set():
            try:
                count = feed.fetch(once=False)
                if self._health is not None:
                    self._health.works(feed.source, feed.kind)
                if failures:
                    self._told(f"{feed.source}: {feed.kind}: fetches again")
                failures, pause_s = 0, 0.0 if count and feed.eager else feed.interval_s
            except FeedFailed as error:
                failures += 1
                pause_s = max(error.retry_after_s, backoff_s(failures, self._rand))
                self._note(error.reason, str(error))
                _LOG.warning("feed", source=feed.source, kind=feed.kind, reason=error.reason, told=str(error))
                if failures == 1:
                    self._told(f"{feed.source}: {feed.kind}: {error.reason}: {error}; tried again")
            except (OSError, sa.exc.SQLAlchemyError) as error:
                failures += 1
                pause_s = backoff_s(failures, self._rand)
                self._note("OUT_OF_ORDER", type(error).__name__)
                _LOG.error("feed", source=feed.source, kind=feed.kind, error=type(error).__name__)
                if failures == 1:
                    self._told(f"{feed.source}: {feed.kind}: {type(error).__name__}; tried again")
            self._waited(pause_s)
            self._stop.wait(pause_s)

    def _note(self, reason: str, message: str) -> None:
        if self._health is None:
            return
        try:
            self._health.fails(self._feed.source, self._feed.kind, reason, message)
        except sa.exc.SQLAlchemyError as error:  # then nothing can be noted at all; the log says so
            _LOG.error("feed", source=self._feed.source, kind=self._feed.kind, error=type(error).__name__)


@contextlib.contextmanager
def fetching(
    found: Iterable[Feed], told: Callable[[str], None], health: FeedHealth | None = None
) -> Iterator[Callable[[], bool]]:
    """Fetch meanwhile, each feed in its thread; yields whether one has ended by a bug, which is raised at the end."""
    threads = [FeedThread(feed, told=told, health=health) for feed in found]

    def broken() -> bool:
        return any(thread.bug is not None for thread in threads)

    try:
        yield broken
        for thread in threads:
            if thread.bug is not None:
                raise thread.bug
    finally:
        for thread in threads:
            thread.stop()
        deadline = time.monotonic() + JOIN_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def waiting_bytes(folder: Path) -> int:
    """Return how much waits in a drop folder, archive and rejected files not counted."""
    with os.scandir(folder) as entries:
        sizes = []
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # carried meanwhile
                if entry.is_file(follow_symlinks=False):
                    sizes.append(entry.stat().st_size)
    return sum(sizes)


class Chunks:
    """Chunks of one feed on their way through the drop folder, and the place where it stands. One thread."""

    def __init__(
        self,
        engine: Engine,
        source: str,
        kind: str,
        folder: Path,
        *,
        settle_ms: int = 0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._source, self._kind = source, kind
        self._folder = folder
        self._settle_ms = settle_ms
        self._now = now
        folder.mkdir(parents=True, exist_ok=True)
        self._recover()

    def position(self) -> str:
        """Return where the feed stands, written chunks included; "" at its very beginning."""
        table = chunks
        query = sa.select(table.c.position).where(self._mine(table)).order_by(table.c.number.desc()).limit(1)
        with self._engine.connect() as connection:
            found = connection.execute(query).scalar()
            return found if found is not None else self._state(connection)[0]

    def settled(self) -> str:
        """Return up to where the ledger's durable ack is there; moves it on. "" at the very beginning."""
        with self._engine.begin() as connection:
            before, _ = self._state(connection)
            settled = before
            for row in self._waiting(connection):
                if not self._is_settled(connection, row.checksum):
                    break
                settled = row.position
                self._drop(connection, row.number)
            if settled != before:
                self._set(connection, settled=settled)
            return settled

    def put(self, content: bytes, position: str) -> bool:
        """Make a chunk durable; from now on the feed stands at ``position``. False: the same bytes came before.

        Without content only the place moves. Raises OSError.
        """
        checksum = hashlib.sha256(content).hexdigest()
        with self._engine.connect() as connection:
            known = not content or self._is_settled(connection, checksum)
            known = known or any(row.checksum == checksum for row in self._waiting(connection))
            number = self._state(connection)[1] + 1
        name = chunk_name(self._kind, number)
        if not known:
            self._write(name, content)
        with self._engine.begin() as connection:
            self._set(connection, number=number)
            if known and not self._waiting(connection):
                self._set(connection, settled=position)
            else:
                if not content:
                    checksum = ""
                values = {"number": number, "name": name, "checksum": checksum, "position": position}
                connection.execute(sa.insert(chunks).values(source=self._source, kind=self._kind, **values))
        if not known:
            self._publish(name)
        return not known

    # --- Inside -------------------------------------------------------------------------------------------

    def _write(self, name: str, content: bytes) -> None:
        handle = os.open(self._hidden(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(handle, view) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        sync_folder(self._folder)

    def _publish(self, name: str) -> None:
        hidden = self._hidden(name)
        # Complete since before it has its name: nobody needs to wait for it to settle.
        at = self._now() - self._settle_ms / 1000
        os.utime(hidden, (at, at))
        hidden.replace(self._folder / name)
        sync_folder(self._folder)

    def _recover(self) -> None:
        """Finish or forget what a killed process left; begin again where chunks are nowhere any more."""
        with self._engine.begin() as connection:
            rows = self._waiting(connection)
            noted = {row.name for row in rows}
            for left in self._folder.glob(f".{self._kind}-*.jsonl.tmp"):
                if left.name.removeprefix(".").removesuffix(".tmp") in noted:
                    self._publish(left.name.removeprefix(".").removesuffix(".tmp"))
                else:
                    left.unlink()
            lost = False
            for row in rows:
                if not lost and row.checksum and not (self._folder / row.name).exists():
                    lost = self._carried(connection, row.checksum) is None and not any(
                        other.checksum == row.checksum and (self._folder / other.name).exists()
                        for other in rows
                    )
                    if lost:
                        _LOG.warning("a chunk is gone; fetched again", source=self._source, name=row.name)
                if lost:
                    self._drop(connection, row.number)

    def _hidden(self, name: str) -> Path:
        return self._folder / f".{name}.tmp"

    def _mine(self, table: sa.Table) -> sa.ColumnElement[bool]:
        return sa.and_(table.c.source == self._source, table.c.kind == self._kind)

    def _waiting(self, connection: Connection) -> list[sa.Row[tuple[object, ...]]]:
        query = sa.select(chunks).where(self._mine(chunks)).order_by(chunks.c.number)
        return list(connection.execute(query))

    def _carried(self, connection: Connection, checksum: str) -> str | None:
        """The pipeline's note of these bytes; None: it has not seen them."""
        where = sa.and_(artifacts.c.source == self._source, artifacts.c.checksum == checksum)
        state: str | None = connection.execute(sa.select(artifacts.c.state).where(where)).scalar()
        return state

    def _is_settled(self, connection: Connection, checksum: str) -> bool:
        return not checksum or self._carried(connection, checksum) not in (None, _OPEN)

    def _drop(self, connection: Connection, number: int) -> None:
        connection.execute(sa.delete(chunks).where(self._mine(chunks), chunks.c.number == number))

    def _state(self, connection: Connection) -> tuple[str, int]:
        query = sa.select(feeds.c.settled, feeds.c.number).where(self._mine(feeds))
        row = connection.execute(query).first()
        return (row.settled, row.number) if row is not None else ("", 0)

    def _set(self, connection: Connection, **values: object) -> None:
        set_feed(connection, self._source, self._kind, **values)


def set_feed(connection: Connection, source: str, kind: str, **values: object) -> None:
    """Note something of a feed."""
    where = sa.and_(feeds.c.source == source, feeds.c.kind == kind)
    if connection.execute(sa.update(feeds).where(where).values(**values)).rowcount == 0:
        connection.execute(sa.insert(feeds).values(source=source, kind=kind, **values))


def chunk_name(kind: str, number: int) -> str:
    """Return the name of a feed's chunk; in the order of names they were written."""
    return f"{kind}-{number:012d}.jsonl"


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
