"""A cloud ERP over HTTP, played by a real server: pages, tokens, limits, an overlap; every event's effect once."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from availability.cli.root import run
from availability.client import Client
from ingest.app import IngestDesk
from ingest.database import open_database
from ingest.settings import SettingsRefused, read_source, read_sources
from ingest.sources.feed import FeedFailed
from ingest.sources.rest import RestFeed
from tests.conftest import Names, Server
from tests.ingest_lab import carry_ready, killed_in, on_hand

SECRET = "a secret & of some length"
SOURCE = """
source = "{source}"

[format]
kind = "json_lines"

[mapping]
version = "1"
author = "ingest"

[mapping.columns]
event_id = "id"
type = "type"
sku = "sku"
quantity = "quantity"

[mapping.constants]
node = "{node}"

[drop]
folder = "drop"

[rest]
url = "{url}/movements?company=7"
since_param = "since"
start = 2026-01-01T00:00:00Z
cursor_column = "changed.at"
items = "data.items"
{more}
"""
OAUTH = """
[rest.oauth2]
token_url = "{url}/token"
client_id = "shop:1"
secret_file = "secret"
"""
START = datetime(2026, 1, 1, tzinfo=UTC)


class Erp:
    """The other side: events with times, pages of three, tokens, and faults as told. Records what it was asked."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.secret = SECRET
        self.token, self.tokens_given, self.lives_s = "", 0, 3600
        self.paging, self.locked = "link", True
        self.faults: list[Response] = []
        self.asked: list[str] = []
        routes = [Route("/movements", self.movements), Route("/token", self.give, methods=["POST"])]
        config = uvicorn.Config(Starlette(routes=routes), port=0, log_config=None, access_log=False)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def end(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)

    async def give(self, request: Request) -> Response:
        form = (await request.body()).decode()
        told = base64.b64decode(request.headers.get("authorization", "")[6:]).decode()
        right = f"{quote('shop:1', safe='')}:{quote(self.secret, safe='')}"
        if told != right or "grant_type=client_credentials" not in form:
            return JSONResponse({"error": "invalid_client"}, 401)
        self.tokens_given += 1
        self.token = f"token{self.tokens_given}"
        return JSONResponse({"access_token": self.token, "token_type": "Bearer", "expires_in": self.lives_s})

    async def movements(self, request: Request) -> Response:
        self.asked.append(str(request.url.query))
        if self.faults:
            return self.faults.pop(0)
        if self.locked and request.headers.get("authorization") != f"Bearer {self.token}":
            return JSONResponse({"error": "who are you?"}, 401)
        assert request.query_params["company"] == "7"
        since = datetime.fromisoformat(request.query_params["since"])
        found = [one for one in self.events if datetime.fromisoformat(one["changed"]["at"]) >= since]
        page = int(request.query_params.get("page", 1))
        answer: dict[str, Any] = {"data": {"items": found[3 * page - 3 : 3 * page]}}
        headers = {}
        if len(found) > 3 * page and self.paging != "page":
            following = f"/movements?company=7&since={request.query_params['since']}&page={page + 1}"
            if self.paging == "header":
                headers["link"] = f'<{following}>; rel="next"'
            else:
                answer["next"] = following
        return Response(json.dumps(answer, indent=1), headers=headers, media_type="application/json")


@pytest.fixture
def erp() -> Iterator[Erp]:
    made = Erp()
    yield made
    made.end()


