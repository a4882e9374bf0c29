"""From positions and policies to packed answers: the one place in the replica that calls the formula for many
skus.

Used for the few skus of a batch of records and, in chunks, for all of them when a policy moves everything.
Pure. What it gathers comes from ``columns`` and ``policies``; the sums are ``domain.formula``; one sku laid
open for a person is ``explain``.
"""

from __future__ import annotations

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
    Rows,
)
from availability.replica.policies import Channel, Nodes, Policies

FENCED = 0
"""Ring-fences are not built yet: their term is zero, here and in ``explain``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What channels share of some skus: per row give and net, per sku whether it is known or stopped."""

    rows: Rows
    gives: Ints
    nets: Ints
    known: Flags
    stopped: Flags | bool


def safety_stocks(values: Ints, nodes: Nodes, node_numbers: npt.NDArray[np.integer]) -> Ints:
    """Return each position's safety stock in effect: its own, or its node's where it has none (-1)."""
    own = values[:, SAFETY_STOCK]
    return np.where(own < 0, nodes.safety_stock[node_numbers], own)


def shared_terms(rows: Rows, policies: Policies) -> Terms:
    """Compute what does not depend on the channel."""
    values = rows.values
    safety = safety_stocks(values, policies.nodes, rows.nodes)
    gives = formula.give(values[:, ON_HAND], values[:, QUARANTINED], safety)
    return Terms(
        rows=rows,
        gives=gives,
        nets=formula.net(gives, values[:, RESERVED], values[:, COMMITTED]),
        known=rows.offsets[1:] > rows.offsets[:-1],
        stopped=policies.stops.hit(rows.skus),
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
    sellables = formula.sellable(pools, buffers, FENCED, limit, blocked, terms.known)
    states = formula.state(
        pools, buffers, FENCED, sellables, channel.state.low_stock_threshold, blocked, terms.known
    )
    return (sellables << STATE_BITS) | states
