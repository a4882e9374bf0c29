"""The commands of ingest as an operator types them, against a real server."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from availability.cli.root import run
from availability.client import Client
from tests.conftest import Names, Server
from tests.ingest_lab import plain_source

SAMPLES = """
[[samples]]
artifact = "sample.csv"
expect = "sample.jsonl"
"""
HEADER = "type,sku,node,quantity,unit\n"


@pytest.fixture
def folder(tmp_path: Path, server: Server, names: Names, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AVAIL_TARGET", server.grpc)
    monkeypatch.setenv("AVAIL_INGEST_SOURCES", str(tmp_path))
    monkeypatch.setenv("AVAIL_INGEST_DATABASE", str(tmp_path / "ingest.db"))
    (tmp_path / "wms.toml").write_text(plain_source(names.id("wms"), more=SAMPLES))
    (tmp_path / "sample.csv").write_text(HEADER + "RECEIPT,tea,east,3,\nRECEIPT,tea,east,x,\n")
    (tmp_path / "sample.jsonl").write_text(
        '{"position": 2, "type": "RECEIPT", "sku": "tea", "node": "east", "quantity": 3}\n'
        '{"position": 3, "refused": "NUMBER"}\n'
    )
    (tmp_path / "drop").mkdir()
    return tmp_path


def cli(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run(["ingest", *args])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_database_without_runs_is_not_told_as_one_without_letters(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped --database must not look like a quiet night."""
    assert cli(capsys, "letters", "list")[1] == f"nothing has run yet with {folder / 'ingest.db'}\n"