class Bench:
    """A source, its desk, and clocks that only pauses move."""

    def __init__(self, folder: Path, erp: Erp, server: Server, names: Names, more: str) -> None:
        self.folder, self.erp = folder, erp
        self.source, self.node, self.sku = names.id("erp"), names.id("east"), names.sku("tea")
        (folder / "secret").write_text(SECRET + "\n")
        values = {"source": self.source, "node": self.node, "url": erp.url}
        (folder / "erp.toml").write_text(SOURCE.format(**values, more=more.replace("{url}", erp.url)))
        self.client = Client(server.grpc)
        self.engine = open_database(str(folder / "ingest.db"))
        self.desk = IngestDesk(read_sources(folder), self.engine, self.client)
        self.at = (START + timedelta(days=30)).timestamp()
        self.pauses: list[float] = []

    def feed(self) -> RestFeed:
        settings = self.desk.settings(self.source).rest
        assert settings is not None

        def pause(pause_s: float) -> None:
            self.pauses.append(pause_s)
            self.at += pause_s

        given: dict[str, Any] = {"now": lambda: self.at, "pause": pause, "rand": lambda: 0.0}
        # Events' files are settled in the drop folder's real time.
        return RestFeed(self.source, settings, self.folder / "drop", self.engine, **given)

    def add(self, number: int, minutes: float, **changes: Any) -> None:
        at = (START + timedelta(minutes=minutes)).isoformat()
        event = {"id": f"e{number}", "type": "RECEIPT", "sku": self.sku, "quantity": number}
        self.erp.events.append({**event, "changed": {"at": at}, **changes})

    def carry(self) -> int:
        return carry_ready(self.desk, self.source)

    def on_hand(self) -> int:
        return on_hand(self.client, self.source, self.sku, self.node)


@pytest.fixture
def make(tmp_path: Path, erp: Erp, server: Server, names: Names) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def bench(more: str = 'paging = "link"\nnext_column = "next"\n', lock: str = OAUTH) -> Bench:
        made.append(Bench(tmp_path, erp, server, names, more + lock))
        return made[-1]

    yield bench
    for one in made:
        one.client.close()


@pytest.mark.parametrize(
    ("paging", "settings"),
    [
        ("link", 'paging = "link"\nnext_column = "next"\n'),
        ("header", 'paging = "link"\n'),
        ("page", 'paging = "page"\n'),
        ("link", 'paging = "link"\nnext_column = "next"\nascending = true\n'),
    ],
)
def test_every_page_comes_and_the_overlap_counts_once(
    make: Callable[..., Bench], erp: Erp, paging: str, settings: str
) -> None:
    """A late event within the overlap is found; those seen before have no second effect; a restart goes on."""
    erp.paging = paging
    bench = make(settings)
    for number in range(1, 9):
        bench.add(number, minutes=number)
    feed = bench.feed()
    assert feed.fetch(once=True) == 1
    assert feed.settled == ""
    bench.carry()
    assert feed.settled == (START + timedelta(minutes=8)).isoformat()
    bench.add(9, minutes=7.5)  # committed late
    bench.add(10, minutes=11)
    bench.feed().fetch(once=True)
    bench.carry()
    assert bench.on_hand() == sum(range(1, 11))
    bench.feed().fetch(once=True)
    bench.carry()
    assert bench.feed().fetch(once=True) == 0  # the same answer again is not even a file
    assert bench.on_hand() == sum(range(1, 11))
    assert "since=2026-01-01T00:06:00Z" in unquote(erp.asked[-1])


@pytest.mark.parametrize("dies_in", ["_write", "_publish", "put"])
def test_killed_around_the_commit(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, dies_in: str
) -> None:
    """Asked again, or finished: each event once."""
    bench = make()
    for number in range(1, 9):
        bench.add(number, minutes=number)
    feed = bench.feed()
    with killed_in(monkeypatch, feed._chunks, dies_in):
        feed.fetch(once=True)
    assert bench.carry() == 0
    bench.feed().fetch(once=True)
    bench.carry()
    assert bench.on_hand() == sum(range(1, 9))


def test_tokens_are_kept_renewed_and_rotated(make: Callable[..., Bench], erp: Erp) -> None:
    """One for many pages; another when it expires, when it is refused, and when the secret's file changes."""
    bench = make()
    for number in range(1, 9):
        bench.add(number, minutes=number)
    feed = bench.feed()
    feed.fetch(once=True)
    assert (len(erp.asked), erp.tokens_given) == (3, 1)
    bench.at += 3600
    feed.fetch(once=True)
    assert erp.tokens_given == 2
    erp.token = "revoked"
    feed.fetch(once=True)
    assert erp.tokens_given == 3
    erp.secret = "tomorrow's secret"
    (bench.folder / "secret").write_text("tomorrow's secret")
    feed.fetch(once=True)
    assert erp.tokens_given == 4
    (bench.folder / "secret").write_text("hunter2hunter2")
    with pytest.raises(FeedFailed) as refused:
        feed.fetch(once=True)
    assert refused.value.reason == "AUTHENTICATION"
    assert "hunter2" not in f"{refused.value!r}{feed.__dict__!r}"


