"""A cloud ERP's REST interface as a feed: events since a durable time, with an overlap, page by page.

Clocks differ and transactions commit late, so each round asks for a stretch that was seen before; the ledger knows the
events by their ids. The time moves with what was seen in the answers, never with our clock alone. Every call counts
against the hour's budget, which survives a restart; 429 and 503 are obeyed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urljoin, urlsplit, urlunsplit

import msgspec
import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Engine

from ingest.database import feeds
from ingest.settings import OAuth2, Rest
from ingest.sources.feed import Chunks, FeedFailed, backoff_s, set_feed, waiting_bytes

if TYPE_CHECKING:
    import httpx2

_LOG = structlog.get_logger(__name__)

KIND = "rest"
CHUNK_BYTES = 4_000_000
HOUR_S = 3600.0
TOKEN_MARGIN_S = 60.0
WAIT_HERE_MAX_S = 30.0
"""Longer waits end the round: what it brought is kept, and the feed's thread waits instead."""
RETRY_AFTER_MAX_S = 86_400.0


@dataclass(slots=True)
class _Page:
    events: list[bytes]
    next_url: str


class Budget:
    """Calls of an hour, counted in the database: a restart does not begin a new hour."""

    def __init__(self, engine: Engine, source: str, calls_max: int, now: Callable[[], float]) -> None:
        self._engine, self._source, self._max, self._now = engine, source, calls_max, now

    def take(self) -> None:
        """Count one call. Raises FeedFailed where the hour has no more."""
        where = sa.and_(feeds.c.source == self._source, feeds.c.kind == KIND)
        now = self._now()
        with self._engine.begin() as connection:
            row = connection.execute(sa.select(feeds.c.window_begun_at, feeds.c.calls).where(where)).first()
            begun, calls = (row.window_begun_at, row.calls) if row is not None else (0.0, 0)
            if not 0 <= now - begun < HOUR_S:
                begun, calls = now, 0
            if calls >= self._max:
                wait_s = begun + HOUR_S - now
                raise FeedFailed(
                    "BUDGET", f"{calls} calls were made within the hour", retry_after_s=max(1.0, wait_s)
                )
            set_feed(connection, self._source, KIND, window_begun_at=begun, calls=calls + 1)


