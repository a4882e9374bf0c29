"""Addresses that name several servers: how they are read, what is refused, and that no password is ever told."""

from __future__ import annotations

import socket
import time
from typing import Any  # Any: redis-py leaves its connections without types

import pytest
from redis.connection import Connection, SSLConnection

from availability.ledger.commit_queue import CommitQueue, QueueSettings
from availability.ledger.connection import ConnectionSettings, make_pool
from availability.ledger.errors import LedgerError
from availability.ledger.library import packaged
from availability.ledger.preflight import inspect
from availability.ledger.primary import parse


@pytest.mark.parametrize(
    ("url", "kind", "hosts", "name"),
    [
        ("redis+sentinel://a,b:1/ledger", "sentinel", (("a", 26379), ("b", 1)), "ledger"),
        (
            "rediss+sentinel://u:p@[::1]:5,c/the%20ledger?db=3",
            "sentinel",
            (("::1", 5), ("c", 26379)),
            "the ledger",
        ),
        ("redis+cluster://a,[::1]", "cluster", (("a", 6379), ("::1", 6379)), ""),
        ("rediss+cluster://:p@a:7000/0", "cluster", (("a", 7000),), "0"),
    ],
)
def test_servers_are_read(url: str, kind: str, hosts: tuple[tuple[str, int], ...], name: str) -> None:
    """Hosts with and without a port, IPv6 in brackets, and the name that Sentinel knows the primary by."""
    found = parse(url)
    assert found is not None
    assert (found.kind, found.hosts, found.name) == (kind, hosts, name)


@pytest.mark.parametrize("url", ["redis://a:1/0", "rediss://a", "unix:///run/redis.sock"])
def test_one_server_is_not_followed(url: str) -> None:
    """Addresses of one server stay redis-py's."""
    assert parse(url) is None
    assert make_pool(ConnectionSettings(url=url)).connection_class.__module__ == Connection.__module__


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://:secret@a",
        "redis+sentinel://:secret@a/one/two",
        "redis+cluster://:secret@a/3",
        "redis+cluster://:secret@a,",
        "redis+cluster://:secret@a:0",
        "redis+cluster://:secret@a:x",
        "redis+cluster://:secret@a?db=x&password=secret",
        "redis+other://:secret@a",
        "valkey+cluster://:secret@a",
    ],
)
def test_what_is_wrong_is_told_without_the_secret(url: str) -> None:
    """The doctor has one finding; the address is in none of it."""
    (finding,) = inspect(url)
    assert (finding.severity, finding.what) == ("error", "url")
    assert "secret" not in repr(finding)


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_limits_and_secrets_reach_the_connections_and_no_text(scheme: str) -> None:
    """What is followed waits and refuses like any connection; passwords are decoded once and never shown."""
    url = f"{scheme}+sentinel://me:se%2Fcret@a,b/ledger?db=2&sentinel_password=other%2Fcret"
    pool: Any = make_pool(
        ConnectionSettings(url=url, timeout_s=3.0, connect_timeout_s=1.5, read_connections_max=4)
    )
    connection = pool.make_connection()
    assert isinstance(connection, SSLConnection) == (scheme == "rediss")
    assert (connection.username, connection.password, connection.db) == ("me", "se/cret", 2)
    assert (connection.socket_timeout, connection.socket_connect_timeout) == (3.0, 1.5)
    assert (connection.retry.get_retries(), pool.max_connections, pool.timeout) == (0, 4, 3.0)
    told = repr(pool) + repr(connection) + repr(parse(url)) + repr(ConnectionSettings(url=url))
    assert "cret" not in told


def test_an_outage_leaves_no_connections_behind() -> None:
    """The queue tries one connection again and again: a night without Redis leaves one object, not thousands."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        pool: Any = make_pool(ConnectionSettings(url=f"redis://127.0.0.1:{nobody.getsockname()[1]}"))
        queue = CommitQueue(
            ConnectionSettings(url="unix:///nowhere"),
            QueueSettings(backoff_min_s=0.001, backoff_max_s=0.001),
            packaged(),
            pool=pool,
        )
        queue.start("nobody's")
        try:
            with pytest.raises(LedgerError):
                queue.submit("f", b"", _soon()).wait()
        finally:
            queue.close()
        assert len(pool._connections) == 1


def _soon() -> float:
    return time.monotonic() + 0.3
