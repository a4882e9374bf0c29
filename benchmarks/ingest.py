"""Files and webhooks into the ledger, beside StreamDeltas alone in the same run.

The stream's client makes its messages before its clock starts; the files are read, decoded, mapped and settled while it
runs, in one process as `availability ingest run` does it. Redis writes to disk before it answers (profile
single-strict), rows carry the source's own sequence as the stream's deltas do, and every row must be APPLIED. The last
rows are files of one and of ten sizes in a process of their own: memory flat, rate level.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from availability.client import Client
from benchmarks.common import (
    NODES,
    SKUS,
    SOURCE,
    Meter,
    Row,
    Server,
    Size,
    in_turns,
    main_thread_s,
    say,
    short,
    sku,
    spread,
)
from benchmarks.deltas import Stream
from benchmarks.load import Load, client
from benchmarks.reads import filled_service
from ingest.app import IngestDesk
from ingest.database import open_database
from ingest.settings import read_source

STREAM_BATCH = 1_000
"""As the files' own batches."""
RATIO_TARGET = 0.6
AGAINST = {
    "CSV": ("numbered", RATIO_TARGET),
    "JSON lines": ("CSV", 1.0),
    "Parquet": ("CSV", 1.0),
    "CSV, named by file and row": ("named", RATIO_TARGET),
}
"""What each format is compared with. An event id costs the ledger more than a number, wherever it comes from."""
LEVEL = 0.8
"""A rate at 10 × within this of the rate at 1 × is level on a machine that others use too."""
RSS_GROWTH_MAX = 1.25
WEBHOOK_TARGET = 2_000
WEBHOOK_CONNECTIONS = 16
WEBHOOK_PIPELINED = 8
SECRET = "a secret of the benchmark"
COLUMNS = ("type", "sku", "node", "quantity", "seq", "at")
MAPPING = """
source = "{source}"

[format]
kind = "{kind}"

[mapping]
version = "1"
author = "bench"

[mapping.columns]
type = "type"
sku = "sku"
node = "node"
quantity = "quantity"
{sequence}
occurred_time = "at"
{constants}

[mapping.movements]
"101" = {{ type = "RECEIPT" }}
"702" = {{ type = "ADJUSTMENT", sign = -1 }}
"""
SEQUENCED = 'source_sequence = "seq"'
Told = tuple[float, float, float]
"""Rows a second, processor time of the process a row (µs), its most memory (bytes)."""


# --- In the child -----------------------------------------------------------------------------------------


def carry(address: str, token: str, settings: str, path: str, rows: int) -> Told:
    """Carry one file as `availability ingest run` does it."""
    folder = Path(path).parent
    source = read_source(Path(settings))
    engine = open_database(str(folder / f"{uuid.uuid4().hex}.db"))
    with Client(address, token=token) as connection:
        desk = IngestDesk({source.source: source}, engine, connection)
        pipeline = desk.pipeline(source.source)
        _forget_most_memory()
        began, cpu = time.perf_counter(), time.process_time()
        outcome = pipeline.carry(Path(path))
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
    engine.dispose()
    if outcome.progress.applied != rows:
        raise RuntimeError(f"{outcome.progress} instead of {rows} rows")
    return rows / took, cpu / rows * 1e6, _most_memory()


def _forget_most_memory() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _most_memory() -> float:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return float(found[1]) * 1024 if found else 0.0


# --- Files ------------------------------------------------------------------------------------------------


def _cells(rows: int) -> Iterator[tuple[str, str, str, int, int, str, str]]:
    for i in range(rows):
        at = f"2026-11-{1 + i % 28:02d}T{i // 60 % 24:02d}:{i % 60:02d}:00Z"
        yield "101", sku(i * 7_919 % SKUS), NODES[i % len(NODES)], 1 + i % 9, i + 1, at, ""


def write(folder: Path, kind: str, rows: int) -> Path:
    """Write a file of a kind; no two are equal."""
    path = folder / f"{secrets.token_hex(4)}.{kind}"
    columns = (*COLUMNS, f"file {path.stem}")  # content that was carried before is not read again
    if kind == "parquet":
        frame = pl.DataFrame(list(_cells(rows)), schema=columns, orient="row")
        frame.write_parquet(path, row_group_size=50_000)
        return path
    with path.open("w", newline="") as out:
        if kind == "csv":
            writer = csv.writer(out)
            writer.writerow(columns)
            writer.writerows(_cells(rows))
        else:
            out.writelines(
                json.dumps(dict(zip(columns, cells, strict=True))) + "\n" for cells in _cells(rows)
            )
    return path


