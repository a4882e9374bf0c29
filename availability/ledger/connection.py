"""Connections to Redis: no silent retries, bounded waits, the function library loaded where it is missing."""

from __future__ import annotations

from dataclasses import dataclass

import redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    MaxConnectionsError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from availability.ledger.errors import (
    LedgerError,
    LedgerFunctionFailed,
    LedgerOutOfMemory,
    LedgerRefused,
    LedgerUnreachable,
)
from availability.ledger.library import Library

UNREACHABLE = (RedisConnectionError, RedisTimeoutError, BusyLoadingError, ReadOnlyError, OSError)
"""What means: not this connection, maybe the next. A replica that was a primary answers READONLY."""

_TRANSIENT_PREFIXES = ("MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "LOADING", "READONLY", "NOREPLICAS", "BUSY ")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """Where Redis is. ``url`` may hold a password: it is kept out of repr and of every message."""

    url: str
    prefix: str = "avail"
    shard: int = 0
    connect_timeout_s: float = 1.0
    timeout_s: float = 2.0
    read_connections_max: int = 16

    def __repr__(self) -> str:
        return f"ConnectionSettings(prefix={self.prefix!r}, shard={self.shard})"


def make_pool(settings: ConnectionSettings) -> redis.ConnectionPool:
    """Make a pool whose connections never repeat a command by themselves."""
    return redis.BlockingConnectionPool.from_url(
        settings.url,
        max_connections=settings.read_connections_max,
        timeout=settings.timeout_s,
        socket_timeout=settings.timeout_s,
        socket_connect_timeout=settings.connect_timeout_s,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
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
