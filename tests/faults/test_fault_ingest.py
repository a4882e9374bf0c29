"""A ledger that goes away, and ingest that is killed: nothing is lost, nothing counts twice (section 2, number 23)."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from availability.client import Client
from ingest.database import open_database
from ingest.letters import Letters
from tests.faults.lab import Process, poll
from tests.ingest_lab import NUMBERS, plain_source

SECRET = "a secret of some length"
KILLS, KILLS_FULL = 6, 40
SKUS = 5
WITHIN_S = 40.0
STOPPED_WITHIN_S = 5.0
"""Of a busy machine; it takes about two."""


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


class Carrier:
    """`availability ingest run` on a folder: started, killed, started again."""

    def __init__(self, folder: Path, target: str) -> None:
        self.folder = folder
        self.log = folder / "carrier.log"
        self._env = {
            **os.environ,
            "AVAIL_TARGET": target,
            "AVAIL_INGEST_SOURCES": str(folder),
            "AVAIL_INGEST_DATABASE": str(folder / "ingest.db"),
            "COLUMNS": "400",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def source(
        self, name: str, *, kind: str = "csv", columns: str = "", more: str = "", batch: int = 50
    ) -> Path:
        top = f"batch_deltas = {batch}\nunacked_batches = 4"
        text = plain_source(name, kind=kind, top=top, columns=columns, folder=name, more=more)
        (self.folder / f"{name}.toml").write_text(text)
        (self.folder / name).mkdir()
        return self.folder / name

    def start(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "availability", "ingest", "run", *arguments]
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=self._env)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def carried(self, name: str) -> list[str]:
        """Files of a source in the order in which they were told to be done."""
        lines = self.log.read_text(errors="replace").splitlines()
        prefix = f"{name}: "
        return [line.split(": ")[1] for line in lines if line.startswith(prefix) and ": DONE" in line]


@pytest.fixture
def make_carrier(tmp_path: Path) -> Iterator[Callable[[str], Carrier]]:
    made: list[Carrier] = []

    def make(target: str) -> Carrier:
        made.append(Carrier(tmp_path, target))
        return made[-1]

    yield make
    for carrier in made:
        if carrier.process is not None and carrier.process.poll() is None:
            carrier.kill()


def put(folder: Path, name: str, text: str) -> None:
    """As a source should: written under another name, then renamed."""
    part = folder / f"{name}.tmp"
    part.write_text(text)
    part.rename(folder / name)


def on_hand(client: Client, sku: str) -> int:
    return sum(node.on_hand for node in client.explain("all", sku).terms.nodes)


def test_files_and_events_wait_for_the_ledger(
    make_process: Callable[..., Process], make_carrier: Callable[[str], Carrier], port: int
) -> None:
    """Without a ledger files lie, webhooks spool and then answer 503; when it is back everything goes in by itself,
    the oldest file first."""
    server = make_process(listen=f"127.0.0.1:{port}")
    server.start()
    carrier = make_carrier(server.grpc)
    drop = carrier.source("wms")
    (carrier.folder / "secret").write_text(SECRET)
    carrier.source(
        "hook",
        kind="json_lines",
        more='[webhook]\nsecret_file = "secret"\nrotate_ms = 50\nspool_bytes_max = 20_000\n',
    )
    carrier.start("--http", "127.0.0.1:0")
    address = poll(lambda: _address(carrier.log), "webhooks are open", within_s=WITHIN_S)

    def post(quantity: int) -> int:
        event = {"type": "RECEIPT", "sku": "hooked", "node": "n", "quantity": quantity, "note": "x" * 800}
        request = urllib.request.Request(
            f"{address}/events/hook", json.dumps(event).encode(), {"authorization": f"Bearer {SECRET}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code if error.headers["retry-after"] == "5" else 0

    header = "type,sku,node,quantity\n"
    put(drop, "000.csv", f"{header}RECEIPT,filed,n,1\n")
    poll(lambda: carrier.carried("wms") == ["000.csv"], "the first file is in", within_s=WITHIN_S)
    server.stop()
    for number in range(1, 13):
        put(drop, f"{number:03d}.csv", f"{header}RECEIPT,filed,n,{number * 10}\n")
        stamp = time.time() - 100 + number
        os.utime(drop / f"{number:03d}.csv", (stamp, stamp))
    accepted = 0
    for _ in range(60):
        status = post(3)
        if status == 503:
            break
        assert status == 202
        accepted += 1
    else:
        pytest.fail("the spool took more than its limit")
    assert 10 < accepted < 30
    assert _fails(carrier.folder, "webhook"), "it is noted that the door is shut"
    time.sleep(3.0)  # the carrier notices, and goes on living
    assert carrier.process is not None
    assert carrier.process.poll() is None
    assert len(list(drop.glob("*.csv"))) == 12
    server.start()
    with Client(server.grpc) as client:
        poll(
            lambda: on_hand(client, "filed") == 1 + 10 * sum(range(1, 13)), "files are in", within_s=WITHIN_S
        )
        poll(lambda: on_hand(client, "hooked") == 3 * accepted, "events are in", within_s=WITHIN_S)
        poll(lambda: len(carrier.carried("wms")) == 13, "files are put away", within_s=WITHIN_S)
        assert carrier.carried("wms") == [f"{number:03d}.csv" for number in range(13)]
        assert poll(lambda: post(1) == 202, "the door is open again", within_s=WITHIN_S)
        assert not _fails(carrier.folder, "webhook")
        assert re.search("; [1-9][0-9]? wait", carrier.log.read_text()), "progress says how many files wait"
    assert carrier.stop() == 0


def _address(log: Path) -> str:
    for line in log.read_text(errors="replace").splitlines():
        if line.startswith("webhooks at "):
            return line.split()[2].removesuffix("/events/SOURCE")
    return ""


def test_ingest_killed_at_any_moment(
    make_process: Callable[..., Process],
    make_carrier: Callable[[str], Carrier],
    seed: int,
    full: bool,
) -> None:
    """kill -9 again and again under load: each row counts once, each bad row is one letter; numbered or not."""
    chance = random.Random(seed)
    server = make_process()
    server.start()
    carrier = make_carrier(server.grpc)
    numbered = carrier.source("numbered", columns=NUMBERS)
    named = carrier.source("named")
    expected = {f"sku{n}": 0 for n in range(SKUS)}
    bad = 0
    kills = KILLS_FULL if full else KILLS
    number = 0
    for file in range(kills // 2):
        for folder in (numbered, named):
            lines = ["type,sku,node,quantity,stream,number"]
            for _ in range(2_000):
                sku, quantity = f"sku{chance.randrange(SKUS)}", chance.randrange(1, 50)
                wrong = chance.random() < 0.003
                end = ""
                if folder is numbered:
                    number += 1
                    end = f"s,{number}"
                lines.append(
                    f"RECEIPT,{sku},n,{f'{number}/{len(lines)}' if wrong else quantity},{end or ','}"
                )
                bad += wrong
                expected[sku] += 0 if wrong else quantity
            put(folder, f"{file:03d}.csv", "\n".join(lines) + "\n")
            stamp = time.time() - 1_000 + file
            os.utime(folder / f"{file:03d}.csv", (stamp, stamp))
    moved = 0
    for _ in range(kills):
        carrier.start()
        before = _settled(carrier.folder)
        poll(
            lambda before=before: _settled(carrier.folder) > before or not _left(numbered, named),  # type: ignore[misc]
            "ingest moves",
            within_s=WITHIN_S,
        )
        time.sleep(chance.random() * 0.2)
        carrier.kill()
        moved += _left(numbered, named) > 0
    assert moved > kills // 3, "the load was over before the kills were"
    carrier.start()
    poll(lambda: not _left(numbered, named), "everything is put away", within_s=WITHIN_S)
    assert carrier.stop() == 0
    with Client(server.grpc) as client:
        assert {sku: on_hand(client, sku) for sku in expected} == expected
        assert client.last_sequences("numbered") == {"s": number}
    letters = Letters(open_database(str(carrier.folder / "ingest.db"))).find(limit=10_000)
    assert sum(letter.count for letter in letters) == len(letters) == bad


def _settled(folder: Path) -> int:
    connection = sqlite3.connect(folder / "ingest.db", timeout=10)
    try:
        found = connection.execute("select sum(position) from ingest_artifacts").fetchone()
        return int(found[0] or 0)
    except sqlite3.OperationalError:  # no table yet
        return 0
    finally:
        connection.close()


def _left(*folders: Path) -> int:
    return sum(1 for folder in folders for _ in folder.glob("*.csv"))


@pytest.mark.parametrize("ledger", ["away", "hung"])
def test_a_stop_in_an_outage_takes_a_moment(
    make_process: Callable[..., Process], make_carrier: Callable[[str], Carrier], port: int, ledger: str
) -> None:
    """SIGTERM while a file waits for a ledger that is gone, or that does not answer: ended within seconds, exit 0;
    the next start carries the file once."""
    server = make_process(listen=f"127.0.0.1:{port}")
    server.start()
    carrier = make_carrier(server.grpc)
    drop = carrier.source("wms", batch=5)
    carrier.start()
    put(drop, "000.csv", "type,sku,node,quantity\nRECEIPT,a,n,1\n")
    poll(lambda: carrier.carried("wms") == ["000.csv"], "the first file is in", within_s=WITHIN_S)
    if ledger == "away":
        server.stop()
    else:
        os.kill(server.pid, signal.SIGSTOP)
    put(drop, "001.csv", "type,sku,node,quantity\n" + "RECEIPT,a,n,1\n" * 200)
    poll(lambda: _begun(carrier.folder) == 2, "the second file is begun", within_s=WITHIN_S)
    time.sleep(0.5)  # retries are under way
    begun = time.monotonic()
    assert carrier.stop() == 0
    assert time.monotonic() - begun < STOPPED_WITHIN_S
    if ledger == "away":
        server.start()
    else:
        os.kill(server.pid, signal.SIGCONT)
    carrier.start("--once")
    assert carrier.process is not None
    assert carrier.process.wait(60) == 0
    with Client(server.grpc) as client:
        assert on_hand(client, "a") == 201


def _fails(folder: Path, kind: str) -> bool:
    connection = sqlite3.connect(folder / "ingest.db", timeout=10)
    try:
        query = "select failing_since from ingest_feed_health where kind = ?"
        found = connection.execute(query, (kind,)).fetchone()
        return found is not None and found[0] is not None
    finally:
        connection.close()


def _begun(folder: Path) -> int:
    connection = sqlite3.connect(folder / "ingest.db", timeout=10)
    try:
        return int(connection.execute("select count(*) from ingest_artifacts").fetchone()[0])
    finally:
        connection.close()
