"""What an operator does about sources: look, skip, compare, cut over, reverse, open; against a real server."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from structlog.testing import capture_logs

from availability.client import Client, ClientError, SequenceGapError
from availability.v1 import policy_pb2 as pol
from availability.v1 import stock_pb2 as stk
from ingest.app import IngestDesk
from ingest.authority import Cutover, Point
from ingest.database import open_database
from ingest.operations import CutoverRefused, OpeningRefused
from ingest.retention import clean
from ingest.reverse import REVERSED, ReverseRefused
from ingest.runs import DONE, Outcome
from ingest.settings import SettingsRefused, SourceSettings, read_source
from ingest.status import ParkedAlarm
from tests.conftest import Names, Server
from tests.ingest_lab import NUMBERS, plain_source

ORDERS = 'order_ref = "order"\nline = "line"\noccurred_time = "at"\n'
AT = "2026-11-01T08:00:00Z"


class Works:
    """Sources of one test over one database, their folders, and what the ledger says."""

    def __init__(self, folder: Path, server: Server, names: Names) -> None:
        self.folder, self.names = folder, names
        self.client = Client(server.grpc)
        self.engine = open_database(str(folder / "ingest.db"))
        self.sources: dict[str, SourceSettings] = {}
        self.node = names.node("east")
        self.channel = names.channel("all")
        self._count = 0

    def source(self, name: str, *, top: str = "", columns: str = "", more: str = "") -> str:
        source = self.names.id(name)
        path = self.folder / f"{name}.toml"
        text = plain_source(
            source, top=f"batch_deltas = 10\n{top}", columns=columns, folder=source, more=more
        )
        path.write_text(text)
        self.sources[source] = read_source(path)
        return source

    @property
    def desk(self) -> IngestDesk:
        return IngestDesk(self.sources, self.engine, self.client)

    def write(self, source: str, *rows: str) -> Path:
        drop = self.sources[source].drop
        assert drop is not None
        drop.folder.mkdir(exist_ok=True)
        self._count += 1
        columns = self.sources[source].mapping.columns.values()
        path = drop.folder / f"{self._count:03d}.csv"
        path.write_text("\n".join((",".join(columns), *rows, "")))
        return path

    def carry(self, source: str, *rows: str) -> Outcome:
        return self.desk.pipeline(source).carry(self.write(source, *rows))

    def on_hand(self, sku: str) -> int:
        return self.nodes(sku)[0]

    def nodes(self, sku: str) -> tuple[int, int, int]:
        terms = self.client.explain(self.channel, sku).terms.nodes
        mine = [node for node in terms if node.node == self.node]
        return (
            sum(node.on_hand for node in mine),
            sum(node.quarantined for node in mine),
            sum(node.committed for node in mine),
        )

    def kit(self, kit: str, **components: int) -> str:
        code = self.names.sku(kit)
        parts = [pol.KitComponent(sku=self.names.sku(sku), units=units) for sku, units in components.items()]
        self.client.call(
            self.client.policies.SetKit,
            pol.SetKitRequest(reason="test", kit_sku=code, components=parts),
        )
        return code

    def order(self, source: str, ref: str) -> Counter[str]:
        found = self.client.call(
            self.client.stock.GetOrder, stk.GetOrderRequest(order_source=source, order_ref=ref)
        )
        ordered: Counter[str] = Counter()
        for line in found.lines:
            ordered[line.sku] += line.ordered
        return ordered


@pytest.fixture
def works(tmp_path: Path, server: Server, names: Names) -> Iterator[Works]:
    made = Works(tmp_path, server, names)
    yield made
    made.client.close()


# --- Order and ages ---------------------------------------------------------------------------------------


def test_status_shows_what_waits_and_a_gap_can_be_skipped(works: Works) -> None:
    """Numbers, ages, the watermark; since when and for which number a stream waits; skipping lets it go on."""
    source = works.source("wms", columns=NUMBERS + 'occurred_time = "at"\n')
    tea = works.names.sku("tea")
    works.carry(
        source,
        f"RECEIPT,{tea},{works.node},3,s,1,2026-11-01T08:00:00Z",
        f"RECEIPT,{tea},{works.node},x,s,2,2026-11-01T09:00:00Z",
        f"RECEIPT,{tea},{works.node},4,s,3,2026-11-01T08:30:00Z",
    )
    line = works.desk.operations.status(works.sources[source])
    assert (line.files, line.letters) == (1, 1)  # carried by hand: the file still lies there
    (stream,) = line.streams
    assert (stream.stream, stream.last_sequence, stream.parked_s) == ("s", 3, None)
    assert stream.watermark == datetime(2026, 11, 1, 8, 30, tzinfo=UTC).timestamp()
    path = works.write(source, f"RECEIPT,{tea},{works.node},5,s,6,2026-11-01T10:00:00Z")
    with pytest.raises(SequenceGapError):
        works.desk.pipeline(source).carry(path)
    first = works.desk.operations.marks(source)[0].parked_at
    with pytest.raises(SequenceGapError):
        works.desk.pipeline(source).carry(path)
    assert works.desk.operations.marks(source)[0].parked_at == first
    (stream,) = works.desk.operations.status(works.sources[source]).streams
    assert stream.waits_for == 4
    assert stream.parked_s is not None
    works.desk.operations.skip_gap(source, "s", 6, "lost for good")
    assert works.desk.pipeline(source).carry(path).state == DONE
    (stream,) = works.desk.operations.status(works.sources[source]).streams
    assert (stream.last_sequence, stream.parked_s, stream.waits_for) == (6, None, 0)
    assert works.on_hand(tea) == 12


def test_a_stream_that_was_reset_says_so_until_its_next_number(works: Works) -> None:
    """ListStreams as ResetStream: a source that counts anew is seen to, and waits for nothing; then it is open."""
    source = works.source("wms", columns=NUMBERS)
    tea = works.names.sku("tea")
    works.carry(source, f"RECEIPT,{tea},{works.node},3,s,8")
    with pytest.raises(SequenceGapError):
        works.desk.pipeline(source).carry(works.write(source, f"RECEIPT,{tea},{works.node},1,s,12"))

    def state() -> tuple[str, int]:
        request = stk.ListStreamsRequest(source=source)
        (stream,) = works.desk.client.call(works.desk.client.stock.ListStreams, request).streams
        return stk.StreamState.Name(stream.state).removeprefix("STREAM_STATE_"), stream.last_sequence

    assert state() == ("PARKED", 8)
    answer = works.desk.operations.reset_stream(source, "s", "the WMS was set up anew")
    assert answer.state == stk.STREAM_STATE_RESET
    assert state() == ("RESET", 0)
    (stream,) = works.desk.operations.status(works.sources[source]).streams
    assert (stream.was_reset, stream.parked_s, stream.waits_for) == (True, None, 0)
    works.carry(source, f"RECEIPT,{tea},{works.node},5,s,1")
    assert state() == ("OPEN", 1)
    (stream,) = works.desk.operations.status(works.sources[source]).streams
    assert (stream.was_reset, stream.last_sequence, stream.parked_s) == (False, 1, None)
    assert works.on_hand(tea) == 8


def test_a_stream_that_waits_too_long_is_told_once_in_a_while(works: Works) -> None:
    """One error in the log when the time is over, the next after as long again; none once it goes on."""
    source = works.source("wms", columns=NUMBERS)
    marks = works.desk.pipeline(source).marks
    marks.parked("s", 4, 1_000.0)
    clock = [1_000.0]
    alarm = ParkedAlarm(lambda: clock[0])
    with capture_logs() as logs:
        for clock[0] in (1_010.0, 1_060.0, 1_070.0, 1_121.0, 1_130.0):
            alarm.look(marks.all(), 60.0)
    assert [(line["log_level"], line["parked_s"], line["waits_for"]) for line in logs] == [
        ("error", 60, 4),
        ("error", 121, 4),
    ]
    marks.skipped("s")
    assert alarm.look(marks.all(), 60.0) == []


def test_an_idle_source_is_heard_while_its_folder_is_healthy(works: Works) -> None:
    """Heartbeats keep a watched feed fresh; without a folder that can be read there are none."""
    source = works.source("wms", top="heartbeat_s = 0.2")
    works.carry(source, f"RECEIPT,{works.names.sku('tea')},{works.node},3")
    drop = works.sources[source].drop
    assert drop is not None
    for path in drop.folder.glob("*.csv"):
        path.unlink()
    works.client.call(
        works.client.policies.SetFeed,
        pol.SetFeedRequest(
            reason="test",
            source=source,
            node=works.node,
            expected_interval=Duration(seconds=1),
            grace=Duration(nanos=500_000_000),
        ),
    )
    desk, until = works.desk, time.monotonic() + 3.0
    desk.run(once=False, stopped=lambda: time.monotonic() > until, watch=lambda *_: None, told=lambda _: None)
    assert _feed_age_s(works, source) < 1.5


def _feed_age_s(works: Works, source: str) -> float:
    feeds = works.client.explain(works.channel, works.names.sku("tea")).terms.feeds
    (feed,) = [one for one in feeds if one.source == source]
    assert not feed.stale
    return feed.age_ms / 1000


# --- Shadow and cutover -----------------------------------------------------------------------------------


def swap(works: Works) -> tuple[str, str, str]:
    """An old source that speaks, a new one in shadow, a sku of which the old one has told 10."""
    tea = works.names.sku("tea")
    old = works.source("old", columns=NUMBERS)
    new = works.source("new", top=f'mode = "shadow"\nshadow_channel = "{works.channel}"', columns=NUMBERS)
    works.carry(old, f"RECEIPT,{tea},{works.node},10,s,1")
    return old, new, tea


def test_a_source_in_shadow_is_compared_and_not_applied(works: Works) -> None:
    """Not a unit moves; what both tell agrees, what one misses or the other doubles is a difference."""
    old, new, tea = swap(works)
    outcome = works.carry(
        new,
        f"SHIPMENT,{tea},{works.node},2,n,1",
        f"SHIPMENT,{tea},{works.node},2,n,1",
        f"RECEIPT,{tea},{works.node},x,n,2",
    )
    assert (outcome.state, outcome.progress.compared, outcome.progress.refused) == (DONE, 1, 1)
    assert works.on_hand(tea) == 10
    assert works.client.last_sequences(new) == {}
    shadow = works.desk.operations.shadow(works.sources[new])
    (one,) = shadow.report(time.time())
    assert (one.says, one.ledger, one.difference, one.based_on) == (8, 10, -2, "LEDGER")
    works.carry(old, f"SHIPMENT,{tea},{works.node},2,s,2")
    assert [one.difference for one in shadow.report(time.time())] == [0]
    works.carry(new, f"SET_ON_HAND,{tea},{works.node},30,n,3", f"RECEIPT,{tea},{works.node},1,n,4")
    (one,) = shadow.report(time.time())
    assert (one.says, one.difference, one.based_on) == (31, 23, "SAID")
    assert shadow.rebase(time.time()) == 1
    assert [one.difference for one in shadow.report(time.time())] == [0]
    letter = works.desk.letters.find(source=new)[0]
    outcome_of_replay = works.desk.replay([letter])
    assert outcome_of_replay.refused, "a letter of a source in shadow is not applied either"
    assert works.on_hand(tea) == 8


def test_authority_moves_without_a_jump_and_without_double_counting(works: Works) -> None:
    """Both sources tell every movement; each counts once, whichever side of the point it is on."""
    old, new, tea = swap(works)
    cake = works.names.sku("cake")
    works.carry(old, f"RECEIPT,{cake},{works.node},5,s,2")
    both = [f"SHIPMENT,{tea},{works.node},1" for _ in range(6)]
    works.carry(old, *(f"{row},s,{n}" for n, row in enumerate(both[:2], 3)))
    works.carry(new, *(f"{row},n,{n}" for n, row in enumerate(both[:2], 1)))
    operations = works.desk.operations
    move = Cutover(
        from_source=old,
        from_point=Point(stream="s", sequence=6),
        to_source=new,
        to_point=Point(stream="n", sequence=4),
        nodes=frozenset({works.node}),
        skus=frozenset({tea}),
        reason="new ERP",
        made_at=time.time(),
    )
    operations.shadow(works.sources[new]).rebase(time.time())
    before = works.nodes(tea)
    operations.cut_over(move, works.sources[new], settle_s=0)
    assert works.nodes(tea) == before
    # The old one tells all six (numbers 5 to 8), and something of a sku that stays its own.
    late = works.carry(
        old, *(f"{row},s,{n}" for n, row in enumerate(both[2:], 5)), f"SHIPMENT,{cake},{works.node},1,s,9"
    )
    assert (late.progress.applied, late.progress.reasons) == (3, {"NOT_AUTHORITY": 2})
    # The new one too (numbers 3 to 6): before its point they are counted and left out.
    told = works.carry(new, *(f"{row},n,{n}" for n, row in enumerate(both[2:], 3)))
    assert (told.progress.applied, told.progress.before_point) == (2, 2)
    assert works.on_hand(tea) == 10 - 6
    assert works.on_hand(cake) == 4
    # Of other skus the new source is still only compared.
    assert works.carry(new, f"RECEIPT,{cake},{works.node},7,n,7").progress.compared == 1
    assert works.carry(new, f"RECEIPT,{tea},{works.node},7,n,8").progress.applied == 1
    assert (works.on_hand(tea), works.on_hand(cake)) == (11, 4)
    letters = works.desk.letters.find(source=old)
    assert {letter.category for letter in letters} == {"AUTHENTICATION"}
    assert len(works.desk.replay(letters).refused or ()) == len(letters)
    assert works.on_hand(tea) == 11


def test_a_cutover_that_would_count_twice_is_refused(works: Works) -> None:
    """A point that has passed, a point that is not given, differences that nobody accepted."""
    old, new, tea = swap(works)
    works.carry(new, f"RECEIPT,{tea},{works.node},7,n,1")

    def move(sequence: int, **changes: object) -> Cutover:
        fields: dict[str, object] = {
            "from_source": old,
            "from_point": Point(stream="s", sequence=sequence),
            "to_source": new,
            "to_point": Point(sequence=4),
            "nodes": frozenset({works.node}),
            "skus": frozenset(),
            "reason": "",
            "made_at": 0.0,
        }
        return Cutover(**{**fields, **changes})  # type: ignore[arg-type]  # by name

    def refused(one: Cutover) -> str:
        with pytest.raises(CutoverRefused) as refusal:
            works.desk.operations.cut_over(one, works.sources[new], settle_s=0)
        return str(refusal.value)

    assert "is at 1 of s already" in refused(move(0))
    assert "positions differ" in refused(move(5))
    assert "no point of" in refused(move(5, to_point=Point()))
    assert "name nodes or skus" in refused(move(5, nodes=frozenset()))
    assert "the same" in refused(move(5, to_source=old))
    accepted = works.desk.operations.cut_over(
        move(5), works.sources[new], accept_differences=True, settle_s=0
    )
    assert [one.difference for one in accepted] == [7]


def test_events_without_numbers_are_cut_at_a_time(works: Works) -> None:
    """The old one's until then, the new one's after."""
    tea = works.names.sku("tea")
    old, new = (works.source(name, columns='occurred_time = "at"\n') for name in ("old", "new"))
    at = datetime(2026, 11, 1, 12, tzinfo=UTC).timestamp()
    move = Cutover(
        from_source=old,
        from_point=Point(at_time=at),
        to_source=new,
        to_point=Point(at_time=at),
        nodes=frozenset({works.node}),
        skus=frozenset(),
        reason="",
        made_at=0.0,
    )
    works.desk.operations.cut_over(move, works.sources[new], settle_s=0)
    rows = [f"RECEIPT,{tea},{works.node},{n},2026-11-01T{n}:00:00Z" for n in (10, 12, 14)]
    assert works.carry(old, *rows).progress.reasons == {"NOT_AUTHORITY": 1}
    assert works.carry(new, *rows).progress.before_point == 2
    assert works.on_hand(tea) == 10 + 12 + 14


# --- Undo -------------------------------------------------------------------------------------------------


def test_a_run_is_booked_back_once(works: Works) -> None:
    """Every stock type finds its opposite, an order's shipment is voided; twice changes nothing; facts are listed."""
    source = works.source("wms", columns=ORDERS + 'reason = "why"\nreference = "doc"\n')
    tea, node = works.names.sku("tea"), works.node
    works.carry(
        source,
        f"RECEIPT,{tea},{node},50,,,{AT},,",
        f"QUARANTINE,{tea},{node},9,,,{AT},damage,",
        f"ORDER_PLACED,{tea},{node},4,o1,1,{AT},,",
    )
    before = works.nodes(tea)
    outcome = works.carry(
        source,
        f"RECEIPT,{tea},{node},7,,,{AT},,",
        f"RECEIPT,{tea},{node},2,,,{AT},inspection,",
        f"ADJUSTMENT,{tea},{node},-3,,,{AT},,",
        f"SHIPMENT,{tea},{node},1,o1,1,{AT},,",
        f"SHIPMENT,{tea},{node},2,,,{AT},,",
        f"QUARANTINE,{tea},{node},3,,,{AT},damage,",
        f"QUARANTINE_RELEASE,{tea},{node},1,,,{AT},damage,",
        f"WRITE_OFF,{tea},{node},2,,,{AT},damage,",
        f"RETURN_RECEIVED,{tea},{node},1,,,{AT},,",
        f"RECEIPT,{tea},{node},many,,,{AT},,",
        f"ORDER_PLACED,{tea},{node},5,o2,1,{AT},,",
    )
    assert outcome.progress.refused == 1
    after = works.nodes(tea)
    assert after != before
    drop = works.sources[source].drop
    assert drop is not None
    operations = works.desk.operations
    with pytest.raises(ReverseRefused, match="not in"):
        operations.reverser(outcome.run_id, works.sources[source], None, "wrong file")
    file = drop.folder / "002.csv"
    reverser, path = operations.reverser(outcome.run_id[:10], works.sources[source], file, "wrong file")
    preview = reverser.preview(path)
    assert works.nodes(tea) == after
    assert preview.on_hand[tea, node] == before[0] - after[0]
    assert preview.quarantined[tea, node] == before[1] - after[1]
    assert preview.stays_count == {"order facts are not reversed": 1}

    def book() -> tuple[int, int]:
        found = reverser.book(path, lambda deltas: works.client.apply_deltas(source, deltas), time.time)
        assert found.refused == []
        return found.applied, found.repeated

    assert book() == (9, 0)
    assert works.nodes(tea) == (before[0], before[1], before[2] + 5)
    assert book() == (0, 9)
    assert works.nodes(tea) == (before[0], before[1], before[2] + 5)
    assert [run.state for run in works.desk.runs(5) if run.run_id == outcome.run_id] == [REVERSED]


