"""The history on PostgreSQL: how fast the historian writes, and how long an explanation takes as the journal grows.

The log is a real one (deltas in batches, single reservations), the historian the real one, PostgreSQL with fsync. The
large journals are made by statements inside PostgreSQL: rows with the spread of real ones, whose records are alike.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import sqlalchemy as sa
from msgspec.structs import replace
from sqlalchemy.engine import Engine

from availability.domain.version import Version
from availability.history.baseline import read_baseline
from availability.history.database import open_database
from availability.history.historian import Historian, HistorianSettings
from availability.history.journal import JOURNAL, Journal
from availability.history.partitions import ensure_days
from availability.history.past import Past
from availability.history.rows import policy_row
from availability.history.seal import Sealer
from availability.history.tables import SEQ_BITS, journal_days, policies, policy_names
from availability.ledger.ledger import Ledger
from availability.ledger.record import Kind, NodeState
from availability.replica import default_channel
from benchmarks.common import (
    CALL_TIMEOUT_S,
    CHANNEL,
    Found,
    Plot,
    Row,
    Size,
    cpu_s,
    fill,
    ledger_of_own,
    quantile,
    receipt,
    reserve_call,
    say,
    send,
    sku,
)
from tests.postgres import Postgres, running

SETTINGS = ("listen_addresses=", "shared_buffers=512MB", "max_wal_size=4GB", "checkpoint_timeout=30min")
SKUS = 20_000
GROWN_SKUS = 5_000
WRITE_TARGET_PER_S = 20_000
EXPLAIN_TARGET_MS = 50.0
DAYS = 30
WARM_UP = 20
NODES = ("main", "north", "south", "store")
FIRST_DAY = 20_000
DAY_MS = 86_400_000
PIECE = 250_000
PLACES = GROWN_SKUS * len(NODES)
_encode = msgspec.msgpack.Encoder().encode


class Unheard:
    """Takes what a historian tells, and the ledger's checkpoints."""

    def note(self, version: Version) -> None: ...

    def wrote(self, records: int, seconds: float) -> None: ...

    def failed(self, cause: str) -> None:
        raise RuntimeError(f"the historian failed: {cause}")


def historian_of(ledger: Ledger, engine: Engine) -> Historian:
    """Return a historian as the process builds it."""
    return Historian(
        ledger,
        Unheard(),
        Journal(engine, Sealer()),
        HistorianSettings(gather_ms=0, block_ms=20),
        baseline=lambda head: read_baseline(ledger, head, random.Random(1), stopped=lambda: False),
        monotonic=time.monotonic,
        wall_ms=lambda: 0,
        random_source=random.Random(1),
        observer=Unheard(),
    )


def backend_pids(engine: Engine) -> list[int]:
    """Return the processes that PostgreSQL runs."""
    with engine.connect() as connection:
        return list(connection.scalars(sa.text("SELECT pid FROM pg_stat_activity")))


def caught_up(historian: Historian, engine: Engine, changes: int, what: str) -> Row:
    """Let the historian write what the log has; say how fast, and what a change costs whom."""
    pids = backend_pids(engine)
    ours, theirs = time.process_time(), sum(map(cpu_s, pids))
    began = time.perf_counter()
    while True:
        historian.step()
        if historian.caught_up:
            break
    took = time.perf_counter() - began
    own_us = (time.process_time() - ours) / changes * 1e6
    database_us = (sum(map(cpu_s, pids)) - theirs) / changes * 1e6
    rate = changes / took
    say(
        f"  {what}: {rate:,.0f} changes/s, {own_us:.1f} µs historian, {database_us:.1f} µs PostgreSQL a change"
    )
    return Row(
        measure=f"historian, {what}",
        figure=f"{rate:,.0f} changes/s; a change {own_us:.1f} µs of the historian, {database_us:.1f} µs of PostgreSQL",
        target=f"≥ {WRITE_TARGET_PER_S:,}/s",
        met=rate >= WRITE_TARGET_PER_S,
        raw={"changes_per_s": rate, "historian_us": own_us, "postgresql_us": database_us, "changes": changes},
    )


def write_deltas(ledger: Ledger, number: int) -> None:
    chance = random.Random(1)
    deltas = (
        receipt(sku(chance.randrange(SKUS)), chance.choice(NODES), 1, stream="day", sequence=sequence)
        for sequence in range(1, number + 1)
    )
    send(ledger, deltas)


