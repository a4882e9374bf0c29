"""Snapshots while deltas and reservations flow (FAILURES section 2, number 11), and when the log or Redis goes away."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any  # Any: fields of requests, by name

import msgspec
import pytest

from availability.client import Client
from availability.domain.errors import Reason, ServiceError
from availability.domain.version import Version
from availability.history.as_of import After, ForkSeen, Point, PointLost, Start
from availability.ledger import calls
from availability.ledger.record import Entry, Kind, chain_after
from availability.ledger.snapshots import SnapshotBegin, SnapshotEnd, SnapshotLedger
from availability.service.auth import Principal
from availability.service.context import CallContext
from availability.service.snapshot_reads import SnapshotReader
from availability.v1 import stock_pb2 as stk
from tests.conftest import Server, serving
from tests.faults.audit import audit
from tests.faults.lab import BASE, DAY_MS, META, Lab, Process, deadline, delta, poll, request_key

SKUS = [f"sku {number}" for number in range(500)]
NODES = ("n1", "n2")
POSITIONS = len(SKUS) * len(NODES)
ROUNDS = {False: 3, True: 40}
Place = tuple[str, str]
Figures = tuple[int, dict[str, int]]


class Source:
    """Sends numbered deltas without end, and remembers what each changed and at which version it was applied."""

    def __init__(self, client: Client, name: str, seed: int) -> None:
        self.client, self.name = client, name
        self.rng = random.Random(seed)
        self.sent: list[tuple[Place, int, str, int]] = []
        """By number: place, change of on_hand, reason, change of it."""
        self.versions: list[Version] = []

    def batch(self) -> None:
        deltas = []
        for _ in range(self.rng.randint(1, 60)):
            sku, node, units = self.rng.choice(SKUS), self.rng.choice(NODES), self.rng.randint(1, 5)
            kind = self.rng.choice(["RECEIPT", "SHIPMENT", "ADJUSTMENT", "QUARANTINE", "WRITE_OFF"])
            if kind == "ADJUSTMENT":
                units = -units
            on_hand = {"RECEIPT": units, "ADJUSTMENT": units, "QUARANTINE": 0}.get(kind, -units)
            held = {"QUARANTINE": units, "WRITE_OFF": -units}.get(kind, 0)
            self.sent.append(((sku, node), on_hand, "damage", held))
            deltas.append(
                stk.Delta(
                    source=self.name,
                    stream="s",
                    source_sequence=len(self.sent),
                    type=stk.DeltaType.Value(f"DELTA_TYPE_{kind}"),
                    sku=sku,
                    node=node,
                    quantity=units,
                    reason="damage" if held else "",
                )
            )
        answer = self.client.apply_deltas(self.name, deltas)
        assert set(answer.results) == {stk.DELTA_RESULT_APPLIED}
        starts = [call.first_index for call in answer.calls] + [len(deltas)]
        for call, first, last in zip(answer.calls, starts, starts[1:], strict=False):
            self.versions += [Version.parse(call.version)] * (last - first)

    def goes_on(self, more: int) -> None:
        """Wait for so many more acks."""
        here = len(self.versions)
        poll(lambda: len(self.versions) > here + more, f"{self.name} goes on")

    def comes_to(self, version: Version) -> None:
        """Wait for the ack of a call after a version."""
        poll(lambda: bool(self.versions) and self.versions[-1] > version, f"{self.name} comes to {version}")

    def until(self, number: int) -> Iterator[tuple[Place, int, str, int]]:
        yield from self.sent[:number]


def add_up(opening: dict[Place, int], *moves: Iterator[tuple[Place, int, str, int]]) -> dict[Place, Figures]:
    on_hand, held = dict(opening), defaultdict[Place, dict[str, int]](dict)
    for some in moves:
        for place, change, reason, units in some:
            on_hand[place] += change
            held[place][reason] = held[place].get(reason, 0) + units
    return {
        place: (units, {reason: n for reason, n in held[place].items() if n})
        for place, units in on_hand.items()
    }


def read(client: Client, **asked: Any) -> tuple[dict[Place, Figures], set[Place]]:
    """Read the ledger's side; figures by place, and the places that are not settled."""
    found: dict[Place, Figures] = {}
    unsettled = set()
    for page in client.read_positions(stk.ReadPositionsRequest(**asked), timeout_s=60):
        columns = page.positions
        reasons = defaultdict[int, dict[str, int]](dict)
        for units in columns.quarantined_units:
            reasons[units.row][units.reason] = units.quantity
        for row, on_hand in enumerate(columns.on_hand):
            place = columns.skus[columns.sku_indexes[row]], columns.nodes[columns.node_indexes[row]]
            assert place not in found, "told twice"
            found[place] = on_hand, reasons[row]
            if columns.settling[row] != stk.SETTLING_SETTLED:
                unsettled.add(place)
    return found, unsettled


