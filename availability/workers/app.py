"""Several servers on one port, put together: the parent, which serves nothing, and what each of its workers runs.

The parent does once what must not happen twice: it starts the embedded Redis, checks Redis and what this machine saw of
the ledger, keeps the port, writes the ready file. Each worker is a whole server with a memory of its own; the kernel
spreads connections over those that listen (SO_REUSEPORT), a connection stays where it is. `group` watches processes.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from availability.app import (
    READY_TIMEOUT_S,
    Look,
    RunningServer,
    StartRefused,
    Watchdog,
    check_callers,
    ledger_home,
    ledger_settings,
    open_ledger,
    preflight,
    serve_until_told,
    serving,
    without_password,
)
from availability.config import Settings
from availability.ledger.last_seen import LastSeen
from availability.ledger.ledger import Ledger
from availability.workers.group import GroupFailed, WorkerGroup, parent_gone, receive_task, tell_serving

LOOK_INTERVAL_S = 0.02
"""While workers start."""
LEAVE_MARGIN_S = 10.0
"""Beyond the drain's own times, before a worker is killed."""
ORPHAN_S = 5
"""A worker without a parent has so long to end its calls."""
PORT_MAX = 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a worker gets: the settings as the parent has resolved them, and which of its starts this is."""

    settings: Settings
    index: int
    start: int


def serve(settings: Settings, *, embedded: bool, ready_file: Path | None) -> int:
    """Serve by `settings.workers` processes until SIGTERM or SIGINT; return the exit code. Main thread only."""
    return serve_until_told(settings, lambda: running(settings, embedded=embedded), ready_file)


@contextmanager
def running(settings: Settings, *, embedded: bool) -> Iterator[tuple[RunningServer, Look]]:
    """Start the workers, yield when all serve; let them drain on leaving."""
    check_callers(settings)
    with ExitStack() as stack:
        port = stack.enter_context(reserved_port(settings.listen))
        metrics_ports(settings)  # before anything is started
        home, redis_process = stack.enter_context(ledger_home(settings, embedded=embedded))
        preflight(home)
        ledger = Ledger(ledger_settings(home))
        stack.callback(ledger.close)
        last_seen = LastSeen(settings.data_dir)
        open_ledger(ledger, last_seen)
        host = settings.listen.rpartition(":")[0]
        home = home.model_copy(update={"listen": f"{host}:{port}"})
        group = WorkerGroup(
            [sys.executable, "-m", "availability.workers"],
            settings.workers,
            lambda index, start: pickle.dumps(
                Task(settings=for_worker(home, index), index=index, start=start)
            ),
        )
        drain = settings.drain
        stack.callback(group.stop, (drain.notice_ms + drain.grace_ms) / 1000 + LEAVE_MARGIN_S)
        _wait_until_all_serve(group)
        watchdog = Watchdog(ledger, last_seen, redis_process)

        def look() -> None:
            watchdog()
            try:
                group.look()
            except GroupFailed as failure:
                raise StartRefused(str(failure)) from failure

        url = home.redis.url.get_secret_value()
        yield RunningServer(grpc=home.listen, redis=without_password(url), pid=os.getpid()), look


def for_worker(settings: Settings, index: int) -> Settings:
    """Return a worker's settings: the same, but a port of its own for metrics."""
    ports = metrics_ports(settings)
    if not ports:
        return settings
    host = settings.metrics.listen.rpartition(":")[0]
    metrics = settings.metrics.model_copy(update={"listen": f"{host}:{ports[index]}"})
    return settings.model_copy(update={"metrics": metrics})


def metrics_ports(settings: Settings) -> list[int]:
    """Return each worker's port of metrics: the one that is set, and those after it. Raises StartRefused.

    One listener for all would answer with the numbers of whichever worker the connection meets.
    """
    if not settings.metrics.listen:
        return []
    first = int(settings.metrics.listen.rpartition(":")[2])
    if first == 0:
        return [0] * settings.workers
    if first + settings.workers - 1 > PORT_MAX:
        raise StartRefused(
            f"metrics.listen: {settings.workers} workers need ports {first} and up, to {PORT_MAX}"
        )
    return list(range(first, first + settings.workers))


# --- The port ---------------------------------------------------------------------------------------------


@contextmanager
def reserved_port(listen: str) -> Iterator[int]:
    """Keep the port for this group without listening at it; give its number (port 0: a free one).

    Raises StartRefused where somebody else has it: with SO_REUSEPORT two groups would share the port's calls
    without a word, so it is first bound without.
    """
    if listen.startswith("unix:"):
        raise StartRefused(f"{listen}: workers share a TCP port, one process alone can serve a unix socket")
    host, _, text = listen.rpartition(":")
    host = host.strip("[]")
    try:
        found = socket.getaddrinfo(host or None, int(text), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, ValueError) as error:
        raise StartRefused(f"cannot listen on {listen}: workers need host:port ({error})") from error
    port = int(text)
    with ExitStack() as stack:
        try:
            for family, _, _, _, address in dict.fromkeys(found):
                if port:
                    with _socket(family) as probe:
                        probe.bind((address[0], port, *address[2:]))
                        probe.listen(
                            1
                        )  # two that are bound and do not listen get along; two that listen do not
                held = stack.enter_context(_socket(family))
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                held.bind((address[0], port, *address[2:]))
                port = held.getsockname()[1]
            stack.enter_context(_alone(port))
        except OSError as error:
            raise StartRefused(
                f"cannot listen on {listen}: is another server there? ({error.strerror})"
            ) from error
        yield port


def _socket(family: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(
        socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
    )  # connections of an earlier run fade for a minute
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made


@contextmanager
def _alone(port: int) -> Iterator[None]:
    """Be the only group of this network namespace at a port, also before its workers listen. Raises OSError."""
    with socket.socket(socket.AF_UNIX) as mark:
        if sys.platform == "linux":  # an abstract address: it ends with its process, whatever ends that
            mark.bind(f"\0availability-port-{port}")
        yield


# --- Starting, and a worker's own life ----------------------------------------------------------------------


def _wait_until_all_serve(group: WorkerGroup) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    try:
        while True:
            group.look()
            if group.all_serve:
                return
            if time.monotonic() > deadline:
                raise StartRefused(f"the workers did not all serve within {READY_TIMEOUT_S:.0f} s")
            time.sleep(LOOK_INTERVAL_S)
    except GroupFailed as failure:
        raise StartRefused(str(failure)) from failure


def work() -> int:
    """Be a worker: read the task from standard input, serve until told, or until the parent is gone."""
    pipe = sys.stdin.fileno()
    try:
        task: Task = pickle.loads(receive_task(pipe))  # our own parent wrote it
    except EOFError:
        return 1
    parent_gone(pipe, lambda: os.kill(os.getpid(), signal.SIGTERM), within_s=ORPHAN_S)

    @contextmanager
    def start() -> Iterator[tuple[RunningServer, Look]]:
        with serving(task.settings, reuse_port=True) as (server, _):
            tell_serving()
            yield server, lambda: None

    return serve_until_told(task.settings, start, None)
