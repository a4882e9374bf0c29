"""Read everything as it stands, where the log does not reach back: the replica's own bootstrap, as rows in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

import numpy as np

from availability.history.journal import Baseline
from availability.history.rows import PolicyState
from availability.ledger.reader import Head, LedgerReader
from availability.replica.bootstrap import Bootstrap
from availability.replica.settings import ReplicaSettings
from availability.replica.state import State

CHUNK_SKUS = 4_096


def read_baseline(
    reader: LedgerReader, head: Head, random_source: Random, *, stopped: Callable[[], bool]
) -> Baseline:
    """Read a baseline at ``head`` or later; 5 million positions take about 1 GB while it is written.

    Raises LedgerError, LedgerNotServable or ResyncNeeded.
    """
    bootstrap = Bootstrap(reader, ReplicaSettings(), random_source, progress=lambda _: None, stopped=stopped)
    state = bootstrap.run(head, None)
    return Baseline(
        version=state.version,
        chain=state.chain,
        clock_ms=head.clock_ms,
        positions=_positions(state),
        policies=list(_policies(state)),
    )


def _positions(state: State) -> Iterator[tuple[str, str, int, int, int, int, int]]:
    names, nodes = state.names, state.policies.nodes.names
    order = sorted(range(len(names)), key=names.__getitem__)  # by code points, which is bytewise in UTF-8
    for first in range(0, len(order), CHUNK_SKUS):
        numbers = order[first : first + CHUNK_SKUS]
        rows = state.positions.rows(np.array(numbers, np.int64))
        offsets, places, values = rows.offsets.tolist(), rows.nodes.tolist(), rows.values.tolist()
        for at, number in enumerate(numbers):
            own = [(nodes[places[row]], values[row]) for row in range(offsets[at], offsets[at + 1])]
            for node, figures in sorted(own):
                on_hand, quarantined, reserved, committed, safety_stock = figures
                yield names[number], node, on_hand, quarantined, reserved, committed, safety_stock


def _policies(state: State) -> Iterator[tuple[str, str, str, PolicyState]]:
    policies = state.policies
    for node in policies.nodes.states:
        if node is not None:
            yield "NODE", "", node.node, node
    for feed in policies.nodes.feeds.values():
        yield "FEED", feed.source, feed.node, feed
    for kit in policies.kits.by_sku.values():
        yield "KIT", "", kit.kit_sku, kit
    for stop in policies.stops.by_sku.values():
        yield "STOP", stop.channel, stop.sku, stop
    for channel in policies.channels.values():
        if channel.declared:
            yield "CHANNEL", channel.state.channel, "", channel.state
        if channel.stop is not None:
            yield "STOP", channel.stop.channel, "", channel.stop
        for override in channel.overrides.by_sku.values():
            yield "OVERRIDE", override.channel, override.sku, override
        for stop in channel.stops.by_sku.values():
            yield "STOP", stop.channel, stop.sku, stop
    for fences in state.fences.by_sku.values():
        for fence in fences:
            yield "FENCE", fence.channel, fence.sku, fence