@contextmanager
def flowing(*work: Callable[[], None]) -> Iterator[None]:
    """Do each again and again in a thread of its own; a failure of one is the test's."""
    ended, failed = threading.Event(), list[BaseException]()

    def again(one: Callable[[], None]) -> None:
        try:
            while not ended.is_set():
                one()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=again, args=(one,), daemon=True) for one in work]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(30)
    if failed:
        raise failed[0]


@pytest.fixture
def flow(seed: int) -> Iterator[tuple[Server, Client, dict[Place, int], list[Source], Callable[[], None]]]:
    """A server with 1,000 positions, two sources and a shopper."""
    rng = random.Random(seed)
    with serving() as server, Client(server.grpc, timeout_s=30) as client:
        opening = {(sku, node): rng.randint(100, 900) for sku in SKUS for node in NODES}
        receipts = [
            stk.Delta(
                source="opening",
                event_id=f"{sku} {node}",
                type=stk.DELTA_TYPE_RECEIPT,
                sku=sku,
                node=node,
                quantity=units,
            )
            for (sku, node), units in opening.items()
        ]
        client.apply_deltas("opening", receipts)
        numbers = count()

        def shop() -> None:
            number = next(numbers)
            sku = rng.choice(SKUS)
            held = client.reserve("web", {sku: rng.randint(1, 3)}, hold_s=600)
            name = held.reservation.reservation_id
            if name and number % 3 == 0:
                client.commit(name, f"order {number}")
            elif name and number % 3 == 1:
                client.release(name)

        sources = [Source(client, "erp", seed + 1), Source(client, "wms", seed + 2)]
        yield server, client, opening, sources, shop


def test_by_sequences_every_position_is_exact_while_everything_flows(flow: Any, *, full: bool) -> None:
    """1,000 positions, two streams, a shopper: at each point what the numbers add up to, and nothing is unsettled."""
    _, client, opening, (erp, wms), shop = flow
    with flowing(erp.batch, wms.batch, shop):
        for _ in range(ROUNDS[full]):
            erp.goes_on(100)
            wms.goes_on(100)
            # Some of these the ledger has passed, some it has not applied yet: those are waited for.
            numbers = max(1, len(erp.versions) - 50), len(wms.sent) + 20
            marks = [
                stk.SequenceMark(stream="s", source_sequence=numbers[0]),
                stk.SequenceMark(source="wms", stream="s", source_sequence=numbers[1]),
            ]
            found, unsettled = read(client, point=stk.SnapshotPoint(source="erp", as_of=marks))
            assert unsettled == set()
            assert len(found) == POSITIONS
            expected = add_up(opening, erp.until(numbers[0]), wms.until(numbers[1]))
            wrong = {
                place: (found[place], expected[place]) for place in found if found[place] != expected[place]
            }
            assert not wrong, f"at {numbers}: {len(wrong)} of {POSITIONS} differ: {list(wrong.items())[:3]}"
            assert client.get("web", SKUS[0]).state, "the server serves meanwhile"


