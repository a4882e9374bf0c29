"""The ledger as the rest of the service sees it: typed calls in, typed replies out.

Writes go through the commit queue; reads use connections of their own. Refusals are statuses in replies; what fails
raises LedgerError. Where to look next: commit_queue.py for sending, functions/ for what happens inside Redis.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, TypeVar

import msgspec
import redis
from redis.exceptions import RedisError

from availability.domain.limits import SOURCE_STREAMS_MAX
from availability.domain.version import Version
from availability.ledger import calls, keys
from availability.ledger.commit_queue import CommitQueue, NoLedger, OnGroup, Pending, QueueSettings
from availability.ledger.connection import (
    ConnectionSettings,
    is_missing_function,
    load_library,
    make_pool,
    translate,
)
from availability.ledger.library import Library, packaged
from availability.ledger.primary import ELSEWHERE
from availability.ledger.reader import Head, Page, PolicyState
from availability.ledger.record import Entry

SCHEMA = 1
"""Layout of keys and values. A ledger of another schema is refused."""

_T = TypeVar("_T")
_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSettings:
    """Limits of the ledger; the defaults are the contract's. Times in milliseconds unless named otherwise."""

    connection: ConnectionSettings
    queue: QueueSettings = field(default_factory=QueueSettings)
    auto_create: bool = False
    event_window_ms: int = 30 * 86_400_000
    source_streams_max: int = SOURCE_STREAMS_MAX
    ended_retention_ms: int = 24 * 3_600_000
    order_retention_ms: int = 30 * 86_400_000
    closed_order_memory_s: int = 400 * 86_400
    due_per_sweep_max: int = 200
    log_records_kept: int = 1_000_000
    log_records_cap: int = 5_000_000


def fingerprint(content: bytes) -> str:
    """Twelve hex digits that stand for a request's content."""
    return blake2b(content, digest_size=6).hexdigest()


def bucket(text: str) -> int:
    """Place of an id in the ledger's memory of ids."""
    return zlib.crc32(text.encode()) & 0xFFFF


