"""Crossings of a threshold: each told once, never up and down within the hysteresis, right after a resume."""

from __future__ import annotations

from itertools import count, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from availability.domain.formula import AvailabilityState
from availability.domain.thresholds import BACK_IN_STOCK, LOW_STOCK, OUT_OF_STOCK, back_above, staged
from availability.replica.columns import STATE_BITS, Column
from availability.v1 import availability_pb2 as av
from tests.conftest import Names
from tests.model import Delta, Policy
from tests.wire import Service

values = st.lists(st.integers(0, 20), min_size=1, max_size=60)
pieces = st.lists(st.integers(1, 5), min_size=60, max_size=60)


def plain(sequence: list[int], threshold: int, back: int) -> list[int]:
    """The events of a sequence, by a loop."""
    stage, events = "", list[int]()
    for value in sequence:
        if value <= 0:
            new = "out"
        elif value <= threshold:
            new = "out" if stage == "out" else "low"
        elif value > back or not stage:
            new = "in"
        else:
            new = stage
        if stage and new != stage:
            events.append({"out": OUT_OF_STOCK, "low": LOW_STOCK, "in": BACK_IN_STOCK}[new])
        stage = new
    return events


@given(sequence=values, threshold=st.integers(0, 10), units=st.integers(0, 5), percent=st.integers(0, 60))
def test_each_crossing_is_told_once(sequence: list[int], threshold: int, units: int, percent: int) -> None:
    """The arrays tell what a plain loop tells; between two equal events is another, and after a fall comes a rise."""
    back = back_above(threshold, units, percent)
    column = Column(1)
    column.line = (threshold, back)
    events = []
    for counter, value in enumerate(sequence, start=1):
        column.commit(counter, np.array([0]), np.array([value << STATE_BITS | AvailabilityState.IN_STOCK]))
        if column.crossed[0] == counter:
            events.append(int(column.stages[0]))
            assert events[-1] != BACK_IN_STOCK or value > back
    assert events == plain(sequence, threshold, back)
    assert all(one != other for one, other in pairwise(events))


@given(start=st.integers(0, 30), sequence=values, threshold=st.integers(1, 10), band=st.integers(1, 9))
def test_nothing_alternates_within_the_band(
    start: int, sequence: list[int], threshold: int, band: int
) -> None:
    """A quantity that stays above nothing and within the band is told at most once, and only as a fall."""
    stage = np.zeros(1, np.int8)
    known = np.ones(1, np.bool_)
    stage, _ = staged(stage, np.array([start]), known, threshold, threshold + band)
    events = []
    for value in sequence:
        inside = 1 + value % (threshold + band)
        stage, told = staged(stage, np.array([inside]), known, threshold, threshold + band)
        events += stage[told].tolist()
    assert events in ([], [LOW_STOCK])


@pytest.mark.parametrize(
    ("threshold", "units", "percent", "back"), [(0, 0, 20, 0), (5, 0, 20, 6), (5, 3, 20, 8), (10, 1, 25, 13)]
)
def test_the_larger_hysteresis_counts(threshold: int, units: int, percent: int, back: int) -> None:
    """Percent is of the threshold, rounded up."""
    assert back_above(threshold, units, percent) == back


def test_a_sku_that_comes_is_told_nothing_of() -> None:
    """First seen out, low or in stock: no crossing."""
    unseen = np.zeros(3, np.int8)
    stages, told = staged(unseen, np.array([0, 2, 9]), np.ones(3, np.bool_), 5, 6)
    assert stages.tolist() == [OUT_OF_STOCK, LOW_STOCK, BACK_IN_STOCK]
    assert not told.any()
    unknown, told = staged(unseen, np.array([0, 0, 0]), np.zeros(3, np.bool_), 5, 6)
    assert unknown.tolist() == [0, 0, 0]
    assert not told.any()


def test_a_resume_tells_the_latest_crossing_once(client: Service, names: Names) -> None:
    """What crossed while nobody watched comes with the resume, by its latest; what was told does not come again."""
    sku, node, channel = names.sku(), names.node(), names.channel()

    def move(quantity: int) -> None:
        delta = Delta(
            type="ADJUSTMENT",
            source="erp",
            event_id=names.id(next(numbers)),
            sku=sku,
            node=node,
            quantity=quantity,
            reason="count",
        )
        assert client.apply_delta(delta)[0] == "APPLIED"

    numbers = count()
    move(10)
    client.set_channel(channel, Policy(nodes=(node,), low_stock_threshold=5))
    resume = ""

    def seen() -> None:
        # Memory has all that was moved so far. It takes what comes within some milliseconds together: a quantity that
        # rises again at once was never out for it.
        request = av.GetAvailabilityRequest(channel=channel, sku=sku, strong=True)
        client.reads.GetAvailability(request, timeout=20)

    def events(until: int) -> list[int]:
        nonlocal resume
        seen()  # what the stream missed is told by its latest
        told = list[int]()
        request = av.WatchAvailabilityRequest(
            channel=channel, skus=[sku], resume_version=resume, thresholds=True
        )
        stream = client.reads.WatchAvailability(request, timeout=20)
        for message in stream:
            told += [event.kind for event in message.thresholds]
            resume = message.as_of.version
            if any(change.sellable_quantity == until for change in message.changes):
                break
        stream.cancel()
        return told

    assert events(10) == []
    move(-6)
    assert events(4) == [LOW_STOCK]
    move(-4)
    seen()
    move(2)
    assert events(2) == [OUT_OF_STOCK]
    move(4)
    assert events(6) == []
    move(1)
    assert events(7) == [BACK_IN_STOCK]
    move(-7)
    seen()
    move(9)
    assert events(9) == [BACK_IN_STOCK]
