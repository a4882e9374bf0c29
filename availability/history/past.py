"""Explain any past answer from the journal alone: every term then, and the record that last set each figure.

The sum is the replica's own (`replica.explain`), over positions and policies as they stood at the version, so what it
says is what was answered. Each of them is found by one index seek, however long the journal is. It asks no ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from availability.domain.version import Version
from availability.history.database import reading
from availability.history.latest import STATE, latest_changes, latest_policies
from availability.history.latest import Changes as LastChanges
from availability.history.moment import Moment, moment
from availability.history.origin import Origin, origins
from availability.history.rows import REMOVED
from availability.history.tables import baseline_positions, policy_names, unpacked
from availability.ledger.record import (
    ChannelState,
    FeedBody,
    FeedState,
    FenceLeft,
    FenceState,
    KitState,
    NodeState,
    OverrideState,
    StopState,
)
from availability.replica.columns import FIELDS, Rows
from availability.replica.explain import PolicyTerm, Sheet, Terms, kit_terms
from availability.replica.policies import Changes, Policies

_STATES: dict[str, Any] = {  # Any: msgspec takes the type as a value
    "NODE": NodeState,
    "CHANNEL": ChannelState,
    "OVERRIDE": OverrideState,
    "STOP": StopState,
    "KIT": KitState,
    "FENCE": FenceState,
    "FENCE_LEFT": FenceLeft,
    "FEED": FeedState,
    "SILENCE": FeedBody,
    "SAFETY_STOCK": int,
}
_DECODERS = {what: msgspec.msgpack.Decoder(state) for what, state in _STATES.items()}
Figures = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PastTerms:
    """One answer as it was. ``origins``: (node, figure) → the record that set it; none where the history began with it.

    A kit has ``parts`` with terms of their own.
    """

    terms: Terms
    clock_ms: int
    declared: bool
    """The channel had a policy; else it sold from every node, if it sold at all (auto_create)."""
    origins: dict[tuple[str, str], Origin]
    parts: tuple[PastTerms, ...] = ()


class Past:
    """Answers about the past. Safe to share between threads: each answer is one reading transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def explain(self, channel: str, sku: str, at: Version | int | None = None) -> PastTerms:
        """Explain a channel's answer about a sku at a version, a clock in milliseconds, or now.

        Raises NotInHistory, HistoryError.
        """
        with reading(self._engine) as connection:
            return _explained(connection, moment(connection, at), channel, sku)


def _explained(connection: Connection, at: Moment, channel: str, sku: str) -> PastTerms:
    table = _PolicyTable(connection, at)
    table.load(_of_channel(channel, [sku]))
    kit = table.get("KIT", "", sku)
    parts = [part for part, _ in kit.flat] if isinstance(kit, KitState) else []
    if parts:
        table.load(_of_skus(parts))
    skus = parts or [sku]
    fenced = sorted(
        {name for what, name, of in table.states if what == "FENCE" and of in skus and name != channel}
    )
    if fenced:
        table.load(sa.and_(policy_names.c.what == "CHANNEL", policy_names.c.channel.in_(fenced)))
    changes = {one: latest_changes(connection, at, one) for one in skus}
    figures = {one: _figures(connection, at, one, changes[one]) for one in skus}
    numbers = {one: number for number, one in enumerate(skus)}
    policies = table.policies(numbers, {node for own in figures.values() for node in own})
    own = policies.channel(channel)
    version = unpacked(at.version)
    sheets = [
        Sheet(_rows(number, figures[one], policies), table.fences(one), policies, own)
        for one, number in numbers.items()
    ]
    found = [
        _with_origins(connection, at, sheet.terms(channel, one, version), own.declared, changes[one], table)
        for one, sheet in zip(skus, sheets, strict=True)
    ]
    if not isinstance(kit, KitState) or not parts:
        return found[0]
    terms = kit_terms(channel, kit, numbers.setdefault(sku, len(numbers)), sheets, policies, version)
    return PastTerms(terms=terms, clock_ms=at.clock_ms, declared=own.declared, origins={}, parts=tuple(found))


# --- Positions ------------------------------------------------------------------------------------------------


def _figures(connection: Connection, at: Moment, sku: str, changes: LastChanges) -> dict[str, Figures]:
    """Return a sku's figures per node: its last change, else what the last baseline noted."""
    figures: dict[str, Figures] = {}
    if at.baseline:
        c = baseline_positions.c
        for row in connection.execute(
            sa.select(baseline_positions).where(c.sku == sku, c.baseline == at.baseline)
        ):
            figures[row.node] = _of_row(row)
    figures.update({node: _of_row(row) for (node, what), row in changes.items() if what == STATE})
    return figures


def _of_row(row: sa.Row[Any]) -> Figures:  # Any: a row of position_changes or baseline_positions
    return row.on_hand, row.quarantined, row.reserved, row.committed, row.safety_stock


