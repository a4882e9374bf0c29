"""Snapshots over the wire: begun, streamed, ended, read back; and the ledger's side as of their points."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from availability.cli.root import run
from availability.domain.errors import Reason, ServiceError
from availability.domain.snapshots import CORRECTION_SOURCE, correction_id
from availability.ledger.snapshots import SnapshotLedger, SnapshotRow
from availability.service.auth import Principal
from availability.service.bounds import Bounds
from availability.service.context import CallContext
from availability.service.snapshot_handlers import owned
from availability.v1 import stock_pb2 as stk
from tests.conftest import Names, Server
from tests.model import Refusal
from tests.wire import Service, refusal_of

TIMEOUT_S = 20.0
Stock = dict[tuple[str, str], tuple[int, dict[str, int], bool]]
"""(sku, node) → on_hand, quarantined by reason, whether it is settled."""


def tell(client: Service, source: str, *deltas: stk.Delta) -> None:
    answer = client.stock.ApplyDeltas(stk.ApplyDeltasRequest(source=source, deltas=deltas), timeout=TIMEOUT_S)
    assert set(answer.results) == {stk.DELTA_RESULT_APPLIED}, answer.details


def delta(source: str, kind: str, sku: str, node: str, quantity: int, **fields: Any) -> stk.Delta:
    """Make a delta; ``number`` is its place in the stream "moves"."""
    number = fields.pop("number", 0)
    if number:
        fields |= {"stream": "moves", "source_sequence": number}
    return stk.Delta(
        source=source,
        type=stk.DeltaType.Value(f"DELTA_TYPE_{kind}"),
        sku=sku,
        node=node,
        quantity=quantity,
        **fields,
    )


def refused(calls: Iterator[Any]) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        list(calls)
    return refusal_of(caught.value).reason


def positions(client: Service, node: str, **asked: Any) -> tuple[Stock, int]:
    """Read the ledger's side; the positions of one node, and the kind of the point."""
    found: Stock = {}
    kind = -1
    for page in client.stock.ReadPositions(stk.ReadPositionsRequest(**asked), timeout=TIMEOUT_S):
        kind = page.point_kind
        columns = page.positions
        reasons: dict[int, dict[str, int]] = {}
        for units in columns.quarantined_units:
            reasons.setdefault(units.row, {})[units.reason] = units.quantity
        for row, (sku, place) in enumerate(zip(columns.sku_indexes, columns.node_indexes, strict=True)):
            if columns.nodes[place] == node:
                by = reasons.get(row, {})
                assert sum(by.values()) == columns.quarantined[row]
                settled = columns.settling[row] == stk.SETTLING_SETTLED
                found[columns.skus[sku], node] = (columns.on_hand[row], by, settled)
    return found, kind


def chunks(
    snapshot_id: str, *rows: list[stk.SnapshotRow], first: int = 1
) -> Iterator[stk.StreamSnapshotRequest]:
    return iter(
        [
            stk.StreamSnapshotRequest(snapshot_id=snapshot_id, chunk_number=number, rows=some)
            for number, some in enumerate(rows, first)
        ]
    )


@pytest.fixture
def stocked(client: Service, names: Names) -> tuple[str, str, str]:
    """A source, a node and a sku with 10 on hand, 2 of them damaged."""
    source, node, sku = names.id("erp"), names.node(), names.sku()
    tell(
        client,
        source,
        delta(source, "RECEIPT", sku, node, 10, number=1),
        delta(source, "QUARANTINE", sku, node, 2, number=2, reason="damage"),
    )
    return source, node, sku


def begin(client: Service, names: Names, source: str, node: str, **fields: Any) -> stk.Snapshot:
    request = stk.BeginSnapshotRequest(request_id=names.id("begin"), source=source, nodes=[node], **fields)
    return client.call(client.stock.BeginSnapshot, request).snapshot


def end(client: Service, names: Names, snapshot: stk.Snapshot, **fields: Any) -> stk.EndSnapshotResponse:
    request = stk.EndSnapshotRequest(request_id=names.id("end"), snapshot_id=snapshot.snapshot_id, **fields)
    return client.call(client.stock.EndSnapshot, request)


