"""Policies: checked messages in, one ledger event each. Reads come from memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import Message

from availability.domain.errors import Reason, ServiceError, invalid
from availability.domain.limits import (
    CHANNEL_NODES_MAX,
    FEED_GRACE_MS_MAX,
    FEED_INTERVAL_MS_MAX,
    FEED_INTERVAL_MS_MIN,
    KIT_COMPONENTS_MAX,
    KIT_UNITS_MAX,
    PAGE_SIZE_DEFAULT,
    PAGE_SIZE_MAX,
)
from availability.domain.text import text_problem
from availability.domain.version import Version
from availability.ledger import calls
from availability.ledger.ledger import Ledger
from availability.ledger.record import ChannelState, KitState, OverrideState
from availability.replica.replica import Replica
from availability.service import policy_views
from availability.service.context import CallContext
from availability.service.freshness import ANSWER_MARGIN_S, Freshness
from availability.service.ledger_calls import call, refuse
from availability.service.requests import (
    check_id,
    check_quantity,
    check_reason,
    duration_ms,
    request_key,
    timestamp,
)
from availability.v1 import common_pb2
from availability.v1 import policy_pb2 as pb

_ABSENT = -1
UNTIL_MS_MAX = 253_402_300_799_999
"""The last millisecond that a protobuf time holds."""
ETAG_BYTES_MAX = 64
PREVIEW_MOVES_MAX = 1_000
"""Largest moves that a preview tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What became of a policy write; with ``preview`` nothing was written, and ``version`` is the head's."""

    version: str
    replayed: bool = False
    channel: ChannelState | None = None
    kit: KitState | None = None
    preview: pb.PolicyPreview | None = None


