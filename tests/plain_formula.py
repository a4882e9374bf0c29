"""The formula of CONTRACT section 2 as an obvious loop over one sku: what the fast one is tested against.

Nothing here may be clever, share code with availability.domain.formula, or be imported outside tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

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


@dataclass(frozen=True)
class PlainFence:
    """What is left of another channel's ring-fence of the sku."""

    left: int
    channel: PlainChannel


def plain_give(position: PlainPosition) -> int:
    return max(0, position.on_hand - max(0, position.quarantined) - position.safety_stock)


def plain_net(position: PlainPosition) -> int:
    return plain_give(position) - position.reserved - position.committed


def plain_buffer(channel: PlainChannel, gives: int) -> int:
    if channel.percent < 0:
        return channel.units
    whole, rest = divmod(channel.percent * gives, 100)
    return whole + (1 if rest else 0)


def plain_counted(channel: PlainChannel) -> list[str]:
    """N: the channel's nodes that count, whether the sku has a position there or not."""
    return [node for node in channel.nodes if node not in channel.not_counted]


def plain_fenced(
    positions: Mapping[str, PlainPosition], channel: PlainChannel, fences: Sequence[PlainFence]
) -> int:
    """What the channel must leave for the others' fences.

    A fence is covered first by what is free in its channel's N outside of this channel's N. Where the two Ns have no
    node in common, nothing that this channel sells can be missing to the other: the term is 0.
    """
    mine = plain_counted(channel)
    fenced = 0
    for fence in fences:
        missing = fence.left
        shares = False
        for node in plain_counted(fence.channel):
            if node in mine:
                shares = True
            elif node in positions:
                missing -= max(0, plain_net(positions[node]))
        if shares:
            fenced += max(0, missing)
    return fenced


def plain_answer(
    positions: Mapping[str, PlainPosition], channel: PlainChannel, fences: Sequence[PlainFence] = ()
) -> tuple[int, int]:
    """Return (sellable, state number) of one sku; ``fences`` are those of other channels."""
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
    share = pool - plain_buffer(channel, gives) - plain_fenced(positions, channel, fences)
    sellable = max(0, share + channel.oversell_limit)
    if sellable == 0:
        return 0, OUT_OF_STOCK
    if share <= 0:
        return sellable, OVERSELLING
    return sellable, LOW_STOCK if sellable <= channel.low_stock_threshold else IN_STOCK


def plain_node(
    positions: Mapping[str, PlainPosition],
    channel: PlainChannel,
    node: str,
    fences: Sequence[PlainFence] = (),
) -> tuple[int, int]:
    """Return (free, sellable) of one of the channel's nodes: as if the channel had only that one, fences too."""
    sellable, _ = plain_answer(positions, channel, fences)
    position = positions.get(node, PlainPosition(on_hand=0))
    if node in channel.not_counted:
        return max(0, plain_net(position)), 0
    fenced = plain_fenced(positions, replace(channel, nodes=(node,)), fences)
    alone = (
        plain_net(position) - plain_buffer(channel, plain_give(position)) - fenced + channel.oversell_limit
    )
    return max(0, plain_net(position)), min(sellable, max(0, alone))


def plain_kit(
    parts: Sequence[tuple[tuple[int, int], int]], low_stock_threshold: int, blocked: bool
) -> tuple[int, int]:
    """Return (sellable, state number) of a kit, of its parts' answers and the units of each in one kit."""
    if blocked:
        return 0, BLOCKED
    shares = [(sellable // units, state) for (sellable, state), units in parts]
    sellable = min(share for share, _ in shares)
    if sellable == 0:
        return 0, OUT_OF_STOCK
    if (sellable, OVERSELLING) in shares:
        return sellable, OVERSELLING
    return sellable, LOW_STOCK if sellable <= low_stock_threshold else IN_STOCK
