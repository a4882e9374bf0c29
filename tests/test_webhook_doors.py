"""The doors of ingest and of the publisher as they listen: so many connections and no more."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any  # Any: stands in for what a door needs of others

import pytest
from pydantic import SecretStr

import ingest.app
import ingest.settings
import publisher.app
import publisher.settings
from availability.client import Client
from ingest.database import open_database
from ingest.settings import read_source
from publisher.orders.receiver import Door
from tests.faults.lab import poll
from tests.ingest_lab import plain_source


@contextmanager
def of_ingest(folder: Path, listen: str) -> Iterator[str]:
    (folder / "wms.toml").write_text(
        plain_source("wms", kind="json_lines", more='[webhook]\nsecret_file = "secret"')
    )
    (folder / "secret").write_text("a secret of some length")
    settings = read_source(folder / "wms.toml")
    desk = ingest.app.IngestDesk(
        {"wms": settings}, open_database(str(folder / "ingest.db")), Client("127.0.0.1:1")
    )
    with desk.doors(listen) as address:
        yield f"{address}/events/wms"


@contextmanager
def of_the_publisher(folder: Path, listen: str) -> Iterator[str]:
    door = Door(secret=lambda: SecretStr("a secret"), keep=lambda _: None)
    one: Any = SimpleNamespace(door=door, body_bytes_max=1_000)
    with publisher.app.webhook_server({"web": one}, listen) as address:
        yield f"{address}/shops/web/orders"


DOORS = {"ingest": (ingest.app, of_ingest), "publisher": (publisher.app, of_the_publisher)}


def answer(url: str) -> int:
    """Post something that nobody signed; 0 where the connection is not answered."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, b"{}"), timeout=10) as told:
            return int(told.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("name", DOORS)
def test_a_door_takes_so_many_at_a_time(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who hold their connections open keep others out for as long, and fill no memory."""
    module, door = DOORS[name]
    monkeypatch.setattr(module, "CONNECTIONS_MAX", 4)
    with door(tmp_path, "127.0.0.1:0") as url:
        assert answer(url) == 401
        host, port = url.split("/")[2].split(":")
        held = [socket.create_connection((host, int(port)), timeout=10) for _ in range(4)]
        poll(lambda: answer(url) == 503, "the door is shut")
        for one in held:
            one.close()
        poll(lambda: answer(url) == 401, "the door is open")


def test_an_address_that_is_none_is_refused_in_words(tmp_path: Path) -> None:
    """Of both."""
    refused = (ingest.settings.SettingsRefused, publisher.settings.SettingsRefused)
    for _, door in DOORS.values():
        with pytest.raises(refused, match="'8080x' is no HOST:PORT"), door(tmp_path, "8080x"):
            pytest.fail("it listens")
