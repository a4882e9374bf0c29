"""What the benchmarks share: a row of the table, paired blocks, processor time, a server and a ledger to measure.

Machines are never quiet, so nothing here trusts one run: what is compared runs in turns in short blocks, the
ratio is the median of the blocks' ratios, and the processor time of each process is read beside the clock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis as redis_py

from availability.ledger import calls
from availability.ledger.commit_queue import Pending
from availability.ledger.connection import ConnectionSettings
from availability.ledger.embedded import EmbeddedRedis
from availability.ledger.ledger import Ledger, LedgerSettings, bucket, fingerprint
from availability.service.auth import Scope, add_token
from availability.service.delta_codec import pack
from availability.v1 import stock_pb2 as stk

CHANNEL = "web"
SOURCE = "bench"
SKUS = 10_000
NODES = ("main", "north")
PLENTY = 900_000_000
"""Units of a position that no benchmark uses up."""
IN_FLIGHT = 64
START_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 60.0
CALLS_AHEAD_MAX = 200
DELTAS_PER_CALL = 250
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of the table; ``met`` None: a figure without a target. ``raw``: numbers that others reckon with."""

    measure: str
    figure: str
    ratio: float | None = None
    target: str = ""
    met: bool | None = None
    raw: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A picture of a measure: named lines of points. ``raw`` is kept for the JSON beside it."""

    name: str
    title: str
    x: str
    y: str
    lines: dict[str, list[tuple[float, float]]]
    log_x: bool = False
    log_y: bool = False
    bars: bool = False
    """Each line is one bar, of its first point."""


Found = Row | Plot


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured: everything, or little of it to see that it works."""

    blocks: int = 7
    block_s: float = 2.0
    block_calls: int = 4_000
    bootstrap_skus: int = 250_000
    deltas: int = 100_000
    lag_s: float = 15.0
    open_loop_s: float = 8.0
    concurrencies: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    positions: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    workers: tuple[int, ...] = (1, 2, 4)
    journal_changes: tuple[int, ...] = (100_000, 1_000_000, 10_000_000)
    history: int = 10_000  # reservations of the 1× history; ten times as many for 10×


FULL = Size()
QUICK = Size(
    blocks=3,
    block_s=1.0,
    block_calls=1_500,
    bootstrap_skus=20_000,
    deltas=20_000,
    lag_s=4.0,
    open_loop_s=2.0,
    concurrencies=(1, 8, 64),
    positions=(10_000, 100_000),
    workers=(1, 2),
    history=3_000,
    journal_changes=(100_000, 300_000),
)


def say(text: str) -> None:
    """Print a line of progress, at once."""
    print(text, file=sys.stderr, flush=True)


