"""What a record of the log becomes in the database: pure, the same for the historian and for whoever proves its rows.

Nothing is decided here and nothing is left out: a record of which only the frame can be read keeps its bytes with kind
0. Column orders are those of `tables`; `journal` writes the rows, `prove` makes them again and compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import astuple

from availability.history.tables import DAY_MS, packed
from availability.ledger.record import (
    ChannelState,
    DeltasBody,
    Entry,
    FeedBody,
    FeedState,
    FenceLeft,
    FenceState,
    Kind,
    KitState,
    NodeState,
    OverrideState,
    PolicyBody,
    Record,
    StopState,
    decode_body,
)

UNREADABLE = 0
"""Kind of a record that this release cannot read."""
REMOVED = b""
"""State of a policy that is no more."""

Row = tuple[object, ...]
PolicyState = (
    NodeState
    | ChannelState
    | OverrideState
    | StopState
    | KitState
    | FenceState
    | FenceLeft
    | FeedState
    | FeedBody
    | int
)
_encode = msgspec.msgpack.Encoder().encode
_WITH_ROWS = frozenset({int(Kind.DELTAS), int(Kind.POLICY), int(Kind.FEED)})
"""Kinds whose bodies have rows of their own."""


@dataclass(slots=True)
class Rows:
    """Rows of consecutive records, by table. ``unreadable`` counts records of kind 0."""

    journal: list[Row] = field(default_factory=list)
    position_changes: list[Row] = field(default_factory=list)
    deltas: list[Row] = field(default_factory=list)
    policies: list[Row] = field(default_factory=list)
    new_positions: set[tuple[str, str]] = field(default_factory=set)
    """Positions that may be new: nothing stood in them before."""
    policy_names: set[tuple[str, str, str]] = field(default_factory=set)
    days: list[int] = field(default_factory=list)
    """Days, ascending."""
    unreadable: int = 0

    def without_nul(self) -> Rows:
        """Return the same with U+FFFD where text had NUL: PostgreSQL takes none, and the record's bytes keep it."""
        return Rows(
            journal=_clean_rows(self.journal),
            position_changes=_clean_rows(self.position_changes),
            deltas=_clean_rows(self.deltas),
            policies=_clean_rows(self.policies),
            new_positions={(_clean(sku), _clean(node)) for sku, node in self.new_positions},
            policy_names={(what, _clean(a), _clean(b)) for what, a, b in self.policy_names},
            days=self.days,
            unreadable=self.unreadable,
        )

    @property
    def changes(self) -> int:
        """Rows that a database has to take, roughly."""
        return len(self.journal) + len(self.position_changes) + len(self.deltas)


def rows_of(entries: Sequence[Entry], clock_ms: int) -> Rows:
    """Return the rows of entries in order. ``clock_ms``: that of the record before, for one that cannot be read."""
    rows = Rows()
    for entry in entries:
        clock_ms = add_entry(rows, entry, clock_ms)
    return rows


