"""What the tests share: options, one real server as a child process, names that nobody else uses, seeds.

`--full` runs the fault tests at their full sizes, `--seed N` (or AVAIL_TEST_SEED) replays a random one.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from hypothesis import Phase, settings

from tests.wire import Service

READY_S = 40.0
STOP_S = 10.0
LOG_TAIL_BYTES = 8_000
_examples = count(1)
_seeds = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the fault tests at their full size")
    parser.addoption("--seed", type=int, default=None, help="seed of the random tests, to replay one")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full"):
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(pytest.mark.skip(reason="minutes long: runs with --full"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to a failure what helps to see it again: the command with its seed, and the server's log."""
    report = yield
    if report.failed:
        if _seeds in item.stash:
            full = " --full" if item.config.getoption("--full") else ""
            command = f"python -m pytest '{item.nodeid}' --seed {item.stash[_seeds]}{full}"
            report.sections.append(("replay with", command))
        for server in _running:
            report.sections.append(("server log, its end", server.log_tail()))
    return report


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Tell whether the sizes of FAILURES.md are asked for."""
    return bool(request.config.getoption("--full"))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Give this test's seed: that of --seed or AVAIL_TEST_SEED, else a new one."""
    given = request.config.getoption("--seed")
    number = given if given is not None else int(os.environ.get("AVAIL_TEST_SEED", random.randrange(10**9)))
    request.node.stash[_seeds] = number
    return number


@dataclass
class Server:
    """A running `availability serve --embedded` of the tests."""

    grpc: str
    redis: str
    log: Path
    process: subprocess.Popen[bytes]

    def log_tail(self) -> str:
        return self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")


# For planted_bugs.py: that a test fails is enough, the smallest example is not looked for.
settings.register_profile("unshrunk", phases=(Phase.explicit, Phase.reuse, Phase.generate))


_running: list[Server] = []


@contextmanager
def serving(
    *arguments: str, no_auth: bool = True, settings: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Start a server of its own on a folder of its own; end it and remove the folder afterwards.

    ``no_auth``: everybody may do everything; ``settings`` are variables of its environment.
    """
    folder = Path(tempfile.mkdtemp(prefix="avail-"))  # short: a unix socket's path has 108 bytes at most
    log = folder / "server.log"
    ready = folder / "ready.json"
    command = [sys.executable, "-m", "availability", "serve", "--embedded"]
    command += ["--no-auth"] if no_auth else []
    command += ["--listen", "127.0.0.1:0", "--data-dir", str(folder / "data"), "--ready-file", str(ready)]
    # On a busy machine Redis may stall for seconds; calls sent again meanwhile would answer DUPLICATE, truly, to deltas
    # that no test sent twice. What lost replies do is the fault suite's.
    # And nothing is refused as STALE here: what staleness does is the replica's and the fault tests' own.
    patient = {"AVAIL_REDIS__SOCKET_TIMEOUT_MS": "20000", "AVAIL_READS__MAX_STALENESS_MS": "20000"}
    environment = {**os.environ, **patient, **(settings or {})}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, *arguments], stdout=out, stderr=subprocess.STDOUT, env=environment
        )
    try:
        told = _wait_until_ready(process, ready, log)
        server = Server(told["grpc"], told["redis"], log, process)
        _running.append(server)
        try:
            yield server
        finally:
            _running.remove(server)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ready(process: subprocess.Popen[bytes], ready: Path, log: Path) -> dict[str, str]:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if ready.exists() and (text := ready.read_text()):
            told: dict[str, str] = json.loads(text)
            return told
        time.sleep(0.05)
    raise RuntimeError(f"the server did not start: {log.read_text(errors='replace')[-LOG_TAIL_BYTES:]}")


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """One real server for all tests that need no own: child process, embedded ledger, no auth."""
    with serving() as started:
        yield started


@pytest.fixture
def client(server: Server) -> Iterator[Service]:
    """A client of the shared server, in the plain model's words; its stubs are its attributes."""
    service = Service(server.grpc)
    yield service
    service.close()


@pytest.fixture
def connect(server: Server) -> Iterator[Callable[[], Service]]:
    """A way to make more clients of the shared server, one per thread."""
    made: list[Service] = []

    def make() -> Service:
        made.append(Service(server.grpc))
        return made[-1]

    yield make
    for service in made:
        service.close()


@dataclass(frozen=True)
class Names:
    """Names that no other test uses, so that tests can share a server. Hostile text on purpose."""

    number: str

    def sku(self, name: object = "") -> str:
        return f"sku {{{self.number}}}:{name}"

    def node(self, name: object = "") -> str:
        return f"node {self.number}:{name}"

    def channel(self, name: object = "") -> str:
        return f"channel {self.number}:{name}"

    def id(self, name: object = "") -> str:
        return f"id-{self.number}-{name}"


def fresh_names() -> Names:
    """Make names for one more test or example."""
    return Names(f"{os.getpid():x}.{next(_examples)}")


@pytest.fixture
def names() -> Names:
    """Names that no other test uses."""
    return fresh_names()