def test_by_marks_what_changed_between_them_is_unsettled_and_the_rest_exact(flow: Any, *, full: bool) -> None:
    """Unsettled are those, and only those, that a delta between the marks moved; the rest are as at the second."""
    _, client, opening, (erp, wms), shop = flow
    with flowing(erp.batch, wms.batch, shop):
        for number in range(ROUNDS[full]):
            snapshot = client.begin_snapshot("erp", request_id=f"begin {number}")
            erp.goes_on(50)
            ended = client.end_snapshot(snapshot.snapshot_id, request_id=f"end {number}")
            begin, end = Version.parse(ended.begin_version), Version.parse(ended.end_version)
            erp.goes_on(50)
            found, unsettled = read(client, snapshot_id=snapshot.snapshot_id)
            for source in (erp, wms):  # what was on its way at the second mark has come back
                source.comes_to(end)
            moved = {
                source.sent[i][0]
                for source in (erp, wms)
                for i, version in enumerate(source.versions)
                if begin < version <= end
            }
            assert unsettled == moved
            assert moved
            assert len(moved) < POSITIONS / 2
            numbers = [sum(version <= end for version in source.versions) for source in (erp, wms)]
            expected = add_up(opening, erp.until(numbers[0]), wms.until(numbers[1]))
            wrong = [place for place in found if place not in moved and found[place] != expected[place]]
            assert not wrong, f"{len(wrong)} of {POSITIONS} differ: {wrong[:3]}"
            client.close_snapshot(snapshot.snapshot_id)


def test_a_snapshot_outlives_its_server(make_process: Callable[..., Process]) -> None:
    """A server killed between the marks: the next knows the snapshot and its rows; a repeat changes nothing."""
    process = make_process()
    process.start()
    with Client(process.grpc, timeout_s=30) as client:
        client.apply_deltas("erp", [numbered(1, "RECEIPT", 9), numbered(2, "SHIPMENT", 2)])
        snapshot = client.begin_snapshot("erp", request_id="begin")
        rows = [stk.SnapshotRow(sku="a", node="n1", on_hand=number) for number in range(2_500)]
        assert client.stream_snapshot(snapshot.snapshot_id, rows) == 2_500
    process.kill()
    process.start()
    with Client(process.grpc, timeout_s=30) as client:
        assert client.begin_snapshot("erp", request_id="begin") == client.list_snapshots("erp")[0]
        assert client.stream_snapshot(snapshot.snapshot_id, rows) == 2_500
        kept = [row.on_hand for page in client.read_snapshot(snapshot.snapshot_id) for row in page.rows]
        assert kept == list(range(2_500))
        client.apply_deltas("erp", [numbered(3, "SHIPMENT", 1)])
        mark = stk.SequenceMark(stream="s", source_sequence=2)
        ended = client.end_snapshot(snapshot.snapshot_id, [mark], row_count=2_500, request_id="end")
        assert client.end_snapshot(snapshot.snapshot_id, [mark], row_count=2_500, request_id="end") == ended
        found, unsettled = read(client, snapshot_id=snapshot.snapshot_id)
        assert (found, unsettled) == ({("a", "n1"): (7, {})}, set())


def numbered(number: int, kind: str, units: int) -> stk.Delta:
    return delta(kind, "a", "n1", units, stream="s", source_sequence=number)


# --- the log and Redis


def reads(lab: Lab, **asked: Any) -> dict[Place, tuple[int, bool]]:
    """Read the ledger's side without a server: on_hand and whether it is settled."""
    reader = SnapshotReader(lab.ledger, SnapshotLedger(lab.ledger))
    ctx = CallContext(Principal(id="tester", scopes=frozenset()), time.monotonic() + 1.0)
    found = {}
    for page in reader.read_positions(stk.ReadPositionsRequest(**asked), ctx):
        c = page.positions
        for row, on_hand in enumerate(c.on_hand):
            place = c.skus[c.sku_indexes[row]], c.nodes[c.node_indexes[row]]
            found[place] = on_hand, c.settling[row] == stk.SETTLING_SETTLED
    return found


def begin(lab: Lab, name: str) -> None:
    call = SnapshotBegin(request_key(f"{name} b"), name, "erp", [], 1, 1, 1)
    assert SnapshotLedger(lab.ledger).begin(call, deadline()).status == "OK"