class PolicyHandlers:
    """PolicyService."""

    def __init__(
        self,
        ledger: Ledger,
        replica: Replica,
        freshness: Freshness,
        *,
        durability: common_pb2.Durability.ValueType,
    ) -> None:
        self._ledger = ledger
        self._replica = replica
        self._freshness = freshness
        self._durability = durability

    def set_channel_policy(
        self, request: pb.SetChannelPolicyRequest, ctx: CallContext
    ) -> pb.SetChannelPolicyResponse:
        """Declare or replace a channel's policy."""
        reply = self._write(request, ctx, "channel", _channel_value(request.policy))
        assert reply.channel is not None
        return pb.SetChannelPolicyResponse(
            policy=_policy(reply.channel),
            version=reply.version,
            replayed=reply.replayed,
            durability=self._durability,
            preview=reply.preview,
        )

    def set_sku_override(
        self, request: pb.SetSkuOverrideRequest, ctx: CallContext
    ) -> pb.SetSkuOverrideResponse:
        """Replace what differs for one sku of a channel."""
        check_id(request.channel, "channel")
        check_id(request.sku, "sku")
        reply = self._write(
            request, ctx, "override", _override_value(request.channel, request.sku, request.override)
        )
        return pb.SetSkuOverrideResponse(
            version=reply.version,
            replayed=reply.replayed,
            durability=self._durability,
            preview=reply.preview,
        )

    def clear_sku_override(
        self, request: pb.ClearSkuOverrideRequest, ctx: CallContext
    ) -> pb.ClearSkuOverrideResponse:
        """Remove what differs."""
        check_id(request.channel, "channel")
        check_id(request.sku, "sku")
        reply = self._write(request, ctx, "clear_override", [request.channel, request.sku])
        return pb.ClearSkuOverrideResponse(
            version=reply.version,
            replayed=reply.replayed,
            durability=self._durability,
            preview=reply.preview,
        )

    def set_safety_stock(
        self, request: pb.SetSafetyStockRequest, ctx: CallContext
    ) -> pb.SetSafetyStockResponse:
        """Set the units of a position never sold, or a node's default."""
        check_id(request.sku, "sku", required=False)
        check_id(request.node, "node")
        quantity = _ABSENT
        if request.HasField("quantity"):
            check_quantity(request.quantity, "quantity", least=0)
            quantity = request.quantity
        elif not request.sku:
            raise invalid("quantity is required for a node's default", field="quantity")
        reply = self._write(request, ctx, "safety_stock", [request.sku, request.node, quantity])
        return pb.SetSafetyStockResponse(
            version=reply.version,
            replayed=reply.replayed,
            durability=self._durability,
            preview=reply.preview,
        )

    def set_node(self, request: pb.SetNodeRequest, ctx: CallContext) -> pb.SetNodeResponse:
        """Declare a node or change its state."""
        check_id(request.node, "node")
        if request.state not in (common_pb2.NODE_STATE_ONLINE, common_pb2.NODE_STATE_OFFLINE):
            raise invalid("state must be ONLINE or OFFLINE", field="state")
        reply = self._write(request, ctx, "node", [request.node, request.state])
        return pb.SetNodeResponse(
            version=reply.version,
            replayed=reply.replayed,
            durability=self._durability,
            preview=reply.preview,
        )

    def set_sale_state(self, request: pb.SetSaleStateRequest, ctx: CallContext) -> pb.SetSaleStateResponse:
        """Stop or allow sales."""
        check_id(request.channel, "channel", required=False)
        check_id(request.sku, "sku", required=False)
        if not request.channel and not request.sku:
            raise invalid("give a channel, a sku, or both")
        if request.state not in (common_pb2.SALE_STATE_SELLABLE, common_pb2.SALE_STATE_BLOCKED):
            raise invalid("state must be SELLABLE or BLOCKED", field="state")
        blocked = request.state == common_pb2.SALE_STATE_BLOCKED
        until_ms = _until_ms(request, blocked=blocked)
        value: list[object] = [request.channel, request.sku, blocked, until_ms]
        reply = self._write(request, ctx, "sale_state", value)
        return pb.SetSaleStateResponse(
            version=reply.version,
            replayed=reply.replayed,
            durability=self._durability,
            preview=reply.preview,
        )

    def set_ring_fence(self, request: pb.SetRingFenceRequest, ctx: CallContext) -> pb.SetRingFenceResponse:
        """Set the units of a sku that only one channel may sell."""
        check_id(request.channel, "channel")
        check_id(request.sku, "sku")
        check_quantity(request.units, "units", least=0)
        reply = self._write(request, ctx, "fence", [request.channel, request.sku, request.units])
        return pb.SetRingFenceResponse(
            version=reply.version,
            replayed=reply.replayed,
            durability=self._durability,
            preview=reply.preview,
        )

    def set_feed(self, request: pb.SetFeedRequest, ctx: CallContext) -> pb.SetFeedResponse:
        """Watch how long a source is silent about a node, or watch it no more."""
        check_id(request.source, "source")
        check_id(request.node, "node")
        interval_ms = grace_ms = 0
        if request.HasField("expected_interval"):
            interval_ms = duration_ms(
                request.expected_interval,
                "expected_interval",
                least=FEED_INTERVAL_MS_MIN,
                most=FEED_INTERVAL_MS_MAX,
            )
        if request.HasField("grace"):
            if not interval_ms:
                raise invalid("grace without expected_interval", field="grace")
            grace_ms = duration_ms(request.grace, "grace", least=0, most=FEED_GRACE_MS_MAX)
        reply = self._write(request, ctx, "feed", [request.source, request.node, interval_ms, grace_ms])
        return pb.SetFeedResponse(
            version=reply.version,
            replayed=reply.replayed,
            durability=self._durability,
            preview=reply.preview,
        )

    def set_kit(self, request: pb.SetKitRequest, ctx: CallContext) -> pb.SetKitResponse:
        """Set or remove the recipe of a kit."""
        check_id(request.kit_sku, "kit_sku")
        reply = self._write(request, ctx, "kit", [request.kit_sku, _components_value(request.components)])
        flat = reply.kit.flat if reply.kit is not None else []
        return pb.SetKitResponse(
            version=reply.version,
            replayed=reply.replayed,
            durability=self._durability,
            preview=reply.preview,
            flattened=[pb.KitComponent(sku=sku, units=units) for sku, units in flat],
        )

    def get_policy(self, request: pb.GetPolicyRequest, ctx: CallContext) -> pb.GetPolicyResponse:
        """Return a channel's policy and a page of its overrides."""
        check_id(request.channel, "channel")
        size = request.page_size or PAGE_SIZE_DEFAULT
        if not 1 <= size <= PAGE_SIZE_MAX:
            raise invalid(f"page_size must be 1 to {PAGE_SIZE_MAX}", field="page_size")
        self._freshness.latest(ctx)
        state = self._replica.channel_policy(request.channel)
        overrides = self._replica.overrides(request.channel, request.page_token, size)
        stopped = any(
            stop.channel == request.channel and not stop.sku for stop in self._replica.policies().stops
        )
        return pb.GetPolicyResponse(
            policy=_policy(state),
            sale_state=common_pb2.SALE_STATE_BLOCKED if stopped else common_pb2.SALE_STATE_SELLABLE,
            overrides=[policy_views.override_entry(o, _override(o)) for o in overrides],
            next_page_token=overrides[-1].sku if len(overrides) == size else "",
        )

    def list_policies(self, request: pb.ListPoliciesRequest, ctx: CallContext) -> pb.ListPoliciesResponse:
        """Return all that is set as a whole."""
        as_of = self._freshness.latest(ctx)
        found = self._replica.policies()
        as_of.version = str(found.version)
        return pb.ListPoliciesResponse(
            policies=map(_policy, found.channels),
            nodes=map(policy_views.node_policy, found.nodes),
            stops=map(policy_views.sale_stop, found.stops),
            as_of=as_of,
            kits=map(policy_views.kit_policy, found.kits),
            ring_fences=map(policy_views.ring_fence, found.fences),
            feeds=map(policy_views.feed_policy, found.feeds),
            safety_stocks=[
                pb.SafetyStock(sku=sku, node=node, quantity=units)
                for sku, node, units in self._replica.safety_stocks()
            ],
        )

    def _write(self, request: Message, ctx: CallContext, what: str, value: list[object]) -> Written:
        change = self._change(request, ctx, what, value)
        if request.validate_only:  # type: ignore[attr-defined]  # every policy write has this field
            return self._preview(change, ctx)
        reply = call(ctx, lambda: self._ledger.set_policy(change, ctx.deadline))
        if reply.status != "OK":
            raise _refused(reply.status, reply.name)
        channel = reply.channel if isinstance(reply.channel, ChannelState) else None
        kit = reply.kit if isinstance(reply.kit, KitState) else None
        return Written(version=reply.version, replayed=reply.replayed, channel=channel, kit=kit)

    def _preview(self, change: calls.PolicyChange, ctx: CallContext) -> Written:
        """Let the ledger decide without writing, and memory say what that would move."""
        reply = call(ctx, lambda: self._ledger.preview_policy(change))
        if reply.status != "OK":
            raise _refused(reply.status, reply.name)
        deadline = ctx.deadline - ANSWER_MARGIN_S
        with ctx.blocking():
            if not self._replica.wait_for(Version.parse(reply.version), deadline):
                raise ServiceError(Reason.DEADLINE_EXCEEDED, "memory did not reach the ledger in time")
            found = self._replica.preview(
                reply.body, reply.positions, moves_max=PREVIEW_MOVES_MAX, deadline_monotonic=deadline
            )
        moves = [
            pb.MovedSellable(
                channel=move.channel, sku=move.sku, sellable_before=move.before, sellable_after=move.after
            )
            for move in found.moves
        ]
        message = pb.PolicyPreview(
            moved_skus=found.moved_skus,
            moved_sellables=found.moved_sellables,
            moves=moves,
            as_of=common_pb2.AsOf(version=str(found.version), age_ms=self._replica.freshness_ms()),
        )
        channel = reply.body.channels[0] if reply.body.channels else None
        kit = reply.body.kits[0] if reply.body.kits else None
        return Written(version=reply.version, channel=channel, kit=kit, preview=message)

    def _change(
        self, request: Message, ctx: CallContext, what: str, value: list[object]
    ) -> calls.PolicyChange:
        """Check what every policy write has, and make the ledger's call."""
        reason: str = request.reason  # type: ignore[attr-defined]  # every policy write has these fields
        etag: str = request.etag  # type: ignore[attr-defined]  # same
        check_reason(reason)
        problem = text_problem(etag, "etag", bytes_max=ETAG_BYTES_MAX, required=False)
        if problem is not None:
            raise invalid(problem, field="etag")
        key = request_key(request.request_id, request, ctx)  # type: ignore[attr-defined]  # same
        return calls.PolicyChange(key, what, value, reason, self._ledger.settings.auto_create, etag)


