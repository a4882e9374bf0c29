"""Bootstrap: a replica of 250,000 skus at four nodes, from start() to ready, in a process of its own."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import redis as redis_py

from availability.replica.bootstrap import Progress
from availability.replica.replica import Replica
from availability.replica.settings import ReplicaSettings
from benchmarks.common import (
    CHANNEL,
    Meter,
    Row,
    Size,
    fill,
    ledger_of_own,
    main_thread_s,
    open_ledger,
    say,
)
from benchmarks.load import client

NODES = ("main", "north", "south", "store")
TARGET_S = 10.0
READY_TIMEOUT_S = 300.0
RUNS = 3


def load_memory(url: str) -> dict[str, float]:
    """In the child: bootstrap a replica; seconds and bytes by name."""
    ledger = open_ledger(url)
    phases: dict[str, float] = {}

    def note(progress: Progress) -> None:
        phases[progress.phase] = time.perf_counter()

    replica = Replica(
        ledger, ReplicaSettings(auto_create=True), time.monotonic, random.Random(1), on_progress=note
    )
    resident, cpu = resident_bytes(), time.process_time()
    began = time.perf_counter()
    replica.start()
    try:
        while not replica.ready:
            if time.perf_counter() - began > READY_TIMEOUT_S:
                raise RuntimeError(replica.not_ready_reason)
            time.sleep(0.01)
        took, used = time.perf_counter() - began, time.process_time() - cpu
        counts = replica.counts()
        replica.get(CHANNEL, "sku-000000")
        return {
            "took": took,
            "pages": phases.get("skus", began) - began,
            "cpu": used,
            "skus": counts.skus,
            "positions": counts.positions,
            "arrays": counts.array_bytes,
            "resident": resident_bytes() - resident,
        }
    finally:
        replica.stop()
        ledger.close()


def resident_bytes() -> int:
    return int(Path(f"/proc/{os.getpid()}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(size: Size) -> list[Row]:
    """Fill a ledger once and load it a few times; the best run is told beside the median."""
    skus = size.bootstrap_skus
    with ledger_of_own() as (ledger, redis):
        say(f"filling {skus:,} skus × {len(NODES)} nodes")
        fill(ledger, skus, NODES, progress=True)
        with redis_py.Redis(unix_socket_path=redis.socket) as raw:
            redis_bytes = raw.info("memory")["used_memory"]
        found = []
        for _ in range(RUNS):
            before = main_thread_s(redis.pid)
            with client() as load:
                meter = Meter([load.pid, redis.pid])
                one = load.run(load_memory, redis.url)
                one["others"] = meter.used()[1]
            one["redis"] = main_thread_s(redis.pid) - before
            found.append(one)
            say(
                f"  {one['took']:.1f} s (pages {one['pages']:.1f} s); processor: replica {one['cpu']:.1f}, "
                f"Redis {one['redis']:.1f} s; others {one['others']:.1f} cores; arrays {one['arrays'] / 1e6:.0f} MB, "
                f"resident +{one['resident'] / 1e6:.0f} MB, Redis {redis_bytes / 1e6:.0f} MB"
            )
    median = sorted(found, key=lambda one: one["took"])[len(found) // 2]
    if median["positions"] != skus * len(NODES):
        raise RuntimeError(f"{median['positions']} positions were loaded")
    return [
        Row(
            measure=f"bootstrap of {skus:,} skus × {len(NODES)} nodes",
            figure=f"{median['took']:.1f} s",
            ratio=median["took"] / TARGET_S,
            target=f"≤ {TARGET_S:.0f} s",
            met=median["took"] <= TARGET_S,
        ),
        Row(
            measure="  processor time and memory",
            figure=f"{median['cpu']:.1f} s + Redis {median['redis']:.1f} s; +{median['resident'] / 1e6:.0f} MB",
        ),
    ]