class Ledger:
    """One shard's authority. ``open`` it before use."""

    def __init__(
        self,
        settings: LedgerSettings,
        *,
        library: Library | None = None,
        on_group: OnGroup | None = None,
    ) -> None:
        self.settings = settings
        self.library = library or packaged()
        self._connection = settings.connection
        self._meta_key = keys.meta(self._connection.prefix, self._connection.shard)
        self._log_key = keys.log(self._connection.prefix, self._connection.shard)
        pool = make_pool(self._connection)
        self._client = redis.Redis(connection_pool=pool)
        for command in ("XREAD", "XREVRANGE"):
            self._client.set_response_callback(command, _as_it_came)
        self._names: dict[str, str] = {}
        self.queue = CommitQueue(self._connection, settings.queue, self.library, on_group=on_group, pool=pool)
        self.ledger_id = ""

    # Life ---------------------------------------------------------------------------------------------------

    def open(self, new_ledger_id: str) -> str:
        """Load the functions and make the ledger unless there is one. Returns its id. Raises LedgerError."""
        load_library(self._client, self.library)
        reply = self._fcall("create", b"0", _encode([new_ledger_id, SCHEMA]))
        _, ledger_id, schema = msgspec.msgpack.decode(reply, type=tuple[str, str, int])
        if schema != SCHEMA:
            raise NoLedger(f"the ledger in Redis has schema {schema}, this release writes {SCHEMA}")
        self.ledger_id = ledger_id
        self.queue.start(ledger_id)
        return ledger_id

    def close(self) -> None:
        """Send what is queued, then disconnect."""
        self.queue.close()
        self._client.close()

    # Writes -------------------------------------------------------------------------------------------------

    def submit(self, name: str, call: msgspec.Struct, deadline: float) -> Pending:
        """Queue a mutating call; wait on what this returns."""
        return self.queue.submit(self._function(name), _encode(call), deadline)

    def _write(
        self, name: str, call: msgspec.Struct, deadline: float, reply: msgspec.msgpack.Decoder[_T]
    ) -> _T:
        return reply.decode(self.submit(name, call, deadline).wait())

    def reserve(self, call: calls.Reserve, deadline: float) -> calls.HoldReply:
        """Hold lines. Statuses: RESERVED, PARTIAL, INSUFFICIENT_STOCK, UNKNOWN_CHANNEL, UNKNOWN_NODE, LOG_FULL, …"""
        return self._write("reserve", call, deadline, _HOLD)

    def extend(self, call: calls.Extend, deadline: float) -> calls.HoldReply:
        """Move a deadline."""
        return self._write("extend", call, deadline, _HOLD)

    def commit(self, call: calls.Commit, deadline: float) -> calls.HoldReply:
        """Turn a hold into an order's commitment."""
        return self._write("commit", call, deadline, _HOLD)

    def release(self, call: calls.Release, deadline: float) -> calls.HoldReply:
        """Give units back."""
        return self._write("release", call, deadline, _HOLD)

    def submit_deltas(
        self, source: str, deltas: list[msgspec.Raw], *, facts_only: bool, deadline: float
    ) -> Pending:
        """Queue deltas of one source (at most 250); decode the reply with ``decode_deltas``.

        ``facts_only`` calls hold order facts, shipments and other relief only: they work when memory is full.
        """
        own = self.settings
        call = calls.Deltas(source, deltas, own.auto_create, own.event_window_ms, own.source_streams_max)
        return self.submit("facts" if facts_only else "deltas", call, deadline)

    @staticmethod
    def decode_deltas(reply: bytes) -> calls.DeltasReply:
        """Reply of a delta call."""
        return _DELTAS.decode(reply)

    def change_stream(self, call: calls.StreamChange, deadline: float) -> calls.StreamReply:
        """Skip a gap or reset a stream."""
        return self._write("stream", call, deadline, _STREAM)

    def set_policy(self, call: calls.PolicyChange, deadline: float) -> calls.PolicyReply:
        """Change a policy."""
        return self._write("policy", call, deadline, _POLICY)

    def preview_policy(self, call: calls.PolicyChange) -> calls.PreviewReply:
        """Decide a policy change as ``set_policy`` would, and write nothing."""
        return _PREVIEW.decode(self._fcall("preview", _encode(call)))

    def report_exceptions(self, call: calls.Report, deadline: float) -> calls.ReportReply:
        """Open, change and resolve exceptions; ``ledger.exceptions`` has what is easier to call."""
        return self._write("report", call, deadline, _REPORT)

    def acknowledge_exception(self, call: calls.Acknowledge, deadline: float) -> calls.AcknowledgeReply:
        """Take an exception in hand. Statuses: OK, EXCEPTION_NOT_FOUND, EXCEPTION_RESOLVED, or of the request id."""
        return self._write("acknowledge", call, deadline, _ACKNOWLEDGE)

    def sweep(self, deadline: float) -> calls.SweepReply:
        """Advance the clock, end due holds, forget what is past its time."""
        s = self.settings
        call = _Values(
            s.due_per_sweep_max,
            s.ended_retention_ms,
            s.order_retention_ms,
            s.closed_order_memory_s,
            s.event_window_ms,
        )
        return self._write("sweep", call, deadline, _SWEEP)

    def trim(self, deadline: float) -> calls.TrimReply:
        """Trim the log by its consumers' checkpoints."""
        return self._write(
            "trim", _Pair(self.settings.log_records_kept, self.settings.log_records_cap), deadline, _TRIM
        )

    def checkpoint(self, consumer: str, version: Version, *, required: bool, deadline: float) -> None:
        """Note how far a consumer of the log has come; a required one is never passed by trimming."""
        self.submit(
            "checkpoint", _Checkpoint(consumer, version.epoch, version.seq, required, False), deadline
        ).wait()

    def forget_consumer(self, consumer: str, deadline: float) -> None:
        """Remove a consumer's checkpoint."""
        self.submit("checkpoint", _Checkpoint(consumer, 0, 0, False, True), deadline).wait()

    # Reads --------------------------------------------------------------------------------------------------

    def head(self) -> Head:
        """Where the ledger stands now."""
        return _HEAD.decode(self._fcall("head"))

    def policies(self) -> PolicyState:
        """All that is not kept per sku."""
        return _POLICIES.decode(self._fcall("policies"))

    def page(self, index: int, count: int) -> Page:
        """Skus by the order in which the ledger first saw them."""
        return _PAGE.decode(self._fcall("page", index, count))

    def skus(self, names: list[str]) -> Page:
        """The named skus, at most 1,000."""
        return _PAGE.decode(self._fcall("skus", _encode(names)))

    def read(self, after: Version, count: int, block_ms: int) -> list[Entry]:
        """Log entries after a version; waits up to block_ms for the first."""
        args: list[bytes | str | int] = ["XREAD", "COUNT", count]
        if block_ms > 0:
            args += ["BLOCK", block_ms]
        args += ["STREAMS", self._log_key, f"{after.epoch}-{after.seq}"]
        reply = self._command(*args)
        if not reply:
            return []
        rows = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
        return [_entry(entry_id, fields) for entry_id, fields in rows]

    def read_back(self, before: Version | None, count: int) -> list[Entry]:
        """Log entries before a version (None: from the end), the latest first."""
        last = "+" if before is None else f"({before.epoch}-{before.seq}"
        rows = self._command("XREVRANGE", self._log_key, last, "-", "COUNT", count)
        return [_entry(entry_id, fields) for entry_id, fields in rows]

    def reservation(self, reservation_id: str) -> calls.HoldView | None:
        """A reservation as it is now; None where it is unknown or forgotten."""
        (view,) = _VIEW.decode(self._fcall("reservation", reservation_id))
        return view if isinstance(view, calls.HoldView) else None

    def reservations(
        self, *, state: int, order_source: str, order_ref: str, score: int, after_id: str, count: int
    ) -> tuple[list[calls.HoldView], list[int]]:
        """A page of reservations by state, or by order with state 0, after (score, id); with their scores."""
        query = _encode([state, order_source, order_ref, score, after_id, count])
        return _VIEWS.decode(self._fcall("reservations", query))

    def order(
        self, source: str, ref: str
    ) -> tuple[
        Head,
        calls.OrderMeta | None,
        list[tuple[str, calls.OrderSkuState]],
        list[tuple[str, list[calls.OrderKits]]],
        list[tuple[str, str]],
    ]:
        """Facts of an order by sku, told under any of its names, its kits, its other names.

        meta is None where it is unknown.
        """
        head, meta, skus, kits, links = _ORDER.decode(self._fcall("order", source, ref))
        return head, meta if isinstance(meta, calls.OrderMeta) else None, skus, kits, links

    def streams(self, source: str) -> tuple[int, list[tuple[str, calls.StreamRow]]]:
        """Ledger clock and the streams of a source."""
        clock, rows = _STREAMS.decode(self._fcall("streams", source))
        return clock, [(row[1], calls.StreamRow(*row[2:])) for row in rows]

    def behind(self, sku: str) -> Behind:
        """Who stands behind a sku's figures."""
        return _BEHIND.decode(self._fcall("behind", sku))

    def feeds(self) -> tuple[int, list[FeedRow]]:
        """Ledger clock and every watched feed."""
        return _FEEDS.decode(self._fcall("feeds"))

    def exceptions(self, after: Version, seen_since_ms: int) -> calls.ExceptionsReply:
        """Exceptions that changed after a version, and when others were last seen since a ledger clock."""
        return _EXCEPTIONS.decode(self._fcall("exceptions", _encode([after.epoch, after.seq, seen_since_ms])))

    def troubles(
        self,
        *,
        parked_ms: int,
        unconfirmed_ms: int,
        count: int,
        short_pick_units: int = 0,
        damage_units: int = 0,
    ) -> calls.Troubles:
        """What is wrong for at least so long, or of at least so many units; 0 (but ``parked_ms``): not asked for."""
        asked = [parked_ms, unconfirmed_ms, count, short_pick_units, damage_units]
        return _TROUBLES.decode(self._fcall("troubles", _encode(asked)))

    def ask(self, name: str, *args: bytes | str | int) -> bytes:
        """Call a reading function; its packed answer. For what has its own calls: ``ledger.snapshots``."""
        return self._fcall(name, *args)

    # Inside -------------------------------------------------------------------------------------------------

    def _command(self, *args: bytes | str | int) -> Any:  # Any: what Redis answers to a read of the log
        try:
            return self._client.execute_command(*args, keys=[self._log_key])
        except (RedisError, OSError) as error:
            raise translate(error) from error

    def _function(self, name: str) -> str:
        full = self._names.get(name)
        if full is None:
            full = self._names[name] = self.library.function(name)
        return full

    def _fcall(self, name: str, *args: bytes | str | int) -> bytes:
        for last in (False, False, True):
            try:
                reply = self._client.execute_command("FCALL", self._function(name), 1, self._meta_key, *args)
            except (RedisError, OSError) as error:
                if not last and is_missing_function(error):
                    load_library(self._client, self.library)
                    continue
                if not last and isinstance(error, ELSEWHERE):
                    continue  # nothing was done; the next connection looks for the primary anew
                raise translate(error) from error
            assert isinstance(reply, bytes)  # our functions answer one packed value
            return reply
        raise AssertionError("unreachable")