def test_by_sequences_what_came_later_is_taken_off(
    client: Service, names: Names, stocked: tuple[str, str, str]
) -> None:
    """As of number 2 there were 10, 2 damaged, whatever the stream told since; an event without a number unsettles."""
    source, node, sku = stocked
    other = names.sku("other")
    tell(
        client,
        source,
        delta(source, "SHIPMENT", sku, node, 3, number=3),
        delta(source, "QUARANTINE", sku, node, 1, number=4, reason="recall"),
        delta(source, "WRITE_OFF", sku, node, 2, number=5, reason="damage"),
        delta(source, "RECEIPT", other, node, 4, number=6),
    )
    mark = stk.SequenceMark(stream="moves", source_sequence=2)
    point = stk.SnapshotPoint(source=source, nodes=[node], as_of=[mark])
    found, kind = positions(client, node, point=point)
    assert kind == stk.POINT_KIND_SEQUENCES
    assert found == {(sku, node): (10, {"damage": 2}, True), (other, node): (0, {}, True)}
    tell(client, source, delta(source, "ADJUSTMENT", sku, node, 5, event_id=names.id("by hand")))
    found, _ = positions(client, node, point=point)
    assert found[sku, node] == (10, {"damage": 2}, False)
    assert found[other, node] == (0, {}, True)


def test_by_marks_what_changed_between_them_is_unsettled(
    client: Service, names: Names, stocked: tuple[str, str, str]
) -> None:
    """Before the first mark counts, between the marks unsettles, after the second is taken off; holds do neither."""
    source, node, sku = stocked
    moved, held = names.sku("moved"), names.sku("held")
    for one in (moved, held):
        tell(client, source, delta(source, "RECEIPT", one, node, 7, event_id=f"{one} first"))
    snapshot = begin(client, names, source, node)
    tell(client, source, delta(source, "SHIPMENT", moved, node, 1, event_id="between"))
    client.reserve(names.id("hold"), names.channel(), [(held, 2)], node=node)
    ended = end(client, names, snapshot).snapshot
    assert (ended.state, ended.source, list(ended.nodes)) == (stk.SNAPSHOT_STATE_ENDED, source, [node])
    tell(client, source, delta(source, "SHIPMENT", sku, node, 4, number=3))
    found, kind = positions(client, node, snapshot_id=snapshot.snapshot_id)
    assert kind == stk.POINT_KIND_MARKS
    assert found == {
        (sku, node): (10, {"damage": 2}, True),
        (moved, node): (7, {}, False),
        (held, node): (7, {}, True),
    }


def test_a_correction_counts_as_known_at_every_point(
    client: Service, names: Names, stocked: tuple[str, str, str]
) -> None:
    """What a run corrected, the next run over the same point finds corrected; the same correction twice is one."""
    source, node, sku = stocked
    tell(client, source, delta(source, "SHIPMENT", sku, node, 1, number=3))
    snapshot = begin(client, names, source, node)
    ended = end(client, names, snapshot)
    point = stk.SnapshotPoint(
        source=source, nodes=[node], as_of=[stk.SequenceMark(stream="moves", source_sequence=2)]
    )
    event_id = correction_id(names.id("run"), sku, node, "on_hand")
    fix = delta(CORRECTION_SOURCE, "ADJUSTMENT", sku, node, -6, event_id=event_id)
    tell(client, CORRECTION_SOURCE, fix)
    again = client.stock.ApplyDeltas(stk.ApplyDeltasRequest(source=CORRECTION_SOURCE, deltas=[fix]))
    assert list(again.results) == [stk.DELTA_RESULT_DUPLICATE]
    assert positions(client, node, point=point)[0] == {(sku, node): (4, {"damage": 2}, True)}
    by_marks, _ = positions(client, node, snapshot_id=ended.snapshot.snapshot_id)
    assert by_marks == {(sku, node): (3, {"damage": 2}, True)}


def test_without_a_point_there_is_a_report_only(
    client: Service, names: Names, stocked: tuple[str, str, str]
) -> None:
    """What is read is of now, and nothing says that it is settled."""
    source, node, sku = stocked
    point = stk.SnapshotPoint(source=source, nodes=[node])
    found, kind = positions(client, node, point=point)
    assert (found, kind) == ({(sku, node): (10, {"damage": 2}, False)}, stk.POINT_KIND_UNSPECIFIED)


