"""Groups of calls that are under way together: whatever breaks between them, every delta counts once and in order."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from availability.ledger.commit_queue import CommitQueue, Pending, QueueSettings
from availability.ledger.embedded import EmbeddedRedis
from availability.ledger.ledger import Ledger
from availability.service.delta_codec import pack
from availability.v1 import stock_pb2 as stk
from tests.faults.audit import audit
from tests.faults.lab import Lab, deadline, delta
from tests.faults.proxy import Proxy
from tests.faults.test_fault_redis import change_replication_id

CALLS = 120
PER_CALL = 40
LOSS = 0.4
AHEAD = QueueSettings(group_max=8, ahead_bytes_min=1)
"""Small groups, every one of them sent ahead."""
OK = {stk.DELTA_RESULT_APPLIED, stk.DELTA_RESULT_DUPLICATE}


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tell how many groups were under way whenever one had been sent."""
    seen: list[int] = []
    really = CommitQueue._send_next

    def send(queue: CommitQueue, under_way: deque[Any]) -> None:
        really(queue, under_way)
        seen.append(len(under_way))

    monkeypatch.setattr(CommitQueue, "_send_next", send)
    return seen


def submit_all(lab: Lab) -> list[Pending]:
    """Submit one numbered stream in many calls, without waiting for any."""
    sent = []
    for first in range(0, CALLS * PER_CALL, PER_CALL):
        packed = [
            pack(delta("RECEIPT", f"s{n % 7}", "n1", 1, stream="main", source_sequence=n + 1), "erp")[0]
            for n in range(first, first + PER_CALL)
        ]
        sent.append(lab.ledger.submit_deltas("erp", packed, facts_only=False, deadline=deadline()))
    return sent


def wait_all(sent: list[Pending]) -> None:
    """Wait for every call, once: nothing was left out for what came before it."""
    for number, pending in enumerate(sent):
        results = set(Ledger.decode_deltas(pending.wait()).results)
        assert results <= OK, f"call {number}: {results}"


def check(lab: Lab) -> None:
    """Every delta counts once."""
    assert sum(lab.position(f"s{n}", "n1")[0] for n in range(7)) == CALLS * PER_CALL
    audit(lab.redis)


def test_a_stream_is_sent_a_group_ahead(make_lab: Callable[..., Lab], ahead: list[int]) -> None:
    """With work waiting, Redis has a second group before it has answered the first, and never a third."""
    lab = make_lab(queue=AHEAD)
    wait_all(submit_all(lab))
    check(lab)
    assert max(ahead) == 2


def test_small_calls_are_not_sent_ahead(make_lab: Callable[..., Lab], ahead: list[int]) -> None:
    """Below the bytes that make it worth while, calls gather behind the group that is under way."""
    lab = make_lab(queue=QueueSettings(group_max=8, ahead_bytes_min=10**9))
    wait_all(submit_all(lab))
    check(lab)
    assert max(ahead) == 1


def test_lost_replies_of_groups_under_way(
    make_lab: Callable[..., Lab], proxy: Proxy, ahead: list[int]
) -> None:
    """A connection that dies with two groups on it: both are sent again, in order; nothing counts twice."""
    lab = make_lab(through=proxy.url, timeout_s=0.3, queue=AHEAD)
    proxy.loss = LOSS
    wait_all(submit_all(lab))
    proxy.loss = 0.0
    check(lab)
    assert proxy.lost, "no reply was lost: nothing was proved"
    assert max(ahead) == 2


def test_an_epoch_that_moves_between_groups_under_way(
    make_lab: Callable[..., Lab], redis_server: EmbeddedRedis, ahead: list[int], seed: int
) -> None:
    """Calls refused by the fence are sent again in the order of submission: no gap, nothing twice."""
    rng = random.Random(seed)
    lab = make_lab(queue=AHEAD)
    before = lab.head()[0]
    for _ in range(3):
        sent = submit_all(lab)
        moment = rng.randrange(CALLS // 2)
        wait_all(sent[:moment])
        change_replication_id(lab.redis)
        wait_all(sent[moment:])
    assert lab.head()[0] > before
    check(lab)
    assert max(ahead) == 2
