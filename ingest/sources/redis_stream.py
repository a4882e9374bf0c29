"""A Redis stream as a feed: entries after a durable place, as JSON lines, each with its entry id.

Reads only; many may read the same stream, and nothing is deleted there. The place moves over an entry for good once
the ledger has it. Entries that the producer trimmed before they were read are a dead letter, not a silence.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError
from redis.retry import Retry
from sqlalchemy.engine import Engine

from ingest.letters import Letter, Letters
from ingest.rows import Category
from ingest.settings import ENTRY_ID_COLUMN, RedisStream
from ingest.sources.feed import Chunks, FeedFailed, waiting_bytes

KIND = "redis_stream"
BEGINNING = "0-0"
_Entry = tuple[bytes, dict[bytes, bytes]]


class RedisStreamFeed:
    """Entries of one stream into one drop folder."""

    kind = KIND
    eager = True

    def __init__(
        self,
        source: str,
        settings: RedisStream,
        folder: Path,
        engine: Engine,
        letters: Letters,
        *,
        settle_ms: int = 0,
        now: Callable[[], float] = time.time,
        read_secret: Callable[[Path], bytes] = Path.read_bytes,
    ) -> None:
        self.source = source
        self.interval_s = settings.interval_ms / 1000
        self._settings = settings
        self._folder = folder
        self._engine = engine
        self._letters = letters
        self._now = now
        self._read_secret = read_secret
        self._chunks = Chunks(engine, source, KIND, folder, settle_ms=settle_ms, now=now)
        self._redis: redis.Redis | None = None
        self._told_lost = ""

    @property
    def settled(self) -> str:
        """Id of the last entry that the ledger has, in order."""
        return _place(self._chunks.settled())[0]

    def fetch(self, *, once: bool) -> int:
        """Write what came after the place where we stand. Raises FeedFailed."""
        count = 0
        while self._fetch_chunk():
            count += 1
            if not once:
                break
        return count

    def _fetch_chunk(self) -> bool:
        self._chunks.settled()
        if waiting_bytes(self._folder) > self._settings.waiting_bytes_max:
            return False
        position, ordinal = _place(self._chunks.position())
        try:
            found, ordinal = self._read(self._connected(), position, ordinal)
        except (AuthenticationError, NoPermissionError) as error:
            self._disconnect()
            raise FeedFailed("AUTHENTICATION", "Redis does not let us read") from error
        except (RedisError, OSError) as error:
            self._disconnect()
            raise FeedFailed("UNREACHABLE", f"Redis does not answer: {type(error).__name__}") from error
        if not found:
            return False
        content = b"".join(line_of(entry_id, fields, self._settings.json_field) for entry_id, fields in found)
        self._chunks.put(content, f"{found[-1][0].decode()} {ordinal}")
        return True

    def _connected(self) -> redis.Redis:
        if self._redis is None:
            settings = self._settings
            secret = {}
            if settings.password_file is not None:
                try:
                    secret["password"] = self._read_secret(settings.password_file).decode().strip()
                except (OSError, UnicodeDecodeError) as error:
                    raise FeedFailed("SECRET", f"{settings.password_file} cannot be read") from error
                if settings.username:
                    secret["username"] = settings.username
            self._redis = redis.Redis.from_url(
                settings.url,
                socket_timeout=settings.timeout_ms / 1000,
                socket_connect_timeout=settings.timeout_ms / 1000,
                retry=Retry(NoBackoff(), 0),  # the feed's thread tries again
                **secret,
            )
        return self._redis

    def _disconnect(self) -> None:
        if self._redis is not None:
            self._redis.close()
            self._redis = None

    def _read(self, connection: redis.Redis, position: str, ordinal: int) -> tuple[list[_Entry], int]:
        """Return entries after a position, and how many the stream ever had up to the last of them.

        Raises FeedFailed for a stream that is another one than before.
        """
        name = self._settings.stream
        with connection.pipeline(transaction=True) as both:
            both.execute_command("XINFO", "STREAM", name.encode())
            both.xread({name.encode(): position}, count=self._settings.entries_max)
            try:
                answer, entries = both.execute()
            except NoPermissionError:
                raise
            except ResponseError as error:
                if "no such key" not in str(error).lower():
                    raise FeedFailed("NO_STREAM", f"{name!r} cannot be read as a stream") from error
                if position == BEGINNING:
                    return [], 0
                raise FeedFailed("STREAM_GONE", f"{name!r} is gone, and we stand at {position}") from error
        facts = _facts(answer)
        last = _text(facts.get("last-generated-id", BEGINNING))
        if _order(last) < _order(position):
            raise FeedFailed(
                "STREAM_BEGAN_ANEW", f"{name!r} ends at {last}, and we stand at {position}: it is another one"
            )
        found = _entries(entries)
        if "entries-added" not in facts:  # before Redis 7
            return found, 0
        first = facts.get("first-entry")
        if not first or _order(_text(first[0])) > _order(position):
            # All that are gone stood before the first; up to our place there were ``ordinal``.
            gone = int(facts["entries-added"]) - int(facts["length"])
            if position != BEGINNING and gone > ordinal:
                self._say_lost(position, gone - ordinal)
            ordinal = gone
        return found, ordinal + len(found)

    def _say_lost(self, position: str, count: int) -> None:
        span = f"{count} after {position}"
        if span == self._told_lost:
            return
        letter = Letter(
            source=self.source,
            artifact=f"stream {self._settings.stream}",
            run_id="",
            position=0,
            category=Category.SEQUENCE_GAP,
            reason="ENTRIES_TRIMMED",
            message=f"{count} entries after {position} were deleted before they were read",
            raw=span.encode(),
            context=b"",
            event_id=f"dl:{KIND}:{span}",
        )
        with self._engine.begin() as connection:
            self._letters.put(connection, [letter], self._now())
        self._told_lost = span


def line_of(entry_id: bytes, fields: Mapping[bytes, bytes], json_field: str) -> bytes:
    """Return an entry as one line. What is no JSON object stays as it came: it will be a dead letter."""
    name = entry_id.decode()
    if json_field:
        payload = fields.get(json_field.encode())
        if payload is None:
            return b"entry " + entry_id + b" has no field " + json_field.encode() + b"\n"
        text = payload.replace(b"\r", b" ").replace(b"\n", b" ").strip()
        try:
            event = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return (text or b"entry " + entry_id + b" is empty") + b"\n"
        separator = b"," if event else b""
        # At the end: the last of equal keys counts, and a producer does not choose our names.
        return text[:-1] + separator + f'"{ENTRY_ID_COLUMN}":"{name}"}}'.encode() + b"\n"
    try:
        columns = {key.decode(): value.decode() for key, value in fields.items()}
    except UnicodeDecodeError:
        return b"entry " + entry_id + b" is no UTF-8: " + repr(fields).encode() + b"\n"
    return msgspec.json.encode({**columns, ENTRY_ID_COLUMN: name}) + b"\n"


def _place(position: str) -> tuple[str, int]:
    """An entry's id, and how many there ever were up to it."""
    entry_id, _, ordinal = position.partition(" ")
    return entry_id or BEGINNING, int(ordinal or 0)


def _facts(answer: Any) -> dict[str, Any]:  # Any: RESP 2 or 3
    pairs = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=True)
    return {_text(key): value for key, value in pairs}


def _entries(answer: Any) -> list[_Entry]:  # Any: RESP 2 or 3
    if not answer:
        return []
    rows = next(iter(answer.values()))[0] if isinstance(answer, dict) else answer[0][1]
    return [(entry_id, fields or {}) for entry_id, fields in rows]


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number or 0)
