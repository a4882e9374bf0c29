"""Start-up and memory by the number of positions: a server process over a filled ledger, until it answers."""

from __future__ import annotations

import os
import random
import time

import redis as redis_py

from availability.replica.replica import Replica
from availability.replica.settings import ReplicaSettings
from benchmarks.bootstrap import READY_TIMEOUT_S, resident_bytes
from benchmarks.common import CHANNEL, Found, Plot, Row, Size, fill, ledger_of_own, open_ledger, say
from benchmarks.load import client

NODES = ("main", "north", "south", "store")


def load_memory(url: str) -> tuple[float, int]:
    """In the child: load a replica; seconds until it answers, and bytes that it took."""
    ledger = open_ledger(url)
    replica = Replica(ledger, ReplicaSettings(auto_create=True), time.monotonic, random.Random(os.getpid()))
    before, began = resident_bytes(), time.perf_counter()
    replica.start()
    try:
        while not replica.ready:
            if time.perf_counter() - began > READY_TIMEOUT_S:
                raise RuntimeError(replica.not_ready_reason)
            time.sleep(0.005)
        replica.get(CHANNEL, "sku-000000")
        return time.perf_counter() - began, resident_bytes() - before
    finally:
        replica.stop()
        ledger.close()


def run(size: Size) -> list[Found]:
    """Measure each size once, each with processes of its own."""
    rows: list[Found] = []
    seconds: list[tuple[float, float]] = []
    memory: dict[str, list[tuple[float, float]]] = {"a server process": [], "Redis": []}
    for positions in size.positions:
        with ledger_of_own() as (ledger, redis):
            say(f"  filling {positions:,} positions")
            fill(ledger, positions // len(NODES), NODES, progress=True)
            with redis_py.Redis(unix_socket_path=redis.socket) as raw:
                redis_mb = raw.info("memory")["used_memory"] / 1e6
            with client() as load:
                took, taken = load.run(load_memory, redis.url)
        say(f"  {positions:,} positions: {took:.2f} s, +{taken / 1e6:.0f} MB, Redis {redis_mb:.0f} MB")
        seconds.append((positions, took))
        memory["a server process"].append((positions, taken / 1e6))
        memory["Redis"].append((positions, redis_mb))
        rows.append(
            Row(
                measure=f"start-up over {positions:,} positions",
                figure=f"{took:.2f} s; +{taken / 1e6:.0f} MB a server process; Redis {redis_mb:.0f} MB",
                raw={"positions": positions, "seconds": took, "server_mb": taken / 1e6, "redis_mb": redis_mb},
            )
        )
    return [
        *rows,
        Plot(
            name="start_up",
            title="From start to the first answer",
            x="positions",
            y="s",
            lines={"one server process": seconds},
            log_x=True,
            log_y=True,
        ),
        Plot(name="memory", title="Memory", x="positions", y="MB", lines=memory, log_x=True, log_y=True),
    ]