def test_only_what_the_run_itself_applied_is_booked_back(works: Works) -> None:
    """A row that an earlier file had brought is not this run's; another file is not the run's file."""
    source = works.source("wms", columns='event_id = "id"\n')
    tea, node = works.names.sku("tea"), works.node
    works.carry(source, f"RECEIPT,{tea},{node},5,a")
    outcome = works.carry(source, f"RECEIPT,{tea},{node},5,a", f"RECEIPT,{tea},{node},2,b")
    drop = works.sources[source].drop
    assert drop is not None
    operations = works.desk.operations
    reverser, path = operations.reverser(
        outcome.run_id, works.sources[source], drop.folder / "002.csv", "twice"
    )
    found = reverser.book(path, lambda deltas: works.client.apply_deltas(source, deltas), time.time)
    assert (found.applied, found.stays_count) == (1, {"had no effect: REPEATED": 1})
    assert works.on_hand(tea) == 5
    with pytest.raises(ReverseRefused, match="not the file"):
        reverser.preview(drop.folder / "001.csv")


# --- Opening ----------------------------------------------------------------------------------------------


def test_an_opening_load_is_both_files_or_neither(works: Works) -> None:
    """Every problem of both files at once and nothing loaded; then stock and orders; a second time only when asked."""
    source = works.source("erp", columns=ORDERS)
    tea, cake, node = works.names.sku("tea"), works.names.sku("cake"), works.node
    box = works.kit("box", cake=2)
    good_stock = works.write(
        source, f"SET_ON_HAND,{tea},{node},20,,,{AT}", f"SET_ON_HAND,{cake},{node},8,,,{AT}"
    )
    bad_stock = works.write(
        source,
        f"SET_ON_HAND,{tea},{node},20,,,{AT}",
        f"SET_ON_HAND,{tea},{node},21,,,{AT}",
        f"SET_ON_HAND,{box},{node},1,,,{AT}",
        f"SHIPMENT,{tea},{node},1,,,{AT}",
        f"SET_ON_HAND,{tea},{works.names.node('mars')},1,,,",
    )
    orders = works.write(
        source, f"ORDER_PLACED,{tea},{node},3,o1,1,{AT}", f"ORDER_PLACED,{box},{node},2,o1,2,{AT}"
    )
    bad_orders = works.write(source, f"ORDER_PLACED,{tea},{node},many,o1,1,{AT}")
    operations, settings = works.desk.operations, works.sources[source]
    with pytest.raises(OpeningRefused) as refusal:
        operations.open(bad_stock, bad_orders, settings, settings, new_nodes=True)
    assert refusal.value.found is not None
    assert [(file, line) for file, line, _ in refusal.value.found.problems] == [
        (bad_stock.name, 3),
        (bad_stock.name, 4),
        (bad_stock.name, 5),
        (bad_stock.name, 6),
        (bad_orders.name, 2),
    ]
    assert works.nodes(tea) == (0, 0, 0)
    with pytest.raises(OpeningRefused) as refusal:
        operations.open(good_stock, orders, settings, settings)
    assert refusal.value.found is not None
    assert "knows no node" in refusal.value.found.problems[0][2]
    found = operations.open(good_stock, orders, settings, settings, new_nodes=True)
    assert (found.positions, found.units, found.orders, found.ordered_units) == (2, 28, 1, 5)
    assert (works.nodes(tea), works.nodes(cake)) == ((20, 0, 3), (8, 0, 4))
    again = operations.open(good_stock, orders, settings, settings)
    assert [outcome.known for outcome in again.outcomes] == [True, True]
    works.carry(source, f"RECEIPT,{tea},{node},1,,,{AT}")
    other = works.write(source, f"SET_ON_HAND,{tea},{node},5,,,2026-11-02T08:00:00Z")
    with pytest.raises(OpeningRefused, match="brought something already"):
        operations.open(other, orders, settings, settings)
    operations.open(other, orders, settings, settings, again=True)
    assert works.on_hand(tea) == 5


