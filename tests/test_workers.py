"""Several server processes on one port: they share it, survive each other, and leave together; nothing is lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from availability.app import StartRefused
from availability.config import MetricsSettings, Settings
from availability.v1 import stock_pb2 as stk
from availability.workers import group as groups
from availability.workers.app import metrics_ports, reserved_port
from availability.workers.group import GroupFailed, WorkerGroup
from tests.faults.audit import audit
from tests.faults.conftest import make_process
from tests.faults.lab import Process, delta, new_folder, poll, runs
from tests.faults.test_fault_kills import Journal, Shopper, compare, receive
from tests.wire import Service

__all__ = ["make_process"]  # a fixture

WORKERS = 2
SHOPPERS = 3
CONNECTIONS = 12


def children(pid: int) -> list[int]:
    """Process ids of the workers, oldest first (the embedded Redis is a child too)."""
    own = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in own if b"availability.workers" in _command(one)]


def _command(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # it ended since it was listed
        return b""


def connections(address: str, count: int) -> Iterator[Service]:
    """Yield clients of one connection each; the kernel gives each connection to one worker."""
    for _ in range(count):
        service = Service(address)
        yield service
        service.close()


@pytest.fixture(scope="module")
def group_and_port() -> Iterator[tuple[Process, int]]:
    """A group of two for the tests that leave it as it is, with metrics at two ports."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = new_folder()
    made = Process(folder, AVAIL_WORKERS=str(WORKERS), AVAIL_METRICS__LISTEN=f"127.0.0.1:{port}")
    made.start()
    yield made, port
    made.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def group(group_and_port: tuple[Process, int]) -> Process:
    """The shared group."""
    return group_and_port[0]


@pytest.fixture
def process(make_process: Callable[..., Process]) -> Process:
    """A started group of two."""
    made = make_process(
        AVAIL_WORKERS=str(WORKERS), AVAIL_DRAIN__GRACE_MS="2000", AVAIL_READS__DIGEST_SKUS_PER_S="2000"
    )
    made.start()
    return made


def test_workers_share_a_port_and_a_ledger(group: Process) -> None:
    """Whichever worker a connection meets, it serves every method, and shows what was written through another."""
    assert len(children(group.pid)) == WORKERS
    held = set()
    for number, service in enumerate(connections(group.grpc, CONNECTIONS)):
        receive(service, delta("RECEIPT", "a", "n1", 1, event_id=f"event {number}"))
        answer = service.reserve(f"hold {number}", "web", [("a", 1)])
        assert answer.outcome == "RESERVED"
        held.add(answer.reservation_id)
        assert service.sellables("web", ["a"], at=service.version) == [(0, "OUT_OF_STOCK")]
    assert len(held) == CONNECTIONS


@pytest.mark.timeout(300)
def test_killed_workers_and_a_killed_redis_lose_nothing(process: Process, seed: int) -> None:
    """Under load each worker and Redis are killed: writes go on, each acknowledged call is there once."""
    journal = Journal()
    shoppers = [
        threading.Thread(target=Shopper(process, journal, number, seed).run) for number in range(SHOPPERS)
    ]
    for shopper in shoppers:
        shopper.start()
    try:
        for kill in (kill_worker, kill_redis, kill_worker):
            wanted = journal.acknowledged() + 30
            poll(lambda: journal.failures or journal.acknowledged() >= wanted, "work goes on", within_s=60)  # noqa: B023
            kill(process, seed)
        wanted = journal.acknowledged() + 30
        poll(lambda: journal.failures or journal.acknowledged() >= wanted, "work goes on", within_s=60)
    finally:
        journal.stop.set()
        for shopper in shoppers:
            shopper.join()
    assert not journal.failures
    poll(lambda: len(children(process.pid)) == WORKERS, "all workers are back")
    with process.redis() as client:
        keys = audit(client)
    compare(keys, journal)
    assert "differ about" not in process.log.read_text()  # the digest walked all the time


def kill_worker(process: Process, seed: int) -> None:
    """Kill one, and wait until another is in its place."""
    before = children(process.pid)
    victim = random.Random(seed).choice(before)
    os.kill(victim, signal.SIGKILL)
    poll(lambda: not runs(victim), "the worker is gone")
    poll(
        lambda: len(children(process.pid)) == WORKERS and children(process.pid) != before,
        "a new one is there",
    )


def kill_redis(process: Process, seed: int) -> None:
    redis_pid = process.redis_pid()
    os.kill(redis_pid, signal.SIGKILL)
    poll(lambda: not runs(redis_pid), "Redis is gone")


def test_a_killed_parent_leaves_nobody_behind(process: Process) -> None:
    """After kill -9 of the parent its workers and its Redis end, and the same data can be served at once."""
    left = [*children(process.pid), process.redis_pid()]
    process.kill()
    poll(lambda: not any(runs(pid) for pid in left), "no orphan is left", within_s=15)
    process.start()


def test_sigterm_ends_all(process: Process) -> None:
    """Workers drain, Redis is stopped last, and the parent's exit code is 0."""
    left = [*children(process.pid), process.redis_pid()]
    service = Service(process.grpc)
    receive(service, delta("RECEIPT", "a", "n1", 5, event_id="one"))
    os.kill(process.pid, signal.SIGTERM)
    poll(lambda: not any(runs(pid) for pid in left), "all are gone", within_s=20)
    service.close()
    assert poll(lambda: (process.returncode(),) if process.returncode() is not None else None, "it ends") == (
        0,
    )


