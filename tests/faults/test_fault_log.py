"""The log is trimmed by its readers' checkpoints: required ones hold it, others are passed and load anew."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from availability.domain.version import Version
from availability.ledger.ledger import Ledger
from availability.ledger.reader import Head, Page, PolicyState
from availability.ledger.record import Entry
from availability.replica.replica import Replica
from availability.replica.settings import ReplicaSettings
from tests.faults.audit import audit
from tests.faults.lab import BASE, DAY_MS, Lab, deadline, delta, poll

KEPT = 300
CAP = 1_000
NODE_RECORDS = 100
"""Redis trims a stream by nodes of so many records."""


def write(lab: Lab, number: int) -> None:
    """Add records to the log, each a version of its own."""
    for _ in range(number):
        lab.receive("a", "n1", 1)


def first_kept(lab: Lab) -> Version:
    (name, _), *_ = lab.redis.xrange(BASE + "log", count=1)
    return Version.parse(name.decode())


def limited(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(log_records_kept=KEPT, log_records_cap=CAP)


def test_without_readers_the_latest_records_stay(make_lab: Callable[..., Lab]) -> None:
    """Where nobody reads, as many records stay as is set, within what Redis trims at once."""
    lab = limited(make_lab)
    write(lab, KEPT + 250)
    reply = lab.ledger.trim(deadline())
    assert KEPT <= reply.length <= KEPT + NODE_RECORDS
    assert not reply.full
    audit(lab.redis)


def test_a_required_reader_is_never_passed(make_lab: Callable[..., Lab]) -> None:
    """Every record after a required reader's checkpoint stays, however many; another reader may be passed."""
    lab = limited(make_lab)
    write(lab, 150)
    point = lab.ledger.head().version
    lab.ledger.checkpoint("historian", point, required=True, deadline=deadline())
    lab.ledger.checkpoint("slow", Version(1, 10), required=False, deadline=deadline())
    write(lab, KEPT + 200)
    lab.ledger.trim(deadline())
    assert first_kept(lab) <= Version(point.epoch, point.seq + 1)
    assert first_kept(lab) > Version(1, 11), "nothing was trimmed"
    following = lab.ledger.read(point, 5, 0)
    assert [e.version.seq for e in following] == [point.seq + i for i in range(1, 6)]
    audit(lab.redis)


def test_other_readers_hold_the_log_up_to_what_is_kept(make_lab: Callable[..., Lab]) -> None:
    """A reader that is not required holds its records while there are few, and is forgotten after a day of silence."""
    lab = limited(make_lab)
    write(lab, 20)
    lab.ledger.checkpoint("edge", Version(1, 5), required=False, deadline=deadline())
    write(lab, KEPT - 50)
    lab.ledger.trim(deadline())
    assert first_kept(lab) <= Version(1, 6)
    assert lab.redis.hexists(BASE + "ck", "edge")
    lab.age(DAY_MS + 1)
    lab.ledger.trim(deadline())
    assert not lab.redis.hexists(BASE + "ck", "edge")
    lab.ledger.checkpoint("gone", Version(1, 5), required=True, deadline=deadline())
    lab.age(2 * DAY_MS)
    lab.ledger.trim(deadline())
    assert lab.redis.hexists(BASE + "ck", "gone"), "a required reader is never forgotten"
    lab.ledger.forget_consumer("gone", deadline())
    assert not lab.redis.hexists(BASE + "ck", "gone")


def test_a_full_log_refuses_new_reservations_only(make_lab: Callable[..., Lab]) -> None:
    """At the cap reserves are refused with nothing done; what ends holds and tells facts goes on, until it is read."""
    lab = limited(make_lab)
    lab.receive("a", "n1", 9)
    for name in ("sold", "given", "longer"):
        assert lab.reserve(name, [("a", 1)]).status == "RESERVED"
    lab.ledger.checkpoint("historian", Version(1, 2), required=True, deadline=deadline())
    write(lab, CAP)
    assert lab.ledger.trim(deadline()).full
    before = lab.ledger.head().version
    refused = lab.reserve("new", [("a", 1)])
    assert (refused.status, refused.version) == ("LOG_FULL", "")
    assert lab.ledger.head().version == before
    assert lab.commit("c", "r-sold", "o1").status == "COMMITTED"
    assert lab.release("x", "r-given").status == "RELEASED"
    assert lab.extend("e", "r-longer", 60_000).status == "EXTENDED"
    assert lab.results(delta("RECEIPT", "a", "n1", 1)) == ["APPLIED"]
    assert lab.results(delta("SHIPMENT", "a", "n1", 1, order_ref="o1", order_source="web")) == ["APPLIED"]
    assert lab.ledger.trim(deadline()).full, "records that the required reader has not seen were given up"
    lab.ledger.checkpoint("historian", lab.ledger.head().version, required=True, deadline=deadline())
    assert not lab.ledger.trim(deadline()).full
    assert lab.reserve("new", [("a", 1)]).status == "RESERVED", "the refusal was remembered"
    audit(lab.redis)


class PausedReader:
    """A replica's reader that can be held back at the log."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.going = threading.Event()
        self.going.set()
        self.waits = threading.Event()

    def head(self) -> Head:
        return self._ledger.head()

    def policies(self) -> PolicyState:
        return self._ledger.policies()

    def page(self, index: int, count: int) -> Page:
        return self._ledger.page(index, count)

    def skus(self, names: list[str]) -> Page:
        return self._ledger.skus(names)

    def read(self, after: Version, count: int, block_ms: int) -> list[Entry]:
        if not self.going.is_set():
            self.waits.set()
            self.going.wait()
        return self._ledger.read(after, count, min(block_ms, 20))


def test_a_replica_that_was_passed_loads_anew(make_lab: Callable[..., Lab]) -> None:
    """A replica behind the trimmed point ends up right, not with the records in between missing."""
    lab = limited(make_lab)
    write(lab, 5)
    reader = PausedReader(lab.ledger)
    replica = Replica(reader, ReplicaSettings(auto_create=True), time.monotonic, random.Random(1))
    replica.start()
    try:
        poll(lambda: replica.ready and replica.version == lab.ledger.head().version, "the replica is there")
        reader.going.clear()
        poll(reader.waits.is_set, "the replica waits")
        write(lab, KEPT + 250)
        lab.ledger.trim(deadline())
        assert first_kept(lab) > Version(1, 7)
        reader.going.set()
        version = lab.ledger.head().version
        poll(lambda: replica.ready and replica.version >= version, "the replica is right again")
        sellable = replica.batch("web", ["a"])[0]
        assert list(sellable) == [lab.position("a", "n1")[0]]
    finally:
        reader.going.set()
        replica.stop()