# --- Kits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbered", [False, True])
def test_an_order_means_its_kits_as_they_were(works: Works, numbered: bool) -> None:
    """By what the checkout committed, or by the first word of the feed; a changed recipe is for new orders."""
    source = works.source("erp", columns=ORDERS + (NUMBERS if numbered else ""))
    a, b, c, node = (*(works.names.sku(name) for name in "abc"), works.node)
    number = iter(range(1, 100))
    rows = [f"RECEIPT,{sku},{node},100,,,{AT}" for sku in (a, b, c)]

    def carry(*lines: str) -> Outcome:
        return works.carry(source, *(f"{line},s,{next(number)}" if numbered else line for line in lines))

    carry(*rows)
    box = works.kit("box", a=1, b=2)
    held = works.client.reserve(works.channel, {box: 2}, hold_s=60.0)
    works.client.commit(held.reservation.reservation_id, order_source="shop", order_ref="1001")
    outcome = carry(f"ORDER_PLACED,{box},{node},3,o1,1,{AT}", f"ORDER_PLACED,{a},{node},1,o1,,{AT}")
    assert outcome.progress.refused == 0
    assert works.order(source, "o1") == {a: 4, b: 6}
    works.kit("box", a=1, c=5)
    later = "2026-11-01T09:00:00Z"
    carry(f"ORDER_CHANGED,{box},{node},1,o1,1,{later}", f"ORDER_PLACED,{box},{node},1,o2,1,{later}")
    assert works.order(source, "o1")[b] == 2
    assert works.order(source, "o2") == {a: 1, c: 5}
    before = [works.on_hand(sku) for sku in (a, b, c)]
    assert carry(f"SHIPMENT,{box},{node},1,o1,1,{later}").progress.refused == 0
    assert [works.on_hand(sku) for sku in (a, b, c)] == [before[0] - 1, before[1] - 2, before[2]]