def test_each_worker_tells_its_own_metrics(group_and_port: tuple[Process, int]) -> None:
    """Worker i at port + i; what they count adds up to the calls made."""
    group, port = group_and_port

    def counted() -> int:
        total = 0
        for index in range(WORKERS):
            url = f"http://127.0.0.1:{port + index}/metrics"
            with urllib.request.urlopen(url, timeout=10) as answer:
                for line in answer.read().decode().splitlines():
                    if line.startswith("availability_rpc_requests_total") and "ListStreams" in line:
                        total += int(float(line.rsplit(" ", 1)[1]))
        return total

    before = counted()
    for service in connections(group.grpc, 8):
        service.call(service.stock.ListStreams, stk.ListStreamsRequest(source="erp"))
    assert counted() - before == 8


def test_a_second_server_on_the_port_is_refused(group: Process, make_process: Callable[..., Process]) -> None:
    """Neither a group nor a single server joins a port by accident."""
    for workers in ("1", "2"):
        other = make_process(AVAIL_WORKERS=workers, listen=group.grpc)
        code, lines = other.refuses()
        assert code == 1
        assert lines[-1].startswith(f"availability: cannot listen on {group.grpc}")


def test_a_unix_socket_is_refused(make_process: Callable[..., Process]) -> None:
    """Workers cannot share one."""
    other = make_process(AVAIL_WORKERS="2", listen="unix:/tmp/never-made")
    code, lines = other.refuses()
    assert code == 1
    assert "one process alone can serve a unix socket" in lines[0]


# --- The port ---------------------------------------------------------------------------------------------


def test_a_reserved_port_is_kept_and_not_listened_at() -> None:
    """Port 0 becomes a number; nobody else gets it, workers do, and connections are refused until they listen."""
    with reserved_port("127.0.0.1:0") as port:
        with socket.socket() as caller, pytest.raises(ConnectionRefusedError):
            caller.connect(("127.0.0.1", port))
        with pytest.raises(StartRefused, match="another server"), reserved_port(f"127.0.0.1:{port}"):
            pass
        with socket.socket() as worker:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind(("127.0.0.1", port))
            worker.listen()
    with reserved_port(f"127.0.0.1:{port}") as again:
        assert again == port


@pytest.mark.parametrize("reuse", [False, True])
def test_a_port_that_somebody_listens_at_is_refused(reuse: bool) -> None:
    """Also where that one would share it."""
    with socket.socket() as other:
        if reuse:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(StartRefused, match="another server"), reserved_port(listen):
            pass


@pytest.mark.parametrize("listen", ["nowhere", "127.0.0.1:x", "no.such.host.invalid:7443"])
def test_what_is_no_address_is_refused(listen: str) -> None:
    """With the setting's text in the message."""
    with pytest.raises(StartRefused, match="cannot listen on"), reserved_port(listen):
        pass


def test_each_worker_has_a_port_of_its_own_for_metrics() -> None:
    """The one that is set and those after it; ports beyond the last are refused."""

    def ports(listen: str) -> list[int]:
        return metrics_ports(Settings(workers=3, metrics=MetricsSettings(listen=listen)))

    assert ports("") == []
    assert ports("127.0.0.1:9100") == [9100, 9101, 9102]
    with pytest.raises(StartRefused, match="need ports"):
        ports("127.0.0.1:65534")


# --- Processes --------------------------------------------------------------------------------------------

SERVES = "import os, sys, time; os.write(1, b'serving\\n'); time.sleep(60)"
ENDS = "raise SystemExit(3)"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def group_of(source: str, clock: Clock, count: int = 1) -> WorkerGroup:
    return WorkerGroup([sys.executable, "-c", source], count, lambda _index, _start: b"x", monotonic=clock)


def look_until(group: WorkerGroup, condition: Callable[[], bool]) -> None:
    def once() -> bool:
        group.look()
        return condition()

    poll(once, "the group gets there")


def test_a_worker_that_ends_is_started_again_later_each_time() -> None:
    """The waits double up to BACKOFF_MAX_S; one that served HEALTHY_S is started again at once."""
    clock = Clock()
    group = group_of(SERVES, clock)
    try:
        look_until(group, lambda: group.all_serve)
        for wait_s in (0.1, 0.2, 0.4):
            os.kill(group.pids[0], signal.SIGKILL)
            look_until(group, lambda: group.pids == [0])
            clock.now += wait_s * 0.9
            group.look()
            assert group.pids == [0]
            clock.now += wait_s * 0.2
            look_until(group, lambda: group.all_serve)
        clock.now += groups.HEALTHY_S
        os.kill(group.pids[0], signal.SIGKILL)
        look_until(group, lambda: group.pids == [0])
        look_until(group, lambda: group.all_serve)
    finally:
        group.stop(5.0)


def test_a_worker_that_ends_before_it_served_ends_the_group() -> None:
    """It told why on stderr; starting it again would say the same."""
    clock = Clock()
    group = group_of(ENDS, clock)
    with pytest.raises(GroupFailed, match="worker 0 ended with code 3"):
        look_until(group, lambda: group.all_serve)
    group.stop(1.0)


def test_a_group_of_which_nobody_serves_gives_up() -> None:
    """After NOBODY_SERVES_MAX_S, so that who runs it sees that."""
    clock = Clock()
    group = group_of(SERVES, clock)
    try:
        look_until(group, lambda: group.all_serve)
        os.kill(group.pids[0], signal.SIGKILL)
        look_until(group, lambda: group.pids == [0])
        clock.now += groups.NOBODY_SERVES_MAX_S + 1
        with pytest.raises(GroupFailed, match="no worker has served"):
            group.look()
    finally:
        group.stop(5.0)


def test_one_that_does_not_leave_is_killed() -> None:
    """After the time it was given."""
    clock = Clock()
    ignores = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SERVES
    group = group_of(ignores, clock)
    look_until(group, lambda: group.all_serve)
    pid = group.pids[0]
    began = time.monotonic()
    group.stop(0.3)
    assert not runs(pid)
    assert time.monotonic() - began < 5