class ExpectedRow(msgspec.Struct, array_like=True, frozen=True):
    """Supply of a sku that is announced and not here yet. ``kind`` is PURCHASE, TRANSFER or RETURN."""

    node: str
    kind: str
    reference: str
    line: str
    quantity: int
    due_us: int  # microseconds since 1970 UTC, 0 where nobody said


class FeedRow(msgspec.Struct, array_like=True, frozen=True):
    """A watched feed; ``heard_ms``: its last sign by the ledger's clock."""

    source: str
    node: str
    heard_ms: int
    interval_ms: int
    grace_ms: int
    stale: bool


class Behind(msgspec.Struct, array_like=True, frozen=True):
    """Reasons of quarantine per node, holds, orders (by their packed name), and every stream of every source.

    Then what is expected of the sku, and every watched feed.
    """

    head: Head
    clock_ms: int
    reasons: list[tuple[str, dict[str, int]]]
    holds: list[tuple[str, list[tuple[str, int]]]]
    orders: list[tuple[str, dict[str, int]]]
    waived: list[tuple[str, tuple[dict[str, int], list[str]]]]
    streams: list[tuple[str, str, int, int, int, int, int]]
    expected: list[ExpectedRow] = []
    feeds: list[FeedRow] = []


def split_order_name(name: str) -> tuple[str, str]:
    """Return (order_source, order_ref) of an order's name in the ledger."""
    return split_pair(name)