def _settings(folder: Path, kind: str, sequenced: bool, source: str = SOURCE) -> Path:
    """Write the source's settings for one file; a stream of its own, so that its numbers begin anew."""
    path = folder / f"{secrets.token_hex(4)}.toml"
    constants = f'[mapping.constants]\nstream = "{path.stem}"' if sequenced else ""
    path.write_text(
        MAPPING.format(source=source, kind=kind, sequence=SEQUENCED if sequenced else "", constants=constants)
    )
    return path


class Files:
    """One format; remembers processor time of ingest, server and Redis a row."""

    def __init__(
        self, load: Load, server: Server, folder: Path, kind: str, rows: int, sequenced: bool
    ) -> None:
        self._load, self._server, self._folder = load, server, folder
        self._kind, self._rows, self._sequenced = kind, rows, sequenced
        self.costs: list[Told] = []
        self.memory = 0.0

    def __call__(self) -> float:
        """Carry a new file; return rows a second."""
        path = write(self._folder, self._kind, self._rows)
        settings = _settings(self._folder, self._kind, self._sequenced)
        meter = Meter([self._server.pid])
        redis = main_thread_s(self._server.redis_pid)
        rate, own_us, self.memory = self._load.run(
            carry, self._server.grpc, self._server.token, str(settings), str(path), self._rows
        )
        redis_us = (main_thread_s(self._server.redis_pid) - redis) / self._rows * 1e6
        self.costs.append((own_us, meter.used()[0][0] / self._rows * 1e6, redis_us))
        path.unlink()
        return float(rate)

    @property
    def costs_us(self) -> Told:
        """The least of the blocks."""
        own_us, server_us, redis_us = (min(one[i] for one in self.costs) for i in range(3))
        return own_us, server_us, redis_us


def compare(load: Load, server: Server, folder: Path, size: Size) -> list[Row]:
    """Measure StreamDeltas alone and each format, in turns."""
    alone = {
        "numbered": Stream(load, server, size.deltas, STREAM_BATCH),
        "named": Stream(load, server, size.deltas, STREAM_BATCH, named=True),
    }
    arms = {
        name: Files(load, server, folder, kind, size.deltas, sequenced)
        for name, kind, sequenced in (
            ("CSV", "csv", True),
            ("JSON lines", "json_lines", True),
            ("Parquet", "parquet", True),
            ("CSV, named by file and row", "csv", False),
        )
    }
    runs: dict[str, Callable[[], float]] = {**alone, **arms}
    rates = in_turns(min(5, size.blocks), runs)
    rows = []
    for name, one in alone.items():
        client_us, server_us, redis_us = one.costs_us
        say(
            f"  StreamDeltas alone, {name}: {short(rates[name].median)}/s; a delta: client {client_us:.1f} (making the "
            f"messages included), server {server_us:.1f}, Redis {redis_us:.1f} µs of processor"
        )
        rows.append(Row(measure=f"StreamDeltas alone, {name}", figure=f"{short(rates[name].median)}/s"))
    for name, arm in arms.items():
        own_us, server_us, redis_us = arm.costs_us
        say(
            f"  {name}: {short(rates[name].median)}/s; a row: ingest {own_us:.1f}, server {server_us:.1f}, "
            f"Redis {redis_us:.1f} µs of processor"
        )
        against, target = AGAINST[name]
        ratio = rates[name].over(rates[against])
        rows.append(
            Row(
                measure=f"{name} ÷ {against if against in arms else f'StreamDeltas {against}'}",
                figure=f"{short(rates[name].median)}/s, {spread(ratio)}",
                ratio=ratio[0],
                target=f"≥ {target:g} ×",
                met=ratio[0] >= target,
            )
        )
    return rows


def growth(server: Server, folder: Path, size: Size) -> list[Row]:
    """Measure a file and one of ten times its size, each in a process of its own."""
    told = []
    for rows in (size.deltas, 10 * size.deltas):
        with client() as load:
            files = Files(load, server, folder, "csv", rows, True)
            rate = files()
            told.append((rate, files.memory))
            say(f"  {rows:,} rows: {short(rate)}/s, at most {files.memory / 1e6:.0f} MB")
    (rate, memory), (rate_10, memory_10) = told
    return [
        Row(
            measure="CSV of 10 × the rows: rate",
            figure=f"{short(rate)}/s, {short(rate_10)}/s",
            ratio=rate_10 / rate,
            target=f"≥ {LEVEL:g} ×",
            met=rate_10 >= LEVEL * rate,
        ),
        Row(
            measure="CSV of 10 × the rows: most memory",
            figure=f"{memory / 1e6:.0f} MB, {memory_10 / 1e6:.0f} MB",
            ratio=memory_10 / memory,
            target=f"≤ {RSS_GROWTH_MAX:g} ×",
            met=memory_10 <= RSS_GROWTH_MAX * memory,
        ),
    ]