def test_the_recipe_that_the_ledger_remembers_comes_first(works: Works) -> None:
    """The checkout's commit fixed it; the feed speaks of the same order after the recipe changed."""
    source = works.source("erp", columns=ORDERS)
    a, b, c, node = (*(works.names.sku(name) for name in "abc"), works.node)
    works.carry(source, *(f"RECEIPT,{sku},{node},100,,,{AT}" for sku in (a, b, c)))
    box = works.kit("box", a=1, b=2)
    held = works.client.reserve(works.channel, {box: 2}, hold_s=60.0)
    works.client.commit(held.reservation.reservation_id, order_source=source, order_ref="o1")
    works.kit("box", a=1, c=5)
    works.carry(source, f"ORDER_CHANGED,{box},{node},3,o1,1,{AT}")
    assert [works.nodes(sku)[2] for sku in (a, b, c)] == [3, 6, 0]


def test_a_kit_becomes_a_letter_where_the_mapping_says_so(works: Works) -> None:
    """explode_kits = false; replayed after it was switched on it has its effect, once."""
    source = works.source("erp", columns=ORDERS, more="[mapping.skus]\n")
    path = works.folder / "erp.toml"
    text = path.read_text()
    path.write_text(text.replace('version = "1"', 'version = "1"\nexplode_kits = false'))
    works.sources[source] = read_source(path)
    a = works.names.sku("a")
    box = works.kit("box", a=3)
    works.carry(source, f"RECEIPT,{a},{works.node},100,,,{AT}")
    assert works.carry(source, f"ORDER_PLACED,{box},,2,o1,1,{AT}").progress.reasons == {"KIT_SKU": 1}
    path.write_text(text)
    works.sources[source] = read_source(path)
    for applied in (1, 0):
        outcome = works.desk.replay(works.desk.letters.find(source=source))
        assert (outcome.applied, outcome.refused) == (applied, [])
    assert works.order(source, "o1") == {a: 6}


