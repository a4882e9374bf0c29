"""Commit, release and expiry of the same hold within milliseconds (FAILURES section 2, number 8)."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable

import msgspec
import pytest

from availability.ledger import calls
from availability.ledger.commit_queue import Pending
from tests.faults.audit import audit, check_ends, entries
from tests.faults.lab import Lab, deadline, request_key, reserve

HOLDS = 500
HOLDS_FULL = 10_000
WAVE = 250
"""Holds that are made before the first of them is due."""
HOLDS_A_SECOND = 250
AROUND_MS = 5.0
FIRST_DUE_MS = 1_000
_REPLY = msgspec.msgpack.Decoder(calls.HoldReply)
ENDINGS = {
    "commit": {"COMMITTED", "RESERVATION_NOT_ACTIVE", "RESERVATION_EXPIRED"},
    "release": {"RELEASED", "RESERVATION_NOT_ACTIVE", "RESERVATION_EXPIRED"},
    "thief": {"RESERVED", "INSUFFICIENT_STOCK"},
}


@pytest.mark.timeout(900)
def test_a_hold_ends_once_when_commit_release_and_expiry_race(
    make_lab: Callable[..., Lab], seed: int, full: bool
) -> None:
    """Within 5 ms of its deadline a hold is committed, released and swept, and others want its unit: one end each."""
    lab = make_lab()
    rng = random.Random(seed)
    number = HOLDS_FULL if full else HOLDS
    sent = []
    for first in range(0, number, WAVE):
        lab.receive(sku_of(first), "n1", WAVE - WAVE // 3)
        lab.receive(sku_of(first), "n2", WAVE // 3)
        sent += play(lab, hold_all(lab, range(first, first + WAVE), rng))
    outcomes: dict[str, Counter[str]] = {name: Counter() for name in ENDINGS}
    winners: dict[str, set[str]] = {"COMMITTED": set(), "RELEASED": set()}
    for kind, name, pending in sent:
        reply = _REPLY.decode(pending.wait())
        assert reply.status in ENDINGS[kind], f"{kind} {name}: {reply.status}"
        outcomes[kind][reply.status] += 1
        if reply.status in winners:
            winners[reply.status].add(name)
    while lab.sweep().expired:
        pass
    keys = audit(lab.redis)
    ends = check_ends(keys)
    assert not winners["COMMITTED"] & winners["RELEASED"], "committed and released"
    assert ends["committed"] + ends["released"] + ends["expired"] == number
    assert ends["committed"] + ends["committed anew"] == len(winners["COMMITTED"])
    assert ends["released"] == len(winners["RELEASED"])
    assert min(ends["committed"], ends["released"], ends["expired"]) > 0, f"no race: {ends}"
    never_oversold(keys)
    skus = [sku_of(first) for first in range(0, number, WAVE)]
    states = [lab.position(sku, node) for sku in skus for node in ("n1", "n2")]
    assert sum(s[2] for s in states) == outcomes["thief"]["RESERVED"]
    assert sum(s[3] for s in states) == len(winners["COMMITTED"])


def sku_of(number: int) -> str:
    """Each wave has a sku of its own, with a unit for each hold."""
    return f"wave {number // WAVE}"


def hold_all(lab: Lab, numbers: range, rng: random.Random) -> list[tuple[float, str, str]]:
    """Hold each unit by itself, with deadlines one after the other; what is to be done when (wall ms)."""
    waiting = []
    for place, i in enumerate(numbers):
        hold_ms = round(FIRST_DUE_MS + 1_000 * place / HOLDS_A_SECOND)
        waiting.append(
            lab.ledger.submit("reserve", reserve(f"h{i}", [(sku_of(i), 1)], hold_ms=hold_ms), deadline())
        )
    agenda: list[tuple[float, str, str]] = []
    last = 0.0
    for i, pending in zip(numbers, waiting, strict=True):
        reply = _REPLY.decode(pending.wait())
        assert isinstance(reply.reservation, calls.HoldView)
        due = float(reply.reservation.expire_ms)
        last = max(last, due)
        agenda += [
            (due + rng.uniform(-AROUND_MS, AROUND_MS), kind, f"r-h{i}") for kind in ("commit", "release")
        ]
        if rng.random() < 0.5:
            agenda.append((due + rng.uniform(-AROUND_MS, AROUND_MS), "thief", f"t {i}"))
    first = min(agenda)[0]
    agenda += [(moment, "sweep", "") for moment in _range(first, last + 20, 2.0)]
    return sorted(agenda)


def _range(first: float, last: float, step: float) -> list[float]:
    return [first + step * i for i in range(int((last - first) / step) + 1)]


def play(lab: Lab, agenda: list[tuple[float, str, str]]) -> list[tuple[str, str, Pending]]:
    """Send every call at its moment, without waiting for the one before."""
    sent: list[tuple[str, str, Pending]] = []
    s = lab.settings
    for moment, kind, name in agenda:
        wait_s = moment / 1000 - time.time()
        if wait_s > 0:
            time.sleep(wait_s)
        if kind == "sweep":
            sweep = Sweep(5, s.ended_retention_ms, s.order_retention_ms, s.closed_order_memory_s)
            lab.ledger.submit("sweep", sweep, deadline())
            continue
        call: msgspec.Struct
        if kind == "commit":
            call = calls.Commit(request_key(f"c {name}", name), name, "", f"order {name}")
        elif kind == "release":
            call = calls.Release(request_key(f"x {name}", name), name, [])
        else:
            call = reserve(name, [(sku_of(int(name.split()[1])), 1)])
        sent.append((kind, name, lab.ledger.submit("reserve" if kind == "thief" else kind, call, deadline())))
    return sent


class Sweep(msgspec.Struct, array_like=True, frozen=True):
    due_limit: int
    ended_retention_ms: int
    order_retention_ms: int
    closed_order_s: int


def never_oversold(keys: dict[str, object]) -> None:
    """At no version is more promised than is there."""
    for entry in entries(keys):
        for p in entry.record().positions:
            assert p.reserved + p.committed <= p.on_hand, f"oversold at {entry.version}"
            assert p.reserved >= 0
            assert p.committed >= 0
