"""What a token may speak for: channels, sources and nodes. Which RPC touches what stands here, one claim each.

An RPC without a claim is refused to every bound token, so that a new one is closed until somebody decided. A
claim names an owner: a token bound in anything must be bound in one of the owner's dimensions, and what the
message names must be within every dimension in which the token is bound. Pure, but for a reservation's channel,
which only the ledger knows. Who asks: `grpc_unary`, between the message and its handler; single deltas are
`delta_calls`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from availability.domain.errors import Reason, ServiceError
from availability.v1 import stock_pb2

Names = frozenset[str]

CHANNELS, SOURCES, NODES, ORDERS = "channels", "sources", "nodes", "orders"
"""Dimensions. An order is named by its source, or, by default, by its channel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a token is bound to; None in a dimension in which it is not bound."""

    channels: Names | None = None
    sources: Names | None = None
    nodes: Names | None = None

    def within(self, dimension: str) -> Names | None:
        """Return the names that a dimension is bound to, or None."""
        if dimension == ORDERS:
            if self.channels is None and self.sources is None:
                return None
            return (self.channels or frozenset()) | (self.sources or frozenset())
        found: Names | None = getattr(self, dimension)
        return found


def bounds_of(
    channels: Iterable[str] | None, sources: Iterable[str] | None, nodes: Iterable[str] | None
) -> Bounds | None:
    """Return what binds a token, or None where nothing does."""
    made = [None if names is None else frozenset(names) for names in (channels, sources, nodes)]
    if made == [None, None, None]:
        return None
    return Bounds(channels=made[0], sources=made[1], nodes=made[2])


class All:
    """Stands for every name of a dimension: no bound token may."""


ALL = All()
Named = Iterable[str] | All


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one message touches: names (or ALL) by dimension, and the dimensions that own it."""

    names: Mapping[str, Named]
    owner: tuple[str, ...]
    reservation_id: str = ""
    """A reservation whose channel is touched."""


Claims = Callable[[Any], Claim]  # Any: each RPC's own request


def refuse_outside(
    bounds: Bounds,
    principal_id: str,
    method: str,
    message: Any,  # Any: each RPC's own request
    channel_of: Callable[[str], str | None],
) -> None:
    """Raise ServiceError PERMISSION_DENIED where a bound token may not send a message.

    ``channel_of`` tells a reservation's channel, None where there is no such reservation.
    """
    make = CLAIMS.get(method)
    if make is None:
        raise _denied(
            principal_id, f"{method} is not for tokens that are bound to channels, sources or nodes"
        )
    claim = make(message)
    if all(bounds.within(dimension) is None for dimension in claim.owner):
        raise _denied(
            principal_id, f"{method} needs a token bound to {' or '.join(claim.owner)}, or to nothing"
        )
    for dimension, names in claim.names.items():
        allowed = bounds.within(dimension)
        if allowed is None:
            continue
        if isinstance(names, All):
            raise _denied(principal_id, f"the token is bound to some {dimension}, and this concerns all")
        for name in names:
            if name not in allowed:
                raise _denied(principal_id, f"the token is not for {name!r} ({dimension})")
    if claim.reservation_id and bounds.channels is not None:
        channel = channel_of(claim.reservation_id)
        # Of an unknown one nothing is told that its id does not tell: the handler says that there is none.
        if channel is not None and channel not in bounds.channels:
            raise _denied(principal_id, "the token is not for the channel of this reservation")


def _denied(principal_id: str, message: str) -> ServiceError:
    return ServiceError(Reason.PERMISSION_DENIED, message, principal=principal_id)


def may_tell(bounds: Bounds | None, delta: stock_pb2.Delta) -> bool:
    """Say whether a token may send one delta, as far as its nodes go; its source was the batch's business.

    A delta without a node may move stock anywhere, so a token that is bound to nodes may not send it.
    """
    if bounds is None or bounds.nodes is None:
        return True
    if delta.node not in bounds.nodes:
        return False
    return not delta.to_node or delta.to_node in bounds.nodes


# --- What each RPC touches --------------------------------------------------------------------------------


def _some(*names: str) -> tuple[str, ...]:
    return tuple(name for name in names if name)


def _channel_read(request: Any) -> Claim:
    nodes: Named = ALL if getattr(request, "include_nodes", False) else ()
    return Claim(names={CHANNELS: [request.channel], NODES: nodes}, owner=(CHANNELS,))


