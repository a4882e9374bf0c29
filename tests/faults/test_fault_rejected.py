"""Numbers that the ledger rejected and nobody heard of: told again with the reason, noted by ingest once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from availability.client import Client
from availability.domain.limits import REJECTED_NUMBERS_KEPT
from availability.ledger import calls
from availability.v1 import stock_pb2 as stk
from ingest.database import open_database
from ingest.letters import KeptLetter, Letters
from tests.faults.audit import audit
from tests.faults.lab import BASE, Lab, Process, deadline, delta, request_key
from tests.ingest_lab import NUMBERS, plain_source

REJ = BASE + "rej:3:erps"
RING = 4_096


def numbered(number: int, quantity: int = 1, sku: str = "a") -> stk.Delta:
    return delta("RECEIPT", sku, "n1", quantity, stream="s", source_sequence=number)


def test_a_rejected_number_is_told_with_its_reason_again(lab: Lab) -> None:
    """The same again is DUPLICATE with the reason; what was applied is DUPLICATE without one; in one call and later."""
    assert lab.results(numbered(1), numbered(2, 0), numbered(2, 0), numbered(3)) == [
        "APPLIED",
        "REJECTED INVALID_QUANTITY",
        "DUPLICATE INVALID_QUANTITY",
        "APPLIED",
    ]
    assert lab.results(numbered(1), numbered(2, 0), numbered(3)) == [
        "DUPLICATE",
        "DUPLICATE INVALID_QUANTITY",
        "DUPLICATE",
    ]
    assert lab.results(numbered(2, 5)) == ["REJECTED CONFLICT"]
    assert lab.results(numbered(2, 0)) == ["DUPLICATE INVALID_QUANTITY"]
    audit(lab.redis)


def test_other_content_is_told_a_conflict_when_the_ring_has_forgotten_it(lab: Lab) -> None:
    """A conflict that nobody heard of is told again, however many numbers came after it; the first content is not."""
    assert lab.results(numbered(1), numbered(1, 7)) == ["APPLIED", "REJECTED CONFLICT"]
    for first in range(2, RING + 200, 200):
        lab.tell(*(numbered(number) for number in range(first, first + 200)))
    assert lab.results(numbered(1, 7), numbered(1)) == ["DUPLICATE CONFLICT", "DUPLICATE"]


def test_a_reset_stream_knows_no_rejections(lab: Lab) -> None:
    """After a reset the numbers mean other deltas: what was rejected before is nobody's answer."""
    lab.results(numbered(1), numbered(2, 0))
    change = calls.StreamChange(request_key("reset"), "erp", "s", "RESET", 0, "numbers begin anew")
    assert lab.ledger.change_stream(change, deadline()).status == "OK"
    assert lab.results(numbered(1), numbered(2), numbered(2)) == ["APPLIED", "APPLIED", "DUPLICATE"]
    assert lab.results(numbered(2, 0)) == ["REJECTED CONFLICT"]


def test_the_oldest_rejections_make_room(lab: Lab) -> None:
    """So many are kept of a stream, the latest; older ones are DUPLICATE without a reason."""
    lab.results(numbered(1), numbered(2, 0))
    first = 3
    script = (
        "for i = ARGV[1], ARGV[2] do redis.call('ZADD', KEYS[1], i, string.format('%012d', i) .. 'X') end"
    )
    lab.redis.eval(script, 1, REJ, first, first + REJECTED_NUMBERS_KEPT - 2)
    assert lab.redis.zcard(REJ) == REJECTED_NUMBERS_KEPT
    assert lab.results(numbered(2, 0)) == ["DUPLICATE INVALID_QUANTITY"]
    assert lab.results(numbered(3, 0), numbered(4, 0)) == ["REJECTED INVALID_QUANTITY"] * 2
    assert lab.redis.zcard(REJ) == REJECTED_NUMBERS_KEPT
    assert lab.results(numbered(2, 0)) == ["DUPLICATE"]
    audit(lab.redis)


# --- Ingest, killed between the ledger's ack and its own note ------------------------------------------------

KILLED_BEFORE_A_NOTE = """
import os, signal, sys
from ingest.settling import Settling

settle, left = Settling.settle, [int(sys.argv[1])]

def killed(self, run, batch, answer, progress):
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    settle(self, run, batch, answer, progress)

Settling.settle = killed
from availability.cli import main
sys.argv = ["availability", "ingest", "run", "--once"]
main()
"""


def run(folder: Path, target: str, *command: str) -> int:
    env = {
        **os.environ,
        "AVAIL_TARGET": target,
        "AVAIL_INGEST_SOURCES": str(folder),
        "AVAIL_INGEST_DATABASE": str(folder / "ingest.db"),
    }
    return subprocess.run([sys.executable, *command], env=env, timeout=60).returncode


def letters(folder: Path) -> list[KeptLetter]:
    engine = open_database(str(folder / "ingest.db"))
    try:
        return Letters(engine).find(state="")
    finally:
        engine.dispose()


@pytest.mark.parametrize("notes", [0, 1, 2])
def test_a_refusal_that_nobody_lived_to_note_becomes_one_letter(
    make_process: Callable[..., Process], tmp_path: Path, notes: int
) -> None:
    """kill -9 after the ledger's ack, before the note of the first, second, third batch: every rejected number is one
    letter, also when its rows come again in another file; replayed, it has one effect."""
    server = make_process()
    server.start()
    (tmp_path / "source.toml").write_text(
        plain_source("wms", top="batch_deltas = 5\nunacked_batches = 4", columns=NUMBERS)
    )
    drop = tmp_path / "drop"
    drop.mkdir()
    rows = [f"RECEIPT,a,n1,{0 if number % 4 == 0 else 1},s,{number}" for number in range(1, 21)]
    header = "type,sku,node,quantity,stream,number"
    (drop / "a.csv").write_text("\n".join([header, *rows, ""]))
    assert run(tmp_path, server.grpc, "-c", KILLED_BEFORE_A_NOTE, str(notes)) == -signal.SIGKILL
    with Client(server.grpc) as client:
        assert client.last_sequences("wms")["s"] > 5 * notes, "the ledger had it before the kill"
    assert run(tmp_path, server.grpc, "-m", "availability", "ingest", "run", "--once") == 0
    wanted = [f"dl:s:{number}" for number in range(4, 21, 4)]
    assert sorted(letter.event_id for letter in letters(tmp_path)) == sorted(wanted)
    assert {(letter.reason, letter.count, letter.state) for letter in letters(tmp_path)} == {
        ("INVALID_QUANTITY", 1, "WAITING")
    }
    # The same rows in other bytes: known by their numbers, nothing new to tell.
    (drop / "b.csv").write_text("\n".join([header, *(f"{row} " for row in rows), ""]))
    assert run(tmp_path, server.grpc, "-m", "availability", "ingest", "run", "--once") == 0
    assert len(letters(tmp_path)) == len(wanted)
    with Client(server.grpc) as client:
        assert sum(node.on_hand for node in client.explain("all", "a").terms.nodes) == 15