# --- Webhook ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def door(server: Server, folder: Path) -> Iterator[tuple[str, int, str, int]]:
    """Run `availability ingest run --http`; yield host, port, source and process."""
    source = f"hook-{secrets.token_hex(4)}"
    (folder / "secret").write_text(SECRET)
    settings = _settings(folder, "json_lines", False, source)
    with settings.open("a") as out:
        out.write('[drop]\nfolder = "drop"\nsettle_ms = 0\n[webhook]\nsecret_file = "secret"\n')
    command = [*("-m", "availability", "ingest", "run", "--http", "127.0.0.1:0"), "--sources", str(folder)]
    command += ["--database", str(folder / "ingest.db")]
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=Path(__file__).resolve().parent.parent,
        env={**os.environ, "AVAIL_TARGET": server.grpc, "AVAIL_TOKEN": server.token},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[2]
        host, port = address.removeprefix("http://").split("/")[0].split(":")
        yield host, int(port), source, process.pid
    finally:
        process.terminate()
        process.wait(30)


def post(host: str, port: int, source: str, first: int, requests: int, events: int) -> float:
    """In the client: post events over several connections, each some requests ahead; return events a second."""
    each = requests // WEBHOOK_CONNECTIONS
    connections = [socket.create_connection((host, port)) for _ in range(WEBHOOK_CONNECTIONS)]
    bodies: list[list[bytes]] = [[] for _ in connections]
    number = first
    for mine in bodies:
        for _ in range(each):
            lines = []
            for _ in range(events):
                event: dict[str, Any] = {
                    "type": "101",
                    "sku": sku(number % SKUS),
                    "node": NODES[0],
                    "quantity": 1,
                }
                lines.append(json.dumps({**event, "at": "2026-11-01T08:00:00Z", "n": number}))
                number += 1
            body = "\n".join(lines).encode()
            head = (
                f"POST /events/{source} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {SECRET}\r\n"
                f"content-length: {len(body)}\r\n\r\n"
            )
            mine.append(head.encode() + body)
    began = time.perf_counter()
    told = [0] * len(connections)
    sent = [0] * len(connections)
    while any(count < each for count in told):
        for at, connection in enumerate(connections):
            while sent[at] < each and sent[at] - told[at] < WEBHOOK_PIPELINED:
                connection.sendall(bodies[at][sent[at]])
                sent[at] += 1
        for at, connection in enumerate(connections):
            if told[at] < sent[at]:
                answer = connection.recv(1 << 16)
                found = answer.count(b"HTTP/1.1 202")
                if not answer or found != answer.count(b"HTTP/1.1 "):
                    raise RuntimeError(f"not accepted: {answer[:300]!r}")
                told[at] += found
    took = time.perf_counter() - began
    for connection in connections:
        connection.close()
    return number / took - first / took


def webhook(server: Server, load: Load, folder: Path, size: Size) -> list[Row]:
    """Measure events that are on the disk when they are answered, while the same process carries them on."""
    requests = max(1_600, size.deltas // 10)
    with door(server, folder) as (host, port, source, pid):
        found: dict[int, list[float]] = {1: [], 50: []}
        costs: dict[int, list[float]] = {1: [], 50: []}
        first = 0
        for _ in range(3):
            for events, rates in found.items():
                count = requests // events * (1 if events == 1 else 5)
                meter = Meter([pid])
                rates.append(load.run(post, host, port, source, first, count, events))
                costs[events].append(meter.used()[0][0] / (count * events) * 1e6)
                first += count * events
    rows = []
    for events, rates in found.items():
        rate = sorted(rates)[1]
        say(
            f"  webhook, {events} a request: {short(rate)}/s; an event: {min(costs[events]):.0f} µs of processor"
        )
        rows.append(
            Row(
                measure=f"webhook, {events} event{'s' if events > 1 else ''} a request, on disk",
                figure=f"{short(rate)}/s",
                ratio=rate / WEBHOOK_TARGET,
                target=f"≥ {short(WEBHOOK_TARGET)}/s",
                met=rate >= WEBHOOK_TARGET,
            )
        )
    return rows


def run(size: Size) -> list[Row]:
    """Measure."""
    with (
        filled_service(strict=True) as server,
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        client() as load,
    ):
        folder = Path(name)
        rows = compare(load, server, folder, size)
        rows += growth(server, folder, size)
        hooks = folder / "hooks"
        hooks.mkdir()
        return rows + webhook(server, load, hooks, size)
