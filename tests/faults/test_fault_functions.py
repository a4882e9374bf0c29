"""A fault at every call of Redis inside every function (FAILURES section 2, number 7).

The same ledger is laid out anew for each fault. After it: nothing of the call is there; asked again, everything is,
exactly as where no fault had been. Holds that were due when the call came are versions of their own: each of them is
wholly there or not at all.
"""

from __future__ import annotations

import struct

import msgspec
import pytest
from redis.exceptions import ResponseError

from availability.ledger.record import Kind
from tests.faults.audit import Dump, audit, differences, dump, entries
from tests.faults.lab import BASE, DAY_MS, LEDGER_ID, META, Lab, delta, request_key, reserve
from tests.faults.situations import LATER_MS, NOW_MS, ORDER, SITUATIONS, Situation, deltas, prepare


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda s: s.name)
def test_a_fault_at_any_call_leaves_nothing_or_everything(lab: Lab, situation: Situation) -> None:
    """Whichever call of Redis fails inside a function, nothing of it is done, and the same call does it all later."""
    prepare(lab)
    if situation.prepare:
        situation.prepare(lab)
    lab.ledger.close()  # nobody else calls
    now_ms = LATER_MS if situation.due else NOW_MS + 1_000
    before = audit(lab.redis)
    stored = store(lab)
    restore(lab, stored)
    lab.control(now_ms=now_ms)
    lab.fcall(situation.function, situation.call)
    calls_made, _ = lab.control()
    expected = audit(lab.redis)
    if situation.name != "sweep, nothing due":
        assert differences(before, expected), "the situation changes nothing: it proves nothing"
    for number in range(1, calls_made + 2):
        restore(lab, stored)
        lab.control(fail_at=number, now_ms=now_ms)
        failed = fails(lab, situation)
        made, last = lab.control(now_ms=now_ms)
        after = audit_but_for(lab, situation)
        if not failed:
            assert number > calls_made, f"fault at call {number} ({last}) was swallowed"
            break
        check_nothing(
            situation, before, after, f"fault at call {number} of {calls_made} ({last}, {made} made)"
        )
        lab.fcall(situation.function, situation.call)
        again = differences(expected, dump(lab.redis))
        assert not again, f"asked again after a fault at call {number} ({last}): {again}"
    else:
        pytest.fail("no run came to its end")


def fails(lab: Lab, situation: Situation) -> bool:
    try:
        lab.fcall(situation.function, situation.call)
    except ResponseError as error:
        if "injected fault" not in str(error):
            pytest.fail(f"another failure hides the first: {error}")
        return True
    return False


def audit_but_for(lab: Lab, situation: Situation) -> Dump:
    """Audit, except where half of a forgetting may stand."""
    return dump(lab.redis) if situation.exempt else audit(lab.redis)


def check_nothing(situation: Situation, before: Dump, after: Dump, what: str) -> None:
    log_before, log_after = entries(before), entries(after)
    grown = log_after[len(log_before) :] if "log" not in situation.exempt else []
    if not grown:
        found = differences(before, after, exempt=situation.exempt)
        assert not found, f"{what}: {found}"
        return
    assert situation.due, f"{what}: logged"
    kinds = {entry.record().kind for entry in grown}
    assert kinds <= {Kind.EXPIRED, Kind.POLICY, Kind.FEED}, (
        f"{what}: logged {kinds}, not only the end of what was due"
    )


Stored = list[tuple[bytes, int, bytes]]


def store(lab: Lab) -> Stored:
    """Keep every key as Redis packs it."""
    keys: list[bytes] = lab.redis.keys("*")
    ask = lab.redis.pipeline(transaction=False)
    for key in keys:
        ask.pttl(key)
        ask.dump(key)
    answers = ask.execute()
    return [(key, max(0, answers[2 * i]), answers[2 * i + 1]) for i, key in enumerate(keys)]


def restore(lab: Lab, stored: Stored) -> None:
    """Lay the keys out again, and the functions without anything that they kept between calls."""
    ask = lab.redis.pipeline(transaction=False)
    ask.flushall()
    for key, ttl_ms, value in stored:
        ask.restore(key, ttl_ms, value)
    ask.execute_command("FUNCTION", "LOAD", "REPLACE", lab.library.code)
    ask.execute()


def test_a_fault_while_a_ledger_is_made_leaves_none(lab: Lab) -> None:
    """A ledger is made wholly or not at all."""
    lab.ledger.close()
    for number in range(1, 10):
        lab.redis.flushdb()
        lab.control(fail_at=number, now_ms=NOW_MS)
        try:
            _create(lab)
        except ResponseError:
            assert dump(lab.redis) == {}
            continue
        assert number > 2
        assert set(lab.redis.hkeys(META)) == {b"ledger_id", b"schema", b"replid", b"head"}
        return
    pytest.fail("no run came to its end")


def _create(lab: Lab) -> None:
    payload = msgspec.msgpack.encode([LEDGER_ID, 1])
    lab.redis.execute_command("FCALL", lab.library.function("create"), 1, META, "0", payload)


@pytest.mark.parametrize("broken", ["log", "due", "use:a", "ord:3:webnamed", "skus", "req"])
def test_a_key_of_another_type_leaves_nothing_half_done(lab: Lab, broken: str) -> None:
    """Where somebody put a value of another type in the way, the real error of Redis leaves nothing half done."""
    prepare(lab)
    lab.ledger.close()
    call = (
        reserve("q", [("a", 3), ("b", 1)], **ORDER)
        if broken != "skus"
        else deltas(delta("RECEIPT", "n", "n1", 1))
    )
    key = BASE + broken
    if broken == "req":
        key = f"{BASE}req:{lab.head()[2] // DAY_MS}:{request_key('q').bucket}"
    lab.redis.delete(key)
    lab.redis.geoadd(key, (1.0, 1.0, "x")) if broken != "due" else lab.redis.set(key, "x")
    before = dump(lab.redis)
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        lab.fcall("deltas" if broken == "skus" else "reserve", call)
    assert differences(before, dump(lab.redis)) == []


def test_a_right_that_is_missing_leaves_nothing_half_done(lab: Lab) -> None:
    """Where the user may not write the log, nothing at all is written."""
    prepare(lab)
    lab.ledger.close()
    before = dump(lab.redis)
    lab.redis.execute_command("ACL", "SETUSER", "default", "-xadd")
    try:
        with pytest.raises(ResponseError, match=r"[Uu]ser|permission|ACL"):
            lab.fcall("reserve", reserve("q", [("a", 3), ("b", 1)], **ORDER))
    finally:
        lab.redis.execute_command("ACL", "SETUSER", "default", "+@all")
    assert differences(before, dump(lab.redis)) == []


def test_positions_begin_with_five_integers(lab: Lab) -> None:
    """The audit reads positions the way that the functions write them."""
    lab.receive("a", "n1", 7)
    assert struct.unpack_from("<5q", lab.redis.hget(BASE + "pos:a", "nn1")) == (7, 0, 0, 0, -1)