def test_a_point_that_is_not_reached_is_waited_for(
    client: Service, names: Names, stocked: tuple[str, str, str]
) -> None:
    """The run waits no longer than its deadline, and is told which stream lags."""
    source, node, _ = stocked
    for stream, number in (("moves", 3), ("unheard", 1)):
        mark = stk.SequenceMark(stream=stream, source_sequence=number)
        request = stk.ReadPositionsRequest(point=stk.SnapshotPoint(source=source, nodes=[node], as_of=[mark]))
        assert refused(client.stock.ReadPositions(request, timeout=1.5)) == "SNAPSHOT_NOT_REACHED"


def test_rows_are_kept_once_and_sealed(client: Service, names: Names, stocked: tuple[str, str, str]) -> None:
    """A chunk that is sent again is kept once; other rows under its number, a gap, half a snapshot are refused."""
    source, node, sku = stocked
    snapshot = begin(client, names, source, node, basis=stk.SNAPSHOT_BASIS_NET, absent=stk.ABSENT_ROWS_ZERO)
    row = stk.SnapshotRow(
        sku=sku, node=node, on_hand=9, quarantined=[stk.ReasonQuantity(reason="damage", quantity=1)]
    )
    other = stk.SnapshotRow(sku=sku, node=node, on_hand=8)
    name = snapshot.snapshot_id
    acks = list(client.stock.StreamSnapshot(chunks(name, [row], [other, other])))
    assert [(ack.chunk_number, ack.row_count, ack.replayed) for ack in acks] == [(1, 1, False), (2, 3, False)]
    (ack,) = client.stock.StreamSnapshot(chunks(name, [row]))
    assert (ack.row_count, ack.replayed) == (3, True)
    assert refused(client.stock.StreamSnapshot(chunks(name, [other]))) == "CHUNK_CONFLICT"
    assert refused(client.stock.StreamSnapshot(chunks(name, [other], first=4))) == "CHUNK_GAP"
    with pytest.raises(Refusal, match="SNAPSHOT_INCOMPLETE"):
        end(client, names, snapshot, row_count=4)
    with pytest.raises(Refusal, match="SNAPSHOT_INCOMPLETE"):
        end(client, names, snapshot, row_count=4)
    (listed,) = client.stock.ListSnapshots(stk.ListSnapshotsRequest(source=source)).snapshots
    assert (listed.state, listed.row_count, listed.chunk_count) == (stk.SNAPSHOT_STATE_OPEN, 3, 2)
    request = stk.EndSnapshotRequest(request_id=names.id("end 2"), snapshot_id=name, row_count=3)
    sealed = client.call(client.stock.EndSnapshot, request)
    assert not sealed.replayed
    assert client.call(client.stock.EndSnapshot, request).replayed
    assert refused(client.stock.StreamSnapshot(chunks(name, [row], first=3))) == "SNAPSHOT_NOT_OPEN"
    read = list(client.stock.ReadSnapshot(stk.ReadSnapshotRequest(snapshot_id=name)))
    assert [list(page.rows) for page in read] == [[row], [other, other]]
    (last,) = client.stock.ReadSnapshot(stk.ReadSnapshotRequest(snapshot_id=name, first_chunk=2))
    assert last == read[1]
    close = stk.CloseSnapshotRequest(request_id=names.id("close"), snapshot_id=name)
    assert client.call(client.stock.CloseSnapshot, close).snapshot.state == stk.SNAPSHOT_STATE_CLOSED
    assert client.call(client.stock.CloseSnapshot, close).replayed
    assert refused(client.stock.StreamSnapshot(chunks("nobody's", [row]))) == "SNAPSHOT_NOT_FOUND"


def test_bad_requests_say_why(client: Service, names: Names, stocked: tuple[str, str, str]) -> None:
    """A node that nobody declared, a stream named twice, text that is none, two kinds of rows."""
    source, node, sku = stocked
    with pytest.raises(Refusal, match="UNKNOWN_NODE"):
        begin(client, names, source, names.node("nowhere"))
    open_one = begin(client, Names(names.number + "x"), source, node)
    with pytest.raises(Refusal, match="SNAPSHOT_NOT_ENDED"):
        client.call(
            lambda request, timeout: list(client.stock.ReadPositions(request, timeout=timeout)),
            stk.ReadPositionsRequest(snapshot_id=open_one.snapshot_id),
        )
    mark = stk.SequenceMark(stream="moves", source_sequence=1)
    with pytest.raises(Refusal, match="INVALID_REQUEST"):
        end(client, names, open_one, as_of=[mark, mark])
    bad = stk.SnapshotRow(sku="", node=node)
    assert refused(client.stock.StreamSnapshot(chunks(open_one.snapshot_id, [bad]))) == "INVALID_REQUEST"
    both = stk.StreamSnapshotRequest(
        snapshot_id=open_one.snapshot_id,
        chunk_number=1,
        rows=[stk.SnapshotRow(sku=sku, node=node)],
        order_rows=[stk.OpenOrderRow(order_ref="1", sku=sku)],
    )
    assert refused(client.stock.StreamSnapshot(iter([both]))) == "INVALID_REQUEST"
    neither = stk.ReadPositionsRequest()
    assert refused(client.stock.ReadPositions(neither)) == "INVALID_REQUEST"


