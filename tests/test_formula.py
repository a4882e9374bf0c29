"""The formula over arrays equals a plain loop for every drawn case, and the cases people get wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from availability.domain import formula
from availability.domain.formula import AvailabilityState, Ints
from availability.domain.limits import BALANCE_ABS_MAX
from tests.plain_formula import (
    PlainChannel,
    PlainFence,
    PlainPosition,
    plain_answer,
    plain_counted,
    plain_fenced,
    plain_give,
    plain_kit,
    plain_net,
    plain_node,
)

NODES = ("a", "b", "c", "d")

small = st.integers(-4, 12)
balance = st.one_of(small, small, st.integers(-BALANCE_ABS_MAX, BALANCE_ABS_MAX))
positions = st.builds(
    PlainPosition,
    on_hand=balance,
    quarantined=balance,
    reserved=balance,
    committed=balance,
    safety_stock=st.integers(0, 5),
)
percents = st.one_of(st.just(-1), st.integers(0, 100))
channels = st.builds(
    PlainChannel,
    nodes=st.lists(st.sampled_from(NODES), unique=True).map(tuple),
    units=st.integers(0, 6),
    percent=percents,
    oversell_limit=st.integers(0, 6),
    low_stock_threshold=st.integers(0, 6),
    not_counted=st.frozensets(st.sampled_from(NODES)),
    blocked=st.booleans(),
)
skus = st.lists(st.dictionaries(st.sampled_from(NODES), positions, max_size=4), min_size=1, max_size=6)


def arrays(drawn: list[dict[str, PlainPosition]]) -> tuple[Ints, Ints, Ints, Ints]:
    """Return gives, nets, node numbers and offsets of some skus."""
    rows = [(NODES.index(node), position) for sku in drawn for node, position in sorted(sku.items())]
    column = {
        name: np.array([getattr(position, name) for _, position in rows], np.int64)
        for name in ("on_hand", "quarantined", "reserved", "committed", "safety_stock")
    }
    gives = formula.give(column["on_hand"], column["quarantined"], column["safety_stock"])
    nets = formula.net(gives, column["reserved"], column["committed"])
    offsets = np.cumsum([0, *(len(sku) for sku in drawn)])
    return gives, nets, np.array([node for node, _ in rows], np.int64), offsets


@settings(deadline=None)  # a busy machine is no failure
@given(drawn=skus, channel=channels, per_sku=st.booleans())
def test_arrays_equal_the_plain_loop(
    drawn: list[dict[str, PlainPosition]], channel: PlainChannel, per_sku: bool
) -> None:
    """For any positions and policy the answer is the plain one, with figures per sku or for all."""
    gives, nets, nodes, offsets = arrays(drawn)
    member = np.array([node in channel.nodes for node in NODES])
    online = np.array([node not in channel.not_counted for node in NODES])
    counted = formula.counted_nodes(member, online, ~online, exclude_stale=False)[nodes]
    known = np.diff(offsets) > 0
    every = np.ones(len(drawn), np.int64)
    units = channel.units * every if per_sku else channel.units
    percent = channel.percent * every if per_sku else channel.percent
    limit = channel.oversell_limit * every if per_sku else channel.oversell_limit
    pools = formula.pool(nets, counted, member[nodes], offsets)
    buffers = formula.buffer(units, percent, gives, counted, offsets)
    sellables = formula.sellable(pools, buffers, 0, limit, channel.blocked, known)
    states = formula.state(pools, buffers, 0, sellables, channel.low_stock_threshold, channel.blocked, known)
    answers = list(zip(sellables.tolist(), states.tolist(), strict=True))
    assert answers == [plain_answer(sku, channel) for sku in drawn]


@settings(deadline=None)  # a busy machine is no failure
@given(sku=st.dictionaries(st.sampled_from(NODES), positions, min_size=1), channel=channels)
def test_node_shares_equal_the_plain_loop(sku: dict[str, PlainPosition], channel: PlainChannel) -> None:
    """A node's share is that of a channel with only this node, and never more than the channel's."""
    sku = {node: position for node, position in sku.items() if node in channel.nodes}
    gives, nets, nodes, _ = arrays([sku])
    counted = np.array([node not in channel.not_counted for node in NODES])[nodes]
    sellable, _ = plain_answer(sku, channel)
    shares = formula.node_sellable(
        nets, gives, counted, channel.units, channel.percent, channel.oversell_limit, sellable
    )
    assert shares.tolist() == [plain_node(sku, channel, node)[1] for node in sorted(sku)]


@settings(deadline=None)  # a busy machine is no failure
@given(position=positions)
def test_give_and_net_equal_the_plain_loop(position: PlainPosition) -> None:
    """One position's terms are the plain ones."""
    gives, nets, _, _ = arrays([{"a": position}])
    assert (gives.tolist(), nets.tolist()) == ([plain_give(position)], [plain_net(position)])


