"""Packing of deltas: the short way says what the long way says."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from availability.domain.limits import QUANTITY_MAX
from availability.service import delta_codec
from availability.v1 import stock_pb2 as pb

texts = st.sampled_from(["", "", "a", "b {x}", "\x00", "x" * 65])
numbers = st.sampled_from([0, 1, 1, 2, 7, -1, QUANTITY_MAX, QUANTITY_MAX + 1, 2**53, -(2**62)])


@st.composite
def deltas(draw: st.DrawFn) -> pb.Delta:
    """Any delta, and often one with nothing wrong."""
    plain = draw(st.booleans())
    some = st.just("a") if plain else texts
    delta = pb.Delta(
        source=draw(st.sampled_from(["s", "s", "s", "other"])),
        stream=draw(some),
        source_sequence=draw(st.just(5) if plain else numbers),
        event_id=draw(st.sampled_from(["", "", "", "e"])),
        type=draw(st.sampled_from([*pb.DeltaType.values(), 99])),  # type: ignore[arg-type]  # a plain int
        sku=draw(some),
        node=draw(some),
        quantity=draw(st.just(3) if plain else numbers),
        state=draw(st.sampled_from([0, 0, 0, 1, 2, 9])),  # type: ignore[arg-type]  # a plain int
        reason=draw(texts),
        reference=draw(texts),
        order_ref=draw(texts),
    )
    for time in (delta.occurred_time, delta.due_time):
        if draw(st.integers(0, 3)) == 0:
            time.seconds = draw(st.sampled_from([0, 1, 1_800_000_000, -1, 253_402_300_799]))
    return delta


def test_the_short_way_says_what_the_long_way_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte, for any delta; and the short way is taken."""
    plain = delta_codec._PLAIN
    long_way: list[int] = []

    @settings(max_examples=2_000, deadline=None, database=None)
    @given(deltas())
    def check(delta: pb.Delta) -> None:
        monkeypatch.setattr(delta_codec, "_PLAIN", plain)
        short = delta_codec.pack(delta, "s")
        monkeypatch.setattr(delta_codec, "_PLAIN", frozenset())
        assert delta_codec.pack(delta, "s") == short

    problem = delta_codec._problem

    def counted(*arguments: object) -> str:
        long_way.append(1)
        return problem(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(delta_codec, "_problem", counted)
    check()
    assert 2_000 < len(long_way) < 4_000