# --- Letters ----------------------------------------------------------------------------------------------


def test_personal_data_is_not_kept(works: Works) -> None:
    """Not in the row, not in the sentence about it; two people are two letters; what is left can be replayed."""
    source = works.source(
        "wms", columns=ORDERS, more='[redact]\npatterns = ["[a-z.]+@[a-z.]+", "49\\\\d{6,}"]\n'
    )
    tea = works.names.sku("tea")
    works.carry(
        source,
        f"RECEIPT,{tea},{works.node},x,ann@example.org,,{AT}",
        f"RECEIPT,{tea},{works.node},x,bob@example.org,,{AT}",
        f"RECEIPT,{tea},{works.node},bob@example.org,,,{AT}",
    )
    letters = works.desk.letters.find(source=source)
    assert len(letters) == 3
    for letter in letters:
        assert b"example" not in letter.raw
        assert "example" not in letter.message


def test_json_keys_are_taken_out_at_any_depth(works: Works) -> None:
    """Whole values of the keys; a row that is no JSON is cut at the first of them."""
    path = works.folder / "hook.toml"
    redact = '[redact]\njson_keys = ["customer", "mail"]'
    text = plain_source(works.names.id("hook"), kind="json_lines", more=redact)
    path.write_text(text)
    settings = read_source(path)
    works.sources[settings.source] = settings
    file = works.folder / "a.jsonl"
    rows = [
        {"type": "RECEIPT", "sku": "tea", "node": "n", "quantity": "x", "customer": {"name": "Ann"}},
        {"type": "RECEIPT", "sku": "tea", "node": "n", "quantity": "y", "notes": [{"mail": "ann@x"}]},
    ]
    broken = '{"type": "RECEIPT", "customer": {"name": "Ann"'
    file.write_text("\n".join((*map(json.dumps, rows), broken)) + "\n")
    works.desk.pipeline(settings.source).carry(file)
    letters = works.desk.letters.find(source=settings.source)
    assert len(letters) == 3
    for letter in letters:
        assert b"nn" not in letter.raw
        assert b"[redacted]" in letter.raw
    path.write_text(text.replace('"mail"]', '"quantity"]'))
    with pytest.raises(SettingsRefused, match="the mapping reads quantity"):
        read_source(path)