def _rows(number: int, figures: dict[str, Figures], policies: Policies) -> Rows:
    index = policies.nodes.index
    places = sorted((index[node], own) for node, own in figures.items())
    values = np.array([own for _, own in places], np.int64).reshape(len(places), FIELDS)
    return Rows(
        skus=np.array([number], np.int64),
        offsets=np.array([0, len(places)], np.int64),
        nodes=np.array([place for place, _ in places], np.int32),
        values=values,
    )


def _with_origins(
    connection: Connection,
    at: Moment,
    terms: Terms,
    declared: bool,
    changes: LastChanges,
    table: _PolicyTable,
) -> PastTerms:
    """Add who last set what; a position's own safety stock gets its author from there."""
    wanted = [
        (row.day, row.version, terms.sku, node, figure)
        for (node, figure), row in changes.items()
        if figure != STATE
    ]
    told = {(node, figure): one for (_, _, node, figure), one in origins(connection, wanted).items()}
    told.update(table.safety_stocks(terms.sku))
    own = tuple(_policy_of_position(policy, told) for policy in terms.policies)
    return PastTerms(
        terms=replace(terms, policies=own), clock_ms=at.clock_ms, declared=declared, origins=told
    )


def _policy_of_position(policy: PolicyTerm, told: dict[tuple[str, str], Origin]) -> PolicyTerm:
    if policy.term != "safety_stock" or policy.level != "POSITION":
        return policy
    found = told.get((policy.value.rpartition(": ")[0], "safety_stock"))
    if found is None:
        return policy
    return replace(
        policy, version=found.version, author=found.author, reason=found.reason, clock_ms=found.clock_ms
    )


# --- Policies -------------------------------------------------------------------------------------------------


def _of_skus(skus: Sequence[str]) -> sa.ColumnElement[bool]:
    c = policy_names.c
    return sa.and_(
        c.what.in_(["KIT", "FENCE", "FENCE_LEFT", "OVERRIDE", "STOP", "SAFETY_STOCK"]), c.sku.in_(skus)
    )


def _of_channel(channel: str, skus: Sequence[str]) -> sa.ColumnElement[bool]:
    c = policy_names.c
    return sa.or_(
        c.what.in_(["NODE", "FEED", "SILENCE"]),
        sa.and_(c.what.in_(["CHANNEL", "STOP"]), c.channel == channel, c.sku == ""),
        _of_skus(skus),
    )


class _PolicyTable:
    """Policies as they stood, by what and name; loaded piece by piece."""

    def __init__(self, connection: Connection, at: Moment) -> None:
        self._connection = connection
        self._at = at
        self.states: dict[tuple[str, str, str], tuple[int, Any]] = {}  # Any: a State class of ledger.record
        self._safety: dict[tuple[str, str], Origin] = {}

    def load(self, names: sa.ColumnElement[bool]) -> None:
        for row in latest_policies(self._connection, self._at, names):
            if row.state != REMOVED:
                state = _DECODERS[row.what].decode(row.state)
                self.states[row.what, row.channel, row.sku] = (row.version, state)
            if row.what == "SAFETY_STOCK":
                self._safety[row.sku, row.channel] = Origin(
                    version=str(unpacked(row.version)),
                    clock_ms=row.clock_ms,
                    event="POLICY",
                    author=row.author,
                    reason=row.reason,
                )

    def get(self, what: str, channel: str, sku: str) -> object:
        """Return one state, or None."""
        return self.states.get((what, channel, sku), (0, None))[1]

    def policies(self, numbers: dict[str, int], nodes: set[str]) -> Policies:
        """Return the policies of the loaded names, as the replica has them."""
        changes = Changes(seen_nodes=set(nodes))
        for (what, channel, sku), (version, state) in sorted(self.states.items()):
            if what == "NODE":
                changes.add_nodes([state])
            elif what == "CHANNEL":
                changes.add_channels([state])
            elif what == "OVERRIDE" and sku in numbers:
                changes.add_overrides([state])
            elif what == "STOP":
                changes.add_stops([state])
            elif what == "FEED":
                changes.add_feeds([state])
            elif what == "SILENCE" and version > self.states.get(("FEED", channel, sku), (0, None))[0]:
                changes.add_silence(channel, sku, state.stale)
            elif what == "FENCE" and sku in numbers:
                changes.seen_channels.add(channel)
        more = dict(numbers)
        policies, _ = Policies.empty().changed(changes, lambda sku: more.setdefault(sku, len(more)))
        return policies

    def safety_stocks(self, sku: str) -> dict[tuple[str, str], Origin]:
        """Return (node, safety_stock) → who set it, of a sku's positions that had one of their own."""
        return {(node, "safety_stock"): one for (of, node), one in self._safety.items() if of == sku}

    def fences(self, sku: str) -> tuple[FenceState, ...]:
        """Return a sku's fences with what was left of each, by channel."""
        found = []
        for (what, channel, of), (version, fence) in self.states.items():
            if what != "FENCE" or of != sku or fence.left <= 0:
                continue
            since, left = self.states.get(("FENCE_LEFT", channel, sku), (0, None))
            if left is not None and since > version and left.generation == fence.version:
                fence = msgspec.structs.replace(fence, left=left.left)
            found.append(fence)
        return tuple(sorted(found, key=lambda fence: fence.channel.encode()))