class Tokens:
    """Bearer tokens: a fixed one from a file, or OAuth2's, kept until they expire or the secret's file changes."""

    def __init__(
        self,
        settings: Rest,
        ask: Callable[[OAuth2, str], dict[str, Any]],  # Any: JSON
        *,
        now: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._ask = ask
        self._now = now
        self._token = ""
        self._expires_at = 0.0
        self._secret_seen = ""

    def __repr__(self) -> str:
        return "Tokens()"

    def header(self) -> dict[str, str]:
        """Return what a call shows. Raises FeedFailed."""
        settings = self._settings
        if settings.token_file is not None:
            return {"authorization": f"Bearer {_secret(settings.token_file)}"}
        if settings.oauth2 is None:
            return {}
        secret = _secret(settings.oauth2.secret_file)
        if not self._token or secret != self._secret_seen or self._now() >= self._expires_at:
            self._renew(settings.oauth2, secret)
        return {"authorization": f"Bearer {self._token}"}

    def forget(self) -> None:
        """Show another one next time: this one was refused."""
        self._token = ""

    @property
    def renewable(self) -> bool:
        """Say whether another one can be had."""
        return self._settings.oauth2 is not None

    def _renew(self, oauth2: OAuth2, secret: str) -> None:
        self._token = ""
        answer = self._ask(oauth2, secret)
        token, lives_s = answer.get("access_token"), answer.get("expires_in", 300)
        kind = str(answer.get("token_type", "bearer")).lower()
        try:
            lives_s = float(lives_s)
        except (TypeError, ValueError):
            lives_s = 300.0
        if not isinstance(token, str) or not token.isascii() or not token.isprintable() or kind != "bearer":
            raise FeedFailed("AUTHENTICATION", "the token's server gave no bearer token")
        self._token, self._secret_seen = token, secret
        self._expires_at = self._now() + max(lives_s - TOKEN_MARGIN_S, lives_s / 2)


class RestFeed:
    """Events of one address into one drop folder."""

    kind = KIND
    eager = False

    def __init__(
        self,
        source: str,
        settings: Rest,
        folder: Path,
        engine: Engine,
        *,
        settle_ms: int = 0,
        now: Callable[[], float] = time.time,
        pause: Callable[[float], None] = time.sleep,
        rand: Callable[[], float] = random.random,
    ) -> None:
        self.source = source
        self.interval_s = settings.interval_ms / 1000
        self._settings = settings
        self._folder = folder
        self._now = now
        self._pause = pause
        self._rand = rand
        self._chunks = Chunks(engine, source, KIND, folder, settle_ms=settle_ms, now=now)
        self._budget = Budget(engine, source, settings.calls_per_hour, now)
        self._tokens = Tokens(settings, self._ask_token, now=now)
        self._http: httpx2.Client | None = None

    @property
    def settled(self) -> str:
        """Time of the latest event of the rounds that the ledger has, ISO 8601; "" at the very beginning."""
        return self._chunks.settled()

    def fetch(self, *, once: bool) -> int:
        """Ask one round, from the place where we stand less the overlap. Raises FeedFailed."""
        self._chunks.settled()
        settings = self._settings
        if waiting_bytes(self._folder) > settings.waiting_bytes_max:
            return 0
        before = self._chunks.position()
        # What claims to be of the future does not move us there.
        begun = datetime.fromtimestamp(self._now(), UTC)
        reached = datetime.fromisoformat(before) if before else settings.start
        since = reached - timedelta(milliseconds=settings.overlap_ms) if before else reached
        count, kept, lines = 0, 0, list[bytes]()
        decoder = msgspec.json.Decoder()

        def put(position: str) -> None:
            nonlocal count, kept, lines
            content = b"".join(lines)
            if content or position != self._chunks.position():
                count += self._chunks.put(content, position)
            kept, lines = 0, []

        try:
            for page in self._pages(since, once):
                for event in page.events:
                    lines.append(_one_line(event))
                    kept += len(event)
                    at = _time_of(decoder, event, settings.cursor_column)
                    if at is not None and at <= begun:
                        reached = max(reached, at)
                if kept >= CHUNK_BYTES:
                    put(reached.isoformat() if settings.ascending else before)
        except FeedFailed:
            put(reached.isoformat() if settings.ascending and (lines or count) else before)
            raise
        put(reached.isoformat() if before or reached > settings.start else before)
        return count

    # --- Calls --------------------------------------------------------------------------------------------

    def _pages(self, since: datetime, once: bool) -> Iterator[_Page]:
        settings = self._settings
        from_here = since.astimezone(UTC).isoformat().replace("+00:00", "Z")
        params = {**settings.params, settings.since_param: from_here}
        url, seen, number = settings.url, set[str](), settings.page_first
        for _ in range(settings.pages_max):
            if settings.paging == "page":
                params[settings.page_param] = str(number)
                number += 1
            page = self._page(_with(url, params), once)
            yield page
            if settings.paging == "none" or (settings.paging == "page" and not page.events):
                return
            if settings.paging == "link":
                if not page.next_url:
                    return
                try:
                    url, params = urljoin(url, page.next_url), {}
                    there = _origin(url)
                except ValueError as error:
                    raise FeedFailed("PAGING", f"the next page has no address: {error}") from error
                if there != _origin(settings.url):
                    raise FeedFailed("PAGING", f"the next page is at another place: {there}")
                if url in seen:
                    raise FeedFailed("PAGING", "the pages go round in a circle")
                seen.add(url)
        raise FeedFailed("PAGING", f"more than {settings.pages_max} pages")

    def _page(self, url: str, once: bool) -> _Page:
        """One page; tried again where that may help, with a new token once."""
        renewed, attempt = False, 0
        while True:
            try:
                headers = {"accept": "application/json", **self._tokens.header()}
                status, found, body = self._call("GET", url, headers=headers)
            except FeedFailed as error:
                if error.reason == "BUDGET" and not once:
                    # Here, in the middle of a round: one that needs more than an hour's calls comes to its end too.
                    self._pause(error.retry_after_s)
                    continue
                attempt += 1
                self._wait(attempt, error)
                continue
            if status == 401 and self._tokens.renewable and not renewed:
                renewed = True
                self._tokens.forget()
                continue
            if status in (401, 403):
                self._tokens.forget()
                raise FeedFailed("AUTHENTICATION", f"{_origin(url)} answered {status}")
            if status != 200:
                raise FeedFailed("ANSWER", f"{_origin(url)} answered {status}")
            return self._read(found, body)

    def _wait(self, attempt: int, error: FeedFailed) -> None:
        wait_s = max(error.retry_after_s, backoff_s(attempt, self._rand))
        if (
            error.reason not in ("OVERLOADED", "UNREACHABLE")
            or attempt >= self._settings.attempts_max
            or error.retry_after_s > WAIT_HERE_MAX_S
        ):
            raise error
        _LOG.info("a call is tried again", source=self.source, reason=error.reason, wait_s=round(wait_s, 1))
        self._pause(wait_s)

    def _call(self, method: str, url: str, **given: Any) -> tuple[int, Any, bytes]:  # Any: the library's
        """One call within the budget. Raises FeedFailed where another may help."""
        import httpx2

        self._budget.take()
        if self._http is None:
            self._http = httpx2.Client(timeout=self._settings.timeout_ms / 1000, follow_redirects=False)
        where, body = _origin(url), bytearray()
        try:
            with self._http.stream(method, url, **given) as answer:
                for part in answer.iter_bytes():
                    body += part
                    if len(body) > self._settings.answer_bytes_max:
                        raise FeedFailed(
                            "ANSWER", f"{where} answered more than {self._settings.answer_bytes_max} bytes"
                        )
        except httpx2.InvalidURL as error:
            raise FeedFailed("PAGING", f"the next page has no address that can be read: {error}") from error
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise FeedFailed("UNREACHABLE", f"{where}: {type(error).__name__}") from error
        if answer.status_code == 429 or answer.status_code >= 500:
            wait_s = _retry_after_s(answer.headers.get("retry-after", ""), self._now())
            raise FeedFailed("OVERLOADED", f"{where} answered {answer.status_code}", retry_after_s=wait_s)
        return answer.status_code, answer, bytes(body)

    def _ask_token(self, oauth2: OAuth2, secret: str) -> dict[str, Any]:  # Any: JSON
        form = {"grant_type": "client_credentials"}
        if oauth2.scope:
            form["scope"] = oauth2.scope
        given: dict[str, Any] = {
            "data": form,
            "headers": {"accept": "application/json"},
        }  # Any: the library's
        if oauth2.sent == "basic":
            given["auth"] = (quote(oauth2.client_id, safe=""), quote(secret, safe=""))
        else:
            form |= {"client_id": oauth2.client_id, "client_secret": secret}
        status, _, body = self._call("POST", oauth2.token_url, **given)
        if status != 200:
            raise FeedFailed("AUTHENTICATION", f"{_origin(oauth2.token_url)} answered {status}")
        try:
            return msgspec.json.decode(body, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise FeedFailed("AUTHENTICATION", "the token's server answered no JSON") from None

    def _read(self, answer: Any, body: bytes) -> _Page:  # Any: the library's
        settings = self._settings
        try:
            found = _raw_at(body, settings.items)
            events = [bytes(event) for event in msgspec.json.decode(found, type=list[msgspec.Raw])]
            next_url = ""
            if settings.paging == "link" and settings.next_column:
                told = msgspec.json.decode(_raw_at(body, settings.next_column, b"null"))
                if told is not None and not isinstance(told, str):
                    raise FeedFailed("ANSWER", f"{settings.next_column} is no address")
                next_url = told or ""
            elif settings.paging == "link":
                next_url = answer.links.get("next", {}).get("url", "")
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError) as error:
            said = "is not in the answer" if isinstance(error, KeyError) else str(error)
            raise FeedFailed("ANSWER", f"no list of events ({settings.items or 'top'}): {said}") from None
        return _Page(events, next_url)


def _with(url: str, params: dict[str, str]) -> str:
    """Add parameters to those that an address has."""
    if not params:
        return url
    parts = urlsplit(url)
    query = "&".join(part for part in (parts.query, urlencode(params)) if part)
    return urlunsplit((parts.scheme, parts.netloc, parts.path, query, ""))


def _raw_at(body: bytes, path: str, otherwise: bytes | None = None) -> bytes:
    """Return what stands at a path of keys, as it came. Raises KeyError, DecodeError."""
    for key in path.split(".") if path else ():
        level = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        if key not in level:
            if otherwise is None:
                raise KeyError(key)
            return otherwise
        body = bytes(level[key])
    return body


def _one_line(event: bytes) -> bytes:
    return event.replace(b"\r", b" ").replace(b"\n", b" ") + b"\n"


def _time_of(decoder: msgspec.json.Decoder[Any], event: bytes, path: str) -> datetime | None:
    """Return an event's time; None where it says none: it goes on, and is judged as a row."""
    try:
        found = decoder.decode(event)
        for key in path.split("."):
            found = found[key]
        at = datetime.fromisoformat(found)
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, IndexError):
        return None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _origin(url: str) -> str:
    """Scheme, host and port: what may be told of an address."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def _retry_after_s(told: str, now: float) -> float:
    """Read Retry-After: seconds, or a date. 0 where it says nothing that can be read."""
    text = told.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return min(float(text), RETRY_AFTER_MAX_S)
    try:
        wait_s = parsedate_to_datetime(text).timestamp() - now
    except (TypeError, ValueError):
        return 0.0
    return min(max(0.0, wait_s), RETRY_AFTER_MAX_S)


def _secret(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise FeedFailed("SECRET", f"{path} cannot be read") from error