def end(lab: Lab, name: str, *as_of: tuple[str, str, int]) -> None:
    call = SnapshotEnd(request_key(f"{name} e"), name, list(as_of), -1)
    assert SnapshotLedger(lab.ledger).end(call, deadline()).status == "OK"


def is_lost(lab: Lab, **asked: Any) -> None:
    with pytest.raises(ServiceError) as caught:
        reads(lab, **asked)
    assert caught.value.reason == Reason.SNAPSHOT_POINT_LOST


def as_of(number: int) -> stk.SnapshotPoint:
    return stk.SnapshotPoint(
        source="erp", as_of=[stk.SequenceMark(source="erp", stream="s", source_sequence=number)]
    )


def ship(lab: Lab, first: int, last: int) -> None:
    for number in range(first, last + 1):
        assert lab.results(numbered(number, "RECEIPT", 1)) == ["APPLIED"]


def test_an_open_snapshot_holds_the_log_up_to_its_cap(make_lab: Callable[..., Lab]) -> None:
    """Its first mark stays readable however little of the log is kept; past the cap the point is lost, and said so."""
    lab = make_lab(log_records_kept=300, log_records_cap=1_000)
    ship(lab, 1, 5)
    begin(lab, "long")
    ship(lab, 6, 605)
    lab.ledger.checkpoint("historian", lab.ledger.head().version, required=True, deadline=deadline())
    lab.ledger.trim(deadline())
    end(lab, "long")
    ship(lab, 606, 610)
    assert reads(lab, snapshot_id="long") == {("a", "n1"): (5, False)}
    assert reads(lab, point=as_of(7)) == {("a", "n1"): (7, True)}
    ship(lab, 611, 1_200)
    lab.ledger.checkpoint("historian", lab.ledger.head().version, required=True, deadline=deadline())
    lab.ledger.trim(deadline())
    is_lost(lab, snapshot_id="long")
    is_lost(lab, point=as_of(7))
    assert reads(lab, point=as_of(1_190)) == {("a", "n1"): (1_190, True)}, "a quarter of what is kept stays"
    audit(lab.redis)


def test_a_closed_or_forgotten_snapshot_holds_nothing(make_lab: Callable[..., Lab]) -> None:
    """Closed, or a day after its last change, it lets the log go, and its rows with it."""
    lab = make_lab(log_records_kept=40, log_records_cap=10_000)
    begin(lab, "left")
    SnapshotLedger(lab.ledger).submit_chunk("left", 1, b"rows", 2, 100, deadline()).wait()
    ship(lab, 1, 400)
    assert lab.ledger.trim(deadline()).length == 400
    lab.age(DAY_MS + 1)
    assert lab.ledger.trim(deadline()).length < 200
    assert lab.redis.keys(BASE + "snap*") == []
    audit(lab.redis)


def test_a_failover_between_the_marks_loses_the_point_and_numbers_do_not(lab: Lab) -> None:
    """What was lost then nobody knows, so marks of two epochs are refused; numbers, and marks before it, hold."""
    ship(lab, 1, 5)
    begin(lab, "before")
    end(lab, "before")
    begin(lab, "across")
    begin(lab, "counted")
    lab.redis.hset(META, "replid", "0" * 40)
    ship(lab, 6, 9)
    assert lab.ledger.head().epoch == 2
    end(lab, "across")
    end(lab, "counted", ("erp", "s", 7))
    is_lost(lab, snapshot_id="across")
    assert reads(lab, snapshot_id="before") == {("a", "n1"): (5, True)}
    assert reads(lab, snapshot_id="counted") == {("a", "n1"): (7, True)}
    assert reads(lab, point=as_of(4)) == {("a", "n1"): (4, True)}


