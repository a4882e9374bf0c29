"""What is set, as messages: each with the version to write against, its author, reason and time."""

from __future__ import annotations

from typing import Protocol, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from availability.ledger.record import FeedState, FenceState, KitState, NodeState, OverrideState, StopState
from availability.service.requests import set_time, timestamp
from availability.v1 import common_pb2
from availability.v1 import policy_pb2 as pb


class _Stamp(Protocol):
    """Who set something, when and why, as every state of the ledger says it."""

    @property
    def version(self) -> str: ...
    @property
    def author(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def clock_ms(self) -> int: ...


class _Stamped(Protocol):
    version: str
    author: str
    reason: str

    @property
    def update_time(self) -> Timestamp: ...


_Message = TypeVar("_Message", bound=_Stamped)


def _stamped(message: _Message, stamp: _Stamp) -> _Message:
    message.version, message.author, message.reason = stamp.version, stamp.author, stamp.reason
    if stamp.clock_ms:
        set_time(message.update_time, stamp.clock_ms)
    return message


def node_policy(state: NodeState) -> pb.NodePolicy:
    message = pb.NodePolicy(
        node=state.node,
        state=common_pb2.NodeState.ValueType(state.state),
        safety_stock=state.safety_stock,
    )
    return _stamped(message, state)


def sale_stop(state: StopState) -> pb.SaleStop:
    message = pb.SaleStop(channel=state.channel, sku=state.sku)
    if state.until_time_ms:
        message.until.CopyFrom(timestamp(state.until_time_ms))
    return _stamped(message, state)


def override_entry(state: OverrideState, override: pb.SkuOverride) -> pb.SkuOverrideEntry:
    return _stamped(pb.SkuOverrideEntry(sku=state.sku, override=override), state)


def kit_policy(state: KitState) -> pb.KitPolicy:
    message = pb.KitPolicy(
        kit_sku=state.kit_sku,
        components=[pb.KitComponent(sku=sku, units=units) for sku, units in state.components],
        flattened=[pb.KitComponent(sku=sku, units=units) for sku, units in state.flat],
    )
    return _stamped(message, state)


def ring_fence(state: FenceState) -> pb.RingFence:
    return _stamped(pb.RingFence(channel=state.channel, sku=state.sku, units=state.left), state)


def feed_policy(state: FeedState) -> pb.FeedPolicy:
    message = pb.FeedPolicy(
        source=state.source,
        node=state.node,
        expected_interval=_duration(state.interval_ms),
        grace=_duration(state.grace_ms),
        stale=state.stale,
    )
    return _stamped(message, state)


def _duration(ms: int) -> Duration:
    return Duration(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)