def test_what_is_over_is_not_kept_for_ever(works: Works) -> None:
    """Closed letters and what a reversal needs go in time; waiting letters and checksums stay."""
    source = works.source("wms", more="[retention]\nletters_days = 10\nruns_days = 20\n")
    tea = works.names.sku("tea")
    outcome = works.carry(
        source,
        f"RECEIPT,{tea},{works.node},x",
        f"RECEIPT,{tea},{works.node},y",
        f"RECEIPT,{tea},{works.node},1",
    )
    desk = works.desk
    desk.discard(desk.letters.find(source=source)[:1], "known")
    now, settings = time.time(), works.sources[source]
    assert clean(works.engine, desk.letters, settings, now + 9 * 86_400) == (0, 0)
    assert clean(works.engine, desk.letters, settings, now + 11 * 86_400) == (1, 0)
    assert clean(works.engine, desk.letters, settings, now + 21 * 86_400) == (0, 1)
    assert len(desk.letters.find(source=source, state="")) == 1
    assert desk.pipeline(source).carry(works.write(source, "")).state == DONE
    drop = settings.drop
    assert drop is not None
    assert desk.pipeline(source).carry(drop.folder / "001.csv").known
    with pytest.raises(ReverseRefused, match="not kept any more"):
        desk.operations.reverser(outcome.run_id, settings, None, "late")


