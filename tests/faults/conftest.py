"""Fixtures of the fault suite: one Redis for tests that empty it, ledgers in it, servers that may be killed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any  # Any: a ledger's settings, by name

import pytest

from availability.ledger.embedded import EmbeddedRedis
from tests.faults.lab import Lab, Process, new_folder, own_redis
from tests.faults.proxy import Proxy


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedRedis]:
    """One real Redis whose keys, settings and functions every test may throw away."""
    with own_redis() as server:
        yield server


@pytest.fixture
def make_lab(redis_server: EmbeddedRedis) -> Iterator[Callable[..., Lab]]:
    """A way to make a new ledger, with settings; only the latest counts, the Redis is emptied for it."""
    made: list[Lab] = []

    def make(**settings: Any) -> Lab:
        redis_server.restart()
        made.append(Lab(redis_server.url, **settings))
        return made[-1]

    yield make
    for lab in made:
        lab.close()


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """A new ledger with the contract's limits."""
    return make_lab()


@pytest.fixture
def proxy(redis_server: EmbeddedRedis, seed: int) -> Iterator[Proxy]:
    """A proxy before an empty Redis; it loses nothing until it is told to."""
    redis_server.restart()
    folder = new_folder()
    made = Proxy(redis_server.socket, folder, seed, loss=0.0)
    yield made
    made.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def make_process() -> Iterator[Callable[..., Process]]:
    """A way to make servers that a test may kill; what is left of them ends with the test."""
    made: list[Process] = []

    def make(**settings: Any) -> Process:
        made.append(Process(new_folder(), **settings))
        return made[-1]

    yield make
    for process in made:
        process.stop()
        shutil.rmtree(process.folder, ignore_errors=True)
