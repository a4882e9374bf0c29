"""The log's records: what each mutation changed and why. The only way out of the ledger.

Stream entries have ids ``<epoch>-<seq>`` and two fields: ``r``, a msgpack array laid out as ``Record`` here, and
``c``, the chain: the first 32 hex digits of SHA-1 over (previous chain, id text, record bytes). A record carries
the signed change AND the state after of every position that it touched, so applying one twice is harmless.

Written by ``functions/log.lua``; a layout changes only by appending fields.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum
from typing import Any

import msgspec

from availability.domain.version import Version


class Kind(IntEnum):
    """What a record tells."""

    RESERVED = 1
    EXTENDED = 2
    COMMITTED = 3
    RELEASED = 4
    EXPIRED = 5
    DELTAS = 6
    POLICY = 7
    EPOCH = 8
    STREAM = 9
    FEED = 10
    EXCEPTION = 11


class PositionChange(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """State after of one position, and the signed changes that led there. Units are base units."""

    sku: str
    node: str
    on_hand: int
    quarantined: int
    reserved: int
    committed: int
    safety_stock: int  # -1: the node's default
    on_hand_change: int
    quarantined_change: int
    reserved_change: int
    committed_change: int


class FenceLeft(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What is left of a channel's ring-fence after a grant or a release. ``generation``: the version that set it."""

    channel: str
    sku: str
    left: int
    generation: str


