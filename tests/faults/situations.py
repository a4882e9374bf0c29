"""Every function of the ledger in the situations that its faults are tried in: one call on a prepared ledger each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any  # Any: packed calls of every function

from availability.ledger import calls
from availability.ledger.snapshots import SnapshotBegin, SnapshotClose, SnapshotEnd, SnapshotLedger
from availability.service.delta_codec import pack
from availability.v1 import stock_pb2 as stk
from tests.faults.lab import DAY_MS, LEDGER_ID, META, Lab, deadline, delta, request_key, reserve

NOW_MS = 1_760_000_000_000
"""Redis TIME stands still, so that two runs write the same bytes."""
LATER_MS = NOW_MS + 2_000


@dataclass(frozen=True, kw_only=True)
class Situation:
    """One call on the prepared ledger. ``exempt``: keys that a fault may leave half done, and why that is harmless."""

    name: str
    function: str
    call: object
    due: bool = False
    prepare: Callable[[Lab], None] | None = None
    exempt: tuple[str, ...] = ()


def deltas(*told: stk.Delta) -> object:
    source = told[0].source if told else "erp"
    return calls.Deltas(source, [pack(d, source)[0] for d in told], True, 30 * DAY_MS)


def policy(what: str, *value: object, auto_create: bool = True) -> object:
    return calls.PolicyChange(request_key("policy"), what, list(value), "test", auto_create)


def commit(reservation: str, ref: str, source: str = "") -> object:
    return calls.Commit(request_key("commit"), reservation, source, ref)


def release(reservation: str, *lines: tuple[str, int]) -> object:
    return calls.Release(request_key("release"), reservation, list(lines))


def stream(action: str, sequence: int = 0) -> object:
    return calls.StreamChange(request_key("stream"), "erp", "s", action, sequence, "test")


def report(seen: list[str], gone: list[str], *, open_max: int = 9, severity: int = 2) -> calls.Report:
    sightings = [calls.Sighting(name, 2, severity, "stock", "seen", quantity=open_max) for name in seen]
    return calls.Report("tester", 0, 0, sightings, gone, calls.ReportLimits(0, DAY_MS // 2, open_max, 0))


def reject_a_number(lab: Lab) -> None:
    lab.tell(delta("RECEIPT", "d", "n1", 0, stream="s", source_sequence=3))


def prepare(lab: Lab) -> None:
    """Lay out a ledger with some of everything."""
    lab.control(now_ms=NOW_MS)
    lab.policy("p1", "channel", ["web", False, ["n1", "n2"], 0, -1, 0, 0, -1, 1, 1])
    lab.policy("p2", "override", ["web", "c", 1, -1, -1, -1, ["n2"]])
    lab.policy("p3", "sale_state", ["", "stopped", True])
    lab.policy("p4", "sale_state", ["", "ending", True, NOW_MS + 1_500])
    for sku, node, quantity in (
        ("a", "n1", 9),
        ("a", "n2", 30),
        ("b", "n1", 9),
        ("b", "n2", 9),
        ("c", "n1", 9),
    ):
        lab.receive(sku, node, quantity)
    lab.tell(delta("QUARANTINE", "a", "n2", 4, reason="damage"), delta("RECEIPT", "stopped", "n1", 1))
    lab.tell(*(delta("RECEIPT", "d", "n1", 1, stream="s", source_sequence=n) for n in (1, 2, 5)))
    lab.tell(delta("ORDER_PLACED", "a", "", 2, order_ref="told", line="1", order_source="web"))
    lab.tell(delta("ORDER_ALLOCATED", "a", "n2", 2, order_ref="told", line="1", order_source="web"))
    lab.tell(delta("ORDER_PLACED", "b", "", 2, order_ref="named", order_source="web"))
    lab.tell(delta("ORDER_CANCELLED", order_ref="cancelled", order_source="web"))
    lab.fcall("report", report(["old", "again", "gone"], [], open_max=8))
    lab.fcall("report", report(["other"], ["again"], open_max=7))
    for name, lines, ref in (
        ("plain", [("a", 10), ("b", 1)], ""),
        ("named", [("a", 3), ("b", 2)], "named"),
        ("named2", [("b", 1), ("c", 1)], "named"),
        ("committed", [("a", 1)], ""),
        ("released", [("a", 1)], ""),
    ):
        assert lab.reserve(name, lines, order_ref=ref, order_source="web" if ref else "").status == "RESERVED"
    assert lab.commit("c1", "r-committed", "own").status == "COMMITTED"
    assert lab.release("c2", "r-released").status == "RELEASED"
    assert lab.reserve("expired", [("c", 2), ("b", 1)], hold_ms=1_000).status == "RESERVED"
    lab.control(now_ms=NOW_MS + 1_000)
    assert lab.sweep().expired == 1
    for name in ("due1", "due2", "due3"):
        ref = "named" if name == "due2" else ""
        held = lab.reserve(name, [("a", 1), ("b", 1)], hold_ms=1_000, order_ref=ref, order_source="web")
        assert held.status == "RESERVED"


def take_the_rest(lab: Lab) -> None:
    """Leave too little for a hold that expired."""
    assert lab.reserve("rest", [("c", 8)], allow_partial=True).status == "PARTIAL"


def age_a_day(lab: Lab) -> None:
    lab.release("gone", "r-plain")
    lab.age(DAY_MS + 10_000)


def age_a_month(lab: Lab) -> None:
    lab.tell(delta("SHIPMENT", "a", "n1", 1, order_ref="own", order_source="web"))
    lab.age(31 * DAY_MS)


def another_replication_id(lab: Lab) -> None:
    lab.redis.hset(META, "replid", "0" * 40)


def with_checkpoints(lab: Lab) -> None:
    head = lab.ledger.head().version
    lab.ledger.checkpoint("historian", head, required=True, deadline=deadline())
    lab.ledger.checkpoint("silent", head, required=False, deadline=deadline())
    lab.age(2 * DAY_MS)


def with_snapshots(lab: Lab) -> None:
    store = SnapshotLedger(lab.ledger)
    for name in ("open", "closed"):
        store.begin(SnapshotBegin(request_key(name), name, "erp", ["n1"], 1, 1, 1), deadline())
        store.submit_chunk(name, 1, b"rows", 2, 100, deadline()).wait()
    store.close(SnapshotClose(request_key("close it"), "closed"), deadline())


def with_old_snapshots(lab: Lab) -> None:
    store = SnapshotLedger(lab.ledger)
    store.begin(SnapshotBegin(request_key("old"), "old", "erp", [], 1, 1, 1), deadline())
    store.submit_chunk("old", 1, b"rows", 2, 100, deadline()).wait()
    lab.age(DAY_MS + 1)
    with_snapshots(lab)


def age_expected(lab: Lab) -> None:
    lab.tell(
        delta("EXPECTED", "a", "n1", 5, reference="open"), delta("RECEIPT", "a", "n1", 5, reference="po")
    )
    lab.age(31 * DAY_MS)


def watch_feeds(lab: Lab) -> None:
    for number, node in enumerate(("n1", "n2")):
        assert lab.policy(f"feed{number}", "feed", ["erp", node, 2_000, 0]).status == "OK"


def silence_feeds(lab: Lab) -> None:
    """Two feeds are silent for too long, a third was heard since."""
    watch_feeds(lab)
    lab.policy("feed3", "feed", ["wms", "n1", 2_000, 0])
    lab.age(2_000)
    lab.tell(delta("RECEIPT", "a", "n1", 1, source="wms"))


ORDER: dict[str, Any] = {"order_source": "web", "order_ref": "named"}
LINK: dict[str, Any] = {**ORDER, "linked_order_source": "erp", "linked_order_ref": "SO-1"}


def tell_of_another_name(lab: Lab) -> None:
    """The ERP allocates and cancels in part under its own number."""
    lab.tell(delta("ORDER_ALLOCATED", "b", "n2", 2, order_ref="SO-1"))
    lab.tell(delta("ORDER_CANCELLED", "a", order_ref="SO-1"))


def with_a_link(lab: Lab) -> None:
    tell_of_another_name(lab)
    lab.tell(delta("LINK_ORDER", quantity=1, **LINK))


FORGOTTEN = ("res:", "ended:", "ord:", "ord_last", "req:", "evt:", "exc")
"""What a sweep forgets is gone for good, and the next sweep goes on where this one ended."""


def make_kits(lab: Lab) -> None:
    lab.policy("kit 1", "kit", ["set", [["a", 2], ["b", 1]]])
    lab.policy("kit 2", "kit", ["room", [["set", 1], ["c", 1]]])


def hold_kits(lab: Lab) -> None:
    make_kits(lab)
    assert lab.reserve("kits", [("set", 2), ("a", 1)]).status == "RESERVED"


SITUATIONS = [
    Situation(
        name="link two names",
        function="deltas",
        call=deltas(delta("LINK_ORDER", quantity=1, event_id="link", **LINK)),
        prepare=tell_of_another_name,
    ),
    Situation(
        name="take a link back",
        function="deltas",
        call=deltas(delta("LINK_ORDER", quantity=0, event_id="part", **LINK)),
        prepare=with_a_link,
    ),
    Situation(
        name="a fact under another name",
        function="deltas",
        call=deltas(delta("SHIPMENT", "b", "n2", 1, event_id="shipped", order_ref="SO-1")),
        prepare=with_a_link,
    ),
    Situation(name="reserve", function="reserve", call=reserve("q", [("a", 3), ("b", 2)])),
    Situation(name="reserve several nodes", function="reserve", call=reserve("q", [("a", 15), ("b", 5)])),
    Situation(
        name="reserve for an order",
        function="reserve",
        call=reserve("q", [("a", 3), ("b", 1)], order_source="web", order_ref="new"),
    ),
    Situation(
        name="reserve for an order that its source knows",
        function="reserve",
        call=reserve("q", [("a", 3), ("b", 1)], order_source="web", order_ref="told"),
    ),
    Situation(
        name="reserve in part",
        function="reserve",
        call=reserve("q", [("a", 99), ("b", 2)], allow_partial=True),
    ),
    Situation(name="reserve too much", function="reserve", call=reserve("q", [("a", 99), ("b", 2)])),
    Situation(name="reserve at a node", function="reserve", call=reserve("q", [("a", 3)], node="n2")),
    Situation(
        name="reserve in a channel of its own",
        function="reserve",
        call=reserve("q", [("a", 3)], channel="pos"),
    ),
    Situation(name="reserve, others due", function="reserve", call=reserve("q", [("a", 3)]), due=True),
    Situation(name="extend", function="extend", call=calls.Extend(request_key("x"), "r-plain", 9_000)),
    Situation(
        name="extend, due itself",
        function="extend",
        call=calls.Extend(request_key("x"), "r-due1", 9_000),
        due=True,
    ),
    Situation(
        name="extend too late", function="extend", call=calls.Extend(request_key("x"), "r-expired", 9_000)
    ),
    Situation(name="commit", function="commit", call=commit("r-plain", "o1")),
    Situation(name="commit what carries the order", function="commit", call=commit("r-named", "")),
    Situation(name="commit to another order", function="commit", call=commit("r-named", "o2")),
    Situation(name="commit to a known order", function="commit", call=commit("r-plain", "told", "web")),
    Situation(
        name="commit to a cancelled order", function="commit", call=commit("r-plain", "cancelled", "web")
    ),
    Situation(name="commit an expired hold", function="commit", call=commit("r-expired", "o3")),
    Situation(
        name="commit an expired hold in vain",
        function="commit",
        call=commit("r-expired", "o3"),
        prepare=take_the_rest,
    ),
    Situation(name="commit again", function="commit", call=commit("r-committed", "own")),
    Situation(name="commit, due itself", function="commit", call=commit("r-due1", "o4"), due=True),
    Situation(name="release", function="release", call=release("r-plain")),
    Situation(name="release a part", function="release", call=release("r-plain", ("a", 8))),
    Situation(name="release for an order", function="release", call=release("r-named")),
    Situation(
        name="release a part for an order", function="release", call=release("r-named", ("a", 2), ("b", 2))
    ),
    Situation(name="release, others due", function="release", call=release("r-plain"), due=True),
    Situation(
        name="reserve kits beside a part",
        function="reserve",
        call=reserve("q", [("set", 2), ("a", 1)], order_ref="told", order_source="web"),
        prepare=make_kits,
    ),
    Situation(
        name="release kits",
        function="release",
        call=release("r-kits", ("set", 1), ("a", 1)),
        prepare=hold_kits,
    ),
    Situation(name="commit kits", function="commit", call=commit("r-kits", "o9"), prepare=hold_kits),
    Situation(
        name="kit in kits",
        function="policy",
        call=policy("kit", "set", [["b", 1], ["x", 2]]),
        prepare=make_kits,
    ),
    Situation(name="no kit any more", function="policy", call=policy("kit", "set", []), prepare=make_kits),
    Situation(name="heartbeat", function="deltas", call=deltas()),
    Situation(name="receipt", function="deltas", call=deltas(delta("RECEIPT", "a", "n1", 5))),
    Situation(
        name="receipt of a new sku at a new node by a new source",
        function="deltas",
        call=deltas(delta("RECEIPT", "new", "new", 5, source="wms")),
        exempt=("sources",),  # a name that has no streams yet shows nothing
    ),
    Situation(
        name="receipt, holds due", function="deltas", call=deltas(delta("RECEIPT", "a", "n1", 5)), due=True
    ),
    Situation(
        name="every stock delta",
        function="deltas",
        call=deltas(
            delta("RECEIPT", "a", "n1", 5, reason="inspection"),
            delta("ADJUSTMENT", "a", "n1", -2),
            delta("ADJUSTMENT", "b", "n2", 2, state=stk.STOCK_STATE_QUARANTINED, reason="damage"),
            delta("SHIPMENT", "b", "n1", 2),
            delta("QUARANTINE", "b", "n1", 1, reason="recall"),
            delta("QUARANTINE_RELEASE", "a", "n2", 4, reason="damage"),
            delta("WRITE_OFF", "b", "n1", 1, reason="recall"),
            delta("RETURN_RECEIVED", "c", "n2", 1, order_ref="own"),
        ),
    ),
    Situation(
        name="rejected numbers, one of them again",
        function="deltas",
        call=deltas(
            *(delta("RECEIPT", "d", "n1", 0, stream="s", source_sequence=n) for n in (3, 3, 4)),
            delta("RECEIPT", "d", "n1", 7, stream="s", source_sequence=1),
            delta("QUARANTINE", "a", "n1", 2, reason="short pick"),
            delta("QUARANTINE_RELEASE", "a", "n2", 1, reason="damage"),
        ),
    ),
    Situation(
        name="every order delta",
        function="facts",
        call=deltas(
            delta("ORDER_PLACED", "a", "", 4, order_ref="o5", line="1"),
            delta("ORDER_CHANGED", "a", "", 5, **ORDER),
            delta("ORDER_ALLOCATED", "a", "n2", 3, **ORDER),
            delta("SHIPMENT", "a", "n2", 2, **ORDER),
            delta("SHIPMENT", "a", "n1", 1, order_ref="own", order_source="web"),
            delta("ORDER_CANCELLED", "a", order_ref="told", order_source="web"),
        ),
    ),
    Situation(
        name="cancel an order with holds", function="facts", call=deltas(delta("ORDER_CANCELLED", **ORDER))
    ),
    Situation(
        name="cancel an order with holds, some due",
        function="facts",
        call=deltas(delta("ORDER_CANCELLED", **ORDER)),
        due=True,
    ),
    Situation(
        name="cancel lines of an order with holds, then all",
        function="facts",
        call=deltas(
            delta("ORDER_CANCELLED", "b", **ORDER),
            delta("ORDER_CANCELLED", "c", **ORDER),
            delta("ORDER_CANCELLED", **ORDER),
        ),
    ),
    Situation(
        name="numbers: repeated, next, a jump",
        function="deltas",
        call=deltas(*(delta("RECEIPT", "d", "n1", 1, stream="s", source_sequence=n) for n in (2, 3, 4, 9))),
    ),
    Situation(
        name="rejected, with its number",
        function="deltas",
        call=deltas(delta("RECEIPT", "d", "n1", -1, stream="s", source_sequence=3)),
    ),
    Situation(name="skip a gap", function="stream", call=stream("SKIP_GAP", 5)),
    Situation(name="reset a stream", function="stream", call=stream("RESET")),
    Situation(
        name="reset a stream with rejected numbers",
        function="stream",
        call=stream("RESET"),
        prepare=reject_a_number,
        exempt=("rej:",),  # what a stream is about to forget: at worst one reason less is told
    ),
    Situation(
        name="channel with a new node",
        function="policy",
        call=policy("channel", "web", False, ["new", "n2"], -1, 10, 5, 0, -1, 1, 1),
    ),
    Situation(
        name="channel, holds due",
        function="policy",
        call=policy("channel", "pos", True, [], 0, -1, 0, 0, -1, 1, 1),
        due=True,
    ),
    Situation(name="override", function="policy", call=policy("override", "web", "x", 1, -1, 2, -1, ["new"])),
    Situation(name="clear an override", function="policy", call=policy("clear_override", "web", "c")),
    Situation(name="safety stock", function="policy", call=policy("safety_stock", "a", "n1", 2)),
    Situation(
        name="safety stock of a new position", function="policy", call=policy("safety_stock", "x", "new", 2)
    ),
    Situation(name="safety stock of a node", function="policy", call=policy("safety_stock", "", "n1", 2)),
    Situation(name="node offline", function="policy", call=policy("node", "n1", 2)),
    Situation(name="new node", function="policy", call=policy("node", "new", 1)),
    Situation(name="stop a channel", function="policy", call=policy("sale_state", "web", "", True)),
    Situation(name="stop a sku", function="policy", call=policy("sale_state", "", "x", True)),
    Situation(
        name="stop a sku for a while", function="policy", call=policy("sale_state", "", "x", True, 2**42)
    ),
    Situation(
        name="let go of a stop with an end",
        function="policy",
        call=policy("sale_state", "", "ending", False),
    ),
    Situation(name="let go of a sku", function="policy", call=policy("sale_state", "", "stopped", False)),
    Situation(
        name="override refused",
        function="policy",
        call=policy("override", "nobody", "x", 1, -1, 2, -1, [], auto_create=False),
    ),
    Situation(
        name="count a position",
        function="deltas",
        call=deltas(delta("SET_ON_HAND", "a", "n1", 5), delta("SHIPMENT", "a", "n1", 1)),
    ),
    Situation(
        name="transfer for an order, and what is expected",
        function="deltas",
        call=deltas(
            delta(
                "TRANSFER_OUT",
                "b",
                "n1",
                2,
                to_node="new",
                reference="t",
                order_ref="named",
                order_source="web",
            ),
            delta("TRANSFER_IN", "b", "n2", 1, reference="t"),
            delta("EXPECTED", "a", "n1", 5, reference="po"),
            delta("RECEIPT", "a", "n1", 2, reference="po"),
        ),
    ),
    Situation(
        name="sweep, expected supply to forget",
        function="sweep",
        call=(200, DAY_MS, 30 * DAY_MS, 86_400),
        prepare=age_expected,
        due=True,
        exempt=FORGOTTEN,
    ),
    Situation(name="watch a feed", function="policy", call=policy("feed", "erp", "n1", 9_000, 0)),
    Situation(
        name="watch a feed no more",
        function="policy",
        call=policy("feed", "erp", "n1", 0, 0),
        prepare=watch_feeds,
    ),
    Situation(
        name="hear of a node",
        function="deltas",
        call=deltas(delta("RECEIPT", "a", "n1", 5)),
        prepare=watch_feeds,
    ),
    Situation(name="heartbeat of feeds", function="deltas", call=deltas(), prepare=watch_feeds),
    Situation(
        name="sweep, feeds due",
        function="sweep",
        call=(200, DAY_MS, 30 * DAY_MS, 86_400),
        prepare=silence_feeds,
        due=True,
    ),
    Situation(name="sweep, nothing due", function="sweep", call=(200, DAY_MS, 30 * DAY_MS, 86_400)),
    Situation(name="sweep, holds due", function="sweep", call=(200, DAY_MS, 30 * DAY_MS, 86_400), due=True),
    Situation(
        name="sweep after a day",
        function="sweep",
        call=(200, DAY_MS, 30 * DAY_MS, 86_400),
        prepare=age_a_day,
        due=True,
        exempt=FORGOTTEN,
    ),
    Situation(
        name="sweep after a month",
        function="sweep",
        call=(200, DAY_MS, 30 * DAY_MS, 86_400),
        prepare=age_a_month,
        due=True,
        exempt=FORGOTTEN,
    ),
    Situation(name="report exceptions", function="report", call=report(["new", "old", "again"], ["gone"])),
    Situation(
        name="report more exceptions than there is room for",
        function="report",
        call=report(["new", "newer", "newest"], [], open_max=3, severity=3),
    ),
    Situation(
        name="acknowledge an exception",
        function="acknowledge",
        call=calls.Acknowledge(request_key("ack"), "old", "on it"),
    ),
    Situation(
        name="acknowledge an exception that is over",
        function="acknowledge",
        call=calls.Acknowledge(request_key("ack"), "again", "on it"),
    ),
    Situation(name="checkpoint", function="checkpoint", call=("historian", 1, 3, True, False)),
    Situation(
        name="forget a consumer",
        function="checkpoint",
        call=("historian", 0, 0, False, True),
        prepare=with_checkpoints,
    ),
    Situation(
        name="trim",
        function="trim",
        call=(10, 20),
        prepare=with_checkpoints,
        exempt=("log",),  # what every reader has may go at any time
    ),
    Situation(
        name="begin a snapshot",
        function="snapshot_begin",
        call=SnapshotBegin(request_key("new"), "new", "erp", ["n1"], 1, 1, 1),
    ),
    Situation(
        name="begin a snapshot of a node that nobody knows",
        function="snapshot_begin",
        call=SnapshotBegin(request_key("new"), "new", "erp", ["nowhere"], 1, 1, 1),
    ),
    Situation(
        name="take a chunk of a snapshot",
        function="snapshot_chunk",
        call=("open", 2, "0123456789ab", 3, "rows", 100),
        prepare=with_snapshots,
    ),
    Situation(
        name="end a snapshot",
        function="snapshot_end",
        call=SnapshotEnd(request_key("end"), "open", [("erp", "s", 3)], 2),
        prepare=with_snapshots,
    ),
    Situation(
        name="end half a snapshot",
        function="snapshot_end",
        call=SnapshotEnd(request_key("end"), "open", [], 5),
        prepare=with_snapshots,
    ),
    Situation(
        name="close a snapshot",
        function="snapshot_close",
        call=SnapshotClose(request_key("close"), "open"),
        prepare=with_snapshots,
    ),
    Situation(
        name="trim, snapshots that were closed or forgotten",
        function="trim",
        call=(10, 20),
        prepare=with_old_snapshots,
        exempt=("log", "snap"),  # their rows are of no use to anybody
    ),
    Situation(name="handshake", function="handshake", call=(LEDGER_ID,), prepare=another_replication_id),
]