@settings(deadline=None)  # a busy machine is no failure
@given(
    drawn=skus,
    channel=channels,
    others=st.lists(st.tuples(st.integers(0, 20), channels), min_size=1, max_size=3),
)
def test_fences_equal_the_plain_loop(
    drawn: list[dict[str, PlainPosition]], channel: PlainChannel, others: list[tuple[int, PlainChannel]]
) -> None:
    """What a channel must leave for other channels' fences, and what one with a single node must."""
    _, nets, nodes, offsets = arrays(drawn)
    frees, ours = formula.free(nets), np.array([node in plain_counted(channel) for node in NODES])
    kept = np.zeros(len(drawn), np.int64)
    for left, other in others:
        theirs = np.array([node in plain_counted(other) for node in NODES])
        shared = bool((theirs & ours).any())
        kept += formula.kept(left, frees, theirs[nodes], ours[nodes], shared, offsets)
    fences = [PlainFence(left, other) for left, other in others]
    assert kept.tolist() == [plain_fenced(sku, channel, fences) for sku in drawn]
    for number, sku in enumerate(drawn):
        rows = slice(offsets[number], offsets[number + 1])
        alone = np.zeros(len(sku), np.int64)
        for left, other in others:
            theirs = np.array([node in plain_counted(other) for node in NODES])[nodes[rows]]
            alone += formula.kept_at_node(left, int(frees[rows][theirs].sum()), frees[rows], theirs)
        single = [PlainChannel(nodes=(node,)) for node in sorted(sku)]
        assert alone.tolist() == [plain_fenced(sku, one, fences) for one in single]


@given(
    drawn=st.lists(
        st.lists(
            st.tuples(st.tuples(st.integers(0, 40), st.integers(1, 6)), st.integers(1, 4)),
            min_size=1,
            max_size=4,
        ),
        min_size=1,
        max_size=4,
    ),
    threshold=st.integers(0, 12),
    blocked=st.booleans(),
)
def test_kits_equal_the_plain_loop(
    drawn: list[list[tuple[tuple[int, int], int]]], threshold: int, blocked: bool
) -> None:
    """For any parts, a kit's number and state are the plain ones."""
    parts = [part for kit in drawn for part in kit]
    sellables, states = formula.kits(
        np.array([sellable for (sellable, _), _ in parts]),
        np.array([state for (_, state), _ in parts]),
        np.array([units for _, units in parts]),
        np.cumsum([0, *(len(kit) for kit in drawn)]),
        threshold,
        blocked,
    )
    answers = list(zip(sellables.tolist(), states.tolist(), strict=True))
    assert answers == [plain_kit(kit, threshold, blocked) for kit in drawn]


def test_a_negative_node_hides_no_stock_elsewhere() -> None:
    """A counting error at one node (on_hand -3) takes nothing from another (saleor#17170)."""
    assert pools_of([-3, 5], [0, 0], [True, True]) == [5]


def test_promises_that_a_node_cannot_keep_are_taken_from_the_others() -> None:
    """5 ordered at a node whose stock is gone lower the pool by 5, also when that node is not counted."""
    assert pools_of([0, 9], [5, 0], [True, True]) == [4]
    assert pools_of([0, 9], [5, 0], [False, True]) == [4]


def test_a_node_that_is_not_counted_gives_nothing() -> None:
    """Units at a node outside N cannot be sold."""
    assert pools_of([7, 2], [0, 0], [False, True]) == [2]


@pytest.mark.parametrize(("percent", "units"), [(0, 0), (1, 1), (10, 1), (11, 2), (99, 10), (100, 10)])
def test_a_percent_buffer_rounds_up(percent: int, units: int) -> None:
    """⌈percent × 10 ÷ 100⌉ in whole numbers."""
    gives, counted = np.array([4, 6]), np.array([True, True])
    buffers = formula.buffer(0, percent, gives, counted, np.array([0, 2]))
    assert np.asarray(buffers).tolist() == [units]


def test_a_percent_buffer_is_exact_at_the_limits() -> None:
    """500 nodes at the largest balance: no float comes near it."""
    gives = np.full(500, BALANCE_ABS_MAX - 1)
    buffers = formula.buffer(0, 99, gives, np.ones(500, np.bool_), np.array([0, 500]))
    total = 500 * (BALANCE_ABS_MAX - 1)
    assert np.asarray(buffers).tolist() == [-(-99 * total // 100)]


def test_fenced_units_are_another_channels() -> None:
    """What is fenced for others lowers the answer like a buffer, and can make it overselling."""
    pools, known = np.array([5]), np.array([True])
    sellables = formula.sellable(pools, 1, np.array([4]), 2, False, known)
    states = formula.state(pools, 1, np.array([4]), sellables, 10, False, known)
    assert (sellables.tolist(), states.tolist()) == ([2], [AvailabilityState.OVERSELLING])


def test_a_stale_node_counts_unless_the_channel_excludes_it() -> None:
    """KEEP goes on selling from a silent feed, EXCLUDE does not."""
    member = online = np.array([True, True])
    stale = np.array([True, False])
    assert formula.counted_nodes(member, online, stale, exclude_stale=False).tolist() == [True, True]
    assert formula.counted_nodes(member, online, stale, exclude_stale=True).tolist() == [False, True]


def test_an_unknown_sku_is_unknown_even_where_everything_is_stopped() -> None:
    """A stop of the whole channel says nothing about a sku that the ledger has never heard of."""
    none = np.zeros(1, np.int64)
    states = formula.state(none, 0, 0, none, 0, True, np.array([False]))
    assert states.tolist() == [AvailabilityState.UNKNOWN_SKU]


def pools_of(gives: list[int], promised: list[int], counted: list[bool]) -> list[int]:
    zeros = np.zeros(len(gives), np.int64)
    clamped = formula.give(np.array(gives), zeros, zeros)
    nets = formula.net(clamped, np.array(promised), zeros)
    member = np.ones(len(gives), np.bool_)
    offsets = np.array([0, len(gives)])
    pools: list[int] = formula.pool(nets, np.array(counted), member, offsets).tolist()
    return pools
