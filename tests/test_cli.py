"""What the command line promises: one clear line and an exit code an error, and answers that add up."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from availability.cli.explain import draw, sum_problem
from availability.cli.options import parse_duration_s, parse_lines
from availability.cli.root import run
from availability.client import Client
from availability.demo.books import Buffer, Channel
from availability.v1 import availability_pb2 as av
from tests.conftest import Names, Server
from tests.fake_service import FakeService, serving

HELP_CPU_S_MAX = 0.7
"""Processor time, which a busy machine does not stretch much: 0.28 s was measured."""


@pytest.fixture
def fake() -> FakeService:
    made = FakeService()
    made.books.channels["web"] = Channel(nodes=("east", "west"), buffer=Buffer(percent=10))
    made.books.receive("A", "east", 20, quarantined=2)
    made.books.receive("A", "west", 10)
    made.books.receive("odd = {sku}: [x]", "east", 4)
    made.books.offline.add("west")
    return made


@pytest.fixture(autouse=True)
def _target(fake: FakeService, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AVAIL_TOKEN", "AVAIL_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    with serving(fake) as target:
        monkeypatch.setenv("AVAIL_TARGET", target)
        yield


def cli(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Run a command in this process; return exit code, stdout, stderr."""
    capsys.readouterr()
    code = run(args)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# --- Errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "code", "begins"),
    [
        (["get", "A"], 2, "usage: Missing option '--channel'"),
        (["nonsense"], 2, "usage: No such command 'nonsense'"),
        (["reserve", "-c", "web", "A"], 2, "usage: 'A' is no line"),
        (["reserve", "-c", "web", "A=1", "--hold", "soon"], 2, "usage: 'soon' is no duration"),
        (["adjust", "A", "--node", "east", "--quantity", "x", "--reason", "r"], 2, "usage: Invalid value"),
        (["policy", "set-channel", "b", "--reason", "r"], 2, "usage: name --nodes"),
        (
            ["policy", "override", "web", "A", "--buffer", "ten", "--reason", "r"],
            2,
            "usage: 'ten' is no buffer",
        ),
        (["policy", "kit", "SET", "--reason", "r"], 2, "usage: name each --component, or --remove"),
        (["policy", "kit", "SET", "--component", "A", "--reason", "r"], 2, "usage: 'A' is no component"),
        (["watch", "-c", "web"], 2, "usage: name skus, or --all"),
        (["get", "A", "-c", "nope"], 3, "UNKNOWN_CHANNEL: no policy for channel 'nope'"),
        (["reserve", "-c", "web", "A=99"], 3, "INSUFFICIENT_STOCK: A: 99 wanted, 16 sellable"),
        (["commit", "r-9", "--order-ref", "1"], 3, "RESERVATION_NOT_FOUND: "),
        (["adjust", "A", "--node", "nowhere", "--quantity", "1", "--reason", "r"], 3, "UNKNOWN_NODE: "),
        (["get", "A", "-c", "web", "--target", "127.0.0.1:1"], 4, "UNREACHABLE: no server at 127.0.0.1:1 ("),
        (
            ["get", "A", "-c", "web", "--token-file", "/nonexistent/token"],
            1,
            "error: /nonexistent/token: No such",
        ),
        (["token", "create", "x", "--file", "t.json", "--scope", "root"], 2, "usage: no scope 'root'"),
        (
            ["token", "list", "--file", "/nonexistent/t.json"],
            2,
            "usage: /nonexistent/t.json: there is no such",
        ),
        (["policy", "diff", "/nonexistent/p.toml"], 2, "usage: /nonexistent/p.toml: No such file"),
        (["policy", "diff", sys.executable], 2, f"usage: {sys.executable}: it is no UTF-8 text"),
    ],
)
def test_an_error_is_one_line_with_its_exit_code(
    capsys: pytest.CaptureFixture[str], args: list[str], code: int, begins: str
) -> None:
    """Reason first, nothing on stdout, and the code tells scripts whose fault it was."""
    found, out, err = cli(capsys, *args)
    assert (found, out) == (code, "")
    assert err.startswith(begins)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("status", "reason", "code"),
    [
        ("INVALID_ARGUMENT", "INVALID_REQUEST", 2),
        ("PERMISSION_DENIED", "PERMISSION_DENIED", 3),
        ("FAILED_PRECONDITION", "RESERVATION_EXPIRED", 3),
        ("UNAVAILABLE", "LEDGER_UNREACHABLE", 4),
        ("RESOURCE_EXHAUSTED", "OVERLOADED", 4),
        ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", 4),
        ("INTERNAL", "INTERNAL", 1),
    ],
)
def test_a_status_decides_the_exit_code(
    capsys: pytest.CaptureFixture[str], fake: FakeService, status: str, reason: str, code: int
) -> None:
    """2 usage, 3 refused, 4 unreachable or overloaded, 1 the rest; the line is the server's own reason."""
    fake.plan.failures["GetAvailability"] = [(status, reason, 0.0)] * 9
    assert cli(capsys, "get", "A", "-c", "web") == (code, "", f"{reason}: as planned\n")