# What the ledger names with a refusal; of the others a sku.
_FACTS = {
    "ETAG_MISMATCH": "etag",
    "FENCE_OVER_POOL": "pool",
    "UNKNOWN_CHANNEL": "channel",
    "UNKNOWN_NODE": "node",
    "TOO_MANY_NODES": "node",
    "TOO_MANY_FEEDS": "source",
}


def _refused(status: str, name: str) -> ServiceError:
    return refuse(status, **{_FACTS.get(status, "sku"): name})


def _until_ms(request: pb.SetSaleStateRequest, *, blocked: bool) -> int:
    """Milliseconds since 1970 at which a stop ends by itself, 0 where somebody must end it.

    Whether it is past already is decided by the ledger, whose clock counts.
    """
    if not request.HasField("until"):
        return 0
    if not blocked:
        raise invalid("until belongs to a stop: SELLABLE has no end", field="until")
    until_ms = request.until.seconds * 1000 + request.until.nanos // 1_000_000
    if until_ms <= 0:
        raise refuse("UNTIL_IN_PAST", field="until")
    if until_ms > UNTIL_MS_MAX:
        raise invalid("until is after the year 9999", field="until")
    return until_ms


def _buffer_value(buffer: common_pb2.Buffer) -> tuple[int, int]:
    """(units, percent), one of them absent."""
    if buffer.WhichOneof("value") == "percent":
        if not 0 <= buffer.percent <= 100:
            raise invalid(f"buffer.percent must be 0 to 100, not {buffer.percent}", field="buffer")
        return _ABSENT, buffer.percent
    check_quantity(buffer.units, "buffer.units", least=0)
    return buffer.units, _ABSENT


