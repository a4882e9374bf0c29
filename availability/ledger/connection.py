"""Connections to Redis: no silent retries, bounded waits, the function library loaded where it is missing.

An address may be of one server, or of Sentinels or a Cluster; then primary.py finds who is primary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any  # Any: a pool's arguments, which redis-py leaves without types

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MaxConnectionsError, OutOfMemoryError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from availability.ledger import keys
from availability.ledger.errors import (
    LedgerError,
    LedgerFunctionFailed,
    LedgerOutOfMemory,
    LedgerRefused,
    LedgerUnreachable,
)
from availability.ledger.library import Library
from availability.ledger.primary import ELSEWHERE, followed_options, parse

UNREACHABLE = (RedisConnectionError, RedisTimeoutError, *ELSEWHERE, OSError)
"""What means: not this connection, maybe the next. A replica that was a primary answers READONLY or MOVED."""

_TRANSIENT_PREFIXES = ("NOREPLICAS", "UNBLOCKED", "BUSY ")  # the others are types of ELSEWHERE
_SLOT_ON_THE_MOVE = ("non local key in a cluster node", "during rehashing of the slot")
"""A function asked for a key that has gone ahead to the slot's next server, or never was: its first read fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """Where Redis is: one server, or Sentinels or a Cluster to ask (primary.py).

    ``url`` may hold passwords: it is kept out of repr and of every message.
    """

    url: str
    prefix: str = "avail"
    shard: int = 0
    connect_timeout_s: float = 1.0
    timeout_s: float = 2.0
    read_connections_max: int = 16

    def __repr__(self) -> str:
        return f"ConnectionSettings(prefix={self.prefix!r}, shard={self.shard})"


def make_pool(settings: ConnectionSettings) -> redis.ConnectionPool:
    """Make a pool whose connections never repeat a command by themselves. Raises ValueError for a bad address."""
    url = settings.url
    options: dict[str, Any] = {
        "socket_timeout": settings.timeout_s,
        "socket_connect_timeout": settings.connect_timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
    }
    if (followed := parse(url)) is not None:
        url = followed.url
        options |= followed_options(followed, keys.meta(settings.prefix, settings.shard), options)
    return redis.BlockingConnectionPool.from_url(
        url, max_connections=settings.read_connections_max, timeout=settings.timeout_s, **options
    )


def make_client(settings: ConnectionSettings) -> redis.Redis:
    """Make a client on a pool of its own."""
    return redis.Redis(connection_pool=make_pool(settings))


def translate(error: Exception) -> LedgerError:
    """Turn a library's error into one of ours, with no address and no payload in it."""
    text = str(error)
    if isinstance(error, OutOfMemoryError) or text.startswith("OOM") or "'maxmemory'" in text:
        return LedgerOutOfMemory("Redis is at maxmemory")
    if isinstance(error, MaxConnectionsError):
        return LedgerUnreachable("no free connection to Redis")
    if any(words in text for words in _SLOT_ON_THE_MOVE):
        return LedgerUnreachable("the ledger's slot moves key by key: nothing is done meanwhile")
    if isinstance(error, UNREACHABLE) or text.startswith(_TRANSIENT_PREFIXES):
        return LedgerUnreachable(f"Redis did not answer: {type(error).__name__}")
    if "availability:" in text or "user_function" in text or "user_script" in text:
        return LedgerFunctionFailed(text[:300])
    return LedgerRefused(text[:300])


def is_missing_function(error: Exception) -> bool:
    """True where Redis does not know our library (yet, or after a restart without it)."""
    return isinstance(error, ResponseError) and "Function not found" in str(error)


def load_library(client: redis.Redis, library: Library) -> None:
    """Load the library unless it is there. Safe from several servers at once."""
    try:
        client.function_load(library.code)
    except ResponseError as error:
        if "already exists" not in str(error):
            raise translate(error) from error
    except UNREACHABLE as error:
        raise translate(error) from error