# --- Reading ----------------------------------------------------------------------------------------------


def test_get_prints_a_row_per_sku(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown sku is a row of its own and no error; markup in a sku stays text."""
    code, out, _ = cli(capsys, "get", "A", "odd = {sku}: [x]", "B", "--channel", "web")
    assert code == 0
    assert re.search(r"A +16 +IN_STOCK", out)
    assert re.search(r"odd = \{sku\}: \[x\] +3 +IN_STOCK", out)
    assert re.search(r"B +0 +UNKNOWN_SKU", out)


def test_get_json_has_the_names_of_the_api(capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers are numbers, enums their full names, nothing is left out for being 0."""
    _, out, _ = cli(capsys, "get", "A", "-c", "web", "--nodes", "--json")
    answer = json.loads(out)[0]
    assert (answer["sellable_quantity"], answer["state"]) == (16, "AVAILABILITY_STATE_IN_STOCK")
    assert answer["nodes"][1] == {"node": "west", "free_quantity": 10, "sellable_quantity": 0}


def test_explain_shows_a_sum_that_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    """Every term is there: an offline node adds nothing, and the last line is the answer."""
    cli(capsys, "reserve", "-c", "web", "A=3", "--hold", "1h")
    code, out, _ = cli(capsys, "explain", "A", "--channel", "web")
    assert code == 0
    assert re.search(r"east +20 +2 +0 +18 +3 +0 +15 +15", out)
    assert re.search(r"west +10 +0 +0 +10 +0 +0 +10 +0 +not counted: OFFLINE", out)
    assert re.search(r"  pool +15 +15 \+ 0", out)
    assert re.search(r"− buffer +2 +10 % \(channel\)", out)
    assert re.search(r"= sellable +13 +IN_STOCK", out)


@pytest.mark.parametrize("width", [40, 80, 100])
def test_explain_fits_a_narrow_terminal(width: int) -> None:
    """No name or number is broken over two lines: nodes stand beside each other instead, and remarks below."""
    with Client(os.environ["AVAIL_TARGET"]) as client:
        answer = client.explain("web", "A")
    screen = Console(width=width, file=StringIO(), highlight=False)
    draw(answer, screen)
    assert isinstance(screen.file, StringIO)
    lines = screen.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(line.rstrip() for line in lines)
    assert re.search(r"^ +east +west$", text, re.MULTILINE), text
    assert re.search(r"^ − safety_stock +0 +0$", text, re.MULTILINE), text
    assert re.search(r"^ = give +18 +10$", text, re.MULTILINE), text
    assert " west: not counted: OFFLINE" in text


def test_a_watch_ends_when_nobody_reads_it_any_more(server: Server, names: Names) -> None:
    """`watch | head -1` is not left waiting for a change that may come tomorrow."""
    command = [sys.executable, "-m", "availability", "watch", names.sku(), "--channel", names.channel()]
    with subprocess.Popen([*command, "--target", server.grpc], stdout=subprocess.PIPE) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline()
        watching.stdout.close()
        assert watching.wait(timeout=20) == 0


def test_explain_says_when_terms_do_not_add_up() -> None:
    """The command checks the sum that it draws."""
    terms = av.AvailabilityTerms(sellable_quantity=5, pool=5)
    terms.nodes.add(node="east", on_hand=5, give=5, net=5, free=5, counted=True)
    assert sum_problem(terms) is None
    terms.buffer = 1
    assert sum_problem(terms) == "the terms do not add up to 5"
    terms.pool = 6
    assert sum_problem(terms) == "the nodes do not add up to the pool 6"
    terms.nodes[0].net = 4
    assert sum_problem(terms) == "the terms of east do not add up"


# --- Checkout, stock and policy ---------------------------------------------------------------------------


def test_reserve_prints_the_id_alone(capsys: pytest.CaptureFixture[str], fake: FakeService) -> None:
    """A script takes stdout as the id; commit and release take it from there."""
    code, out, _ = cli(capsys, "reserve", "-c", "web", "A=2", "A=1", "odd = {sku}: [x]=1")
    assert (code, out) == (0, "r-1\n")
    assert sum(line.quantity for line in fake.reservations["r-1"].lines) == 4
    code, out, _ = cli(capsys, "release", "r-1", "A=1")
    assert code == 0
    assert out.startswith("ACTIVE: ")
    code, out, _ = cli(capsys, "commit", "r-1", "--order-ref", "1001")
    assert code == 0
    assert out.startswith("COMMITTED: 2 A at east, 1 odd = {sku}: [x] at east for order 1001 of web")


def test_reserve_partial_takes_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    """The id on stdout, the shortage on stderr, exit 0: it is what was asked for."""
    code, out, err = cli(capsys, "reserve", "-c", "web", "A=99", "--partial")
    assert (code, out) == (0, "r-1\n")
    assert err.startswith("PARTIAL: A: 99 wanted, 16 sellable\n")


def test_adjust_is_a_delta_of_the_operator(capsys: pytest.CaptureFixture[str], fake: FakeService) -> None:
    """Negative quantities need no quoting, and the event has an id of its own."""
    code, out, _ = cli(capsys, "adjust", "A", "--node", "east", "--quantity", "-4", "--reason", "broken")
    assert code == 0
    assert out.startswith("APPLIED: -4 A at east")
    assert fake.books.on_hand["A", "east"] == 16
    assert [source for source, _ in fake.events] == ["operator"]


def test_policy_commands_change_what_they_name(capsys: pytest.CaptureFixture[str], fake: FakeService) -> None:
    """Set, override, clear, take offline, stop, show and list."""
    why = ("--reason", "test")
    for args in (
        ("set-channel", "b2b", "--nodes", "west,east", "--buffer", "5%"),
        ("override", "b2b", "A", "--buffer", "3"),
        ("safety-stock", "east", "--sku", "A", "--quantity", "2"),
        ("node", "west", "online"),
        ("sale-state", "blocked", "--sku", "A", "--for", "2h"),
        ("fence", "web", "A", "4"),
        ("kit", "SET", "--component", "A=2", "--component", "size=XL=1"),
    ):
        code, out, err = cli(capsys, "policy", *args, *why)
        assert (code, err) == (0, "")
        assert out.startswith("DONE: version 1-")
    assert fake.books.channels["b2b"] == Channel(nodes=("west", "east"), buffer=Buffer(percent=5))
    assert fake.books.overrides["b2b", "A"] == Buffer(units=3)
    assert fake.books.safety["A", "east"] == 2
    assert "west" not in fake.books.offline
    assert fake.kits == {"SET": {"A": 2, "size=XL": 1}}
    _, out, _ = cli(capsys, "policy", "show", "b2b")
    assert re.search(r"A +3 units", out)
    cli(capsys, "policy", "clear-override", "b2b", "A", *why)
    assert ("b2b", "A") not in fake.books.overrides
    _, out, _ = cli(capsys, "policy", "list")
    assert re.search(r"b2b +west, east +5 %", out)


def test_a_token_is_shown_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """create prints it, list never does, revoke ends it, and a second revoke is refused."""
    file = str(tmp_path / "tokens.json")
    code, secret, _ = cli(capsys, "token", "create", "eu", "--file", file, "--scope", "read,reserve")
    assert code == 0
    _, listed, _ = cli(capsys, "token", "list", "--file", file)
    assert "eu" in listed
    assert secret.strip() not in listed + Path(file).read_text()
    assert cli(capsys, "token", "revoke", "eu", "--file", file)[0] == 0
    assert cli(capsys, "token", "revoke", "eu", "--file", file)[0] == 3


def test_doctor_says_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    """A Redis that is not there is a finding, and the exit code tells."""
    code, out, err = cli(capsys, "doctor", "--redis", "redis://127.0.0.1:1")
    assert code == 1
    assert re.search(r"error +connection", out)
    assert err.startswith("NOT_FIT: ")


# --- Small parts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("1h30m", 5400), ("0.5s", 0.5), ("1m1s", 61)]
)
def test_durations(text: str, seconds: float) -> None:
    """Hours, minutes, seconds, in this order."""
    assert parse_duration_s(text) == seconds


