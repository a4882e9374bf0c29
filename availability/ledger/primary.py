"""Addresses that follow the primary: Sentinel or Cluster is asked who it is whenever a connection is made.

A connection that was told "not here" (demoted, slot moved) asks anew before it is used again, and so do all of a pool
once one of them has found another primary. Nothing is repeated here: callers repeat, by their ids and deadlines.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Protocol  # Any: redis-py types its connections and answers loosely
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from redis.connection import Connection, SSLConnection, parse_url
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    ReadOnlyError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.sentinel import MasterNotFoundError, Sentinel

HOPS_MAX = 3
"""How often one attempt to connect follows a Cluster's MOVED from one server to the next."""
ELSEWHERE = (AskError, BusyLoadingError, ClusterDownError, ReadOnlyError, TryAgainError)
"""What a server answers that is not the primary of our keys (any more); MOVED is an ASK, MASTERDOWN a CLUSTERDOWN."""

_PORTS = {"sentinel": 26379, "cluster": 6379}
_SENTINEL_OPTIONS = {"sentinel_username": "username", "sentinel_password": "password"}

Address = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowedUrl:
    """An address of several servers, taken apart. ``url`` is that of one server, with password and options."""

    kind: str  # sentinel or cluster
    hosts: tuple[Address, ...]
    name: str
    url: str
    sentinel: dict[str, str]

    def __repr__(self) -> str:
        return f"FollowedUrl(kind={self.kind!r}, hosts={self.hosts!r}, name={self.name!r})"


def parse(url: str) -> FollowedUrl | None:
    """Take ``redis[s]+sentinel://…/NAME`` or ``redis[s]+cluster://…`` apart; None for any other address.

    Raises ValueError, with nothing of the address in it: a password may stand anywhere.
    """
    scheme, _, rest = url.partition("://")
    protocol, plus, kind = scheme.partition("+")
    if not plus:
        return None
    if protocol not in ("redis", "rediss") or kind not in _PORTS:
        raise ValueError("the scheme is redis+sentinel, rediss+sentinel, redis+cluster or rediss+cluster")
    parts = urlsplit(f"redis://{rest}")
    user, at, listed = parts.netloc.rpartition("@")
    hosts = tuple(_host(one, _PORTS[kind]) for one in listed.split(","))
    name = unquote(parts.path.strip("/"))
    if kind == "sentinel" and (not name or "/" in name):
        raise ValueError(
            "a Sentinel address ends with the name of the primary: redis+sentinel://HOST,HOST/NAME?db=0"
        )
    if kind == "cluster" and name not in ("", "0"):
        raise ValueError("a Cluster address has no path: a Cluster has database 0 only")
    sentinel, options = {}, []
    for key, value in parse_qsl(parts.query):
        if key in _SENTINEL_OPTIONS and kind == "sentinel":
            sentinel[_SENTINEL_OPTIONS[key]] = value
        else:
            options.append((key, value))
    host, port = hosts[0]
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    plain = f"{protocol}://{user}{at}{where}/?{urlencode(options)}"
    parse_url(plain)  # says what is wrong with an option, by its name alone
    return FollowedUrl(kind=kind, hosts=hosts, name=name, url=plain, sentinel=sentinel)


def _host(text: str, port: int) -> Address:
    host, colon, number = text.rpartition(":")
    if not colon or number.endswith("]"):
        host, number = text, str(port)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not number.isdecimal() or not 0 < int(number) < 65536:
        raise ValueError("each server is HOST or HOST:PORT, with commas between them")
    return host, int(number)


class Primary(Protocol):
    """Finds the primary. ``address``: where a connection last found it, which idle ones are held against."""

    address: Address | None

    def lead(self, connection: Any) -> None:
        """Connect a connection to the primary. Raises what connecting raises."""
        ...


