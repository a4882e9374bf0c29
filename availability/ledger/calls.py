"""What goes into the ledger's functions and what comes back: msgpack arrays as the Lua files read and write them."""

from __future__ import annotations

import msgspec

from availability.domain.limits import SOURCE_STREAMS_MAX
from availability.ledger.reader import Head
from availability.ledger.record import (
    AtRisk,
    Cause,
    ChannelState,
    ExceptionState,
    HoldLine,
    KitState,
    PolicyBody,
    PositionChange,
)


class RequestKey(msgspec.Struct, array_like=True, frozen=True):
    """Idempotency of one call: what was asked, by whom. ``uuid_ms`` is 0 where the id is not a UUIDv7."""

    request_id: str
    bucket: int
    fingerprint: str
    uuid_ms: int
    author: str
    correlation_id: str


class Reserve(msgspec.Struct, array_like=True, frozen=True):
    """``lines`` are distinct skus. ``node`` is empty where the channel's order decides."""

    request: RequestKey
    reservation_id: str
    channel: str
    lines: list[tuple[str, int]]
    hold_ms: int
    order_source: str
    order_ref: str
    allow_partial: bool
    node: str
    auto_create: bool


class Extend(msgspec.Struct, array_like=True, frozen=True):
    request: RequestKey
    reservation_id: str
    hold_ms: int


class Commit(msgspec.Struct, array_like=True, frozen=True):
    request: RequestKey
    reservation_id: str
    order_source: str
    order_ref: str


class Release(msgspec.Struct, array_like=True, frozen=True):
    request: RequestKey
    reservation_id: str
    lines: list[tuple[str, int]]
    reason: str = ""


class HoldView(msgspec.Struct, array_like=True, frozen=True):
    """A reservation as it is now. Times are milliseconds since 1970 UTC."""

    reservation_id: str
    state: int  # availability.v1 ReservationState
    channel: str
    order_source: str
    order_ref: str
    create_ms: int
    expire_ms: int
    version: str
    lines: list[HoldLine]


class HoldReply(msgspec.Struct, array_like=True, frozen=True):
    """``status``: RESERVED, PARTIAL, INSUFFICIENT_STOCK, EXTENDED, COMMITTED, RELEASED, or the reason of a refusal.

    ``shortages`` are (index of the line, from 0; what could have been held). The rest is the reservation as it is
    now, see ``reservation``; its id is empty where there is none.
    """

    status: str
    version: str
    replayed: bool
    order_cancelled: bool
    shortages: list[tuple[int, int]]
    reservation_id: str
    state: int = 0
    channel: str = ""
    order_source: str = ""
    order_ref: str = ""
    create_ms: int = 0
    expire_ms: int = 0
    hold_version: str = ""
    lines: list[HoldLine] = []

    @property
    def reservation(self) -> HoldView | None:
        """The reservation, where there is one."""
        if not self.reservation_id:
            return None
        return HoldView(
            self.reservation_id,
            self.state,
            self.channel,
            self.order_source,
            self.order_ref,
            self.create_ms,
            self.expire_ms,
            self.hold_version,
            self.lines,
        )


class DeltaEntry(msgspec.Struct, array_like=True, frozen=True):
    """One delta of a call; with a ``rejected`` reason it only consumes its number."""

    fingerprint: str
    bucket: int
    rejected: str
    cause: Cause


class Deltas(msgspec.Struct, array_like=True, frozen=True):
    """``streams_max``: a delta that would open one more stream of its source is rejected."""

    source: str
    deltas: list[msgspec.Raw]
    auto_create: bool
    event_window_ms: int
    streams_max: int = SOURCE_STREAMS_MAX


class DeltasReply(msgspec.Struct, array_like=True, frozen=True):
    """``results`` are DeltaResult numbers; ``details`` (index, result, reason, expected number) of the others."""

    status: str
    version: str
    results: list[int]
    details: list[tuple[int, int, str, int]]


class StreamChange(msgspec.Struct, array_like=True, frozen=True):
    """``action`` is SKIP_GAP (``next_sequence`` counts) or RESET."""

    request: RequestKey
    source: str
    stream: str
    action: str
    next_sequence: int
    reason: str


class StreamRow(msgspec.Struct, array_like=True, frozen=True):
    """A stream as kept. Times are ledger clock; ``mark`` 0: no number yet."""

    mark: int
    seen_ms: int
    parked_sequence: int
    parked_ms: int
    was_reset: int = 0
    has_rejected: int = 0


class StreamReply(msgspec.Struct, array_like=True, frozen=True):
    status: str
    version: str
    replayed: bool
    row: StreamRow | bool
    clock_ms: int


class PolicyChange(msgspec.Struct, array_like=True, frozen=True):
    """``what`` names the writer in functions/12_policies.lua; ``value`` is its array.

    ``etag``: the version that what this sets must have, "-" where nothing may be set; empty: not asked.
    """

    request: RequestKey
    what: str
    value: list[object]
    reason: str
    auto_create: bool
    etag: str = ""


