"""The formula: what a channel can sell, over arrays of positions (CONTRACT section 2). The one definition in
Python.

Pure: arrays in, arrays out; it knows no sku, node or channel by name, keeps nothing and reads no clock. Which
plain skus a kit is made of is the caller's business. Rows are positions, grouped by sku: ``offsets`` has one
entry more than there are skus, and sku number i owns rows ``offsets[i]`` to ``offsets[i + 1] - 1``. The
ledger's functions compute the same in Lua and the tests hold both against a plain loop. Who gathers the
arrays: ``availability.replica.compute``.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
IntsLike = Ints | int
"""A figure per sku, or one for all of them."""


class AvailabilityState(IntEnum):
    """The shopper's view of a sellable quantity; numbers as in availability.v1."""

    UNSPECIFIED = 0
    IN_STOCK = 1
    LOW_STOCK = 2
    OUT_OF_STOCK = 3
    OVERSELLING = 4
    BLOCKED = 5
    UNKNOWN_SKU = 6


def give(on_hand: Ints, quarantined: Ints, safety_stock: Ints) -> Ints:
    """Return per row what a position could give without its promises; never below 0."""
    gives: Ints = np.maximum(on_hand - np.maximum(quarantined, 0) - safety_stock, 0)
    return gives


def net(gives: Ints, reserved: Ints, committed: Ints) -> Ints:
    """Return per row what is left after promises; below 0 where more is promised than it can give."""
    return gives - reserved - committed


def counted_nodes(member: Flags, online: Flags, stale: Flags, *, exclude_stale: bool) -> Flags:
    """Return per node whether it is in N; exclusions of single skus come on top."""
    counted = member & online
    return counted & ~stale if exclude_stale else counted


def sums(values: Ints, offsets: Ints) -> Ints:
    """Add up rows per sku; a sku without rows gets 0. Exact: int64, and a wrapped running sum cancels out."""
    running = np.zeros(values.size + 1, np.int64)
    values.cumsum(out=running[1:])
    ends = running[offsets]
    return ends[1:] - ends[:-1]


def pool(nets: Ints, counted: Flags, member: Flags, offsets: Ints) -> Ints:
    """Return per sku Σ net over N + Σ min(0, net) over the channel's other nodes. Flags are per row."""
    return sums(np.where(counted, nets, np.where(member, np.minimum(nets, 0), 0)), offsets)


def buffer(units: IntsLike, percent: IntsLike, gives: Ints, counted: Flags, offsets: Ints) -> IntsLike:
    """Return per sku the units to leave in the pool: ``units``, or where percent >= 0 ⌈percent × Σ give over
    N ÷ 100⌉.

    Exact while Σ give × 100 stays below 2**63: domain.limits sees to that.
    """
    if isinstance(percent, int) and percent < 0:
        return units
    share = -(-percent * sums(np.where(counted, gives, 0), offsets) // 100)
    return np.where(np.greater_equal(percent, 0), share, units)


def free(nets: Ints) -> Ints:
    """Return per row the units that a position can still give; never below 0."""
    frees: Ints = np.maximum(nets, 0)
    return frees


def kept(
    fence_left: IntsLike, frees: Ints, theirs: Flags, ours: Flags, shared: Flags | bool, offsets: Ints
) -> Ints:
    """Return per sku what a channel must leave for the ring-fence of ONE other channel.

    max(0, fence_left − Σ free over the other channel's counted nodes that are not counted for this one):
    units that the other can have without touching ours are not taken from us; and 0 where not ``shared``: the
    two count no node together (one without a position is a node too), so nothing sold by one is missing to the
    other. ``theirs`` and ``ours`` say per row whether its position is in N of each. Add up over the other
    channels for ``fenced``.
    """
    elsewhere = sums(np.where(theirs & ~ours, frees, 0), offsets)
    return np.where(shared, np.maximum(fence_left - elsewhere, 0), 0)


def kept_at_node(fence_left: int, theirs_free: int, frees: Ints, theirs: Flags) -> Ints:
    """Return per row of ONE sku what ``kept`` is for a channel that had only that node.

    ``theirs_free`` is Σ free over all of the other channel's counted nodes.
    """
    return np.where(theirs, np.maximum(fence_left - (theirs_free - frees), 0), 0)


def sellable(
    pools: Ints,
    buffers: IntsLike,
    fenced: IntsLike,
    oversell_limit: IntsLike,
    blocked: Flags | bool,
    known: Flags,
) -> Ints:
    """Return per sku max(0, pool − buffer − fenced + oversell_limit), and 0 where blocked or not known."""
    share = np.maximum(pools - buffers - fenced + oversell_limit, 0)
    return np.where(np.logical_or(blocked, ~known), 0, share)


def state(
    pools: Ints,
    buffers: IntsLike,
    fenced: IntsLike,
    sellables: Ints,
    low_stock_threshold: int,
    blocked: Flags | bool,
    known: Flags,
) -> Ints:
    """Return per sku the AvailabilityState number. Unknown goes before blocked, overselling before low."""
    words = np.where(
        sellables <= low_stock_threshold, int(AvailabilityState.LOW_STOCK), int(AvailabilityState.IN_STOCK)
    )
    words = np.where(pools - buffers - fenced <= 0, int(AvailabilityState.OVERSELLING), words)
    words = np.where(sellables <= 0, int(AvailabilityState.OUT_OF_STOCK), words)
    words = np.where(blocked, int(AvailabilityState.BLOCKED), words)
    return np.where(known, words, int(AvailabilityState.UNKNOWN_SKU))


def node_sellable(
    nets: Ints,
    gives: Ints,
    counted: Flags,
    units: int,
    percent: int,
    oversell_limit: int,
    channel_sellable: int,
    fenced: IntsLike = 0,
) -> Ints:
    """Return per row of ONE sku what a reservation naming that node could get.

    As if the channel had only that node, and never more than the channel's sellable; a node outside N gives
    0. ``fenced`` is per row, see ``kept_at_node``.
    """
    alone = np.arange(nets.size + 1, dtype=np.int64)  # every row a group of its own
    buffers = buffer(units, percent, gives, counted, alone)
    share = np.minimum(np.maximum(nets - buffers - fenced + oversell_limit, 0), channel_sellable)
    return np.where(counted, share, 0)


def kits(
    sellables: Ints,
    states: Ints,
    units: Ints,
    offsets: Ints,
    low_stock_threshold: int,
    blocked: Flags | bool,
) -> tuple[Ints, Ints]:
    """Return per kit its sellable and its AvailabilityState number.

    Rows are the kits' plain skus (each kit has at least one): what the channel can sell of them, their states,
    and the ``units`` of them in one kit. A kit is the least of ⌊sellable ÷ units⌋, and 0 where it is blocked;
    OVERSELLING where a sku that sets this least is.
    """
    shares = sellables // units
    starts = offsets[:-1]
    least = np.minimum.reduceat(shares, starts)
    limiting = shares == np.repeat(least, np.diff(offsets))
    oversold = np.logical_or.reduceat(limiting & (states == AvailabilityState.OVERSELLING), starts)
    words = np.where(
        least <= low_stock_threshold, int(AvailabilityState.LOW_STOCK), int(AvailabilityState.IN_STOCK)
    )
    words = np.where(oversold, int(AvailabilityState.OVERSELLING), words)
    words = np.where(least <= 0, int(AvailabilityState.OUT_OF_STOCK), words)
    words = np.where(blocked, int(AvailabilityState.BLOCKED), words)
    return np.where(blocked, 0, least), words
