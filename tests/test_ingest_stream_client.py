"""The reference client: killed anywhere, it asks the ledger where it was and goes on from there."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from availability.client import Client, SequenceGapError
from ingest.sources.stream_client import LINE_BYTES_MAX, LineRefused, delta_of, send_feed
from tests.conftest import Names, Server


@pytest.fixture
def ledger(server: Server) -> Iterator[Client]:
    with Client(server.grpc) as client:
        yield client


class Feed:
    """Numbered receipts of one sku, one unit each."""

    def __init__(self, names: Names) -> None:
        self.source, self.sku, self.node = names.id("erp"), names.sku("tea"), names.id("east")

    def line(self, number: int, **changes: object) -> bytes:
        delta = {"stream": "moves", "source_sequence": number, "type": "RECEIPT", "quantity": 1}
        return json.dumps({**delta, "sku": self.sku, "node": self.node, **changes}).encode() + b"\n"

    def lines(self, first: int, last: int) -> io.BytesIO:
        return io.BytesIO(b"".join(self.line(number) for number in range(first, last + 1)))

    def on_hand(self, client: Client) -> int:
        return sum(node.on_hand for node in client.explain(f"{self.source} all", self.sku).terms.nodes)


def test_it_goes_on_where_the_ledger_is(ledger: Client, names: Names) -> None:
    """What is settled is passed over and not sent."""
    feed = Feed(names)
    assert send_feed(ledger, feed.source, feed.lines(1, 50)).applied == 50
    sent = send_feed(ledger, feed.source, feed.lines(1, 80), batch_deltas=7)
    assert (sent.lines, sent.settled, sent.applied, sent.repeated) == (80, 50, 30, 0)
    assert feed.on_hand(ledger) == 80


def test_killed_in_the_middle_and_started_again(
    server: Server, ledger: Client, names: Names, tmp_path: Path
) -> None:
    """kill -9 of the command while batches are under way, until the whole feed is through: each unit once."""
    feed, total = Feed(names), 60_000
    path = tmp_path / "feed.jsonl"
    path.write_bytes(feed.lines(1, total).getvalue())
    command = [sys.executable, "-m", "availability", "ingest", "stream", str(path)]
    command += ["--source", feed.source, "--target", server.grpc]
    kills = reached = 0
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        until = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < until:
            now = ledger.last_sequences(feed.source).get("moves", 0)
            if now > reached:
                break
            time.sleep(0.005)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
        reached = ledger.last_sequences(feed.source).get("moves", 0)
    assert kills
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "had been settled" in ended.stdout
    assert ledger.last_sequences(feed.source) == {"moves": total}
    assert feed.on_hand(ledger) == total


def test_refusals_are_told_and_do_not_stop_it(ledger: Client, names: Names) -> None:
    """Their numbers are consumed, as the contract says."""
    feed = Feed(names)
    lines = feed.line(1) + feed.line(2, quantity=0) + feed.line(3)
    told: list[tuple[int, str]] = []

    def refused(delta: object, reason: str, _: str) -> None:
        told.append((getattr(delta, "source_sequence", 0), reason))

    sent = send_feed(ledger, feed.source, io.BytesIO(lines), refused=refused)
    assert (sent.applied, sent.refused, told) == (2, 1, [(2, "INVALID_QUANTITY")])
    assert feed.on_hand(ledger) == 2


def test_a_gap_stops_it_and_what_came_before_is_in(ledger: Client, names: Names) -> None:
    """The number that is missing is named; the mended feed goes on."""
    feed = Feed(names)
    with pytest.raises(SequenceGapError) as gap:
        send_feed(ledger, feed.source, io.BytesIO(feed.line(1) + feed.line(3)))
    assert gap.value.expected_sequence == 2
    assert send_feed(ledger, feed.source, feed.lines(1, 3)).applied == 2


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"\xff",
        b"x" * (LINE_BYTES_MAX + 1),
        b'{"stream":"s"}',
        b'{"source_sequence":1}',
        b'{"stream":"s","source_sequence":1,"wrong":1}',
        b'{"stream":"s","source_sequence":1,"type":"GIFT"}',
        b'{"stream":"s","source_sequence":1,"quantity":1.5}',
        b'{"stream":"s","source_sequence":1,"source":"other"}',
    ],
)
def test_a_line_that_cannot_be_sent_is_named(line: bytes) -> None:
    """A numbered feed cannot pass over one."""
    with pytest.raises(LineRefused, match="line 7"):
        delta_of("erp", line, 7)