# --- Comparing --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates of one thing per block, units a second."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def over(self, other: Rates) -> tuple[float, float, float]:
        """Return median, least and greatest ratio to another, block by block."""
        ratios = [mine / theirs for mine, theirs in zip(self.values, other.values, strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)


def in_turns(blocks: int, arms: dict[str, Callable[[], float]]) -> dict[str, Rates]:
    """Run each arm once per block, in changing order, after one block that does not count."""
    found: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    for block in range(blocks + 1):
        for name in names if block % 2 else reversed(names):
            rate = arms[name]()
            if block:
                found[name].append(rate)
    return {name: Rates(tuple(values)) for name, values in found.items()}


def spread(ratio: tuple[float, float, float]) -> str:
    """Tell a ratio with its extremes."""
    return f"{ratio[0]:.2f} ({ratio[1]:.2f}–{ratio[2]:.2f})"


def short(rate: float) -> str:
    """Tell a rate: 950, 12.3 k, 1.42 M."""
    if rate >= 1e6:
        return f"{rate / 1e6:.2f} M"
    return f"{rate / 1e3:.1f} k" if rate >= 1e3 else f"{rate:.0f}"


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that ``share`` of the values do not pass."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


# --- Processor time ---------------------------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    """Seconds of processor that a process (without its children) has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def main_thread_s(pid: int) -> float:
    """Seconds of processor of a process's main thread, to the nanosecond; that is where Redis runs commands."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def busy_s() -> float:
    """Seconds of processor that the whole machine has used."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / _TICKS_PER_S


def slowdown() -> float:
    """Say what neighbours cost: a fixed loop's processor time now, the median over the least."""
    times = []
    for _ in range(60):
        began = time.process_time()
        table: dict[str, int] = {}
        for number in range(5_000):
            table[f"sku-{number}"] = number
        times.append(time.process_time() - began)
        time.sleep(0.005)
    return statistics.median(times) / min(times)


class Meter:
    """Processor time of some processes, and of everybody else on the machine."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._began = time.perf_counter()
        self._mine = [cpu_s(pid) for pid in pids]
        self._busy = busy_s()

    def used(self) -> tuple[list[float], float]:
        """Return seconds per process, and how many cores others kept busy."""
        mine = [cpu_s(pid) - before for pid, before in zip(self._pids, self._mine, strict=True)]
        others = busy_s() - self._busy - sum(mine)
        return mine, max(0.0, others / (time.perf_counter() - self._began))


# --- A ledger, without a server ---------------------------------------------------------------------------


@contextlib.contextmanager
def ledger_of_own(*, appendfsync: str = "everysec") -> Iterator[tuple[Ledger, EmbeddedRedis]]:
    """Run a Redis with an empty ledger in it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        redis = EmbeddedRedis(Path(folder) / "redis", appendfsync=appendfsync)
        redis.start()
        try:
            ledger = open_ledger(redis.url)
            try:
                yield ledger, redis
            finally:
                ledger.close()
        finally:
            redis.stop()


def open_ledger(url: str) -> Ledger:
    """Open the ledger in a Redis, making it where there is none."""
    connection = ConnectionSettings(url=url, timeout_s=30.0)
    ledger = Ledger(LedgerSettings(connection=connection, auto_create=True))
    ledger.open(uuid.uuid4().hex)
    return ledger


def sku(number: int) -> str:
    return f"sku-{number:06d}"


def receipt(name: str, node: str, quantity: int, *, stream: str, sequence: int) -> stk.Delta:
    """Return a receipt with its number."""
    return stk.Delta(
        source=SOURCE,
        stream=stream,
        source_sequence=sequence,
        type=stk.DELTA_TYPE_RECEIPT,
        sku=name,
        node=node,
        quantity=quantity,
    )


def fill(ledger: Ledger, skus: int = SKUS, nodes: Sequence[str] = NODES, *, progress: bool = False) -> None:
    """Put plenty of stock everywhere."""
    positions = ((sku(number), node) for number in range(skus) for node in nodes)
    deltas = (
        receipt(name, node, PLENTY, stream="opening", sequence=sequence)
        for sequence, (name, node) in enumerate(positions, 1)
    )
    send(ledger, deltas, total=skus * len(nodes) if progress else 0)


def send(ledger: Ledger, deltas: Iterator[stk.Delta], *, total: int = 0) -> None:
    """Apply deltas through the ledger, several calls ahead of the answers; each must be APPLIED."""
    ahead: list[Pending] = []
    sent, told = 0, time.monotonic()
    while True:
        packed = [pack(delta, SOURCE)[0] for _, delta in zip(range(DELTAS_PER_CALL), deltas, strict=False)]
        if packed:
            deadline = time.monotonic() + CALL_TIMEOUT_S
            ahead.append(ledger.submit_deltas(SOURCE, packed, facts_only=False, deadline=deadline))
            sent += len(packed)
        if len(ahead) > CALLS_AHEAD_MAX or not packed:
            for pending in ahead:
                reply = Ledger.decode_deltas(pending.wait())
                if reply.status != "OK" or set(reply.results) != {int(stk.DELTA_RESULT_APPLIED)}:
                    raise RuntimeError(f"deltas were not applied: {reply.status} {reply.details[:3]}")
            ahead.clear()
        if not packed:
            return
        if total and time.monotonic() - told > 5:
            told = time.monotonic()
            say(f"  {sent:,} of {total:,} positions")


def reserve_call(number: int, name: str, *, hold_ms: int = 900_000, run: str = "") -> calls.Reserve:
    """Return a ledger call that reserves one unit, as the handler would make it."""
    request_id = f"{run}-{number}"
    return calls.Reserve(
        request=calls.RequestKey(
            request_id=request_id,
            bucket=bucket(request_id),
            fingerprint=fingerprint(request_id.encode()),
            uuid_ms=0,
            author="checkout",
            correlation_id="",
        ),
        reservation_id=f"r{run}{number:016d}",
        channel=CHANNEL,
        lines=[(name, 1)],
        hold_ms=hold_ms,
        order_source="",
        order_ref="",
        allow_partial=False,
        node="",
        auto_create=True,
    )


# --- A server ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server and a token with every scope."""

    grpc: str
    redis: str
    redis_pid: int
    pid: int
    token: str = dataclasses.field(default="", repr=False)
    metrics: str = ""


@contextlib.contextmanager
def service(*, strict: bool = False, workers: int = 1) -> Iterator[Server]:
    """Run the product as an operator would: tokens, metrics and admission on, a Redis of its own.

    ``strict`` has Redis write to disk before it answers (profile single-strict); else every second.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        tokens = Path(folder) / "tokens.json"
        token = add_token(tokens, id="bench", scopes=list(Scope))
        environment = {
            **os.environ,
            "AVAIL_AUTH__TOKENS_FILE": str(tokens),
            "AVAIL_METRICS__LISTEN": (metrics := f"127.0.0.1:{free_port()}"),
            "AVAIL_DRAIN__NOTICE_MS": "0",
            "AVAIL_DRAIN__GRACE_MS": "500",
            "AVAIL_LOGGING__LEVEL": "WARNING",
        }
        if strict:
            environment["AVAIL_REDIS__PROFILE"] = "single-strict"
        command = [
            *("-m", "availability", "serve", "--embedded", "--listen", "127.0.0.1:0"),
            *("--data-dir", str(Path(folder) / "data"), "--workers", str(workers)),
        ]
        with _child(command, Path(folder), environment) as ready:
            redis = redis_py.Redis.from_url(ready["redis"])
            redis_pid = redis.info("server")["process_id"]
            redis.close()
            yield Server(
                grpc=ready["grpc"],
                redis=ready["redis"],
                redis_pid=redis_pid,
                pid=ready["pid"],
                token=token,
                metrics=metrics,
            )


def free_port() -> int:
    """Return a port of the loopback that nobody had a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextlib.contextmanager
def echo_server() -> Iterator[Server]:
    """Run the server of trivial handlers, `benchmarks/echo.py`."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        _child(["-m", "benchmarks.echo"], Path(folder), dict(os.environ)) as ready,
    ):
        yield Server(grpc=ready["grpc"], redis="", redis_pid=0, pid=ready["pid"])


@contextlib.contextmanager
def _child(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[dict[str, Any]]:
    ready_file = folder / "ready.json"
    process = subprocess.Popen(
        [sys.executable, *command, "--ready-file", str(ready_file)],
        cwd=Path(__file__).resolve().parent.parent,
        env=environment,
    )
    try:
        until = time.monotonic() + START_TIMEOUT_S
        while not ready_file.exists():
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not start: {command}")
            time.sleep(0.02)
        yield json.loads(ready_file.read_text())
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
