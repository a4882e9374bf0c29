"""Group commit: calls that arrive while one round trip is under way travel together in the next pipeline.

One thread owns one connection. Batches of deltas are sent one group ahead, so that Redis always finds work. Every
call carries ids that make it safe to send again (request id, source sequence, event id), so after a lost connection or
a moved epoch what has no answer is sent again in the same order, until the deadline of each call. Throughput then
follows Redis, not the round trip.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import redis
import structlog
from redis.exceptions import RedisError, ResponseError

from availability.ledger import keys
from availability.ledger.connection import (
    ConnectionSettings,
    is_missing_function,
    load_library,
    make_client,
    make_pool,
    translate,
)
from availability.ledger.errors import LedgerError, LedgerFunctionFailed, LedgerRefused, LedgerUnreachable
from availability.ledger.library import Library

_FENCED = b"\x91\xa6FENCED"
_NOT_READY = b"\x91\xa9NOT_READY"


class DeadlinePassed(LedgerError):
    """The caller's deadline passed; whether a call that was sent counts is unknown."""


class DurabilityUnconfirmed(LedgerError):
    """Done, but not confirmed by enough replicas in time. Asking again with the same id tells."""


class NoLedger(LedgerError):
    """Redis holds no ledger under this prefix, or another one than this server works on."""


_LOG = structlog.get_logger(__name__)

DEADLINE_TICK_S = 0.05
GROUPS_UNDER_WAY_MAX = 2
"""Redis works on one while the other waits in its socket; more would only make small calls wait longer."""
AT_ONCE_MAX = 2
"""Functions are loaded once and hands are shaken once; who then refuses still is not the server that did so."""
DEADLINE_MARGIN_S = 0.1
"""How long before its deadline a caller is told that no answer came, so that the telling still arrives."""

_TELLING = threading.Lock()
"""Orders ``finish`` and ``on_done`` of every call; held for two statements."""


class Pending:
    """A call on its way: ``wait`` for it from one thread, or be told by ``on_done`` and then ``wait``."""

    __slots__ = ("_done", "_told", "deadline", "error", "finished", "function", "payload", "reply", "sent")

    def __init__(self, function: str, payload: bytes, deadline: float) -> None:
        self.function = function
        self.payload = payload
        self.deadline = deadline
        self.reply: bytes = b""
        self.error: LedgerError | None = None
        self.sent = False
        self.finished = False
        self._told: Callable[[], object] | None = None
        self._done = threading.Lock()
        self._done.acquire()

    def finish(self, reply: bytes = b"", error: LedgerError | None = None) -> None:
        """Set reply or error, wake the waiter, tell the teller. The first to finish wins; later ones do nothing."""
        with _TELLING:
            if self.finished:
                return
            self.finished = True
            self.reply, self.error = reply, error
            told = self._told
        self._done.release()
        if told is not None:
            _tell(told)

    def on_done(self, told: Callable[[], object]) -> None:
        """Call ``told`` once when there is a reply or an error, on the queue's thread, or here where there is one."""
        with _TELLING:
            if not self.finished:
                self._told = told
                return
        _tell(told)

    def wait(self) -> bytes:
        """Return the packed reply. Raises LedgerError."""
        if not self._done.acquire(timeout=max(0.0, self.deadline - time.monotonic()) + 0.05):
            raise DeadlinePassed("no answer from the ledger before the deadline; ask again with the same id")
        if self.error is not None:
            raise self.error
        return self.reply


OnGroup = Callable[[Mapping[tuple[str, str], int], float], None]
"""Is told each group: calls by (function's full name, result), and the seconds that it took."""
_RESULTS: dict[type[LedgerError], str] = {
    DeadlinePassed: "late",
    DurabilityUnconfirmed: "unconfirmed",
    LedgerUnreachable: "unreachable",
    LedgerRefused: "refused",
    NoLedger: "no_ledger",
}


def _results(group: list[Pending]) -> dict[tuple[str, str], int]:
    """Count a group's calls by function and how they ended: ok, or a word for the failure."""
    counts: dict[tuple[str, str], int] = {}
    for pending in group:
        error = pending.error
        key = pending.function, "ok" if error is None else _RESULTS.get(type(error), "failed")
        counts[key] = counts.get(key, 0) + 1
    return counts


def _tell(told: Callable[[], object]) -> None:
    """Tell, on a thread that serves everybody: what the teller fails at is logged, and ends nothing."""
    try:
        told()
    except Exception:
        _LOG.exception("telling of an answer failed")


def _command(*arguments: bytes, more: int = 0) -> bytes:
    """Pack a command as RESP; ``more`` arguments follow."""
    count = len(arguments) + more
    return b"*%d\r\n" % count + b"".join(b"$%d\r\n%b\r\n" % (len(value), value) for value in arguments)


