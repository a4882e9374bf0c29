"""A position's first count, older than what happened to it: exact where the log still tells what did, else refused."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.faults.lab import BASE, DAY_MS, Lab, delta, own_lab

SECOND_US = 1_000_000
RECORDS_MAX = 512
"""As 10_counts_recall.lua has it."""
TOLD = (
    ("RECEIPT", 10, -100),
    ("RECEIPT", 3, -10),
    ("SHIPMENT", 1, -5),
    ("ADJUSTMENT", 100, -70),  # came late: the count has seen it
)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A ledger of this test's own: how much it has written matters."""
    with own_lab() as made:
        yield made


@pytest.mark.parametrize("calls", [1, 7])
def test_what_happened_after_a_first_count_stays_on_top(lab: Lab, calls: int) -> None:
    """Told in one call or in several, with and without times; counts after it are judged as ever."""
    now_us = int(time.time() * 1e6)
    facts = [delta(kind, "a", "n1", units, occurred_us=now_us + at * SECOND_US) for kind, units, at in TOLD]
    facts.append(delta("RECEIPT", "a", "n1", 1000))  # no time: it happens when it comes
    facts.append(delta("RECEIPT", "b", "n1", 7, occurred_us=now_us - 5 * SECOND_US))
    facts.append(delta("SET_ON_HAND", "a", "n1", 20, occurred_us=now_us - 50 * SECOND_US))
    if calls == 1:
        assert lab.results(*facts) == ["APPLIED"] * 7
    else:
        assert [lab.results(one) for one in facts] == [["APPLIED"]] * 7
    assert lab.position("a", "n1")[0] == 20 + 3 - 1 + 1000
    late = delta("RECEIPT", "a", "n1", 50, occurred_us=now_us - 60 * SECOND_US)
    assert lab.results(late) == ["APPLIED"]
    assert lab.position("a", "n1")[0] == 20 + 3 - 1 + 1000
    older = delta("SET_ON_HAND", "a", "n1", 1, occurred_us=now_us - 55 * SECOND_US)
    assert lab.results(older) == ["STALE"]
    newer = delta("SET_ON_HAND", "a", "n1", 5, occurred_us=now_us - 7 * SECOND_US)
    assert lab.results(newer) == ["APPLIED"]
    assert lab.position("a", "n1")[0] == 5 - 1 + 1000


def test_a_number_says_what_a_first_count_has_seen_of_its_own_stream(lab: Lab) -> None:
    """Its clock may say otherwise; of other streams, of other sources too, the time says it."""
    now_us = int(time.time() * 1e6)

    def move(stream: str, number: int, units: int, at: int, source: str = "erp") -> None:
        fields = {"stream": stream, "source_sequence": number, "source": source}
        one = delta("ADJUSTMENT", "a", "n1", units, occurred_us=now_us + at * SECOND_US, **fields)
        assert lab.results(one) == ["APPLIED"]

    move("s", 1, 5, -10)  # seen, by its number
    move("t", 1, 70, -20)  # not seen
    move("s", 1, 300, -5, source="wms")  # not seen: another source's stream of this name
    move("t", 2, 2000, -40)  # seen
    fields = {"stream": "s", "source_sequence": 2}
    first = delta("SET_ON_HAND", "a", "n1", 1, occurred_us=now_us - 30 * SECOND_US, **fields)
    assert lab.results(first) == ["APPLIED"]
    assert lab.position("a", "n1")[0] == 1 + 70 + 300


def test_the_look_back_has_an_end(lab: Lab) -> None:
    """More records than that since a day before the point: refused, nothing changed; a day later it is far enough."""
    lab.receive("a", "n1", 3)
    for number in range(RECORDS_MAX):
        assert lab.results(delta("RECEIPT", f"other {number}", "n1", 1)) == ["APPLIED"]
    now_us = int(time.time() * 1e6)
    late = delta("SET_ON_HAND", "a", "n1", 9, occurred_us=now_us - 3600 * SECOND_US)
    assert lab.results(late) == ["REJECTED POINT_TOO_OLD"]
    assert lab.position("a", "n1")[0] == 3
    lab.age(2 * DAY_MS)
    lab.control(offset_ms=2 * DAY_MS)
    lab.receive("a", "n1", 5)
    point_us = now_us + (2 * DAY_MS - 3_600_000) * 1000
    assert lab.results(delta("SET_ON_HAND", "a", "n1", 9, occurred_us=point_us)) == ["APPLIED"]
    assert lab.position("a", "n1")[0] == 9 + 5


def test_a_clock_that_stood_hides_no_change(lab: Lab) -> None:
    """Where no server ran for days, records look older than they are: the lag counts."""
    lab.receive("b", "n1", 1)
    lab.control(offset_ms=5 * DAY_MS)  # Redis TIME goes on, the ledger's clock by 2 s a call
    lab.receive("a", "n1", 3)
    for number in range(RECORDS_MAX):
        assert lab.results(delta("RECEIPT", f"other {number}", "n1", 1)) == ["APPLIED"]
    point_us = int(time.time() * 1e6) + 5 * DAY_MS * 1000 - 3600 * SECOND_US
    late = delta("SET_ON_HAND", "a", "n1", 9, occurred_us=point_us)
    assert lab.results(late) == ["REJECTED POINT_TOO_OLD"]
    assert lab.position("a", "n1")[0] == 3


def test_a_log_that_was_trimmed_is_no_answer(lab: Lab) -> None:
    """What it has no more may have happened after the point."""
    lab.receive("a", "n1", 3)
    lab.redis.xtrim(BASE + "log", maxlen=0, approximate=False)
    late = delta("SET_ON_HAND", "a", "n1", 9, occurred_us=int(time.time() * 1e6) - 60 * SECOND_US)
    assert lab.results(late) == ["REJECTED POINT_TOO_OLD"]
    assert lab.position("a", "n1")[0] == 3