def add_entry(rows: Rows, entry: Entry, clock_ms: int) -> int:
    """Add one record's rows; return its clock. Raises OverflowError for a version beyond what is numbered."""
    version = packed(entry.version)
    try:
        record = entry.record()
        body = _body_of(record)
    except (msgspec.DecodeError, KeyError):
        rows.unreadable += 1
        _see_day(rows, clock_ms // DAY_MS)
        rows.journal.append(
            (clock_ms // DAY_MS, version, clock_ms, UNREADABLE, "", "", "", entry.chain, entry.raw)
        )
        return clock_ms
    clock, kind = record.clock_ms, record.kind
    day = clock // DAY_MS
    _see_day(rows, day)
    author, correlation_id, request_id = record.author, record.correlation_id, record.request_id
    rows.journal.append(
        (day, version, clock, kind, author, correlation_id, request_id, entry.chain, entry.raw)
    )
    told = (day, version, clock, kind)
    for position in record.positions:
        rows.position_changes.append(told + astuple(position))
        if (
            position.on_hand == position.on_hand_change
            and position.quarantined == position.quarantined_change
            and position.reserved == position.reserved_change
            and position.committed == position.committed_change
        ):
            rows.new_positions.add((position.sku, position.node))
    if isinstance(body, DeltasBody):
        _add_deltas(rows, body, day, version, clock)
    if body is not None or record.fences:
        _add_policies(rows, record, body, version)
    return clock


def _body_of(record: Record) -> object:
    """Decode bodies that have rows of their own; the others stay bytes until somebody asks."""
    return decode_body(record) if record.kind in _WITH_ROWS else None


def _see_day(rows: Rows, day: int) -> None:
    if not rows.days or rows.days[-1] != day:
        rows.days.append(day)


def _add_deltas(rows: Rows, body: DeltasBody, day: int, version: int, clock_ms: int) -> None:
    source = body.source
    for number, cause in enumerate(body.causes):
        rows.deltas.append(
            (
                day,
                version,
                number,
                clock_ms,
                source,
                cause.stream,
                cause.source_sequence,
                cause.event_id,
                cause.type,
                cause.sku,
                cause.node,
                cause.to_node,
                cause.quantity,
                cause.order_source,
                cause.order_ref,
                cause.line,
                cause.reference,
                cause.reason,
                cause.occurred_us,
                cause.author,
                cause.correlation_id,
            )
        )


def named_states(record: Record, body: object) -> Iterator[tuple[str, str, str, PolicyState | None]]:
    """Yield (what, channel, sku, state or None where removed) of everything a record says of policies, in order."""
    if isinstance(body, DeltasBody):
        for node in body.declared:
            yield "NODE", "", node.node, node
    elif isinstance(body, PolicyBody):
        yield from policy_states(body)
        for position in record.positions:  # of a policy only a position's own safety stock moves one
            yield "SAFETY_STOCK", position.node, position.sku, position.safety_stock
    elif isinstance(body, FeedBody):
        yield "SILENCE", body.source, body.node, body
    for left in record.fences:
        yield "FENCE_LEFT", left.channel, left.sku, left


def policy_states(body: PolicyBody) -> Iterator[tuple[str, str, str, PolicyState | None]]:
    """Yield (what, channel, sku, state or None where removed) of a policy change, in order."""
    for node in body.nodes:
        yield "NODE", "", node.node, node
    for channel in body.channels:
        yield "CHANNEL", channel.channel, "", channel
    for override in body.overrides:
        yield "OVERRIDE", override.channel, override.sku, override
    for cleared_channel, cleared_sku in body.cleared:
        yield "OVERRIDE", cleared_channel, cleared_sku, None
    for stop in body.stops:
        yield "STOP", stop.channel, stop.sku, stop
    for kit in body.kits:
        yield "KIT", "", kit.kit_sku, kit
    for fence in body.fences:
        yield "FENCE", fence.channel, fence.sku, fence
    for feed in body.feeds:
        yield "FEED", feed.source, feed.node, feed


def _add_policies(rows: Rows, record: Record, body: object, version: int) -> None:
    reason = body.reason if isinstance(body, PolicyBody) else ""
    states = named_states(record, body)
    for number, (what, channel, sku, state) in enumerate(states):
        rows.policies.append(
            policy_row(what, channel, sku, version, number, record.clock_ms, record.author, reason, state)
        )
        rows.policy_names.add((what, channel, sku))


def policy_row(
    what: str,
    channel: str,
    sku: str,
    version: int,
    number: int,
    clock_ms: int,
    author: str,
    reason: str,
    state: PolicyState | None,
) -> Row:
    """Return one row of ``policies``."""
    raw = REMOVED if state is None else _encode(state)
    return (what, channel, sku, version, number, clock_ms, author, reason, raw)


def _clean_rows(rows: Iterable[Row]) -> list[Row]:
    return [tuple(_clean(value) if isinstance(value, str) else value for value in row) for row in rows]


def _clean(text: str) -> str:
    return text.replace("\0", "\ufffd")
