"""A day of orders through four feeds, every one of them faulty, and the process that reads them killed again and again.

The WMS drops CSV, two partners send 846 and INVRPT, the shop posts events, the counter streams over gRPC. What the
ledger must hold is computed here from what was generated; every injected fault is one dead letter, or counted as a
repeat, and there is no other letter. With ``--full`` the orders are a real day's where the data are at hand.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from availability.client import Acked, Client, SequenceGapError
from availability.v1 import stock_pb2 as stk
from ingest.database import open_database
from ingest.letters import Letters
from tests.conftest import Names, Server

PROJECT_ROOT = Path(__file__).resolve().parents[2]
REAL_DAY = PROJECT_ROOT.parent / "shared" / "data" / "online_retail.parquet"
SECRET = "a secret of the shop"
HEADER = "SEQ;MOVE;ARTICLE;PLANT;QTY;UOM;ORDER;LINE;AT"
DONE_S = 300.0
READY_S = 60.0
MOVES = "moves"

WMS = """
source = "{wms}"
batch_deltas = 7
unacked_batches = 2
[format]
kind = "csv"
delimiter = ";"
[mapping]
version = "1"
author = "day"
other_nodes = "refuse"
[mapping.columns]
source_sequence = "SEQ"
type = "MOVE"
sku = "ARTICLE"
node = "PLANT"
quantity = "QTY"
unit = "UOM"
order_ref = "ORDER"
line = "LINE"
occurred_time = "AT"
[mapping.constants]
stream = "moves"
order_source = "{shop}"
[mapping.movements]
"101" = {{ type = "RECEIPT" }}
"601" = {{ type = "SHIPMENT" }}
"701" = {{ type = "ADJUSTMENT" }}
"702" = {{ type = "ADJUSTMENT", sign = -1 }}
[mapping.nodes]
P1 = "{east}"
P2 = "{west}"
[mapping.units.factors]
EA = "1"
CS = "12"
HC = "0.5"
[drop]
folder = "wms"
settle_ms = 0
"""
PARTNER = """
source = "{source}"
batch_deltas = 5
[format]
kind = "{kind}"
[mapping]
version = "1"
author = "day"
other_nodes = "refuse"
[mapping.columns]
type = "code"
sku = "sku"
node = "node"
quantity = "quantity"
unit = "unit"
occurred_time = "time"
[mapping.movements]
"{code}" = {{ type = "SET_ON_HAND" }}
[mapping.nodes]
W1 = "{node}"
[mapping.units.factors]
EA = "1"
CA = "6"
[mapping.times]
formats = ["%Y%m%d%H%M"]
[drop]
folder = "{folder}"
settle_ms = 0
"""
SHOP = """
source = "{shop}"
batch_deltas = 7
[format]
kind = "json_lines"
[mapping]
version = "1"
author = "day"
[mapping.columns]
event_id = "id"
type = "event"
sku = "item.sku"
quantity = "item.quantity"
order_ref = "order"
line = "item.line"
occurred_time = "at"
[mapping.constants]
order_source = "{shop}"
[mapping.movements]
placed = {{ type = "ORDER_PLACED" }}
cancelled = {{ type = "ORDER_CANCELLED" }}
[drop]
folder = "shop"
settle_ms = 0
[webhook]
secret_file = "secret"
rotate_ms = 40
"""

OrderLine = tuple[str, str, int]
"""Order, sku, units."""


@dataclass(frozen=True)
class Fault:
    """A dead letter that must be there: who, why, and a text that only its row holds."""

    source: str
    reason: str
    needle: str


@dataclass
class Day:
    """What was generated: artifacts by the round in which they arrive, and what they add up to."""

    rng: random.Random
    names: Names
    rounds: int
    began: datetime
    drops: list[list[tuple[str, str, bytes]]] = field(default_factory=list)
    posts: list[bytes] = field(default_factory=list)
    streamed: list[stk.Delta] = field(default_factory=list)
    on_hand: Counter[tuple[str, str]] = field(default_factory=Counter)
    ordered: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    shipped: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    faults: set[Fault] = field(default_factory=set)
    repeats: Counter[str] = field(default_factory=Counter)
    lost_sequence: int = 0
    refused_in_stream: int = 0

    def __post_init__(self) -> None:
        self.drops = [[] for _ in range(self.rounds)]
        self.wms, self.shop, self.till = (self.names.id(name) for name in ("wms", "shop", "till"))
        self.x12, self.invrpt = self.names.id("x12"), self.names.id("invrpt")
        self.east, self.west, self.store = (self.names.node(name) for name in ("east", "west", "store"))
        self.partner = {self.x12: self.names.node("3pl"), self.invrpt: self.names.node("supplier")}
        self._moments = iter(self.began + timedelta(seconds=n) for n in range(10**6))

    def moment(self) -> str:
        return next(self._moments).isoformat()

    def drop(self, at: int, folder: str, name: str, content: bytes) -> None:
        self.drops[min(at, self.rounds - 1)].append((folder, name, content))

    # --- The shop ---------------------------------------------------------------------------------------

    def place(self, lines: list[OrderLine]) -> list[OrderLine]:
        """Post each order's lines, cancel some orders; return the lines that stay, each with its line number."""
        numbers, kept = Counter[str](), list[OrderLine]()
        cancelled = {order for order, _, _ in lines if self.rng.random() < 0.06}
        for order, sku, units in lines:
            numbers[order] += 1
            line = str(numbers[order])
            posted = self._post("placed", order, item={"sku": sku, "quantity": units, "line": line})
            self.ordered[order, line, sku] = 0 if order in cancelled else units
            if order not in cancelled:
                kept.append((f"{order};{line}", sku, units))
            if self.rng.random() < 0.05:
                self.posts.append(posted)
                self.repeats[self.shop] += 1
        for order in sorted(cancelled):
            self._post("cancelled", order)
        other = json.loads(self.posts[0])  # the same id with another content: never silently a repeat
        other["item"]["quantity"] += 100_000
        self.posts.append(json.dumps(other).encode())
        self.faults.add(Fault(self.shop, "CONFLICT", str(other["item"]["quantity"])))
        bad: list[tuple[str, dict[str, object]]] = [
            ("MOVEMENT_CODE", {"event": "teleported"}),
            ("NUMBER", {"event": "placed", "item": {"sku": "x", "quantity": "many"}}),
        ]
        for reason, change in bad:
            needle = self.names.id(f"bad event {reason}")
            event = json.dumps({"id": needle, "order": "none", "at": self.moment(), **change}).encode()
            self.posts.insert(self.rng.randrange(len(self.posts)), event)
            self.faults.add(Fault(self.shop, reason, needle))
        return kept

    def _post(self, event: str, order: str, **more: object) -> bytes:
        name = self.names.id(f"{len(self.posts)} {event}")
        body = {"id": name, "event": event, "order": order, "at": self.moment(), **more}
        encoded = json.dumps(body).encode()
        self.posts.append(encoded)
        return encoded

    # --- The WMS ----------------------------------------------------------------------------------------

    def move(self, skus: list[str], lines: list[OrderLine], row_count: int) -> None:
        """Drop the receipts, shipments and counts as numbered rows in files, with every fault there is."""
        rows: list[tuple[int, str]] = []
        nodes = {"P1": self.east, "P2": self.west}

        def write(move: str, sku: str, plant: str, quantity: object, unit: str, order: str = ";") -> str:
            number = len(rows) + 1 + (1 if self.lost_sequence else 0)
            row = f"{number};{move};{sku};{plant};{quantity};{unit};{order};{self.moment()}\n"
            rows.append((number, row))
            return row

        for sku in skus:
            for plant, node in nodes.items():
                cases = self.rng.randrange(1, 40)
                write("101", sku, plant, cases, "CS")
                self.on_hand[sku, node] += 12 * cases
        bad = [("PAL", "P1", 3, "UNIT"), ("EA", "P9", 3, "NODE_CODE"), ("HC", "P2", 3, "REMAINDER")]
        bad_at = {len(lines) * (n + 1) // (len(bad) + 2): one for n, one in enumerate(bad)}
        lost_at = len(lines) * 4 // 5
        for at, (order, sku, units) in enumerate(lines):
            if at in bad_at:
                unit, plant, quantity, reason = bad_at[at]
                self.faults.add(Fault(self.wms, reason, write("101", sku, plant, quantity, unit)))
            if at == lost_at:
                self.lost_sequence = len(rows) + 1
            plant = self.rng.choice(list(nodes))
            part = units if self.rng.random() < 0.7 else self.rng.randrange(units + 1)
            if part:
                write("601", sku, plant, part, "EA", order)
                ref, _, line = order.partition(";")
                self.shipped[ref, line, sku] += part
                self.on_hand[sku, nodes[plant]] -= part
            if self.rng.random() < 0.1:
                sign = self.rng.choice((1, -1))
                write("701" if sign > 0 else "702", sku, plant, 2, "EA")
                self.on_hand[sku, nodes[plant]] += 2 * sign
        self._drop_files(rows, row_count)

    def _drop_files(self, rows: list[tuple[int, str]], row_count: int) -> None:
        files = [rows[first : first + row_count] for first in range(0, len(rows), row_count)]
        needles = {fault.needle for fault in self.faults}
        # Not the first one: its first number opens the stream, and what is missing before that is nobody's gap.
        plain = [n for n, file in enumerate(files) if n and not any(row in needles for _, row in file)]
        truncated = self.rng.choice(plain)
        swapped = self.rng.choice([n for n in range(1, len(files) - 1) if truncated not in (n, n + 1)])
        again = self.rng.choice([n for n in range(len(files) // 2) if n != truncated])
        for number, file in enumerate(files):
            at = number * self.rounds // len(files)
            text = [HEADER + "\n"]
            for sequence, row in file:
                text.append(row)
                if row not in needles and self.rng.random() < 0.03 and sequence != self.lost_sequence:
                    text.append(row)
                    self.repeats[self.wms] += 1
            content = "".join(text).encode()
            name = f"{number:04d}.csv"
            if number == truncated:  # the whole file comes later; its numbers are known then, or were missing
                packed = gzip.compress(content)
                self.drop(at, "wms", name + ".gz", packed[: len(packed) * 2 // 3])
                self.faults.add(Fault(self.wms, "TRUNCATED", ""))
                self.drop(at + 1, "wms", f"{number:04d} again.csv", content)
                continue
            self.drop(at + 1 if number == swapped else at, "wms", name, content)
            if number == again:
                self.drop(at + 1, "wms", f"{number:04d} copy.csv", content)

    # --- The partners -----------------------------------------------------------------------------------

    def report(self, skus: list[str], reports: int) -> None:
        """Drop stock reports of the partners' nodes: absolute figures, of which the latest counts."""
        for source, folder, write in ((self.x12, "x12", _x12), (self.invrpt, "invrpt", _invrpt)):
            order = list(range(reports))
            order[1], order[2] = order[2], order[1]  # an older report arrives late
            artifacts = {}
            for number in range(reports):
                at = (self.began + timedelta(minutes=10 * number)).strftime("%Y%m%d%H%M")
                lines = [("W1", sku, self.rng.randrange(1, 500), "EA") for sku in skus]
                lines[0] = ("W1", skus[0], 1 + number, "CA")
                for _, sku, quantity, unit in lines:
                    self.on_hand[sku, self.partner[source]] = quantity * (6 if unit == "CA" else 1)
                if number == 1:
                    lost, pallet = self.names.sku(f"{folder} lost"), self.names.sku(f"{folder} pallet")
                    lines += [("W7", lost, 3, "EA"), ("W1", pallet, 3, "PAL")]
                    self.faults |= {Fault(source, "NODE_CODE", lost), Fault(source, "UNIT", pallet)}
                artifacts[number] = write(at, lines)
            self.repeats[source] += len(skus)  # of the late one, where nothing is killed
            for place, number in enumerate(order):
                content, at_round = artifacts[number], place * self.rounds // reports
                if number == reports - 2:
                    self.drop(at_round, folder, f"{number} cut.edi", content[: len(content) * 2 // 3])
                    self.faults.add(Fault(source, "TRUNCATED", ""))
                    self.drop(at_round + 1, folder, f"{number} copy.edi", content)
                self.drop(at_round, folder, f"{number}.edi", content)

    # --- The counter ------------------------------------------------------------------------------------

    def ring_up(self, skus: list[str], count: int) -> None:
        """Stream the store's own movements."""
        for number in range(1, count + 1):
            sku, kind = self.rng.choice(skus), self.rng.choice(("RECEIPT", "SHIPMENT"))
            quantity = self.rng.randrange(1, 9)
            delta = stk.Delta(
                source=self.till, stream=MOVES, source_sequence=number, sku=sku, node=self.store
            )
            delta.type, delta.quantity = stk.DeltaType.Value(f"DELTA_TYPE_{kind}"), quantity
            if number % 17 == 0:
                delta.quantity = 0
                self.refused_in_stream += 1
            else:
                self.on_hand[sku, self.store] += quantity if kind == "RECEIPT" else -quantity
            self.streamed.append(delta)


def _x12(at: str, lines: list[tuple[str, str, int, str]]) -> bytes:
    isa = "ISA*00*          *00*          *ZZ*SENDER         *ZZ*RECEIVER       *261101*0800*U*00401*000000001*0*P*>~"
    body = "".join(
        f"LIN*{n}*SK*{sku}~N1*WH**92*{node}~QTY*33*{quantity}*{unit}~"
        for n, (node, sku, quantity, unit) in enumerate(lines, 1)
    )
    envelope = f"ST*846*0001~BIA*00*DD*REF*{at[:8]}*{at[8:]}~{body}CTT*2~SE*11*0001~"
    return f"{isa}GS*IB*A*B*20261101*0800*1*X*004010~{envelope}GE*1*1~IEA*1*000000001~".encode()


def _invrpt(at: str, lines: list[tuple[str, str, int, str]]) -> bytes:
    def said(text: str) -> str:
        return "".join(f"?{sign}" if sign in "'+:?" else sign for sign in text)

    body = "".join(
        f"LIN+{n}++{said(sku)}:SA'QTY+145:{quantity}:{unit}'LOC+18+{node}'"
        for n, (node, sku, quantity, unit) in enumerate(lines, 1)
    )
    head = f"UNB+UNOC:3+S+R+261101:0800+1'UNH+1+INVRPT:D:96A:UN'BGM+35+REF'DTM+137:{at}:203'NAD+WH+W1'"
    return f"{head}{body}UNT+12+1'UNZ+1+1'".encode()


def synthetic(rng: random.Random, names: Names, orders: int) -> list[OrderLine]:
    """Orders of one to four lines over a few skus; the same sku may come twice in one."""
    skus = [names.sku(n) for n in range(12)]
    return [
        (names.id(f"order {number}"), rng.choice(skus), rng.randrange(1, 6))
        for number in range(orders)
        for _ in range(rng.randrange(1, 5))
    ]


def real(names: Names) -> list[OrderLine]:
    """The orders of one real day, dirty as they came, without what was no order."""
    day = pl.read_parquet(REAL_DAY).filter(
        (pl.col("timestamp").dt.date() == pl.date(2011, 11, 29)) & (pl.col("quantity") > 0)
    )
    rows = day.select("order_id", "sku", "quantity").iter_rows()
    return [(names.id(order), names.sku(sku), quantity) for order, sku, quantity in rows]


# --- Playing it -------------------------------------------------------------------------------------------


class Reader:
    """`availability ingest run`, which may be killed at any moment."""

    def __init__(self, folder: Path, target: str, port: int) -> None:
        self._folder, self._target, self._port = folder, target, port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [*("-m", "availability", "ingest", "run", "--http", f"127.0.0.1:{self._port}")]
        command += ["--sources", str(self._folder), "--database", str(self._folder / "ingest.db")]
        environment = {**os.environ, "AVAIL_TARGET": self._target}
        with (self._folder / "reader.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command], cwd=PROJECT_ROOT, env=environment, stdout=log, stderr=log
            )

    def wait_until_open(self) -> None:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            assert self._process is not None
            assert self._process.poll() is None, self.log()
            try:
                socket.create_connection(("127.0.0.1", self._port), 1.0).close()
                return
            except OSError:
                time.sleep(0.02)
        pytest.fail(f"the door did not open: {self.log()}")

    def end(self, number: int) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(30)

    def log(self) -> str:
        return (self._folder / "reader.log").read_text(errors="replace")[-4_000:]


def post_all(day: Day, port: int, ended: threading.Event, failures: list[str]) -> None:
    """Post each event until it is accepted, whoever is killed meanwhile."""
    headers = {"authorization": f"Bearer {SECRET}"}
    url = f"http://127.0.0.1:{port}/events/{urllib.request.quote(day.shop)}"  # type: ignore[attr-defined]
    for event in day.posts:
        while not ended.is_set():
            try:
                with urllib.request.urlopen(urllib.request.Request(url, event, headers), timeout=10):
                    break
            except urllib.error.HTTPError as error:
                failures.append(f"{error.code} for {event!r}")
                return
            except OSError:  # nobody is there, or was killed before the answer: it is sent again
                time.sleep(0.05)


def stream_all(day: Day, target: str, told: Counter[int], failures: list[str]) -> None:
    """Send as a till does: in batches, some twice, once with a hole; resume where the ledger is."""

    def acked(ack: Acked) -> None:
        told.update(detail.result for detail in ack.answer.details)

    try:
        with Client(target) as client:
            hole, at = len(day.streamed) // 2, 0
            while at < len(day.streamed):
                try:
                    with client.delta_sender(day.till, acked=acked) as sender:
                        for first in range(at, len(day.streamed), 10):
                            batch = day.streamed[first : first + 10]
                            if hole and first > hole:
                                hole, batch = 0, day.streamed[first + 5 : first + 10]
                            sender.send(batch)
                            sender.send(batch[:3])
                    at = len(day.streamed)
                except SequenceGapError:
                    at = client.last_sequences(day.till)[MOVES]
    except Exception as error:
        failures.append(f"the till: {error!r}")


def deliver(folder: Path, drops: list[tuple[str, str, bytes]], clock: Iterator[int]) -> None:
    """Put files into the drop folders as a careful sender does: under another name first."""
    for where, name, content in drops:
        path = folder / where / name
        path.with_name(name + ".tmp").write_bytes(content)
        stamp = next(clock)
        os.utime(path.with_name(name + ".tmp"), (stamp, stamp))
        path.with_name(name + ".tmp").replace(path)


def waiting(folder: Path) -> list[str]:
    return [path.name for name in ("wms", "x12", "invrpt", "shop") for path in (folder / name).glob("*.*")]


def play(day: Day, folder: Path, server: Server, port: int, rng: random.Random) -> None:
    """Deliver round by round; end all but the last by kill -9."""
    failures: list[str] = []
    told: Counter[int] = Counter()
    ended = threading.Event()
    people = [
        threading.Thread(target=post_all, args=(day, port, ended, failures), daemon=True),
        threading.Thread(target=stream_all, args=(day, server.grpc, told, failures), daemon=True),
    ]
    for person in people:
        person.start()
    clock = iter(range(1_700_000_000, 1_800_000_000))
    reader = Reader(folder, server.grpc, port)
    try:
        for number, drops in enumerate(day.drops):
            deliver(folder, drops, clock)
            reader.start()
            if number < len(day.drops) - 1:
                if rng.random() < 0.8:
                    reader.wait_until_open()
                time.sleep(rng.uniform(0.0, 0.8))
                reader.end(signal.SIGKILL)
        _await_end(day, folder, server, people, failures)
        assert reader.end(signal.SIGTERM) == 0, reader.log()
    finally:
        ended.set()
        reader.end(signal.SIGKILL)
    assert failures == []
    assert told[stk.DELTA_RESULT_REJECTED] >= day.refused_in_stream
    assert set(told) == {stk.DELTA_RESULT_REJECTED, stk.DELTA_RESULT_DUPLICATE, stk.DELTA_RESULT_PARKED}


def _await_end(
    day: Day, folder: Path, server: Server, people: list[threading.Thread], failures: list[str]
) -> None:
    """Wait until nothing waits; the number that the WMS lost for good is given up by an operator, once it is all."""
    deadline, skipped, quiet = time.monotonic() + DONE_S, False, deque[bool](maxlen=3)
    with Client(server.grpc) as client:
        while time.monotonic() < deadline and not failures:
            status = client.call(client.stock.ListStreams, stk.ListStreamsRequest(source=day.wms))
            marks = {stream.stream: stream.last_sequence for stream in status.streams}
            if not skipped and marks.get(MOVES) == day.lost_sequence - 1:
                assert any("csv" in name for name in waiting(folder)), "the parked file stays"
                request = stk.SkipGapRequest(
                    request_id=client.new_request_id(),
                    source=day.wms,
                    stream=MOVES,
                    next_sequence=day.lost_sequence + 1,
                    reason="lost at the gate",
                )
                client.call(client.stock.SkipGap, request)
                skipped = True
            quiet.append(not waiting(folder) and not any(person.is_alive() for person in people))
            if skipped and len(quiet) == 3 and all(quiet):
                return
            time.sleep(0.3)
    pytest.fail(f"after {DONE_S:g} s still waiting: {waiting(folder)[:9]} {failures} skipped: {skipped}")


# --- What must be ---------------------------------------------------------------------------------------------


def differences(day: Day, server: Server) -> list[str]:
    """Compare every balance with the independent computation."""
    found: list[str] = []
    with Client(server.grpc) as client:
        for sku in sorted({sku for sku, _ in day.on_hand}):
            terms = client.explain(day.names.channel("all"), sku).terms
            ledger = {node.node: node.on_hand for node in terms.nodes if node.on_hand}
            computed = {node: units for (of, node), units in day.on_hand.items() if of == sku and units}
            if ledger != computed:
                found.append(f"{sku}: on_hand {ledger} instead of {computed}")
            committed = sum(
                max(0, units - day.shipped[line]) for line, units in day.ordered.items() if line[2] == sku
            )
            if sum(node.committed for node in terms.nodes) != committed:
                found.append(f"{sku}: committed {[n.committed for n in terms.nodes]} instead of {committed}")
    return found


def test_a_day_of_faulty_feeds_and_kills_ends_in_the_computed_ledger(
    tmp_path: Path, server: Server, names: Names, seed: int, full: bool
) -> None:
    """Nothing lost, nothing twice, nothing guessed; each fault is told once and nothing else is."""
    rng = random.Random(seed)
    kills = 20 if full else 3
    began = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=6)
    day = Day(rng, names, kills + 1, began)
    lines = real(names) if full and REAL_DAY.exists() else synthetic(rng, names, 2_000 if full else 60)
    skus = sorted({sku for _, sku, _ in lines})
    day.move(skus, day.place(lines), 200 if full else 20)
    day.report(skus[:8], 8)
    day.ring_up(skus[:10], 400 if full else 120)
    for name in ("wms", "x12", "invrpt", "shop"):
        (tmp_path / name).mkdir()
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "wms.toml").write_text(WMS.format(wms=day.wms, shop=day.shop, east=day.east, west=day.west))
    (tmp_path / "shop.toml").write_text(SHOP.format(shop=day.shop))
    for source, kind, code, name in (
        (day.x12, "x12_846", "33", "x12"),
        (day.invrpt, "edifact_invrpt", "145", "invrpt"),
    ):
        (tmp_path / f"{name}.toml").write_text(
            PARTNER.format(source=source, kind=kind, code=code, node=day.partner[source], folder=name)
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    play(day, tmp_path, server, port, rng)

    assert differences(day, server) == []
    engine = open_database(str(tmp_path / "ingest.db"))
    letters = Letters(engine).find(limit=10_000)
    missing = {
        fault
        for fault in day.faults
        if not any(
            letter.source == fault.source
            and letter.reason == fault.reason
            and fault.needle.encode() in letter.raw.replace(b"?:", b":")
            for letter in letters
        )
    }
    assert not missing
    assert len(letters) == len(day.faults), [(one.source, one.reason, one.message) for one in letters]
    for source in (day.wms, day.x12, day.invrpt):
        assert {one.count for one in letters if one.source == source} <= {1, 2}
    with engine.connect() as connection:
        told = connection.exec_driver_sql(
            "SELECT source, sum(repeated), sum(deliveries - 1), min(state) FROM ingest_artifacts GROUP BY source"
        ).all()
    for source, repeated, deliveries, state in told:
        assert repeated >= day.repeats[source], source
        assert state == "DONE"
        assert deliveries > 0 or source == day.shop, "a file that came twice is known"
    engine.dispose()
