"""The formula of CONTRACT section 2 as an obvious loop over one sku: what the fast one is tested against.

Nothing here may be clever, share code with availability.domain.formula, or be imported outside tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

IN_STOCK, LOW_STOCK, OUT_OF_STOCK, OVERSELLING, BLOCKED, UNKNOWN_SKU = range(1, 7)


@dataclass(frozen=True)
class PlainPosition:
    on_hand: int
    quarantined: int = 0
    reserved: int = 0
    committed: int = 0
    safety_stock: int = 0  # in effect


@dataclass(frozen=True)
class PlainChannel:
    nodes: tuple[str, ...]
    units: int = 0
    percent: int = -1
    oversell_limit: int = 0
    low_stock_threshold: int = 0
    not_counted: frozenset[str] = field(default_factory=frozenset)  # offline, excluded or stale
    blocked: bool = False


def plain_give(position: PlainPosition) -> int:
    return max(0, position.on_hand - max(0, position.quarantined) - position.safety_stock)


def plain_net(position: PlainPosition) -> int:
    return plain_give(position) - position.reserved - position.committed


def plain_buffer(channel: PlainChannel, gives: int) -> int:
    if channel.percent < 0:
        return channel.units
    whole, rest = divmod(channel.percent * gives, 100)
    return whole + (1 if rest else 0)


def plain_answer(positions: Mapping[str, PlainPosition], channel: PlainChannel) -> tuple[int, int]:
    """Return (sellable, state number) of one sku."""
    if not positions:
        return 0, UNKNOWN_SKU
    if channel.blocked:
        return 0, BLOCKED
    pool = gives = 0
    for node in channel.nodes:
        if node not in positions:
            continue
        if node in channel.not_counted:
            pool += min(0, plain_net(positions[node]))
        else:
            pool += plain_net(positions[node])
            gives += plain_give(positions[node])
    share = pool - plain_buffer(channel, gives)
    sellable = max(0, share + channel.oversell_limit)
    if sellable == 0:
        return 0, OUT_OF_STOCK
    if share <= 0:
        return sellable, OVERSELLING
    return sellable, LOW_STOCK if sellable <= channel.low_stock_threshold else IN_STOCK


def plain_node(positions: Mapping[str, PlainPosition], channel: PlainChannel, node: str) -> tuple[int, int]:
    """Return (free, sellable) of one of the channel's nodes."""
    sellable, _ = plain_answer(positions, channel)
    position = positions.get(node, PlainPosition(on_hand=0))
    if node in channel.not_counted:
        return max(0, plain_net(position)), 0
    alone = plain_net(position) - plain_buffer(channel, plain_give(position)) + channel.oversell_limit
    return max(0, plain_net(position)), min(sellable, max(0, alone))