def test_the_command_line_takes_a_snapshot(
    server: Server, names: Names, client: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Begun, sent twice, ended and read as CSV; a file that is none says where; and by numbers without a snapshot."""
    source, node, sku = names.id("erp"), names.id("node"), names.id("sku")  # as one types them
    tell(client, source, delta(source, "RECEIPT", sku, node, 10, number=1))
    at = ["--target", server.grpc]
    assert run(["snapshot", "begin", source, "--node", node, "--absent", "zero", *at]) == 0
    name = capsys.readouterr().out.strip()
    rows = tmp_path / "rows.csv"
    rows.write_text(f"sku,node,on_hand\n{sku},{node},9\n{sku},{node},ten\n")
    assert run(["snapshot", "send", name, str(rows), *at]) == 1
    assert "line 3: 'ten' is no whole number" in capsys.readouterr().err
    for wrong, said in (
        (b"\x9e\xff", "is no UTF-8 text"),
        (b"x" * 200_000, "is no CSV file: field larger than"),
    ):
        rows.write_bytes(wrong)
        assert run(["snapshot", "send", name, str(rows), *at]) == 1
        assert f"INVALID_FILE: rows.csv {said}" in capsys.readouterr().err
    rows.write_text(f"sku,node\n{sku},{node}\n")
    assert run(["snapshot", "send", name, str(rows), *at]) == 1
    assert "no column on_hand: use sku,node,on_hand or order_ref," in capsys.readouterr().err
    rows.write_text(f"sku,node,on_hand\n{sku},{node},9\n")
    for _ in range(2):
        assert run(["snapshot", "send", name, str(rows), *at]) == 0
        assert capsys.readouterr().out == "KEPT: 1 row\n"
    assert run(["snapshot", "end", name, "--rows", "2", *at]) == 3
    assert "SNAPSHOT_INCOMPLETE" in capsys.readouterr().err
    assert run(["snapshot", "end", name, "--rows", "1", *at]) == 0
    tell(client, source, delta(source, "SHIPMENT", sku, node, 4, number=2))
    capsys.readouterr()
    assert run(["snapshot", "positions", name, *at]) == 0
    head = "sku,node,on_hand,quarantined,settled,on_hand_now\n"
    assert capsys.readouterr().out == f"{head}{sku},{node},10,0,SETTLED,6\n"
    assert run(["snapshot", "positions", "--source", source, "--node", node, "--as-of", "moves=1", *at]) == 0
    assert capsys.readouterr().out == f"{head}{sku},{node},10,0,SETTLED,6\n"
    assert run(["snapshot", "list", "--source", source, *at]) == 0
    assert "ENDED" in capsys.readouterr().out
    assert run(["snapshot", "close", name, *at]) == 0
    assert run(["snapshot", "end", name, "--as-of", "nothing", *at]) == 2


class OneSnapshot(SnapshotLedger):
    """A store with one snapshot, of wms at two nodes."""

    def __init__(self, *nodes: str) -> None:
        self.nodes = list(nodes)

    def row(self, snapshot_id: str) -> SnapshotRow | None:
        kept = SnapshotRow("s", "wms", self.nodes, 1, 1, 1, 1, [], 1, 1, 0, 0, 0, 0, 0, 0, "anna", 0)
        return kept if snapshot_id == "s" else None


@pytest.mark.parametrize(
    ("bounds", "nodes", "allowed"),
    [
        (None, (), True),
        (Bounds(sources=frozenset(["wms"])), (), True),
        (Bounds(sources=frozenset(["erp"])), ("n1",), False),
        (Bounds(nodes=frozenset(["n1", "n2"])), ("n1", "n2"), True),
        (Bounds(nodes=frozenset(["n1"])), ("n1", "n2"), False),
        (Bounds(nodes=frozenset(["n1"])), (), False),
        (Bounds(sources=frozenset(["wms"]), nodes=frozenset(["n3"])), ("n1",), False),
    ],
)
def test_a_bound_token_reaches_its_own_snapshots_only(
    bounds: Bounds | None, nodes: tuple[str, ...], *, allowed: bool
) -> None:
    """Whose a snapshot is decides, and of which nodes it speaks: one of all nodes belongs to no token bound to some."""
    ctx = CallContext(Principal(id="bound", scopes=frozenset(), bounds=bounds), 0.0)
    if allowed:
        assert owned(OneSnapshot(*nodes), "s", ctx).source == "wms"
    else:
        with pytest.raises(ServiceError) as caught:
            owned(OneSnapshot(*nodes), "s", ctx)
        assert caught.value.reason == Reason.PERMISSION_DENIED
    with pytest.raises(ServiceError) as caught:
        owned(OneSnapshot(*nodes), "another", ctx)
    assert caught.value.reason == Reason.SNAPSHOT_NOT_FOUND


def order_lines(client: Service, names: Names, **asked: Any) -> dict[tuple[str, str], tuple[int, str]]:
    """Open lines of this test's orders: (order_ref, line) → open units, and whether they are settled."""
    found = {}
    for page in client.stock.ReadOrderLines(stk.ReadOrderLinesRequest(**asked), timeout=TIMEOUT_S):
        for line in page.lines:
            if line.sku == names.sku():
                settled = stk.Settling.Name(line.settling).removeprefix("SETTLING_")
                found[line.order_ref, line.line] = (line.open_quantity, settled)
                assert sum(at.open_quantity for at in line.nodes) == line.open_quantity
    return found


def test_open_order_lines_are_settled_where_nothing_touched_them_since(client: Service, names: Names) -> None:
    """By numbers and by marks; a shipment, a commit of ours and a fact after the point unsettle their order alone."""
    source, node, sku = names.id("erp"), names.node(), names.sku()
    tell(client, source, delta(source, "RECEIPT", sku, node, 50, number=1))
    for number, (ref, line) in enumerate([("o1", "1"), ("o1", "2"), ("o2", ""), ("o3", ""), ("o4", "")], 2):
        order: dict[str, Any] = {"order_ref": names.id(ref), "line": line}
        tell(client, source, delta(source, "ORDER_ALLOCATED", sku, node, 3, number=number, **order))
    tell(client, source, delta(source, "ORDER_CANCELLED", sku, "", 0, number=7, order_ref=names.id("o4")))
    snapshot = begin(client, names, source, node, content=stk.SNAPSHOT_CONTENT_OPEN_ORDERS)
    end(client, names, snapshot)
    shipped = delta(source, "SHIPMENT", sku, node, 1, number=8, order_ref=names.id("o2"))
    tell(client, source, shipped)
    late = delta(source, "ORDER_PLACED", sku, "", 0, number=10, order_ref=names.id("o5"))
    late_ship = delta(source, "ORDER_ALLOCATED", sku, node, 0, number=11, order_ref=names.id("o5"))
    numbers = stk.SequenceMark(stream="moves", source_sequence=7)
    gone = delta(source, "ORDER_CANCELLED", sku, "", 0, number=9, order_ref=names.id("o1"), line="2")
    tell(client, source, gone, late, late_ship)
    expected = {
        (names.id("o5"), ""): (0, "UNSETTLED"),
        (names.id("o1"), "1"): (3, "UNSETTLED"),
        (names.id("o1"), "2"): (0, "UNSETTLED"),
        (names.id("o2"), ""): (2, "UNSETTLED"),
        (names.id("o3"), ""): (3, "SETTLED"),
    }
    for asked in (
        {"snapshot_id": snapshot.snapshot_id},
        {"point": stk.SnapshotPoint(source=source, nodes=[node], as_of=[numbers])},
    ):
        assert order_lines(client, names, **asked) == expected
    fix = delta(CORRECTION_SOURCE, "ORDER_CANCELLED", sku, "", 0, event_id=names.id("fix"))
    fix.order_source, fix.order_ref = source, names.id("o3")
    tell(client, CORRECTION_SOURCE, fix)
    del expected[names.id("o3"), ""]
    assert order_lines(client, names, snapshot_id=snapshot.snapshot_id) == expected
    nowhere = stk.SnapshotPoint(source=source, nodes=[names.node("other")])
    assert order_lines(client, names, point=nowhere) == {}