def test_a_stream_that_was_reset_has_no_point_before(lab: Lab) -> None:
    """Its numbers mean others from then on."""
    ship(lab, 1, 5)
    reset = calls.StreamChange(request_key("reset"), "erp", "s", "RESET", 0, "test")
    assert lab.ledger.change_stream(reset, deadline()).status == "OK"
    ship(lab, 1, 7)
    assert reads(lab, point=as_of(4)) == {("a", "n1"): (9, True)}
    lab.tell(delta("RECEIPT", "a", "n1", 1, stream="t", source_sequence=1))
    point = as_of(7)
    point.as_of.add(stream="t", source_sequence=1)
    assert reads(lab, point=point) == {("a", "n1"): (13, True)}
    reset = calls.StreamChange(request_key("again"), "erp", "s", "RESET", 0, "test")
    assert lab.ledger.change_stream(reset, deadline()).status == "OK"
    ship(lab, 1, 9)
    begin(lab, "x")
    reset = calls.StreamChange(request_key("third"), "erp", "s", "RESET", 0, "test")
    assert lab.ledger.change_stream(reset, deadline()).status == "OK"
    ship(lab, 1, 9)
    end(lab, "x", ("erp", "s", 9))
    is_lost(lab, snapshot_id="x")


def test_a_log_that_is_another_is_not_added_up() -> None:
    """After a failover to a shorter log reading stops and begins again; missing entries are no point."""

    def entry(version: Version, kind: int, body: object) -> Entry:
        raw = msgspec.msgpack.encode([kind, 0, "", "", "", [], body])
        return Entry(version, chain_after("", str(version), raw), raw)

    def after() -> After:
        return After(Point(begin=Version(1, 5), end=Version(1, 5)), Start(Version(1, 5), Version(1, 5)))

    reserved = entry(Version(1, 6), int(Kind.EXTENDED), ["r", 1])
    gone = after()
    gone.add(reserved)
    with pytest.raises(ForkSeen):
        gone.add(entry(Version(2, 1), int(Kind.EPOCH), [1, 5, ""]))
    whole = after()
    whole.add(reserved)
    whole.add(entry(Version(2, 1), int(Kind.EPOCH), [1, 6, ""]))
    assert whole.version == Version(2, 1)
    for version in (Version(1, 7), Version(2, 2)):
        with pytest.raises(PointLost):
            after().add(entry(version, int(Kind.EXTENDED), ["r", 1]))
    with pytest.raises(PointLost):
        after().add(entry(Version(2, 1), int(Kind.EPOCH), [1, 9, ""]))


def test_a_snapshot_of_nobody(lab: Lab) -> None:
    """Reading one that is not there, or has not ended, is refused by name."""
    for name, reason in (("nobody's", Reason.SNAPSHOT_NOT_FOUND), ("open", Reason.SNAPSHOT_NOT_ENDED)):
        if name == "open":
            begin(lab, name)
        with pytest.raises(ServiceError) as caught:
            reads(lab, snapshot_id=name)
        assert caught.value.reason == reason


def test_an_open_snapshot_costs_a_change_nothing(lab: Lab) -> None:
    """A position's first change, and a hold, while snapshots are open: no command, field or byte of log more."""
    costs = []
    moment = count(
        int(time.time() * 1_000)
    )  # Redis is asked who it is once a millisecond: each step has its own
    for number, name in enumerate(("", "", "first", "second")):  # once to read the policy
        if name:
            begin(lab, name)
        sku, start = f"s{number}", f"{number} start"
        lab.tell(delta("RECEIPT", sku, "n1", 9, stream=start, source_sequence=1))
        cost: list[int] = []
        for step in (
            lambda sku=sku, start=start: lab.tell(
                delta("SHIPMENT", sku, "n1", 1, stream=start, source_sequence=2)
            ),
            lambda sku=sku, number=number: lab.reserve(f"hold {number}", [(sku, 1)], node="n1"),
        ):
            lab.control(now_ms=next(moment))
            step()
            commands, _ = lab.control()
            (record,) = lab.ledger.read_back(None, 1)
            cost += [commands, lab.redis.hlen(f"{BASE}pos:{sku}"), len(record.raw)]
        costs.append(cost)
    assert costs[1] == costs[2] == costs[3], costs
    assert costs[1][0] > 5
