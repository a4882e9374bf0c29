"""From positions and policies to packed answers: the one place in the replica that calls the formula for many
skus.

Used for the few skus of a batch of records and, in chunks, for all of them when a policy moves everything.
Pure. What it gathers comes from ``columns`` and ``policies``; the sums are ``domain.formula``; one sku laid
open for a person is ``explain``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from availability.domain import formula
from availability.domain.formula import Flags, Ints
from availability.replica.columns import (
    COMMITTED,
    ON_HAND,
    QUARANTINED,
    RESERVED,
    SAFETY_STOCK,
    STATE_BITS,
    STATE_MASK,
    Rows,
    ranges,
)
from availability.replica.fences import FencesOfSku
from availability.replica.policies import Channel, Nodes, Policies


@dataclass(frozen=True, slots=True, kw_only=True)
class Fenced:
    """The ring-fences of some skus: what is left per channel and sku, over the rows of these skus only."""

    skus: Ints
    at: Ints  # where these are among the skus of Terms
    rows: Ints  # their rows
    offsets: Ints
    frees: Ints
    lefts: Mapping[str, Ints]
    channels: Mapping[str, Channel]
    counted: Mapping[str, Flags]  # N of each fence's channel

    def kept_for_others(self, channel: Channel, counted: Flags, skus: int) -> Ints:
        """Return ``fenced`` per sku of Terms, for a channel that counts these rows of Terms."""
        total = np.zeros(self.at.size, np.int64)
        ours = counted[self.rows]
        for name, left in self.lefts.items():
            if name != channel.state.channel:
                shared = channel.shares(self.channels[name], self.skus)
                total += formula.kept(left, self.frees, self.counted[name], ours, shared, self.offsets)
        fenced = np.zeros(skus, np.int64)
        fenced[self.at] = total
        return fenced


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What channels share of some skus: per row give and net, per sku whether it is known or stopped."""

    rows: Rows
    gives: Ints
    nets: Ints
    known: Flags
    stopped: Flags | bool
    fenced: Fenced | None


def safety_stocks(values: Ints, nodes: Nodes, node_numbers: npt.NDArray[np.integer]) -> Ints:
    """Return each position's safety stock in effect: its own, or its node's where it has none (-1)."""
    own = values[:, SAFETY_STOCK]
    return np.where(own < 0, nodes.safety_stock[node_numbers], own)


def shared_terms(rows: Rows, policies: Policies, fences: Mapping[int, FencesOfSku]) -> Terms:
    """Compute what does not depend on the channel. ``fences`` are those of these skus, by sku number."""
    values = rows.values
    safety = safety_stocks(values, policies.nodes, rows.nodes)
    gives = formula.give(values[:, ON_HAND], values[:, QUARANTINED], safety)
    nets = formula.net(gives, values[:, RESERVED], values[:, COMMITTED])
    return Terms(
        rows=rows,
        gives=gives,
        nets=nets,
        known=rows.offsets[1:] > rows.offsets[:-1],
        stopped=policies.stops.hit(rows.skus),
        fenced=_fenced(rows, nets, policies, fences) if fences else None,
    )


def _fenced(rows: Rows, nets: Ints, policies: Policies, fences: Mapping[int, FencesOfSku]) -> Fenced:
    numbers = np.sort(np.fromiter(fences, np.int64, len(fences)))
    at = np.searchsorted(rows.skus, numbers)
    lengths = rows.offsets[at + 1] - rows.offsets[at]
    picked, offsets = ranges(rows.offsets[at], lengths)
    own = Rows(skus=numbers, offsets=offsets, nodes=rows.nodes[picked], values=rows.values[picked])
    lefts: dict[str, Ints] = {}
    for place, number in enumerate(numbers.tolist()):  # fences are few: those of the skus that moved
        for fence in fences[number]:
            column = lefts.setdefault(fence.channel, np.zeros(numbers.size, np.int64))
            column[place] = fence.left
    channels = {name: policies.channel(name) for name in lefts}
    return Fenced(
        skus=numbers,
        at=at,
        rows=picked,
        offsets=offsets,
        frees=formula.free(nets[picked]),
        lefts=lefts,
        channels=channels,
        counted={name: channel.counted_rows(own) for name, channel in channels.items()},
    )


def packed_answers(terms: Terms, channel: Channel) -> Ints:
    """Return per sku sellable × 8 + state in one channel."""
    rows = terms.rows
    counted = channel.counted_rows(rows)
    units, percent, limit = channel.numbers(rows.skus)
    pools = formula.pool(terms.nets, counted, channel.member[rows.nodes], rows.offsets)
    buffers = formula.buffer(units, percent, terms.gives, counted, rows.offsets)
    if channel.stop is not None:
        blocked: Flags | bool = True
    elif channel.stops.skus.size:
        blocked = np.logical_or(terms.stopped, channel.stops.hit(rows.skus))
    else:
        blocked = terms.stopped
    fenced: formula.IntsLike = 0
    if terms.fenced is not None:
        fenced = terms.fenced.kept_for_others(channel, counted, rows.skus.size)
    sellables = formula.sellable(pools, buffers, fenced, limit, blocked, terms.known)
    states = formula.state(
        pools, buffers, fenced, sellables, channel.state.low_stock_threshold, blocked, terms.known
    )
    return (sellables << STATE_BITS) | states


def packed_kits(kits: Ints, policies: Policies, channel: Channel, answers: Callable[[Ints], Ints]) -> Ints:
    """Return per kit (sorted sku numbers) sellable × 8 + state in one channel.

    ``answers`` gives the packed answers of plain skus in that channel.
    """
    recipes = policies.kits.recipes_of(kits)
    parts = answers(recipes.parts)
    blocked = channel.stop is not None or np.logical_or(policies.stops.hit(kits), channel.stops.hit(kits))
    sellables, states = formula.kits(
        parts >> STATE_BITS,
        parts & STATE_MASK,
        recipes.units,
        recipes.offsets,
        channel.state.low_stock_threshold,
        blocked,
    )
    return (sellables << STATE_BITS) | states


def overlaid(packed: Ints, newer: Sequence[tuple[Ints, Ints]]) -> Callable[[Ints], Ints]:
    """Return a look-up in packed answers of which some are ``newer`` (skus, answers) and not written yet."""
    if not newer:
        return lambda skus: packed[skus]
    moved = np.concatenate([skus for skus, _ in newer])
    values = np.concatenate([answers for _, answers in newer])
    order = np.argsort(moved)
    moved, values = moved[order], values[order]

    def look_up(skus: Ints) -> Ints:
        at = np.minimum(np.searchsorted(moved, skus), moved.size - 1)
        return np.where(moved[at] == skus, values[at], packed[skus])

    return look_up