class PolicyReply(msgspec.Struct, array_like=True, frozen=True):
    """``name`` is what a refusal is about; ``channel`` and ``kit`` are as set, by the change that sets one."""

    status: str
    version: str
    replayed: bool
    name: str
    channel: ChannelState | bool
    kit: KitState | bool = False


class PreviewReply(msgspec.Struct, array_like=True, frozen=True):
    """What a policy change would write to the log; ``version`` is the head's, and nothing was changed."""

    status: str
    version: str
    name: str
    body: PolicyBody
    positions: list[PositionChange]


class SweepReply(msgspec.Struct, array_like=True, frozen=True):
    status: str
    version: str
    expired: int
    forgotten: int
    clock_ms: int


class TrimReply(msgspec.Struct, array_like=True, frozen=True):
    status: str
    length: int
    full: bool


class OrderLineState(msgspec.Struct, array_like=True, frozen=True):
    """Facts of one order line, as functions/08_orders.lua keeps them. ``word`` -1: the source has not spoken."""

    line: str
    own: int
    word: int
    word_key: list[object] | bool
    sourced: dict[str, int] | list[object]
    allocated: dict[str, tuple[int, list[object]]] | list[object]
    shipped: dict[str, int] | list[object]
    word_node: str


class OrderSkuState(msgspec.Struct, array_like=True, frozen=True):
    """Facts of one sku of an order. An empty Lua table arrives as an empty list."""

    lines: list[OrderLineState]
    holds: dict[str, list[tuple[str, int]]] | list[object]
    waived: dict[str, int] | list[object]
    committed: dict[str, int] | list[object]
    auto: list[tuple[str, int]]
    hint: str
    cancel_key: list[object] | bool


class OrderKits(msgspec.Struct, array_like=True, frozen=True):
    """Kits that our commits put into an order by one recipe: units of each plain sku in one kit."""

    quantity: int
    flat: list[tuple[str, int]]


class OrderMeta(msgspec.Struct, array_like=True, frozen=True):
    cancel_key: list[object] | bool
    channel: str
    reservations: list[str]
    last_fact_ms: int
    order_source: str
    order_ref: str


class Sighting(msgspec.Struct, array_like=True, frozen=True):
    """One thing that is wrong, as somebody sees it now. Numbers as in domain.exceptions."""

    exception_id: str
    category: int
    severity: int
    owner: str
    message: str
    sku: str = ""
    node: str = ""
    source: str = ""
    stream: str = ""
    quantity: int = 0
    at_risk: list[AtRisk] = []


class ReportLimits(msgspec.Struct, array_like=True, frozen=True):
    """``change_ms``: least time between two changes of one; ``keep_ms``: how long a resolved one stays.

    ``seen_ms``: least time between two notes that one is still seen.
    """

    change_ms: int
    keep_ms: int
    open_max: int
    seen_ms: int


class Report(msgspec.Struct, array_like=True, frozen=True):
    """What is seen at a version (epoch 0: now), and the ids that are not seen any more. At most 100 of each."""

    author: str
    epoch: int
    seq: int
    sightings: list[Sighting]
    gone: list[str]
    limits: ReportLimits


class ReportReply(msgspec.Struct, array_like=True, frozen=True):
    """``left_out``: new ones for which there was no room."""

    status: str
    version: str
    opened: int = 0
    resolved: int = 0
    left_out: int = 0


class Acknowledge(msgspec.Struct, array_like=True, frozen=True):
    request: RequestKey
    exception_id: str
    note: str


class AcknowledgeReply(msgspec.Struct, array_like=True, frozen=True):
    status: str
    version: str
    replayed: bool
    state: ExceptionState | bool


class ExceptionsReply(msgspec.Struct, array_like=True, frozen=True):
    """Exceptions that changed, in the order of their versions. ``more``: ask again after the last one's version.

    ``floor``: point up to which resolved ones are forgotten. ``seen`` is (id, clock, id, clock …).
    """

    head: Head
    clock_ms: int
    floor: int
    states: list[ExceptionState]
    seen: list[str | int]
    more: bool


class Troubles(msgspec.Struct, array_like=True, frozen=True):
    """What the ledger itself can tell is wrong: stale feeds (source, node), and parked streams.

    A stream is (source, stream, mark, seen_ms, parked_sequence, parked_ms, was reset). ``orders`` are unconfirmed ones
    (packed name, clock of the commit), the oldest first. ``short_picks`` and ``damages`` are positions (packed sku and
    node) with units that wait in quarantine for that reason, the most first.
    """

    head: Head
    clock_ms: int
    feeds: list[tuple[str, str]]
    parked: list[tuple[str, str, int, int, int, int, int]]
    orders: list[tuple[str, int]]
    short_picks: list[tuple[str, int]]
    damages: list[tuple[str, int]]
