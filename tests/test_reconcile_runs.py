"""Runs against a real server: exact while everything flows, guarded, approved, resumed after any kill, never twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from availability.client import ClientError
from availability.v1 import stock_pb2 as pb
from ingest.reconcile.nightly import Ended
from ingest.reconcile.points import Point
from ingest.reconcile.store import CORRECTED, DONE, HELD, REFUSED, REPORTED
from tests.conftest import Names, Server
from tests.reconcile_lab import Books, Lab, snapshot

SKUS = 30


@pytest.fixture
def books(names: Names) -> Books:
    """A source with stock of 30 skus at one node, all of it told."""
    made = Books(names.id("erp"))
    for number in range(SKUS):
        made.move("RECEIPT", names.sku(number), names.node(), 100 + number, 1_000_000)
    return made


@pytest.fixture
def lab(server: Server, names: Names, tmp_path: Path, books: Books) -> Iterator[Lab]:
    settings = snapshot(books.source, tmp_path / "drop", (names.node(),))
    made = Lab(server, tmp_path, {"stock": settings})
    made.now = time.time() + 100  # files are older than that
    books.tell(made.client)
    yield made
    made.close()


def held_until_now(lab: Lab, run_id: str) -> dict[str, int]:
    return lab.store.states(run_id)


def guarded(lab: Lab, **limits: Any) -> None:
    """Give the snapshot other limits."""
    settings = lab.snapshots["stock"]
    lab.snapshots["stock"] = settings.model_copy(
        update={"guard": settings.guard.model_copy(update={"age_hours_max": 10_000_000.0, **limits})}
    )


def test_a_night_finds_and_mends_what_is_wrong(lab: Lab, books: Books, names: Names) -> None:
    """A lost and a doubled delta are found by cause and mended; what flows meanwhile and reservations are untouched."""
    guarded(lab, free_positions=100)
    file = lab.folder / "drop" / "stock.csv"
    books.write(file)
    assert [run.state for run in lab.nightly().runs] == [DONE]
    lost, doubled, quiet = names.sku(1), names.sku(2), names.sku(3)
    books.move("RECEIPT", lost, names.node(), 7, 2_000_000, "LOST")
    books.move("RECEIPT", doubled, names.node(), 9, 2_000_000, "DOUBLED")
    books.tell(lab.client)
    point = books.write(file)
    books.move("RECEIPT", lost, names.node(), 5, 3_000_000)  # after the point: stays on top
    books.tell(lab.client)
    held = lab.client.reserve(names.channel(), {quiet: 4}, hold_s=600)
    before = lab.stock((names.node(),))
    (run,) = lab.nightly().runs
    assert (run.state, run.point_kind, dict(run.as_of)) == (DONE, "SEQUENCES", dict(point.as_of))
    found = {one.sku: (one.cause, one.variance, one.state) for one in lab.store.variances(run.run_id)}
    assert found == {
        lost: ("MISSED_DELTA", -7, CORRECTED),
        doubled: ("DUPLICATE_DELTA", 9, CORRECTED),
    }
    after = lab.stock((names.node(),))
    assert {place: figures[0] for place, figures in after.items()} == dict(books.stock)
    changed = {place[0] for place in after if after[place] != before[place]}
    assert changed == {lost, doubled}
    assert after[quiet, names.node()][2] == 4
    lab.client.release(held.reservation.reservation_id)
    again = lab.run("stock", sorted((lab.folder / "drop" / "archive").glob("*stock.csv"))[-1], point)
    assert again.run_id == run.run_id
    books.write(file)
    (quiet_run,) = lab.nightly().runs
    assert (quiet_run.state, lab.store.states(quiet_run.run_id)) == (DONE, {})


class Killed(Exception):
    """The process is gone."""


class Dies:
    """A server whose caller is killed at the n-th call of any kind."""

    def __init__(self, lab: Lab, at: int, *, before: bool) -> None:
        self._ledger = lab.ledger
        self.left = at
        self._before = before

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._ledger, name)

        def call(*arguments: Any) -> Any:
            self.left -= 1
            if self.left == 0 and self._before:
                raise Killed
            answer = method(*arguments)
            if self.left == 0:
                raise Killed
            return answer

        return call


@pytest.mark.parametrize("before", [True, False])
def test_a_run_that_is_killed_goes_on(lab: Lab, books: Books, names: Names, before: bool) -> None:
    """Killed before or after any call, started again and again: each correction has one effect."""
    guarded(lab, free_positions=100)
    for number in range(5):
        books.move("RECEIPT", names.sku(number), names.node(), 3, 2_000_000, "LOST")
    file = lab.folder / "stock.csv"
    point = books.write(file)
    for at in range(1, 8):
        try:
            lab.run("stock", file, point, Dies(lab, at, before=before))
        except Killed:
            continue
        break
    else:
        raise AssertionError("it never came to its end")
    run = lab.run("stock", file, point)
    assert at > 1
    assert (run.state, lab.store.states(run.run_id)) == (DONE, {CORRECTED: 5})
    assert {place: one[0] for place, one in lab.stock((names.node(),)).items()} == dict(books.stock)
    assert len(lab.store.runs("stock")) == 1


def test_an_absurd_file_waits_and_is_approved(lab: Lab, books: Books, names: Names) -> None:
    """More than the guard allows: nothing is corrected and the sentence says why; approved, it is, once."""
    guarded(lab, free_positions=2)
    for number in range(20):
        books.move("ADJUSTMENT", names.sku(number), names.node(), -50, 2_000_000, "LOST")
    file = lab.folder / "stock.csv"
    before = lab.stock((names.node(),))
    run = lab.run("stock", file, books.write(file))
    assert run.state == HELD
    assert "20 of 30 positions would move" in run.reason
    assert lab.stock((names.node(),)) == before
    assert lab.nightly().ended is Ended.WAITS_FOR_APPROVAL  # also where nothing new has come
    done, approved = lab.desk().approve(run, "anna", "counted twice")
    assert lab.nightly().ended is Ended.FINE
    assert (done.state, approved) == (DONE, 20)
    assert {place: one[0] for place, one in lab.stock((names.node(),)).items()} == dict(books.stock)
    assert lab.store.approvals(run.run_id)[0][:3] == ("anna", "counted twice", 20)


def test_what_arrived_meanwhile_is_not_approved_as_well(lab: Lab, books: Books, names: Names) -> None:
    """The lost delta came late, while the run waited: to correct it too would count it twice."""
    guarded(lab, position_units_max=10)
    sku, node = names.sku(4), names.node()
    late = names.sku(5)
    at = int((lab.now - 3_600) * 1e6)
    books.move("RECEIPT", sku, node, 40, at, "LOST")
    books.move("RECEIPT", late, node, 30, at, "LOST")
    file = lab.folder / "stock.csv"
    books.write(file)
    run = lab.run("stock", file, Point(as_of={"moves": books.sequence}, taken_at=lab.now - 60))
    assert run.state == HELD
    delta = pb.Delta(source=books.source, event_id=names.id("late"), sku=late, node=node, quantity=30,
                     type=pb.DELTA_TYPE_RECEIPT)  # fmt: skip
    delta.occurred_time.FromMicroseconds(at)
    assert lab.client.apply_deltas(books.source, [delta]).results == [pb.DELTA_RESULT_APPLIED]
    lab.write_history()
    done, approved = lab.desk().approve(run, "anna", "looked")
    assert (done.state, approved) == (DONE, 1)
    assert {place: one[0] for place, one in lab.stock((node,)).items()} == dict(books.stock)


def bad_files(books: Books, names: Names, lab: Lab) -> dict[str, tuple[str, str, str]]:
    """Name → the file's content, the state it ends in, and a word of its sentence."""
    head = "sku,node,quantity\n"
    rows = [(sku, node, units) for (sku, node), units in sorted(books.stock.items())]
    node = names.node()

    def text(some: list[tuple[str, str, int]]) -> str:
        return head + "".join(f"{sku},{where},{units}\n" for sku, where, units in some)

    return {
        "half written": (text(rows[:12]), HELD, "half written"),
        "wrong node": (
            text([(sku, "another place", units) for sku, _, units in rows]),
            REFUSED,
            "another node",
        ),
        "all zeros": (text([(sku, where, 0) for sku, where, _ in rows]), HELD, "all 30 quantities are 0"),
        "doubled rows": (text([*rows, rows[3]]), REFUSED, "comes more than once"),
        "in cases": (
            text([(sku, where, units // 12 or 1) for sku, where, units in rows]),
            HELD,
            "would move",
        ),
        "unknown skus": (
            text([*rows, *((f"nobody's {number}", node, 1) for number in range(500))]),
            HELD,
            "500 of 530 rows have a sku that the ledger does not know",
        ),
        "another table": ("a,b\n1,2\n", REFUSED, "columns are missing"),
        "nothing": (head, REFUSED, "no row at all"),
        "no text": ("\x00\x01\x02", REFUSED, ""),
    }


def test_bad_files_change_nothing_and_say_why(lab: Lab, books: Books, names: Names) -> None:
    """Each is stopped with a plain sentence, and the ledger is as it was."""
    guarded(lab, free_positions=2)
    before = lab.stock((names.node(),))
    lab.write_history()
    for number, (name, (text, state, word)) in enumerate(bad_files(books, names, lab).items()):
        file = lab.folder / f"{number}.csv"
        file.write_bytes(text.encode())
        run = lab.desk().run(lab.snapshots["stock"], file, Point(as_of={"moves": books.sequence})).run
        assert run.state == state, (name, run.reason)
        assert word in run.reason, (name, run.reason)
        assert "\n" not in run.reason
        assert lab.stock((names.node(),)) == before, name
        if state == REFUSED:  # and each difference that is kept of it says so
            assert {one.hold for one in lab.store.variances(run.run_id)} <= {"REFUSED"}, name


def test_what_an_unreadable_row_spoke_of_is_not_taken_for_absent(
    lab: Lab, books: Books, names: Names
) -> None:
    """A row that cannot be read names a position that is there: nothing that has no row is set to nothing then."""
    guarded(lab, free_positions=100)
    file = lab.folder / "stock.csv"
    books.move("RECEIPT", names.sku(1), names.node(), 4, 2_000_000, "LOST")
    point = books.write(file)
    text = file.read_text()
    broken = f"{names.sku(0)},{names.node()},100"
    assert broken in text
    file.write_text(text.replace(broken, broken.replace(",100", ",1oo")))
    run = lab.run("stock", file, point)
    found = {one.sku: (one.state, one.hold) for one in lab.store.variances(run.run_id)}
    assert found == {names.sku(0): (REPORTED, "ROWS_REFUSED"), names.sku(1): (CORRECTED, "")}
    assert {place: one[0] for place, one in lab.stock((names.node(),)).items()} == dict(books.stock)


def test_last_weeks_file_is_refused(lab: Lab, books: Books, names: Names) -> None:
    """A point of before the last one, or one that is too old by its time: nothing happens."""
    file = lab.folder / "stock.csv"
    guarded(lab)
    assert lab.run("stock", file, books.write(file)).state == DONE
    older = lab.run("stock", file, Point(as_of={"moves": books.sequence - 3}))
    assert (older.state, "older than what was compared last" in older.reason) == (REFUSED, True)
    guarded(lab, age_hours_max=36.0)
    old = lab.run("stock", file, Point(as_of={"moves": books.sequence}, taken_at=lab.now - 7 * 86_400))
    assert old.state == DONE  # the very file: known, and nothing is done
    books.move("RECEIPT", names.sku(0), names.node(), 1, 1_000_000)
    books.tell(lab.client)
    old = lab.run("stock", file, Point(as_of={"moves": books.sequence}, taken_at=lab.now - 7 * 86_400))
    assert (old.state, "last week's" in old.reason) == (REFUSED, True)


def test_without_a_point_it_is_only_reported(lab: Lab, books: Books, names: Names) -> None:
    """Nobody knows as of when it is true."""
    books.move("RECEIPT", names.sku(0), names.node(), 1, 2_000_000, "LOST")
    file = lab.folder / "stock.csv"
    books.write(file)
    run = lab.run("stock", file, Point())
    assert run.state == REPORTED
    (found,) = lab.store.variances(run.run_id)
    assert (found.variance, found.state, found.hold) == (-1, REPORTED, "NO_POINT")


def test_between_marks_what_moved_is_left_alone(lab: Lab, books: Books, names: Names) -> None:
    """With marks, positions that changed between them are UNSETTLED; the others are corrected."""
    guarded(lab)
    node = names.node()
    books.move("RECEIPT", names.sku(0), node, 2, 2_000_000, "LOST")
    books.move("RECEIPT", names.sku(1), node, 2, 2_000_000, "LOST")
    begun = lab.client.call(
        lab.client.stock.BeginSnapshot, pb.BeginSnapshotRequest(source=books.source, nodes=[node])
    ).snapshot
    books.move("RECEIPT", names.sku(1), node, 6, 3_000_000)
    books.tell(lab.client)
    lab.client.call(lab.client.stock.EndSnapshot, pb.EndSnapshotRequest(snapshot_id=begun.snapshot_id))
    file = lab.folder / "stock.csv"
    books.write(file)
    run = lab.run("stock", file, Point(snapshot_id=begun.snapshot_id))
    found = {one.sku: (one.state, one.hold) for one in lab.store.variances(run.run_id)}
    assert found == {names.sku(0): (CORRECTED, ""), names.sku(1): (REPORTED, "UNSETTLED")}


def test_a_streamed_snapshot_is_run_by_night(lab: Lab, books: Books, names: Names) -> None:
    """Rows that came over StreamSnapshot, quarantine included, and are closed afterwards."""
    guarded(lab)
    node = names.node()
    begun = lab.client.call(
        lab.client.stock.BeginSnapshot, pb.BeginSnapshotRequest(source=books.source, nodes=[node])
    ).snapshot
    rows = [
        pb.SnapshotRow(
            sku=sku, node=node, on_hand=units, quarantine_known=True,
            quarantined=[pb.ReasonQuantity(reason="damage", quantity=3)] if sku == names.sku(0) else [],
        )
        for (sku, _), units in books.stock.items()
    ]  # fmt: skip
    request = pb.StreamSnapshotRequest(snapshot_id=begun.snapshot_id, chunk_number=1, rows=rows)
    list(lab.client.stock.StreamSnapshot(iter([request]), timeout=20))
    lab.client.call(
        lab.client.stock.EndSnapshot,
        pb.EndSnapshotRequest(snapshot_id=begun.snapshot_id, row_count=len(rows)),
    )
    (run,) = lab.nightly().runs
    assert (run.state, lab.store.states(run.run_id)) == (DONE, {CORRECTED: 1})
    assert lab.stock((node,))[names.sku(0), node][:2] == (100, 3)
    assert lab.nightly().runs == []


def test_a_correction_that_the_ledger_refuses_is_told(lab: Lab, books: Books, names: Names) -> None:
    """A refusal is noted with its reason; the others are corrected."""
    guarded(lab)
    books.move("RECEIPT", names.sku(0), names.node(), 2, 2_000_000, "LOST")
    books.move("RECEIPT", names.sku(1), names.node(), 3, 2_000_000, "LOST")
    file = lab.folder / "stock.csv"

    class Refuses(Dies):
        def __getattr__(self, name: str) -> Any:
            if name != "apply":
                return getattr(self._ledger, name)

            def apply(source: str, deltas: list[pb.Delta]) -> pb.ApplyDeltasResponse:
                for delta in deltas:
                    if delta.sku == names.sku(1):
                        delta.node = ""
                return self._ledger.apply(source, deltas)

            return apply

    run = lab.run("stock", file, books.write(file), Refuses(lab, 0, before=True))
    found = {one.sku: (one.state, bool(one.message)) for one in lab.store.variances(run.run_id)}
    assert found == {names.sku(0): (CORRECTED, False), names.sku(1): (REFUSED, True)}


def test_an_outage_leaves_the_run_open(lab: Lab, books: Books, names: Names) -> None:
    """A server that goes away ends the command; the next start goes on."""
    guarded(lab)
    books.move("RECEIPT", names.sku(0), names.node(), 2, 2_000_000, "LOST")
    file = lab.folder / "stock.csv"
    point = books.write(file)

    class Away(Dies):
        def __getattr__(self, name: str) -> Any:
            raise ClientError("UNAVAILABLE", "UNAVAILABLE", "nobody is there", {})

    with pytest.raises(ClientError):
        lab.run("stock", file, point, Away(lab, 0, before=True))
    assert lab.store.unfinished()
    assert lab.run("stock", file, point).state == DONE


def test_one_of_two_snapshots_speaks_for_a_position(lab: Lab, books: Books, names: Names) -> None:
    """Of the lower rank, the other one is only reported; of one rank, neither corrects what both name."""
    guarded(lab, free_positions=100)
    first = lab.snapshots["stock"].model_copy(update={"rank": 1})
    lab.snapshots["stock"] = first
    lab.snapshots["count"] = first.model_copy(update={"name": "count", "rank": 2})
    file = lab.folder / "stock.csv"
    assert lab.run("stock", file, books.write(file)).state == DONE
    books.stock[names.sku(0), names.node()] += 5
    other = lab.folder / "count.csv"
    point = books.write(other)
    run = lab.run("count", other, point)
    (found,) = lab.store.variances(run.run_id)
    assert (found.state, found.hold) == (REPORTED, "OTHER_SPEAKS")
    lab.snapshots["count"] = lab.snapshots["count"].model_copy(update={"rank": 1})
    books.stock[names.sku(0), names.node()] += 1
    run = lab.run("count", other, books.write(other))
    (found,) = lab.store.variances(run.run_id)
    assert (found.state, found.hold) == (REPORTED, "TWO_SPEAK")
    run = lab.run("stock", file, books.write(file))
    assert [one.hold for one in lab.store.variances(run.run_id)] == ["TWO_SPEAK"]


def test_a_lost_cancellation_is_found_in_the_open_orders(lab: Lab, books: Books, names: Names) -> None:
    """An order that its source no longer has holds stock: it is brought to nothing, others stay as they are."""
    node, gone, stays, ours = names.node(), names.id("gone"), names.id("stays"), names.id("ours")
    for order in (gone, stays):
        books.move("ORDER_PLACED", names.sku(0), "", 4, 2_000_000, order_ref=order, line="1")
        books.move("ORDER_ALLOCATED", names.sku(0), node, 4, 2_000_000, order_ref=order, line="1")
    books.tell(lab.client)
    held = lab.client.reserve(
        names.channel(), {names.sku(1): 2}, hold_s=600, order_source=books.source, order_ref=ours
    )
    lab.client.commit(held.reservation.reservation_id, ours, order_source=books.source)
    mapping = {
        "version": "1",
        "columns": {"sku": "sku", "node": "node", "quantity": "open", "order_ref": "order", "line": "line"},
    }
    lab.snapshots["orders"] = snapshot(
        books.source, lab.folder / "drop", (node,), name="orders", kind="ORDERS", mapping=mapping,
        order_sources=[books.source], guard={"free_positions": 10},
    )  # fmt: skip
    file = lab.folder / "orders.csv"
    file.write_text(f"sku,node,open,order,line\n{names.sku(0)},{node},4,{stays},1\n", encoding="utf-8")
    assert lab.stock((node,))[names.sku(0), node][3] == 8
    run = lab.run("orders", file, Point(as_of={"moves": books.sequence}, taken_at=lab.now - 60))
    found = {
        one.order_ref: (one.cause, one.variance, one.state, one.hold)
        for one in lab.store.variances(run.run_id)
    }
    assert found == {
        gone: ("MISSED_DELTA", 4, CORRECTED, ""),
        ours: ("ORDER_UNCONFIRMED", 2, REPORTED, found[ours][3]),
    }
    assert lab.stock((node,))[names.sku(0), node][3] == 4
    assert lab.stock((node,))[names.sku(1), node][3] == 2
    books.move("RECEIPT", names.sku(5), node, 1, 3_000_000)
    books.tell(lab.client)
    again = lab.run("orders", file, Point(as_of={"moves": books.sequence}, taken_at=lab.now - 50))
    assert again.run_id != run.run_id
    assert CORRECTED not in lab.store.states(again.run_id)