def test_a_file_of_another_kind_is_refused_in_words_for_people(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What came of it stands on one line, however narrow nobody's terminal is."""
    (folder / "drop" / "picture.csv").write_bytes(b"\x89PNG\r\x1a\x00\xff\xfe no table at all\n")
    (folder / "drop" / "macintosh.csv").write_text("type,sku\rnode,quantity\r", newline="")
    code, out, _ = cli(capsys, "run", "--once")
    assert code == 0
    lines = [one.partition(": ")[2] for one in out.splitlines()]
    why = "REFUSED: the line with the column names"
    assert sorted(one.removesuffix("; 1 wait") for one in lines) == [
        f"macintosh.csv: {why} cannot be read: new-line character seen in unquoted field",
        f"picture.csv: {why} is not utf-8",
    ]


def test_a_letter_is_replayed_once_after_the_mapping_was_mended(
    folder: Path, server: Server, names: Names, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run, look, mend, replay, replay again: one effect; a discarded letter keeps its reason."""
    source, tea = names.id("wms"), names.sku("tea")
    (folder / "drop" / "a.csv").write_text(
        HEADER + f"RECEIPT,{tea},east,3,\nRECEIPT,{tea},east,2.5,\nRECEIPT,{tea},east,x,\n"
    )
    code, out, _ = cli(capsys, "run", "--once")
    assert (code, "a.csv: DONE" in out) == (0, True)
    _, out, _ = cli(capsys, "letters", "list", "--json")
    letters = {letter["reason"]: letter for letter in json.loads(out)}
    assert set(letters) == {"REMAINDER", "NUMBER"}
    assert letters["REMAINDER"]["raw"] == f"RECEIPT,{tea},east,2.5,\n"
    first = letters["REMAINDER"]["letter_id"]
    assert cli(capsys, "letters", "replay", first)[0] == 3
    # The rows are in pairs, and nobody had said so.
    in_pairs = '[mapping.constants]\nunit = "PAIR"\n[mapping.units.factors]\nPAIR = "2"\n'
    (folder / "wms.toml").write_text(plain_source(source, more=in_pairs + SAMPLES))
    code, out, _ = cli(capsys, "letters", "replay", first)
    assert (code, out) == (0, "1 applied, 0 had been applied, 0 stay\n")
    with Client(server.grpc) as client:
        terms = client.explain(f"{source} all", tea).terms
        assert sum(node.on_hand for node in terms.nodes) == 3 + 5
    assert (
        cli(capsys, "letters", "discard", "--all", "--reason", "typing error at the gate")[1]
        == "1 discarded\n"
    )
    assert "no dead letters" in cli(capsys, "letters", "list")[1]
    _, out, _ = cli(capsys, "letters", "list", "--state", "DISCARDED", "--json")
    assert json.loads(out)[0]["closed_reason"] == "typing error at the gate"
    assert "a.csv" in cli(capsys, "runs")[1]


def test_check_shows_effects_and_sends_nothing(
    folder: Path, names: Names, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table of what would move, and what is wrong with its lines."""
    code, out, _ = cli(capsys, "check", str(folder / "sample.csv"), "--source", names.id("wms"))
    assert code == 3
    assert "RECEIPT" in out
    assert "NUMBER" in out
    assert "'x' is no number" in out


def test_golden_samples_are_proved(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They hold, and a changed expectation does not."""
    assert cli(capsys, "test") == (0, "1 sample, 0 differences\n", "")
    sample = folder / "sample.jsonl"
    sample.write_text(sample.read_text().replace('"quantity": 3', '"quantity": 4'))
    code, _, err = cli(capsys, "test")
    assert (code, "instead of" in err) == (3, True)


def test_errors_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown source, an unknown letter, a broken mapping: what is wrong, and no traceback."""
    code, _, err = cli(capsys, "check", str(folder / "sample.csv"), "--source", "nobody")
    assert (code, "no file describes the source 'nobody'" in err, err.count("\n")) == (1, True, 1)
    assert cli(capsys, "letters", "show", "abc")[0] == 3
    (folder / "wms.toml").write_text("source = 3\n")
    code, _, err = cli(capsys, "runs")
    assert (code, "format" in err, "mapping" in err, err.count("\n")) == (1, True, True, 1)


def test_an_event_posted_is_in_the_ledger(folder: Path, server: Server, names: Names) -> None:
    """Over HTTP into the file, from the file into the ledger, by the command that an operator runs."""
    source, tea = names.id("hook"), names.sku("tea")
    (folder / "secret").write_text("a secret of some length")
    webhook = '[webhook]\nsecret_file = "secret"\nrotate_ms = 20'
    (folder / "wms.toml").write_text(plain_source(source, kind="json_lines", more=webhook))
    command = [sys.executable, "-m", "availability", "ingest", "run", "--http", "127.0.0.1:0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = line.split()[2].replace("SOURCE", source)
        event = {"type": "RECEIPT", "sku": tea, "node": "east", "quantity": 4}
        request = urllib.request.Request(
            address, json.dumps(event).encode(), headers={"authorization": "Bearer a secret of some length"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 202
        deadline = time.monotonic() + 20
        with Client(server.grpc) as client:
            while time.monotonic() < deadline:
                terms = client.explain(f"{source} all", tea).terms
                if sum(node.on_hand for node in terms.nodes) == 4:
                    break
                time.sleep(0.05)
            else:
                pytest.fail("the event did not arrive")
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_a_file_is_looked_at_reversed_and_the_status_told(
    folder: Path, server: Server, names: Names, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status, preview and reversal as an operator types them; what was booked back is told by its run."""
    source, tea = names.id("wms"), names.sku("tea")
    (folder / "drop" / "a.csv").write_text(HEADER + f"RECEIPT,{tea},east,3,\nRECEIPT,{tea},east,x,\n")
    assert cli(capsys, "run", "--once")[0] == 0
    code, out, _ = cli(capsys, "status", "--json")
    (told,) = json.loads(out)
    assert (code, told["source"], told["files_waiting"], told["letters_waiting"]) == (0, source, 0, 1)
    run_id = next((folder / "drop" / "archive").iterdir()).name.split("_")[1]
    assert cli(capsys, "reverse", run_id)[0] == 2, "without a reason"
    code, out, _ = cli(capsys, "reverse", run_id, "--preview")
    assert (code, "-3" in out, "booked back" in out) == (0, True, False)
    code, out, _ = cli(capsys, "reverse", run_id, "--reason", "wrong day")
    assert (code, "1 booked back, 0 had been" in out) == (0, True)
    assert "REVERSED: wrong day" in cli(capsys, "runs")[1].replace("\n", " ")
    with Client(server.grpc) as client:
        assert sum(node.on_hand for node in client.explain(f"{source} all", tea).terms.nodes) == 0
    code, _, err = cli(
        capsys, "cutover", "--from", "other", "--to", source, "--nodes", "east", "--at-sequence", "5",
        "--reason", "swap",
    )  # fmt: skip
    assert (code, "no point of" in err) == (3, True)
    assert cli(capsys, "shadow", "report", source)[0] == 3
    assert cli(capsys, "gap", "skip", source, "s", "4", "--reason", "lost")[0] != 0
