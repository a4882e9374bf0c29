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
    """The ring-fences of some skus, one after the other, each with the rows of its sku."""

    skus: Ints  # each fence's sku
    at: Ints  # where that is among the skus of Terms
    owners: Ints  # each fence's channel, as a number of ``channels``
    channels: Mapping[str, int]
    lefts: Ints
    nodes: Flags  # fences × nodes: N of each fence's channel
    rows: Ints  # their rows among those of Terms
    offsets: Ints
    frees: Ints
    theirs: Flags  # per row, whether it is in N of the fence's channel

    def kept_for_others(self, channel: Channel, counted: Flags, skus: int) -> Ints:
        """Return ``fenced`` per sku of Terms, for a channel that counts these rows of Terms."""
        shared = channel.meets(self.nodes, self.skus)
        shared &= self.owners != self.channels.get(channel.state.channel, -1)
        kept = formula.kept(self.lefts, self.frees, self.theirs, counted[self.rows], shared, self.offsets)
        fenced = np.zeros(skus, np.int64)
        np.add.at(fenced, self.at, kept)
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
        fenced=_fenced(rows, nets, policies, fences),
    )


def _fenced(rows: Rows, nets: Ints, policies: Policies, fences: Mapping[int, FencesOfSku]) -> Fenced | None:
    every = [(sku, fence) for sku in sorted(fences) for fence in fences[sku] if fence.left > 0]
    if not every:
        return None
    skus = np.array([sku for sku, _ in every], np.int64)
    at = np.searchsorted(rows.skus, skus)
    picked, offsets = ranges(rows.offsets[at], rows.offsets[at + 1] - rows.offsets[at])
    numbers: dict[str, int] = {}
    owners = np.array([numbers.setdefault(fence.channel, len(numbers)) for _, fence in every], np.int64)
    channels = [policies.channel(name) for name in numbers]
    nodes = np.array(
        [channels[owner].nodes_of(sku) for owner, sku in zip(owners, skus.tolist(), strict=True)]
    )
    return Fenced(
        skus=skus,
        at=at,
        owners=owners,
        channels=numbers,
        lefts=np.array([fence.left for _, fence in every], np.int64),
        nodes=nodes,
        rows=picked,
        offsets=offsets,
        frees=formula.free(nets[picked]),
        theirs=nodes[np.repeat(np.arange(skus.size), np.diff(offsets)), rows.nodes[picked]],
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