def test_a_gap_of_nobody_is_refused(works: Works) -> None:
    """By the ledger, with its reason."""
    source = works.source("wms", columns=NUMBERS)
    with pytest.raises(ClientError):
        works.desk.operations.skip_gap(source, "s", 3, "")


def test_metrics_tell_what_came_and_what_waits(works: Works) -> None:
    """Rows and files by what became of them; letters, waiting files, a parked stream and the source's age."""
    wms = works.source("wms", columns=NUMBERS + 'occurred_time = "at"\n')
    tea = works.names.sku("tea")
    works.write(wms, f"RECEIPT,{tea},{works.node},5,s,1,{AT}", f"RECEIPT,{tea},{works.node},x,s,2,{AT}")
    works.write(wms, f"RECEIPT,{tea},{works.node},5,s,4,{AT}")
    desk = works.desk

    def scrape(name: str, **labels: str) -> float | None:
        value: float | None = desk.metrics.registry.get_sample_value(
            f"availability_ingest_{name}", {**labels, "source": wms}
        )
        return value

    desk.run(once=True, stopped=lambda: False, watch=lambda *_: None, told=lambda _: None)
    assert scrape("rows_total", result="applied") == 1
    assert scrape("rows_total", result="refused") == 1
    assert scrape("artifacts_total", state="done") == 1
    assert scrape("files_waiting") == 1
    assert scrape("dead_letters", category="VALIDATION") == 1
    for name in ("parked_age_seconds", "dead_letter_age_seconds"):
        age = scrape(name)
        assert age is not None
        assert 0 < age < 60
    source_age = scrape("source_age_seconds")
    assert source_age is not None
    assert source_age > 86_400  # it told of the first of November
    works.write(wms, f"RECEIPT,{tea},{works.node},5,s,3,{AT}")
    desk.run(once=True, stopped=lambda: False, watch=lambda *_: None, told=lambda _: None)
    desk.run(once=True, stopped=lambda: False, watch=lambda *_: None, told=lambda _: None)
    assert scrape("rows_total", result="applied") == 3
    assert (scrape("files_waiting"), scrape("parked_age_seconds")) == (0, 0)