def test_lines_take_the_last_equals_sign() -> None:
    """A sku is opaque: it may hold the sign itself."""
    assert parse_lines(["a=b=2", "c=1", "c=4"]) == {"a=b": 2, "c": 5}


def test_help_is_fast() -> None:
    """`availability --help` loads neither gRPC nor pydantic nor numpy, and answers at once."""
    source = (
        "import sys; from availability.cli.root import run; run(['--help']);"
        "sys.exit(','.join({'grpc', 'pydantic', 'numpy', 'redis'} & set(sys.modules)) or 0)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "explain" in done.stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent_s < HELP_CPU_S_MAX


def test_health_says_whether_a_server_serves(capsys: pytest.CaptureFixture[str], server: Server) -> None:
    """Of all, of one service, and of the process alone; nobody there: exit code 4 and one line."""
    for service in ("", "availability.v1.AvailabilityService", "liveness"):
        assert run(["health", "--target", server.grpc, "--service", service]) == 0
        assert capsys.readouterr().out == "SERVING\n"
    assert run(["health", "--target", server.grpc, "--service", "nothing"]) == 4
    assert "NOT_FOUND" in capsys.readouterr().err
    assert run(["health", "--target", "127.0.0.1:1"]) == 4
    assert capsys.readouterr().err.count("\n") == 1