def split_pair(name: str) -> tuple[str, str]:
    """Undo the functions' packing of two names. The length counts bytes."""
    length, _, rest = name.partition(":")
    raw = rest.encode()
    return raw[: int(length)].decode(), raw[int(length) :].decode()


def _as_it_came(reply: Any, **_: Any) -> Any:  # Any: what Redis answers to a read of the log
    """Leave a reply alone: the client's own reading of streams costs as much as everything else about an entry."""
    return reply


def _entry(entry_id: bytes, fields: list[bytes]) -> Entry:
    names_and_values = iter(fields)
    told = dict(zip(names_and_values, names_and_values, strict=True))
    epoch, _, seq = entry_id.partition(b"-")
    return Entry(Version(int(epoch), int(seq)), told[b"c"].decode(), told[b"r"])


class _Pair(msgspec.Struct, array_like=True, frozen=True):
    a: int
    b: int


class _Values(msgspec.Struct, array_like=True, frozen=True):
    a: int
    b: int
    c: int
    d: int
    e: int


class _Checkpoint(msgspec.Struct, array_like=True, frozen=True):
    consumer: str
    epoch: int
    seq: int
    required: bool
    remove: bool


_HOLD = msgspec.msgpack.Decoder(calls.HoldReply)
decode_hold = _HOLD.decode
"""Reply of reserve, extend, commit and release, for who submitted the call himself."""
_DELTAS = msgspec.msgpack.Decoder(calls.DeltasReply)
_STREAM = msgspec.msgpack.Decoder(calls.StreamReply)
_POLICY = msgspec.msgpack.Decoder(calls.PolicyReply)
_PREVIEW = msgspec.msgpack.Decoder(calls.PreviewReply)
_SWEEP = msgspec.msgpack.Decoder(calls.SweepReply)
_REPORT = msgspec.msgpack.Decoder(calls.ReportReply)
_ACKNOWLEDGE = msgspec.msgpack.Decoder(calls.AcknowledgeReply)
_EXCEPTIONS = msgspec.msgpack.Decoder(calls.ExceptionsReply)
_TROUBLES = msgspec.msgpack.Decoder(calls.Troubles)
_TRIM = msgspec.msgpack.Decoder(calls.TrimReply)
_HEAD = msgspec.msgpack.Decoder(Head)
_POLICIES = msgspec.msgpack.Decoder(PolicyState)
_PAGE = msgspec.msgpack.Decoder(Page)
_VIEW = msgspec.msgpack.Decoder(tuple[calls.HoldView | bool])
_VIEWS = msgspec.msgpack.Decoder(tuple[list[calls.HoldView], list[int]])
_ORDER = msgspec.msgpack.Decoder(
    tuple[
        Head,
        calls.OrderMeta | bool,
        list[tuple[str, calls.OrderSkuState]],
        list[tuple[str, list[calls.OrderKits]]],
        list[tuple[str, str]],
    ]
)
_STREAMS = msgspec.msgpack.Decoder(tuple[int, list[tuple[str, str, int, int, int, int, int]]])
_FEEDS = msgspec.msgpack.Decoder(tuple[int, list[FeedRow]])
_BEHIND = msgspec.msgpack.Decoder(Behind)