def _unanswered() -> LedgerUnreachable:
    return LedgerUnreachable("Redis did not answer in time; ask again with the same id")


def _closing() -> LedgerUnreachable:
    return LedgerUnreachable("the server is shutting down")


@dataclass(slots=True)
class _Sent:
    """A group whose answers are awaited, ``replies`` of them; ``calls`` are those of ``every`` that are not settled."""

    calls: list[Pending]
    every: tuple[Pending, ...]
    replies: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """Limits of the group commit. ``wait_replicas`` 0 means that no replica confirms.

    ``gather_ms``: where calls come together, the time between one group's answers and the next group, so that more
    come together; a call that comes alone never waits. ``ahead_bytes_min``: a group of so many bytes (batches of
    deltas) is sent while another is under way, so that Redis never waits for us. ``group_bytes_max`` bounds what a
    small call has to wait for: some 1,500 deltas.
    """

    group_max: int = 128
    gather_ms: int = 2
    group_bytes_max: int = 256_000
    ahead_bytes_min: int = 32_000
    wait_replicas: int = 0
    wait_timeout_ms: int = 500
    backoff_min_s: float = 0.02
    backoff_max_s: float = 0.5


class CommitQueue:
    """Sends mutating calls in groups. Start it, submit to it, close it."""

    def __init__(
        self,
        connection: ConnectionSettings,
        settings: QueueSettings,
        library: Library,
        *,
        on_group: OnGroup | None = None,
        pool: redis.ConnectionPool | None = None,
    ) -> None:
        """``pool``: shared with who reads, so that both follow the primary that one of them finds."""
        self._connection_settings = connection
        self._settings = settings
        self._library = library
        self._on_group = on_group
        self._queue: queue.SimpleQueue[Pending | None] = queue.SimpleQueue()
        self._pool = pool or make_pool(connection)
        self._own: Any = self._pool.make_connection()  # Any: redis-py types its connections loosely
        self._connection: Any = None  # the same, while it is connected
        self._meta_key = keys.meta(connection.prefix, connection.shard)
        self._confirm_key = keys.confirm(connection.prefix, connection.shard)
        self._ledger_id = ""
        self._epoch = b"0"
        self._heads: dict[str, bytes] = {}  # of packed calls, by function; they hold the epoch
        self._groups = 0
        self._next: list[Pending] = []  # taken from the queue, not yet sent
        self._next_bytes = 0
        self._together = False  # the last group held more than one call
        self._closing = False
        self._closed = threading.Event()
        self._owed: deque[Pending] = deque()  # in order of submission; those at the front may be finished
        self._deadlines = threading.Thread(target=self._keep_deadlines, name="commit-deadlines", daemon=True)
        self._thread = threading.Thread(target=self._run, name="commit-queue", daemon=True)
        self.last_answer = 0.0
        """Monotonic time at which Redis last answered a group; 0 before the first."""

    def start(self, ledger_id: str) -> None:
        """Begin sending for this ledger, and for no other."""
        self._ledger_id = ledger_id
        self._thread.start()
        self._deadlines.start()

    def close(self) -> None:
        """Send what was submitted and stop."""
        self._closed.set()
        self._queue.put(None)
        for thread, wait_s in ((self._thread, 10), (self._deadlines, 1)):
            if thread.is_alive():
                thread.join(timeout=wait_s)
        while self._owed:  # what came at the last moment, or hangs: nobody else would tell
            pending = self._owed.popleft()
            pending.finish(error=_unanswered() if pending.sent else _closing())
        self._drop_connection()
        self._pool.disconnect()

    def depth(self) -> int:
        """Calls waiting for the next group."""
        return self._queue.qsize()

    @property
    def epoch(self) -> int:
        """The epoch that calls are sent under."""
        return int(self._epoch)

    def submit(self, function: str, payload: bytes, deadline: float) -> Pending:
        """Queue a call; ``deadline`` is a monotonic time. Never blocks."""
        pending = Pending(function, payload, deadline)
        if self._closed.is_set():
            pending.finish(error=_closing())
            return pending
        self._owed.append(pending)
        self._queue.put(pending)
        return pending

    def _keep_deadlines(self) -> None:
        """Tell callers in time when Redis hangs: the sending thread may then sit in a read or a connect for seconds."""
        while not self._closed.wait(DEADLINE_TICK_S):
            owed, now = self._owed, time.monotonic()
            for _ in range(len(owed)):
                pending = owed.popleft()
                if pending.finished:
                    continue
                if pending.deadline - now <= DEADLINE_MARGIN_S:
                    pending.finish(error=_unanswered())
                else:
                    owed.append(pending)

    # The thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        under_way: deque[_Sent] = deque()
        while True:
            if under_way:
                self._gather()
            elif not self._wait_and_gather():
                return
            if self._next and (not under_way or self._worth_sending_ahead(under_way)):
                self._send_next(under_way)
            else:
                self._receive(under_way)

    def _wait_and_gather(self) -> bool:
        """Make the next group where none is under way. False: closed, and nothing is left."""
        if not self._next and not self._closing:
            if self._together and self._queue.qsize() < self._settings.group_max:
                time.sleep(self._settings.gather_ms / 1000)
            self._take(self._queue.get())
        self._gather()
        return bool(self._next)

    def _gather(self) -> None:
        """Add to the next group what is there, up to its limits."""
        while (
            not self._closing
            and len(self._next) < self._settings.group_max
            and self._next_bytes < self._settings.group_bytes_max
        ):
            try:
                self._take(self._queue.get_nowait())
            except queue.Empty:
                return

    def _take(self, item: Pending | None) -> None:
        if item is None:
            self._closing = True
        else:
            self._next.append(item)
            self._next_bytes += len(item.payload)

    def _worth_sending_ahead(self, under_way: deque[_Sent]) -> bool:
        """Tell whether Redis should find the next group waiting when it is done with the one under way.

        Only for what costs Redis much: small calls rather gather, for each group has a price of its own.
        """
        return len(under_way) < GROUPS_UNDER_WAY_MAX and self._next_bytes >= self._settings.ahead_bytes_min

    def _send_next(self, under_way: deque[_Sent]) -> None:
        group = self._drop_late(self._next)
        self._together = len(self._next) > 1
        self._next, self._next_bytes = [], 0
        if not group:
            return
        try:
            under_way.append(self._send(group))
        except Exception as error:  # retried or refused where every group is
            older = [pending for sent in under_way for pending in sent.calls]
            under_way.clear()
            self._start_over([*older, *group], error)

    def _receive(self, under_way: deque[_Sent]) -> None:
        """Settle the oldest group; where some of it must be sent again, all behind it first, to keep the order."""
        again: list[Pending] = []
        while under_way:
            sent = under_way.popleft()
            try:
                again += self._read_and_settle(sent)
            except Exception as error:
                newer = [pending for later in under_way for pending in later.calls]
                under_way.clear()
                self._start_over([*again, *sent.calls, *newer], error)
                return
            self._report([pending for pending in sent.every if pending.finished], sent.at)
            if not again:
                return
        self._carry_out_and_report(again)

    def _start_over(self, calls: list[Pending], error: Exception) -> None:
        """Drop the connection and send what has no answer again, as one group, in the order of submission."""
        _LOG.warning("calls are sent again", calls=len(calls), cause=str(error))
        self._drop_connection()
        self._carry_out_and_report(calls)

    def _carry_out_and_report(self, calls: list[Pending]) -> None:
        started = time.monotonic()
        self._carry_out(calls)
        self._report(calls, started)

    def _report(self, ended: list[Pending], started: float) -> None:
        if self._on_group is not None and ended:
            self._on_group(_results(ended), time.monotonic() - started)

    def _carry_out(self, group: list[Pending]) -> None:
        """Send a group until each call has an answer or its deadline has passed."""
        backoff = self._settings.backoff_min_s
        at_once = 0  # how often in a row on this connection
        while group:
            group = self._drop_late(group)
            if not group:
                return
            try:
                group = self._round_trip(group)
                at_once += 1  # the functions are loaded now, or the epoch is known
                if group and at_once > AT_ONCE_MAX:
                    raise LedgerUnreachable("another server is primary")
            except LedgerUnreachable as error:
                _LOG.warning("calls are sent again", calls=len(group), cause=str(error))
                self._drop_connection()
                at_once = 0
                if self._closed.is_set():
                    self._fail(group, error)
                    return
                time.sleep(backoff * (0.5 + random.random()))
                backoff = min(backoff * 2, self._settings.backoff_max_s)
            except LedgerError as error:
                self._drop_connection()
                self._fail(group, error)
                return
            except Exception as error:  # a bug must not stop the queue; callers see it
                self._drop_connection()
                _LOG.exception("the commit queue failed", calls=len(group))
                for pending in group:
                    # Of what was sent nobody knows whether it counts: asking again with the same id tells.
                    failed = LedgerFunctionFailed(f"commit queue failed: {error!r}")
                    pending.finish(error=_unanswered() if pending.sent else failed)
                return

    def _drop_late(self, group: list[Pending]) -> list[Pending]:
        now = time.monotonic()
        kept = []
        for pending in group:
            if pending.finished:
                continue
            if pending.deadline > now:
                kept.append(pending)
                continue
            if pending.sent:
                pending.finish(error=_unanswered())
            else:
                pending.finish(
                    error=DeadlinePassed("the deadline passed before the call was sent: nothing was done")
                )
        return kept

    def _fail(self, group: list[Pending], error: LedgerError) -> None:
        for pending in group:
            pending.finish(error=error)

    def _round_trip(self, group: list[Pending]) -> list[Pending]:
        """Send all, read all. Returns the calls to send again, in order; cuts ``group`` to them where it raises."""
        return self._read_and_settle(self._send(group))

    def _send(self, group: list[Pending]) -> _Sent:
        connection = self._connect()
        if self._epoch == b"0":
            self._shake_hands()
        packed = [self._frame(pending) for pending in group]
        if self._settings.wait_replicas > 0:
            self._groups += 1
            packed.append(_command(b"SET", self._confirm_key.encode(), b"%d" % self._groups))
            wait = (self._settings.wait_replicas, self._settings.wait_timeout_ms)
            packed.append(_command(b"WAIT", *(b"%d" % value for value in wait)))
        started = time.monotonic()
        try:
            for pending in group:
                pending.sent = True
            connection.send_packed_command([b"".join(packed)], check_health=False)
        except (RedisError, OSError) as error:
            raise translate(error) from error
        return _Sent(group, tuple(group), len(packed), started)

    def _read_and_settle(self, sent: _Sent) -> list[Pending]:
        try:
            replies = [self._read(self._connection) for _ in range(sent.replies)]
        except (RedisError, OSError) as error:
            raise translate(error) from error
        self.last_answer = time.monotonic()
        confirmed = True
        if self._settings.wait_replicas > 0:
            acknowledged = replies.pop()
            replies.pop()
            confirmed = isinstance(acknowledged, int) and acknowledged >= self._settings.wait_replicas
        return self._settle(sent.calls, replies, confirmed)

    def _frame(self, pending: Pending) -> bytes:
        """Pack one call. Ours, not the client's: the arguments never change their types, which saves half the time."""
        head = self._heads.get(pending.function)
        if head is None:
            head = self._heads[pending.function] = _command(
                b"FCALL", pending.function.encode(), b"1", self._meta_key.encode(), self._epoch, more=1
            )
        return b"%b$%d\r\n%b\r\n" % (head, len(pending.payload), pending.payload)

    def _read(self, connection: Any) -> object:
        try:
            return connection.read_response(disable_decoding=True)
        except ResponseError as error:
            return error

    def _settle(self, group: list[Pending], replies: list[object], confirmed: bool) -> list[Pending]:
        again: list[Pending] = []
        missing = fenced = False
        unreachable: LedgerUnreachable | None = None
        for pending, reply in zip(group, replies, strict=True):
            if isinstance(reply, bytes):
                if reply.startswith(_FENCED):
                    fenced = True
                    again.append(pending)
                    continue
                if reply.startswith(_NOT_READY):
                    pending.finish(error=NoLedger("Redis holds no ledger under this prefix any more"))
                elif confirmed:
                    pending.finish(reply)
                else:
                    pending.finish(error=DurabilityUnconfirmed("not confirmed by enough replicas in time"))
            elif isinstance(reply, Exception):
                if is_missing_function(reply):
                    missing = True
                    again.append(pending)
                    continue
                error = translate(reply)
                if isinstance(error, LedgerUnreachable):
                    unreachable = error
                    again.append(pending)
                    continue
                pending.finish(error=error)
            else:
                pending.finish(error=LedgerRefused(f"unexpected reply of type {type(reply).__name__}"))
        if unreachable is not None:
            group[:] = again  # what the caller sends again on the next connection
            raise unreachable
        if missing:
            with make_client(self._connection_settings) as client:
                load_library(client, self._library)
        if fenced:
            self._shake_hands()
        return again

    def _shake_hands(self) -> None:
        """Learn the epoch, or begin the next one. Raises NoLedger for a ledger that is not ours."""
        payload = msgspec.msgpack.encode([self._ledger_id])
        with make_client(self._connection_settings) as client:
            try:
                reply = client.execute_command(
                    "FCALL", self._library.function("handshake"), 1, self._meta_key, b"0", payload
                )
            except (RedisError, OSError) as error:
                if is_missing_function(error):
                    load_library(client, self._library)
                    self._shake_hands()
                    return
                raise translate(error) from error
        status, epoch, *_ = msgspec.msgpack.decode(reply)
        if status != "OK":
            raise NoLedger("Redis holds another ledger, or none, under this prefix")
        self._epoch = str(epoch).encode()
        self._heads.clear()

    def _connect(self) -> Any:
        if self._connection is None:
            try:
                self._own.connect()
            except (RedisError, OSError) as error:
                raise translate(error) from error
            self._connection = self._own
        return self._connection

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None