class _Following:
    """A connection whose server is found when it connects. For the rest it is redis-py's."""

    def __init__(self, *, primary: Primary, **options: Any) -> None:
        self._primary = primary
        self._elsewhere = False
        super().__init__(**options)

    def connect(self: Any) -> None:  # Any: what it is mixed into is redis-py's
        if self.is_connected:
            if not self._elsewhere and (self.host, self.port) == self._primary.address:
                return
            self.disconnect()
        self._elsewhere = False
        self._primary.lead(self)

    def connect_to(self: Any, address: Address) -> None:
        """Connect to one server, in place of another if need be."""
        self.disconnect()
        self.host, self.port = address
        super().connect()  # type: ignore[misc]

    def ask(self: Any, *command: str) -> Any:
        """Ask the server one thing while connecting."""
        self.send_command(*command, check_health=False)
        return super().read_response()  # type: ignore[misc]

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().read_response(*arguments, **options)  # type: ignore[misc]
        except ELSEWHERE:
            self._elsewhere = True  # not disconnected yet: answers of a pipeline may follow
            raise


class FollowingConnection(_Following, Connection):
    """A plain connection to whoever is primary."""


class FollowingSSLConnection(_Following, SSLConnection):
    """A TLS connection to whoever is primary."""


class SentinelPrimary:
    """Asks the Sentinels, one after the other, and the server itself whether it agrees."""

    def __init__(self, followed: FollowedUrl, options: dict[str, Any]) -> None:
        self.address: Address | None = None
        self._name = followed.name
        self._lock = threading.Lock()
        self._sentinel = Sentinel(list(followed.hosts), sentinel_kwargs=options)

    def lead(self, connection: Any) -> None:
        with self._lock:
            try:
                found: Address = self._sentinel.discover_master(self._name)
            except MasterNotFoundError:
                raise NoPrimary("no Sentinel names a primary that is up") from None
        try:
            connection.connect_to(found)
            role = connection.ask("ROLE")[0]
            if role not in (b"master", "master"):
                raise NoPrimary("a Sentinel names a server that is no primary")
        except (RedisConnectionError, RedisTimeoutError, OSError):
            connection.disconnect()
            with self._lock:  # it may be behind the others: another is asked first next time
                self._sentinel.sentinels.append(self._sentinel.sentinels.pop(0))
            raise
        self.address = found


class ClusterPrimary:
    """Asks for the one key that every call declares: its owner answers, others say MOVED and where to."""

    def __init__(self, followed: FollowedUrl, key: str) -> None:
        self.address: Address | None = None
        self._seeds = followed.hosts
        self._key = key

    def lead(self, connection: Any) -> None:
        last = self.address
        failed: Exception = NoPrimary("no server of the Cluster answers")
        for seed in (last, *self._seeds) if last else self._seeds:
            address = seed
            for _ in range(HOPS_MAX):
                try:
                    connection.connect_to(address)
                    connection.ask("EXISTS", self._key)
                    self.address = address
                    return
                except MovedError as moved:
                    address = moved.host or address[0], moved.port
                except (
                    AskError,
                    ClusterDownError,
                    RedisConnectionError,
                    RedisTimeoutError,
                    OSError,
                ) as error:
                    failed = error
                    break
        connection.disconnect()
        raise failed


class NoPrimary(RedisConnectionError):
    """Nobody is primary now, or nobody who knows it answers."""


def followed_options(followed: FollowedUrl, key: str, options: dict[str, Any]) -> dict[str, Any]:
    """Give a pool's arguments for an address that is followed. ``options`` are the limits of its connections."""
    single = parse_url(followed.url)
    tls = single.get("connection_class") is SSLConnection
    primary: Primary
    if followed.kind == "sentinel":
        shared = {name: value for name, value in single.items() if name.startswith("ssl_")}
        asking = {**shared, **options, **followed.sentinel, "ssl": tls}
        primary = SentinelPrimary(followed, asking)
    else:
        primary = ClusterPrimary(followed, key)
    return {"connection_class": FollowingSSLConnection if tls else FollowingConnection, "primary": primary}