def _create(request: Any) -> Claim:
    # Without a node the channel's policy chooses among all of its nodes.
    return Claim(
        names={
            CHANNELS: [request.channel],
            NODES: [request.node] if request.node else ALL,
            ORDERS: _some(request.order_source),
        },
        owner=(CHANNELS,),
    )


def _reservation(request: Any) -> Claim:
    return Claim(
        names={ORDERS: _some(getattr(request, "order_source", ""))},
        owner=(CHANNELS,),
        reservation_id=request.reservation_id,
    )


def _deltas(request: Any) -> Claim:
    return Claim(names={SOURCES: [request.source]}, owner=(SOURCES, NODES))


def _source(request: Any) -> Claim:
    return Claim(names={SOURCES: [request.source]}, owner=(SOURCES,))


def _begin_snapshot(request: Any) -> Claim:
    nodes: Named = list(request.nodes) or ALL
    return Claim(names={SOURCES: [request.source], NODES: nodes}, owner=(SOURCES, NODES))


def _snapshot(_: Any) -> Claim:
    # Whose snapshot it is only the ledger knows: `snapshot_handlers` asks.
    return Claim(names={}, owner=(SOURCES, NODES))


def _at_point(request: Any) -> Claim:
    if request.HasField("point"):
        return _begin_snapshot(request.point)
    return _snapshot(request)


def _snapshots(request: Any) -> Claim:
    sources: Named = [request.source] if request.source else ALL
    return Claim(names={SOURCES: sources}, owner=(SOURCES,))


def _order(request: Any) -> Claim:
    return Claim(names={ORDERS: [request.order_source]}, owner=(ORDERS,))


def _channel_policy(request: Any) -> Claim:
    policy = request.policy
    nodes: Named = ALL if policy.all_nodes else list(policy.nodes)
    return Claim(names={CHANNELS: [policy.channel], NODES: nodes}, owner=(CHANNELS,))


def _override(request: Any) -> Claim:
    override = getattr(request, "override", None)
    nodes = list(override.excluded_nodes) if override is not None else []
    return Claim(names={CHANNELS: [request.channel], NODES: nodes}, owner=(CHANNELS,))


def _channel(request: Any) -> Claim:
    return Claim(names={CHANNELS: [request.channel]}, owner=(CHANNELS,))


def _sale_state(request: Any) -> Claim:
    channels: Named = [request.channel] if request.channel else ALL
    return Claim(names={CHANNELS: channels}, owner=(CHANNELS,))


def _node(request: Any) -> Claim:
    return Claim(names={NODES: [request.node]}, owner=(NODES,))


def _feed(request: Any) -> Claim:
    return Claim(names={SOURCES: [request.source], NODES: [request.node]}, owner=(SOURCES, NODES))


def _report(request: Any) -> Claim:
    return Claim(
        names={
            SOURCES: [request.source],
            NODES: _some(*(one.node for one in (*request.wrong, *request.over))),
        },
        owner=(SOURCES,),
    )


CLAIMS: Mapping[str, Claims] = {
    "GetAvailability": _channel_read,
    "BatchGetAvailability": _channel_read,
    "CheckBasket": _channel_read,
    "WatchAvailability": _channel_read,
    "CreateReservation": _create,
    "ExtendReservation": _reservation,
    "CommitReservation": _reservation,
    "ReleaseReservation": _reservation,
    "GetReservation": _reservation,
    "ApplyDeltas": _deltas,
    "StreamDeltas": _deltas,
    "GetOrder": _order,
    "ListStreams": _source,
    "BeginSnapshot": _begin_snapshot,
    "StreamSnapshot": _snapshot,
    "EndSnapshot": _snapshot,
    "CloseSnapshot": _snapshot,
    "ListSnapshots": _snapshots,
    "ReadSnapshot": _snapshot,
    "ReadPositions": _at_point,
    "ReadOrderLines": _at_point,
    "SkipGap": _source,
    "ResetStream": _source,
    "SetChannelPolicy": _channel_policy,
    "SetSkuOverride": _override,
    "ClearSkuOverride": _override,
    "SetSafetyStock": _node,
    "SetNode": _node,
    "SetSaleState": _sale_state,
    "SetRingFence": _channel,
    "SetFeed": _feed,
    "GetPolicy": _channel,
    "ReportExceptions": _report,
}
"""By method. Closed to bound tokens on purpose: ExplainAvailability (it names the holds and orders of other channels
behind the same stock), ListReservations, ListPolicies and SetKit (they concern every channel), AuditLedger (it concerns
all of the ledger)."""
