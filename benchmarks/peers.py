"""The service beside what one would use instead, on the same work, in one run: reserve one unit, read one number.

PostgreSQL locks rows: one statement takes the unit and writes the reservation, driven by its own pgbench (prepared
statements, a client in C), the best client it can have. Its commits are on disk before they are answered, so ours run
with the profile single-strict. The empty echo is what gRPC alone can do in Python.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psycopg
import redis as redis_py

from benchmarks.arms import Arm
from benchmarks.common import (
    CALL_TIMEOUT_S,
    NODES,
    PLENTY,
    SKUS,
    Found,
    Plot,
    Rates,
    Row,
    Server,
    Size,
    echo_server,
    in_turns,
    open_ledger,
    say,
    short,
    spread,
)
from benchmarks.echo import ECHO
from benchmarks.load import Load, client
from benchmarks.reads import GET, filled_service, get_requests
from benchmarks.reserves import HOT, Bare, bare_commands, create_arm, fill_small, hot, small_commands, uniform
from tests.postgres import Postgres, binary, running

CONNECTIONS = 8
THREADS = 2
SETTINGS = (
    "fsync=on",
    "synchronous_commit=on",
    "shared_buffers=256MB",
    "max_connections=40",
    "listen_addresses=",
)
_SKU = "'sku-' || lpad((:number)::text, 6, '0')"
RESERVE = f"""
WITH taken AS (
  UPDATE stock SET reserved = reserved + 1
  WHERE sku = {_SKU} AND node = 'main' AND on_hand - reserved >= 1 RETURNING sku, node
)
INSERT INTO reservations (request_id, sku, node, quantity, due)
SELECT gen_random_uuid(), sku, node, 1, now() + interval '15 minutes' FROM taken;
"""
READ = f"SELECT sum(greatest(0, on_hand - reserved)) FROM stock WHERE sku = {_SKU};"
_TPS = re.compile(r"^tps = ([0-9.]+)", re.MULTILINE)


class PgBench:
    """One script for pgbench on one server; each call is a block, and returns statements a second."""

    def __init__(
        self, server: Postgres, folder: Path, name: str, number: str, statement: str, size: Size
    ) -> None:
        self._script = folder / f"{name}.sql"
        self._script.write_text(f"\\set number {number}\n{' '.join(statement.split())}\n")
        self._command = [
            binary("pgbench"),
            *("-n", "-M", "prepared", "-c", str(CONNECTIONS), "-j", str(THREADS)),
            *("-T", str(max(1, round(size.block_s))), "-f", str(self._script), server.url("peer")),
        ]

    def __call__(self) -> float:
        done = subprocess.run(self._command, capture_output=True, text=True, check=False)
        found = _TPS.search(done.stdout)
        if done.returncode or found is None:
            raise RuntimeError(f"pgbench failed: {done.stderr[-500:]}")
        return float(found[1])


def fill_postgres(server: Postgres) -> None:
    """Make the tables, with as much stock as the ledger has."""
    server.execute("CREATE DATABASE peer")
    with psycopg.connect(server.url("peer"), autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE stock (sku text, node text, on_hand bigint NOT NULL, reserved bigint NOT NULL, "
            "PRIMARY KEY (sku, node)) WITH (fillfactor = 50)"
        )
        connection.execute(
            "CREATE TABLE reservations (request_id uuid PRIMARY KEY, sku text NOT NULL, node text NOT NULL, "
            "quantity bigint NOT NULL, due timestamptz NOT NULL)"
        )
        with connection.cursor() as cursor, cursor.copy("COPY stock FROM STDIN") as copy:
            for number in range(SKUS):
                for node in NODES:
                    copy.write_row((f"sku-{number:06d}", node, PLENTY, 0))
        connection.execute("VACUUM ANALYZE stock")


def compare(
    load: Load, server: Server, echo: Server, postgres: Postgres, folder: Path, size: Size
) -> list[Found]:
    """Run all in turns."""
    anywhere = f"random(0, {SKUS - 1})"
    ledger = open_ledger(server.redis)
    ledger.sweep(time.monotonic() + CALL_TIMEOUT_S)  # any call: the epoch is known after it
    redis = redis_py.Redis.from_url(server.redis)
    fill_small(redis)
    gets, empty = get_requests(), [b""] * 64
    bare = partial(Bare, redis, calls=size.block_calls, redis_pid=server.redis_pid)
    arms: dict[str, Callable[[], float]] = {
        "PostgreSQL": PgBench(postgres, folder, "reserve", anywhere, RESERVE, size),
        "PostgreSQL, hot": PgBench(postgres, folder, "hot", str(HOT), RESERVE, size),
        "small Redis function": bare(small_commands(uniform)),
        "our function, bare": bare(bare_commands(ledger, uniform)),
        "our function, bare, hot": bare(bare_commands(ledger, hot)),
        "our service": create_arm(load, server, size),
        "our service, hot": create_arm(load, server, size, names=hot),
        "empty echo": Arm(load, echo, ECHO, size, lambda: empty),
        "read: PostgreSQL": PgBench(postgres, folder, "read", anywhere, READ, size),
        "read: our service": Arm(load, server, GET, size, lambda: gets),
    }
    try:
        rates = in_turns(size.blocks, arms)
    finally:
        redis.close()
        ledger.close()
    return told(rates)


def told(rates: dict[str, Rates]) -> list[Found]:
    """Make rows: each beside PostgreSQL doing the same."""
    rows: list[Found] = []
    for name, rate in rates.items():
        peer = "read: PostgreSQL" if name.startswith("read") else "PostgreSQL"
        if name.endswith("hot"):
            peer = "PostgreSQL, hot"
        ratio = rate.over(rates[peer])
        say(f"  {name}: {short(rate.median)}/s, {spread(ratio)} × {peer}")
        what = name if name.startswith("read") or name == "empty echo" else f"reserve: {name}"
        rows.append(
            Row(
                measure=what,
                figure=f"{short(rate.median)}/s ({short(min(rate.values))}-{short(max(rate.values))})",
                ratio=None if name == "empty echo" else ratio[0],
                target="× PostgreSQL" if name != "empty echo" else "",
            )
        )
    bars = {name: [(0.0, rate.median)] for name, rate in rates.items()}
    title = "One unit reserved, one number read: each with its own best client"
    return [*rows, Plot(name="peers", title=title, x="", y="a second", lines=bars, bars=True)]


def run(size: Size) -> list[Found]:
    """Measure."""
    say("PostgreSQL, Redis, gRPC and the service")
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        running(SETTINGS) as postgres,
        filled_service(strict=True) as server,
        echo_server() as echo,
        client() as load,
    ):
        fill_postgres(postgres)
        return compare(load, server, echo, postgres, Path(folder), size)