class Effect(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a change did that its cause does not say by itself.

    ``cause`` is the place of the delta in its body's causes, -1 where the change was none. With a ``source``: so many
    units more of the position are confirmed by this source for its orders. Without one: the delta moved on_hand by
    so much, whatever its type and quantity say (a count had its say).
    """

    cause: int
    sku: str
    node: str
    source: str
    units: int


class Record(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One mutation. ``body`` depends on ``kind``: see the Body classes. ``fences`` are those that it changed."""

    kind: int
    clock_ms: int
    author: str
    correlation_id: str
    request_id: str
    positions: list[PositionChange]
    body: msgspec.Raw
    fences: list[FenceLeft] = []
    effects: list[Effect] = []


class HoldSource(msgspec.Struct, array_like=True, frozen=True):
    """Units of one hold line at one node; ``oversold`` of them beyond what was free."""

    node: str
    quantity: int
    oversold: int


class HoldLine(msgspec.Struct, array_like=True, frozen=True):
    """One sku of a hold, in sourcing order. ``kit_sku`` is empty for a plain sku.

    ``fenced`` of its units were taken from the channel's ring-fence of this generation.
    """

    sku: str
    kit_sku: str
    sources: list[HoldSource]
    fenced: int = 0
    fence_generation: str = ""


class KitHeld(msgspec.Struct, array_like=True, frozen=True):
    """Whole kits of a hold, by the recipe that it was made with: units of each plain sku in one kit."""

    kit_sku: str
    quantity: int
    flat: list[tuple[str, int]]


class ReservedBody(msgspec.Struct, array_like=True, frozen=True):
    reservation_id: str
    channel: str
    order_source: str
    order_ref: str
    due_ms: int
    lines: list[HoldLine]
    kits: list[KitHeld] = []


class ExtendedBody(msgspec.Struct, array_like=True, frozen=True):
    reservation_id: str
    due_ms: int


class CommittedBody(msgspec.Struct, array_like=True, frozen=True):
    reservation_id: str
    channel: str
    order_source: str
    order_ref: str
    lines: list[HoldLine]
    reserved_anew: bool
    kits: list[KitHeld] = []


class ReleasedBody(msgspec.Struct, array_like=True, frozen=True):
    """``lines`` are what was given back; ``ended`` is False when units are left. ``reason`` where somebody gave one."""

    reservation_id: str
    ended: bool
    lines: list[HoldLine]
    reason: str = ""


class ExpiredBody(msgspec.Struct, array_like=True, frozen=True):
    reservation_id: str
    lines: list[HoldLine]


class Cause(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One applied delta as its source told it. Times are microseconds since 1970 UTC, 0 where absent."""

    stream: str
    source_sequence: int  # 0: identified by event_id
    event_id: str
    type: int  # availability.v1 DeltaType
    sku: str
    node: str
    to_node: str
    quantity: int
    state: int
    order_source: str
    order_ref: str
    line: str
    allocation_basis: int
    shipped_quantity: int  # -1: absent
    reference: str
    reason: str
    due_us: int
    occurred_us: int
    correlation_id: str
    author: str
    expected_kind: int = 0  # these are left out where none is set
    basis: int = 0
    linked_order_source: str = ""
    linked_order_ref: str = ""


class NodeState(msgspec.Struct, array_like=True, frozen=True):
    """A declared node. ``state`` 1 is ONLINE, 2 OFFLINE, as in availability.v1."""

    node: str
    state: int
    safety_stock: int
    version: str
    author: str
    reason: str
    clock_ms: int


class StreamMark(msgspec.Struct, array_like=True, frozen=True):
    stream: str
    source_sequence: int


class DeltasBody(msgspec.Struct, array_like=True, frozen=True):
    """``released`` are holds that a cancelled order ended; ``oversold`` names (sku, units) that nothing covered."""

    source: str
    causes: list[Cause]
    marks: list[StreamMark]
    declared: list[NodeState]
    released: list[ReleasedBody]
    oversold: list[tuple[str, int]]


class ChannelState(msgspec.Struct, array_like=True, frozen=True):
    """A channel's policy. Exactly one of buffer_units and buffer_percent is not -1."""

    channel: str
    all_nodes: bool
    nodes: list[str]
    buffer_units: int
    buffer_percent: int
    oversell_limit: int
    low_stock_threshold: int
    publish_limit: int  # -1: none
    staleness: int
    unreachable: int
    version: str
    author: str
    reason: str
    clock_ms: int


class OverrideState(msgspec.Struct, array_like=True, frozen=True):
    """What differs for one sku of a channel; -1 is absent. Absent is not 0."""

    channel: str
    sku: str
    buffer_units: int
    buffer_percent: int
    oversell_limit: int
    publish_limit: int
    excluded_nodes: list[str]
    version: str
    author: str
    reason: str
    clock_ms: int


class StopState(msgspec.Struct, array_like=True, frozen=True):
    """A sale stop set or (``blocked`` False) lifted. Empty channel or sku means every one.

    ``until_ms``: ledger clock at which it ends by an event of its own; 0: when somebody lifts it.
    ``until_time_ms``: the same moment as it was asked for, milliseconds since 1970 UTC.
    """

    channel: str
    sku: str
    blocked: bool
    version: str
    author: str
    reason: str
    clock_ms: int
    until_ms: int = 0
    until_time_ms: int = 0


class KitState(msgspec.Struct, array_like=True, frozen=True):
    """A kit's recipe as set, and ``flat``: plain skus by name, equal ones added up. No components: removed."""

    kit_sku: str
    components: list[tuple[str, int]]
    flat: list[tuple[str, int]]
    version: str
    author: str
    reason: str
    clock_ms: int


class FenceState(msgspec.Struct, array_like=True, frozen=True):
    """A ring-fence as set: ``left`` units from now on. Its generation is ``version``."""

    channel: str
    sku: str
    left: int
    version: str
    author: str
    reason: str
    clock_ms: int


class FeedState(msgspec.Struct, array_like=True, frozen=True):
    """How often a source should be heard about a node; ``interval_ms`` 0: not watched any more."""

    source: str
    node: str
    interval_ms: int
    grace_ms: int
    stale: bool
    version: str
    author: str
    reason: str
    clock_ms: int


class PolicyBody(msgspec.Struct, array_like=True, frozen=True):
    """One policy change: exactly one of the lists has entries, but declared nodes may come with a channel.

    A safety stock of one position shows in the record's positions and leaves these lists empty.
    ``cleared`` names (channel, sku) of a removed override.
    """

    reason: str
    nodes: list[NodeState]
    channels: list[ChannelState]
    overrides: list[OverrideState]
    cleared: list[tuple[str, str]]
    stops: list[StopState]
    kits: list[KitState] = []
    fences: list[FenceState] = []
    feeds: list[FeedState] = []


class EpochBody(msgspec.Struct, array_like=True, frozen=True):
    """A handshake: the old epoch ended at (last_seq, last_chain). A reader beyond that point saw a fork."""

    old_epoch: int
    last_seq: int
    last_chain: str


class StreamBody(msgspec.Struct, array_like=True, frozen=True):
    """An operator skipped a gap or reset a stream; ``source_sequence`` is the mark after (0: none)."""

    source: str
    stream: str
    action: str  # SKIP_GAP or RESET
    source_sequence: int
    reason: str


class FeedBody(msgspec.Struct, array_like=True, frozen=True):
    """NODE_FEED_STALE or NODE_FEED_FRESH: a feed crossed its limit. ``heard_ms``: its last sign, ledger clock."""

    source: str
    node: str
    stale: bool
    heard_ms: int


class AtRisk(msgspec.Struct, array_like=True, frozen=True):
    """An order or reservation that may not be served. Empty where it does not apply."""

    order_source: str
    order_ref: str
    reservation_id: str
    sku: str
    node: str
    quantity: int


class ExceptionState(msgspec.Struct, array_like=True, frozen=True):
    """One thing that is wrong, as it is after a change. Numbers as in domain.exceptions, times ledger clock.

    ``last_seen_ms`` is that of the change; between changes the ledger keeps a later one beside it.
    """

    exception_id: str
    category: int
    severity: int
    state: int
    owner: str
    message: str
    sku: str
    node: str
    source: str
    stream: str
    quantity: int
    at_risk: list[AtRisk]
    first_seen_ms: int
    last_seen_ms: int
    changed_ms: int
    acknowledged_by: str
    note: str
    version: str


class ExceptionBody(msgspec.Struct, array_like=True, frozen=True):
    """Exceptions that were opened, changed, acknowledged or resolved."""

    exceptions: list[ExceptionState]


BODIES: dict[int, Any] = {  # Any: msgspec takes the type as a value
    Kind.RESERVED: ReservedBody,
    Kind.EXTENDED: ExtendedBody,
    Kind.COMMITTED: CommittedBody,
    Kind.RELEASED: ReleasedBody,
    Kind.EXPIRED: ExpiredBody,
    Kind.DELTAS: DeltasBody,
    Kind.POLICY: PolicyBody,
    Kind.EPOCH: EpochBody,
    Kind.STREAM: StreamBody,
    Kind.FEED: FeedBody,
    Kind.EXCEPTION: ExceptionBody,
}

_RECORD = msgspec.msgpack.Decoder(Record)
_BODY = {kind: msgspec.msgpack.Decoder(body) for kind, body in BODIES.items()}


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One log entry as read: its version, its chain after, and its record bytes."""

    version: Version
    chain: str
    raw: bytes

    def record(self) -> Record:
        """Decode. Raises msgspec.DecodeError for bytes that are not a record."""
        return _RECORD.decode(self.raw)


def decode_body(record: Record) -> Any:  # Any: the class depends on the kind, see BODIES
    """Decode the body of a record into its Body class."""
    return _BODY[record.kind].decode(record.body)


def chain_after(previous: str, entry_id: str, raw: bytes) -> str:
    """Chain after a record: what its ``c`` must be, given the chain before it."""
    return hashlib.sha1(previous.encode() + entry_id.encode() + raw, usedforsecurity=False).hexdigest()[:32]