def write_reserves(ledger: Ledger, number: int) -> None:
    chance = random.Random(2)
    for first in range(0, number, 500):
        deadline = time.monotonic() + CALL_TIMEOUT_S
        waiting = [
            ledger.submit("reserve", reserve_call(one, sku(chance.randrange(SKUS))), deadline)
            for one in range(first, min(number, first + 500))
        ]
        for pending in waiting:
            pending.wait()


def throughput(server: Postgres, size: Size) -> list[Found]:
    """Write a log of deltas, then one of reservations."""
    with ledger_of_own() as (ledger, _), tempfile.TemporaryDirectory() as folder:
        engine = open_database(server.url(server.new_database()), Path(folder))
        historian = historian_of(ledger, engine)
        fill(ledger, SKUS, NODES)
        while not historian.caught_up:
            historian.step()
        rows: list[Found] = []
        write_deltas(ledger, size.deltas)
        rows.append(caught_up(historian, engine, size.deltas, "deltas in batches of 250"))
        write_reserves(ledger, size.deltas // 2)
        rows.append(caught_up(historian, engine, size.deltas // 2, "single reservations"))
        engine.dispose()
    return rows


# --- Explanations ---------------------------------------------------------------------------------------------


def grow(engine: Engine, wanted: int) -> None:
    """Make the journal longer, days in turn, so that every position has changes on every day."""
    body = _encode(["r", CHANNEL, "shop", "1001", 0, [["sku", "", [["main", 1, 0]]]]])
    raw = b"\x97" + b"".join(map(_encode, [int(Kind.RESERVED), 0, "checkout", "", "request", []])) + body
    with engine.begin() as connection:
        ensure_days(connection, range(FIRST_DAY, FIRST_DAY + DAYS))
    each = wanted // DAYS
    for number in range(DAYS):
        day = FIRST_DAY + number
        for first in range(0, each, PIECE):
            values = {
                "day": day,
                "low": number * each + first + 1,
                "high": number * each + min(each, first + PIECE),
                "clock": day * DAY_MS,
                "each": each,
                "places": PLACES,
                "nodes": list(NODES),
                "raw": raw,
            }
            with engine.begin() as connection:
                connection.execute(sa.text(_RECORDS), values)
                connection.execute(sa.text(_CHANGES), values)
    with engine.begin() as connection:
        connection.execute(sa.text(_NAMES), {"places": PLACES, "nodes": list(NODES)})
        states = [("NODE", "", node, NodeState(node, 1, 0, "1-1", "ann", "opening", 0)) for node in NODES]
        channel = replace(default_channel(CHANNEL), version="1-1", author="ann")
        for what, name, of, state in (*states, ("CHANNEL", CHANNEL, "", channel)):
            row = policy_row(what, name, of, 1 << SEQ_BITS, 0, 0, "ann", "opening", state)
            connection.execute(sa.insert(policies).values(row))
            connection.execute(sa.insert(policy_names).values((what, name, of)))


_VERSION = f"(1::bigint << {SEQ_BITS}) + i"
_CLOCK = "CAST(:clock AS bigint) + (i % CAST(:each AS bigint)) * 80000000 / CAST(:each AS bigint)"
_RECORDS = f"""
INSERT INTO journal SELECT :day, {_VERSION}, {_CLOCK}, 1, 'checkout', '', 'request', md5(i::text), :raw
FROM generate_series(CAST(:low AS bigint), CAST(:high AS bigint)) i"""
_PLACE = "(i * 7919) % CAST(:places AS bigint)"
_NODE = "(CAST(:nodes AS text[]))[1 + p % 4]"
_SKU = "'sku-' || lpad((p / 4)::text, 6, '0')"
_CHANGES = f"""
INSERT INTO position_changes
SELECT :day, {_VERSION}, {_CLOCK}, CASE i % 3 WHEN 0 THEN 6 ELSE 1 END, {_SKU}, {_NODE}, 100, 0, i % 7, i % 5, -1,
  CASE i % 3 WHEN 0 THEN 1 ELSE 0 END, 0, CASE i % 3 WHEN 1 THEN 1 ELSE 0 END, CASE i % 3 WHEN 2 THEN 1 ELSE 0 END
FROM (SELECT i, {_PLACE} AS p FROM generate_series(CAST(:low AS bigint), CAST(:high AS bigint)) i) made
ORDER BY p"""
_NAMES = f"""
INSERT INTO positions SELECT {_SKU}, {_NODE} FROM generate_series(0, CAST(:places AS bigint) - 1) p
ON CONFLICT DO NOTHING"""


def note_days(engine: Engine, wanted: int) -> None:
    """Write what the historian would have noted of the days and its place."""
    each = wanted // DAYS
    first = 1 << SEQ_BITS
    with engine.begin() as connection:
        for number in range(DAYS):
            clock = (FIRST_DAY + number) * DAY_MS
            connection.execute(
                sa.insert(journal_days).values(
                    day=FIRST_DAY + number,
                    first_version=first + number * each + 1,
                    last_version=first + (number + 1) * each,
                    records=each,
                    first_clock_ms=clock,
                    last_clock_ms=clock + 80_000_000,
                    chain_before="",
                    last_chain="",
                )
            )
        connection.exec_driver_sql("DELETE FROM historian")
        connection.execute(
            sa.text("INSERT INTO historian VALUES (:name, 'bench', :version, '', :clock)"),
            {"name": JOURNAL, "version": first + each * DAYS, "clock": (FIRST_DAY + DAYS) * DAY_MS},
        )


def explained(engine: Engine, changes: int, times: int) -> tuple[list[float], float]:
    """Explain random skus at random versions; return the milliseconds of each, and of processor time on average."""
    past, chance = Past(engine), random.Random(3)
    took: list[float] = []
    pids, used = [], 0.0
    each = changes // DAYS
    for number in range(times + WARM_UP):
        if number == WARM_UP:
            pids = backend_pids(engine)
            used = time.process_time() + sum(map(cpu_s, pids))
        at = Version(1, chance.randrange(PLACES * 4, each * DAYS))
        began = time.perf_counter()
        answer = past.explain(CHANNEL, sku(chance.randrange(GROWN_SKUS)), at)
        if len(answer.terms.nodes) != len(NODES) or not answer.origins:
            raise RuntimeError(f"nothing was explained at {at}")
        if number >= WARM_UP:  # the first ones open connections and prepare statements
            took.append((time.perf_counter() - began) * 1e3)
    return took, (time.process_time() + sum(map(cpu_s, pids)) - used) / times * 1e3


def growth(server: Postgres, sizes: Sequence[int], times: int) -> list[Found]:
    """Explain from journals of growing length."""
    rows: list[Found] = []
    points: dict[str, list[tuple[float, float]]] = {"median": [], "99 of 100": []}
    for changes in sizes:
        with tempfile.TemporaryDirectory() as folder:
            engine = open_database(server.url(server.new_database()), Path(folder))
            began = time.perf_counter()
            grow(engine, changes)
            note_days(engine, changes)
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql("SET statement_timeout = 0")
                connection.exec_driver_sql("VACUUM ANALYZE")
                bytes_ = connection.exec_driver_sql(
                    "SELECT pg_database_size(current_database())"
                ).scalar_one()
            say(f"  {changes:,} rows made in {time.perf_counter() - began:.0f} s, {bytes_ / 1e9:.1f} GB")
            took, processor_ms = explained(engine, changes, times)
            engine.dispose()
        middle, late = quantile(took, 0.5), quantile(took, 0.99)
        points["median"].append((changes, middle))
        points["99 of 100"].append((changes, late))
        rows.append(
            Row(
                measure=f"explain as of, {changes:,} changes of {GROWN_SKUS:,} skus at 4 nodes",
                figure=f"median {middle:.1f} ms, 99 of 100 within {late:.1f} ms; {processor_ms:.1f} ms of processor; "
                f"database {bytes_ / 1e9:.1f} GB",
                target=f"≤ {EXPLAIN_TARGET_MS:.0f} ms",
                met=late <= EXPLAIN_TARGET_MS,
                raw={
                    "changes": changes,
                    "median_ms": middle,
                    "p99_ms": late,
                    "processor_ms": processor_ms,
                    "database_bytes": bytes_,
                },
            )
        )
        say(
            f"  explain as of: median {middle:.1f} ms, 99 of 100 within {late:.1f} ms, processor {processor_ms:.1f} ms"
        )
    rows.append(
        Plot(
            name="history",
            title="Explaining a past answer, by the journal's length",
            x="changes in the journal",
            y="ms",
            lines=points,
            log_x=True,
        )
    )
    return rows


def run(size: Size) -> list[Found]:
    """Measure writing, then explaining."""
    with running(SETTINGS) as server:
        rows = throughput(server, size)
        return rows + growth(server, size.journal_changes, 300)