def test_what_the_server_asks_for_is_obeyed(make: Callable[..., Bench], erp: Erp) -> None:
    """Retry-After in seconds and as a date, a stumble, an outage that ends the round; then all is there."""
    bench = make()
    for number in range(1, 9):
        bench.add(number, minutes=number)
    date = datetime.fromtimestamp(bench.at + 20, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    erp.faults = [
        Response(status_code=429, headers={"retry-after": "7"}),
        Response(status_code=503, headers={"retry-after": date}),
        Response(status_code=500),
    ]
    feed = bench.feed()
    assert feed.fetch(once=True) == 1
    assert bench.pauses[0] == 7
    assert 12 <= bench.pauses[1] <= 20
    assert bench.pauses[2] == 2.0  # half of the third attempt's four seconds
    erp.faults = [Response(status_code=503, headers={"retry-after": "900"})]
    with pytest.raises(FeedFailed) as away:
        feed.fetch(once=True)
    assert (away.value.reason, away.value.retry_after_s) == ("OVERLOADED", 900)
    bench.carry()
    assert bench.on_hand() == sum(range(1, 9))


def test_the_hour_has_so_many_calls(make: Callable[..., Bench], erp: Erp) -> None:
    """A restart does not begin a new hour; a round that needs more waits in its middle, and comes to its end."""
    bench = make('paging = "link"\nnext_column = "next"\ncalls_per_hour = 3\n')
    for number in range(1, 13):
        bench.add(number, minutes=number)
    with pytest.raises(FeedFailed) as spent:
        bench.feed().fetch(once=True)
    assert (spent.value.reason, len(erp.asked)) == ("BUDGET", 2)
    with pytest.raises(FeedFailed):
        bench.feed().fetch(once=True)
    assert len(erp.asked) == 2
    bench.feed().fetch(once=False)
    assert sum(bench.pauses) >= 3600
    bench.carry()
    assert bench.on_hand() == sum(range(1, 13))


def test_answers_that_are_none(make: Callable[..., Bench], erp: Erp) -> None:
    """Each is told as what it is; nothing is guessed, and no token goes elsewhere."""
    bench = make()

    def said(body: object, status: int = 200, **headers: str) -> tuple[str, str]:
        erp.faults = [Response(json.dumps(body), status, headers=headers)]
        with pytest.raises(FeedFailed) as refused:
            bench.feed().fetch(once=True)
        return refused.value.reason, str(refused.value)

    erp.locked = False
    assert said({"data": {}})[0] == "ANSWER"
    assert said([])[0] == "ANSWER"
    assert said({"data": {"items": {}}})[0] == "ANSWER"
    assert said({"data": {"items": [], "next": 1}, "next": 7})[0] == "ANSWER"
    assert said({}, 404)[0] == "ANSWER"
    assert said({}, 403)[0] == "AUTHENTICATION"
    assert said({}, 302, location="http://127.0.0.1:1/")[0] == "ANSWER"
    reason, sentence = said({"data": {"items": []}, "next": "https://elsewhere.example/?token=1"})
    assert (reason, "token" in sentence) == ("PAGING", False)
    assert said({"data": {"items": []}, "next": "http://127.0.0.1:99999/"})[0] == "PAGING"
    own = f"{erp.url}/movements?company=7&since=2026-01-01T00:00:00Z"
    erp.faults = [Response(json.dumps({"data": {"items": []}, "next": own})) for _ in range(3)]
    with pytest.raises(FeedFailed, match="circle"):
        bench.feed().fetch(once=True)
    bench.desk.sources[bench.source] = _changed(bench, answer_bytes_max=1_000)
    assert said({"data": {"items": ["x" * 2_000]}})[1].endswith("1000 bytes")
    erp.end()
    with pytest.raises(FeedFailed) as away:
        bench.feed().fetch(once=True)
    assert away.value.reason == "UNREACHABLE"


def test_bad_events_are_letters_and_a_mended_one_counts_once(make: Callable[..., Bench], erp: Erp) -> None:
    """Though the overlap brings it again: it is replayed under its own id. One of the future moves no clock."""
    bench = make()
    bench.add(1, minutes=1)
    bench.add(2, minutes=2, type="101")
    bench.add(3, minutes=60 * 24 * 365)
    bench.add(4, minutes=3, changed={"at": "2026-01-01T00:03:00Z", "by": 1.5})
    bench.feed().fetch(once=True)
    bench.carry()
    assert bench.on_hand() == 1 + 3 + 4
    assert bench.feed().settled == (START + timedelta(minutes=3)).isoformat()
    (letter,) = bench.desk.letters.find()
    mended = bench.folder / "erp.toml"
    movements = '[mapping.movements]\n"101" = { type = "RECEIPT" }\nRECEIPT = { type = "RECEIPT" }\n'
    mended.write_text(mended.read_text() + movements)
    bench.desk = IngestDesk(read_sources(bench.folder), bench.engine, bench.client)
    assert bench.desk.replay([letter]).applied == 1
    bench.add(5, minutes=4)
    bench.feed().fetch(once=True)
    bench.carry()
    assert bench.on_hand() == 1 + 2 + 3 + 4 + 5


def test_the_command_fetches_and_carries_what_it_can(
    make: Callable[..., Bench], erp: Erp, capfd: pytest.CaptureFixture[str], server: Server
) -> None:
    """Once: one feed's outage is told at the end, and keeps nothing of the others back."""
    bench = make()
    bench.add(1, minutes=1)
    away = (bench.folder / "erp.toml").read_text().replace(bench.source, f"{bench.source} away")
    away = away.replace(f'url = "{erp.url}/mov', 'attempts_max = 1\nurl = "http://127.0.0.1:1/mov')
    (bench.folder / "away.toml").write_text(away.replace('folder = "drop"', 'folder = "drop2"'))
    bench_toml = bench.folder / "erp.toml"
    bench_toml.write_text(bench_toml.read_text().replace('folder = "drop"', 'folder = "drop"\nsettle_ms = 0'))
    arguments = ["ingest", "run", "--once", "--target", server.grpc, "--sources", str(bench.folder)]
    code = run([*arguments, "--database", str(bench.folder / "ingest.db")])
    said = capfd.readouterr().err
    assert (code, bench.on_hand()) == (1, 1)
    assert "NOT_FETCHED" in said
    assert "UNREACHABLE: http://127.0.0.1:1" in said


def test_a_bug_in_a_feed_stops_the_run(make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no outage: nobody would see that a thread has ended."""
    bench = make()

    def broken(*_: object, **__: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(RestFeed, "fetch", broken)
    with pytest.raises(ZeroDivisionError):
        bench.desk.run(once=False, stopped=lambda: False, watch=lambda *_: None, told=lambda _: None)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("http://127.0.0.1", "http://erp.example", "https://"),
        ("http://127.0.0.1", "https://me:pw@erp.example", "belong into files"),
        ('event_id = "id"', "", "event_id"),
        ('folder = "drop"', 'folder = "drop"\npattern = "*.csv"', "pattern"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, old: str, new: str, said: str) -> None:
    """Secrets in addresses, addresses that anybody can read, events without names, files that nobody finds."""
    text = SOURCE.format(source="s", node="n", url="http://127.0.0.1", more="")
    (tmp_path / "s.toml").write_text(text.replace(old, new))
    with pytest.raises(SettingsRefused, match=said) as refused:
        read_source(tmp_path / "s.toml")
    assert "me:pw" not in str(refused.value)


def _changed(bench: Bench, **changes: Any) -> Any:
    settings = bench.desk.settings(bench.source)
    assert settings.rest is not None
    return settings.model_copy(update={"rest": settings.rest.model_copy(update=changes)})