def _channel_value(policy: pb.ChannelPolicy) -> list[object]:
    check_id(policy.channel, "channel")
    if policy.all_nodes == bool(policy.nodes):
        raise invalid("give nodes or all_nodes, not both and not none", field="nodes")
    if len(policy.nodes) > CHANNEL_NODES_MAX:
        raise invalid(f"{len(policy.nodes)} nodes, at most {CHANNEL_NODES_MAX}", field="nodes")
    for node in policy.nodes:
        check_id(node, "node")
    if len(set(policy.nodes)) != len(policy.nodes):
        raise invalid("a node is named twice", field="nodes")
    units, percent = _buffer_value(policy.buffer)
    check_quantity(policy.oversell_limit, "oversell_limit", least=0)
    check_quantity(policy.low_stock_threshold, "low_stock_threshold", least=0)
    publish_limit = _ABSENT
    if policy.HasField("publish_limit"):
        check_quantity(policy.publish_limit, "publish_limit", least=0)
        publish_limit = policy.publish_limit
    if policy.unreachable not in (0, pb.UNREACHABLE_REFUSE):
        raise invalid("unreachable must be REFUSE: no other value is built", field="unreachable")
    if policy.staleness not in pb.Staleness.values():
        raise invalid("staleness must be KEEP or EXCLUDE", field="staleness")
    return [
        policy.channel,
        policy.all_nodes,
        list(policy.nodes),
        units,
        percent,
        policy.oversell_limit,
        policy.low_stock_threshold,
        publish_limit,
        policy.staleness or pb.STALENESS_KEEP,
        pb.UNREACHABLE_REFUSE,
    ]


def _override_value(channel: str, sku: str, override: pb.SkuOverride) -> list[object]:
    units = percent = oversell = publish = _ABSENT
    if override.HasField("buffer"):
        units, percent = _buffer_value(override.buffer)
    if override.HasField("oversell_limit"):
        check_quantity(override.oversell_limit, "oversell_limit", least=0)
        oversell = override.oversell_limit
    if override.HasField("publish_limit"):
        check_quantity(override.publish_limit, "publish_limit", least=0)
        publish = override.publish_limit
    nodes = list(dict.fromkeys(override.excluded_nodes))
    if len(nodes) > CHANNEL_NODES_MAX:
        raise invalid(f"{len(nodes)} nodes, at most {CHANNEL_NODES_MAX}", field="excluded_nodes")
    for node in nodes:
        check_id(node, "node")
    return [channel, sku, units, percent, oversell, publish, nodes]


def _components_value(components: Sequence[pb.KitComponent]) -> list[tuple[str, int]]:
    if len(components) > KIT_COMPONENTS_MAX:
        raise ServiceError(
            Reason.KIT_TOO_LARGE,
            f"{len(components)} components, at most {KIT_COMPONENTS_MAX}",
            limit=str(KIT_COMPONENTS_MAX),
        )
    for part in components:
        check_id(part.sku, "sku")
        if not 1 <= part.units <= KIT_UNITS_MAX:
            raise invalid(f"units must be 1 to {KIT_UNITS_MAX}, not {part.units}", field="units")
    return [(part.sku, part.units) for part in components]


def _buffer(units: int, percent: int) -> common_pb2.Buffer:
    return common_pb2.Buffer(percent=percent) if percent >= 0 else common_pb2.Buffer(units=max(0, units))


def _policy(state: ChannelState) -> pb.ChannelPolicy:
    return pb.ChannelPolicy(
        channel=state.channel,
        nodes=state.nodes,
        all_nodes=state.all_nodes,
        buffer=_buffer(state.buffer_units, state.buffer_percent),
        oversell_limit=state.oversell_limit,
        low_stock_threshold=state.low_stock_threshold,
        publish_limit=None if state.publish_limit < 0 else state.publish_limit,
        staleness=pb.Staleness.ValueType(state.staleness),
        unreachable=pb.Unreachable.ValueType(state.unreachable),
        version=state.version,
        author=state.author,
        reason=state.reason,
        update_time=timestamp(state.clock_ms) if state.clock_ms else None,
    )


def _override(state: OverrideState) -> pb.SkuOverride:
    has_buffer = state.buffer_units >= 0 or state.buffer_percent >= 0
    return pb.SkuOverride(
        buffer=_buffer(state.buffer_units, state.buffer_percent) if has_buffer else None,
        oversell_limit=None if state.oversell_limit < 0 else state.oversell_limit,
        publish_limit=None if state.publish_limit < 0 else state.publish_limit,
        excluded_nodes=state.excluded_nodes,
    )
