"""A mass of zeros waits for an operator; everything else passes."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from pathlib import Path

import pytest

from publisher.golive import APPROVED_S, WINDOW_S, Approvals, ZeroGuard, keep_guard
from tests.shop_lab import open_copy


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def guard_of(
    clock: Clock, count: int = 100, *, percent: int = 20, least: int = 5, waiting: list[str] | None = None
) -> ZeroGuard:
    """A guard that has seen so many skus on sale."""
    guard = ZeroGuard(percent=percent, least=least, now=clock, waiting=lambda: waiting or [])
    for number in range(count):
        guard.saw(f"S{number}", 7)
    return guard


def test_a_share_of_the_shop_may_go_to_zero_and_no_more() -> None:
    """20 of 100 pass, the 21st waits; numbers above 0 pass all the time."""
    guard = guard_of(Clock())
    held = [guard.holds(f"S{number}", 0, 7) for number in range(30)]
    assert held == [False] * 20 + [True] * 10
    assert not guard.holds("S50", 3, 7)
    assert len(guard.held) == 10


def test_what_can_be_foreseen_waits_from_the_first() -> None:
    """When half of the shop waits to be set to 0, not one of them is."""
    guard = guard_of(Clock(), waiting=[f"S{number}" for number in range(50)])
    assert all(guard.holds(f"S{number}", 0, None) for number in range(50))


def test_zeros_that_the_shop_shows_already_are_none() -> None:
    """A first publish of a catalogue that is half sold out is no mass of zeros."""
    clock = Clock()
    guard = guard_of(clock, 100, waiting=[f"X{number}" for number in range(100)])
    assert not any(guard.holds(f"X{number}", 0, 0) for number in range(100))
    assert not guard.holds("S1", 0, 7)


def test_the_window_ends() -> None:
    """A shop may sell out over a day, a few skus in each window."""
    clock = Clock()
    guard = guard_of(clock)
    for number in range(100):
        clock.now += WINDOW_S / 4
        assert not guard.holds(f"S{number}", 0, 7)
        guard.saw(f"S{number}", 0)


def test_stop_sales_pass() -> None:
    """Somebody blocked a channel by name: that is no accident."""
    guard = guard_of(Clock())
    assert not any(guard.holds(f"S{number}", 0, 7, stop_sale=True) for number in range(100))


def test_small_shops_have_a_least() -> None:
    """5 skus of a shop of 8 may always go."""
    guard = guard_of(Clock(), 8)
    assert [guard.holds(f"S{number}", 0, 7) for number in range(8)] == [False] * 5 + [True] * 3


@pytest.mark.parametrize("percent", [0, 100])
def test_the_ends_of_the_percentage(percent: int) -> None:
    """0 % holds each, 100 % none."""
    guard = guard_of(Clock(), percent=percent, least=0)
    assert [guard.holds(f"S{number}", 0, 7) for number in range(100)] == [percent == 0] * 100


def test_one_zero_costs_the_same_in_a_large_shop() -> None:
    """Neither counting what is on sale nor letting one zero go makes anything as large as the catalogue."""
    guard = guard_of(Clock(), 50_000)
    tracemalloc.start()
    try:
        assert guard.on_sale == 50_000
        assert not guard.holds("S1", 0, 7)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 50_000, "a set of all skus is 2 MB"


def test_the_guard_decides_as_plain_counting_does() -> None:
    """Random numbers, restocks and times: held is what goes beyond the share of all that was on sale in the window."""
    for seed in range(50):
        rng, clock = random.Random(seed), Clock()
        waiting: list[str] = []
        guard = guard_of(clock, 40, waiting=waiting)
        selling = {f"S{number}" for number in range(40)}
        zeroed: list[tuple[float, str]] = []
        held: set[str] = set()
        for _ in range(120):
            clock.now += rng.choice((1.0, 1.0, 1.0, WINDOW_S / 6))
            sku = f"S{rng.randrange(40)}"
            zeroed = [(at, one) for at, one in zeroed if clock.now - at <= WINDOW_S]
            waiting[:] = rng.sample(sorted(selling), k=min(len(selling), rng.choice((0, 0, 0, 4))))
            if rng.random() < 0.3:
                guard.saw(sku, 5)
                selling.add(sku)
            shown = rng.choice((0, 7, None))
            available = shown > 0 if shown is not None else sku in selling
            limit = max(5, len(selling | {one for _, one in zeroed}) * 20 // 100)
            foreseen = selling & set(waiting)
            beyond = max(len(foreseen), len(held)) > limit
            beyond |= len({one for _, one in zeroed} | held | foreseen | {sku}) > limit
            wanted = available and beyond
            assert guard.holds(sku, 0, shown) is wanted, f"seed {seed}"
            if wanted:
                held.add(sku)
                continue
            held.discard(sku)
            if available:
                zeroed.append((clock.now, sku))
                guard.saw(sku, 0)
                selling.discard(sku)
            assert guard.on_sale == len(selling | {one for _, one in zeroed}), f"seed {seed}"


def test_a_number_that_comes_back_is_held_no_more() -> None:
    """What waited and is above 0 again is written."""
    guard = guard_of(Clock(), percent=0, least=0)
    assert guard.holds("S1", 0, 7)
    assert not guard.holds("S1", 4, 7)
    assert guard.held == set()


def test_a_restart_is_no_fresh_start() -> None:
    """What was set to 0 before a restart counts on: a publisher that is restarted again and again empties nothing."""
    clock = Clock()
    guard = guard_of(clock)
    guard.remember((clock.now - 10, f"S{number}") for number in range(20))
    assert guard.holds("S50", 0, 7)


def test_publisher_and_operator_meet_in_the_database(tmp_path: Path) -> None:
    """What waits is told, an approval lets it go for an hour, a second one finds nothing to approve."""
    clock = Clock()
    engine = open_copy(tmp_path)
    approvals = Approvals(engine, "web")
    guard = guard_of(clock, percent=0, least=0)
    released: list[bool] = []
    rounds: list[str] = []

    async def pause() -> None:
        rounds.append("")
        if len(rounds) == 1:
            assert approvals.approve("ada", "nothing waits yet", clock.now) is None
            assert guard.holds("S1", 0, 7)
        elif len(rounds) == 2:
            found = approvals.find()
            assert found is not None
            assert (found.held, found.on_sale, found.since) == (1, 100, clock.now)
            assert approvals.approve("ada", "the season is over", clock.now) is not None
        elif len(rounds) == 3:
            raise asyncio.CancelledError

    async def meet() -> None:
        with pytest.raises(asyncio.CancelledError):
            await keep_guard(
                guard, approvals, lambda: released.append(True), channel="web", now=clock, pause=pause
            )

    asyncio.run(meet())
    assert released == [True]
    assert not guard.holds("S1", 0, 7)
    clock.now += APPROVED_S
    assert guard.holds("S2", 0, 7)
    engine.dispose()
