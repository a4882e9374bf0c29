"""The pace: adapts to a shop, leaves a sick one alone, never goes beyond the ceiling."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from publisher.pace import Breaker, Pace
from publisher.settings import PaceSettings
from publisher.storefront import FailureKind


def pace_of(**changed: object) -> Pace:
    return Pace(PaceSettings.model_validate(changed), 0.0, lambda: 1.0)


def simulate(pace: Pace, *, call_s: float, item_s: float, connections: int, seconds: float) -> float:
    """Work a shop that takes so long a call and an item, with so many connections at full speed; items a second."""
    now, done = 0.0, 0
    under_way: list[tuple[float, float, int, bool]] = []
    while now < seconds:
        permit = pace.permit(now, len(under_way), 10_000)
        if permit.items:
            slower = max(1.0, (len(under_way) + 1) / connections)
            elapsed = call_s + item_s * permit.items * slower
            pace.sent(now, permit.items)
            under_way.append((now + elapsed, elapsed, permit.items, permit.items >= pace.items))
            continue
        ends = min((end for end, *_ in under_way), default=now + permit.wait_s)
        now = min(ends, now + permit.wait_s) if permit.wait_s else ends
        for one in [one for one in under_way if one[0] <= now]:
            under_way.remove(one)
            pace.succeeded(now, one[2], one[1], full=one[3])
            done += one[2]
    return done / seconds


@pytest.mark.parametrize(("connections", "share"), [(1, 0.9), (2, 0.9)])
def test_a_shop_like_the_measured_one_is_worked_near_its_rate(connections: int, share: float) -> None:
    """60 ms a call and 30 ms an item, as measured: near what the shop can take, with calls of about 1.5 s."""
    pace = pace_of()
    rate = simulate(pace, call_s=0.06, item_s=0.03, connections=connections, seconds=120.0)
    best = connections * 100 / (0.06 + 100 * 0.03)
    assert rate >= share * best
    assert 20 <= pace.items <= 50


def test_a_fast_shop_gets_whole_batches() -> None:
    """Where items cost next to nothing, a call takes as many as it may."""
    pace = pace_of(items_per_s_max=100_000)
    simulate(pace, call_s=0.05, item_s=0.0005, connections=2, seconds=60.0)
    assert (pace.items, pace.concurrency) == (50, 2)


@given(
    st.lists(st.tuples(st.sampled_from(["ok", "slow", "fail"]), st.integers(0, 3_000)), max_size=80),
    st.integers(1, 500),
)
def test_bounds_hold_whatever_the_shop_does(events: list[tuple[str, int]], rate: int) -> None:
    """Concurrency, items and the ceiling stay within the settings; somebody may always go on after some time."""
    settings = PaceSettings.model_validate({"items_per_s_max": rate})
    pace = Pace(settings, 0.0, lambda: 0.5)
    now, sent = 0.0, 0
    for kind, wait_ms in events:
        now += wait_ms / 1000
        permit = pace.permit(now, 0, 10_000)
        assert 1 <= pace.concurrency <= settings.concurrency_max
        assert 1 <= pace.items <= settings.items_max
        if not permit.items:
            assert 0 < permit.wait_s <= settings.open_ms_max / 1000
            continue
        pace.sent(now, permit.items)
        sent += permit.items
        assert sent <= rate * (now + 1.0) + 1
        if kind == "fail":
            pace.failed(now, FailureKind.BROKEN)
        else:
            pace.succeeded(now, permit.items, 0.1 if kind == "ok" else 7.0, full=True)
    for _ in range(3):
        permit = pace.permit(now, 0, 10_000)
        now += permit.wait_s
    assert pace.permit(now, 0, 10_000).items > 0


def test_the_breaker_opens_probes_and_closes() -> None:
    """Three failures in a row open it; one call of one item probes; each failed probe doubles the pause."""
    pace = pace_of(open_ms=1_000, open_ms_max=3_000, concurrency_max=16)
    for _ in range(3):
        assert pace.permit(0.0, 0, 10_000).items
        pace.failed(0.0, FailureKind.UNREACHABLE)
    assert pace.breaker.value == "OPEN"
    assert pace.permit(0.5, 0, 10_000).wait_s == pytest.approx(0.5)
    for at, pause in ((1.0, 2.0), (3.0, 3.0), (6.0, 3.0)):
        probe = pace.permit(at, 0, 10_000)
        assert (probe.items, probe.probe) == (1, True)
        assert pace.permit(at, 1, 10_000).items == 0, "one probe at a time"
        pace.failed(at, FailureKind.TIMEOUT)
        assert pace.permit(at, 0, 10_000).wait_s == pytest.approx(pause)
    assert pace.permit(9.0, 0, 10_000).probe
    pace.succeeded(9.1, 1, 0.1, full=False)
    assert pace.breaker is Breaker.CLOSED
    pace.failed(9.2, FailureKind.BROKEN)
    assert pace.breaker is Breaker.CLOSED, "one failure is none in a row"


def test_retry_after_is_honoured_at_once() -> None:
    """A shop that says when is left alone until then, at its first word."""
    pace = pace_of()
    pace.failed(0.0, FailureKind.OVERLOADED, 600.0)
    assert pace.permit(599.0, 0, 10_000).items == 0
    assert pace.permit(600.0, 0, 10_000).items == 1


def test_too_large_makes_calls_smaller_and_opens_nothing() -> None:
    """A body that is too large says nothing about the shop's health."""
    pace = pace_of(items_start=40)
    for _ in range(5):
        pace.failed(0.0, FailureKind.TOO_LARGE)
    assert (pace.breaker, pace.items) == (Breaker.CLOSED, 1)


def test_retries_have_a_budget() -> None:
    """Retries wait longer each time, and longest where too few calls succeed."""
    pace = pace_of(retries_burst=4, retry_ms=100, retry_ms_max=10_000, retry_share=0.5)
    assert [pace.retry_in_s(attempt) for attempt in (1, 2, 3, 20)] == [0.1, 0.2, 0.4, 10.0]
    assert pace.retry_in_s(1) == 10.0, "the budget is spent"
    pace.succeeded(0.0, 4, 0.1, full=False)
    assert pace.retry_in_s(1) == 0.1


def test_little_work_is_shared_out() -> None:
    """While less waits than the free calls may carry, each takes its share: short calls, little lag."""
    pace = pace_of(items_max=50, items_per_s_max=100_000)
    simulate(pace, call_s=0.01, item_s=0.001, connections=2, seconds=60.0)
    assert (pace.concurrency, pace.items) == (2, 50)
    now = 1_000.0
    assert pace.permit(now, 0, 12).items == 6
    assert pace.permit(now, 1, 12).items == 12
    assert pace.permit(now, 0, 1_000).items == 50
