"""Ledgers of the fault tests' own: real Redis, functions with settable time and injected faults, servers to kill.

`Lab` drives `availability.ledger.ledger.Ledger` directly; `Process` is a server that a test may kill. What must hold
of every ledger at any moment is in audit.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, TypeVar  # Any: msgpack values of any shape, and redis' clients, who answer unions

import msgspec
import redis
from google.protobuf.timestamp_pb2 import Timestamp

from availability.ledger import calls
from availability.ledger.commit_queue import QueueSettings
from availability.ledger.connection import ConnectionSettings, load_library
from availability.ledger.embedded import EmbeddedRedis
from availability.ledger.ledger import Ledger, LedgerSettings, bucket, fingerprint
from availability.ledger.library import Library, build, read_sources
from availability.service.delta_codec import pack
from availability.v1 import stock_pb2 as stk

PREFIX = "avail"
BASE = f"{PREFIX}:{{0}}:"
META = BASE + "meta"
HEAD = "<5qB32s32s"
"""Layout of meta's head, as 03_log.lua states it."""
LEDGER_ID = "fault-lab"
NO_LIMIT_S = 30.0
DAY_MS = 86_400_000
READY_S = 40.0
_numbers = count(1)
_T = TypeVar("_T")

_BEFORE = """
local Test = {now_ms = false, offset_ms = 0, fail_at = 0, calls = 0, last = ''}
function Test.fails(name)
  Test.calls, Test.last = Test.calls + 1, name
  return Test.calls == Test.fail_at
end
function Test.call(...)
  if Test.fails((...)) then error({err = 'ERR injected fault'}) end
  if (...) ~= 'TIME' then return redis.call(...) end
  local t = redis.call('TIME')
  local now = Test.now_ms or tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
  now = now + Test.offset_ms
  return {string.format('%.0f', math.floor(now / 1000)), string.format('%.0f', now % 1000 * 1000)}
end
function Test.pcall(...)
  if Test.fails((...)) then return {err = 'ERR injected fault'} end
  return redis.pcall(...)
end
"""

_AFTER = """
register('test', function(keys, args)
  local before = {Test.calls, Test.last}
  Test.fail_at, Test.calls = tonumber(args[1]), 0
  Test.now_ms, Test.offset_ms = tonumber(args[2]) > 0 and tonumber(args[2]) or false, tonumber(args[3])
  return pack(before)
end, {'no-writes'})
"""


@cache
def faulty_library() -> Library:
    """Build the functions as they are, with Redis TIME settable and a fault at the n-th call of Redis."""
    *files, last = read_sources()
    assert "redis.call" in last, "the file that binds Redis' functions has changed"
    assert "redis.pcall" in last, "the file that binds Redis' functions has changed"
    bound = last.replace("redis.call", "Test.call").replace("redis.pcall", "Test.pcall")
    return build([_BEFORE, *files, bound, _AFTER])


def deadline(seconds: float = NO_LIMIT_S) -> float:
    """Return the monotonic time in so many seconds."""
    return time.monotonic() + seconds


def poll(condition: Callable[[], _T | None], what: str, *, within_s: float = 15.0) -> _T:
    """Wait until a condition holds; what it returned."""
    until = deadline(within_s)
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < until, f"{what}: not within {within_s} s"
        time.sleep(0.005)


def request_key(request_id: str, content: object = "", *, uuid_ms: int = 0) -> calls.RequestKey:
    """Make a request's idempotency key; ``content`` is what is asked."""
    mark = fingerprint(repr(content).encode())
    return calls.RequestKey(request_id, bucket(request_id), mark, uuid_ms, "tester", "")


def delta(type_: str, sku: str = "", node: str = "", quantity: int = 0, **fields: Any) -> stk.Delta:
    """Make a delta of source erp; with neither number nor event id it gets a new event id."""
    if not fields.get("source_sequence") and "event_id" not in fields:
        fields["event_id"] = f"event {next(_numbers)}"
    occurred_us = fields.pop("occurred_us", 0)
    if occurred_us:
        fields["occurred_time"] = Timestamp(seconds=occurred_us // 10**6, nanos=occurred_us % 10**6 * 1000)
    fields = {"source": "erp", **fields}
    return stk.Delta(
        type=stk.DeltaType.Value(f"DELTA_TYPE_{type_}"), sku=sku, node=node, quantity=quantity, **fields
    )


class Lab:
    """A new ledger in an emptied Redis."""

    def __init__(
        self,
        url: str,
        *,
        library: Library | None = None,
        through: str = "",
        timeout_s: float = 2.0,
        ledger_id: str = LEDGER_ID,
        **limits: Any,
    ) -> None:
        self.redis: Any = redis.Redis.from_url(url)
        self.redis.flushall()
        self.redis.execute_command("FUNCTION", "FLUSH")
        self.redis.config_set("maxmemory", 0)
        connection = ConnectionSettings(
            url=through or url, prefix=PREFIX, timeout_s=timeout_s, connect_timeout_s=timeout_s
        )
        self.settings = LedgerSettings(
            connection=connection, queue=limits.pop("queue", QueueSettings()), auto_create=True, **limits
        )
        self.library = library or faulty_library()
        load_library(self.redis, self.library)  # not through a proxy
        self.ledger = Ledger(self.settings, library=self.library)
        if through:
            _fcall(self.redis, self.library.function("create"), b"0", msgspec.msgpack.encode([ledger_id, 1]))
        self.ledger.open(ledger_id)
        self._control = self.library.function("test")

    def close(self) -> None:
        self.ledger.close()
        self.redis.close()

    # --- time and faults

    def control(self, *, fail_at: int = 0, now_ms: int = 0, offset_ms: int = 0) -> tuple[int, str]:
        """Set the n-th call that fails and Redis TIME; tell how many calls there were, and the last."""
        reply = self.redis.execute_command("FCALL", self._control, 1, META, fail_at, now_ms, offset_ms)
        calls_made, last = msgspec.msgpack.decode(reply)
        return calls_made, last

    def head(self) -> list[Any]:
        """Decode meta's head: epoch, seq, clock_ms, redis_ms, due_ms, full, chain, policy."""
        return list(struct.unpack(HEAD, self.redis.hget(META, "head")))

    def age(self, ms: int) -> None:
        """Let the ledger's clock have advanced by so much, with Redis TIME: what days of sweeps would do."""
        head = self.head()
        head[2] += ms
        head[3] += ms
        self.redis.hset(META, "head", struct.pack(HEAD, *head))

    # --- calls

    def fcall(self, name: str, call: object) -> Any:
        """Call a function straight, without the commit queue."""
        epoch = str(self.head()[0])
        return _fcall(self.redis, self.library.function(name), epoch, msgspec.msgpack.encode(call))

    def reserve(
        self, request_id: str, lines: Sequence[tuple[str, int]], *, hold_ms: int = 3_600_000, **fields: Any
    ) -> calls.HoldReply:
        return self.ledger.reserve(reserve(request_id, lines, hold_ms=hold_ms, **fields), deadline())

    def commit(self, request_id: str, reservation: str, ref: str, source: str = "") -> calls.HoldReply:
        call = calls.Commit(request_key(request_id, (reservation, source, ref)), reservation, source, ref)
        return self.ledger.commit(call, deadline())

    def release(
        self, request_id: str, reservation: str, lines: Sequence[tuple[str, int]] = ()
    ) -> calls.HoldReply:
        call = calls.Release(request_key(request_id, (reservation, lines)), reservation, list(lines))
        return self.ledger.release(call, deadline())

    def extend(self, request_id: str, reservation: str, hold_ms: int) -> calls.HoldReply:
        call = calls.Extend(request_key(request_id, (reservation, hold_ms)), reservation, hold_ms)
        return self.ledger.extend(call, deadline())

    def tell(self, *deltas: stk.Delta) -> calls.DeltasReply:
        """Apply deltas of one source as one call, the way the service does."""
        packed = [pack(d, d.source) for d in deltas]
        source = deltas[0].source if deltas else "erp"
        relief = bool(packed) and all(is_relief for _, is_relief in packed)
        sent = self.ledger.submit_deltas(
            source, [raw for raw, _ in packed], facts_only=relief, deadline=deadline()
        )
        return self.ledger.decode_deltas(sent.wait())

    def results(self, *deltas: stk.Delta) -> list[str]:
        """Apply deltas; what became of each, with the reason where there is one."""
        reply = self.tell(*deltas)
        reasons = {index: reason for index, _, reason, _ in reply.details if reason}
        names = [
            stk.DeltaResult.Name(stk.DeltaResult.ValueType(r)).removeprefix("DELTA_RESULT_")
            for r in reply.results
        ]
        return [f"{name} {reasons[i]}" if i in reasons else name for i, name in enumerate(names)]

    def receive(self, sku: str, node: str, quantity: int) -> None:
        assert self.results(delta("RECEIPT", sku, node, quantity)) == ["APPLIED"]

    def policy(self, request_id: str, what: str, value: list[object]) -> calls.PolicyReply:
        call = calls.PolicyChange(request_key(request_id, (what, value)), what, value, "test", True)
        return self.ledger.set_policy(call, deadline())

    def sweep(self) -> calls.SweepReply:
        return self.ledger.sweep(deadline())

    def position(self, sku: str, node: str) -> tuple[int, int, int, int]:
        """Give on_hand, quarantined, reserved and committed of a position."""
        for state in self.ledger.skus([sku]).skus:
            for p in state.positions:
                if p.node == node:
                    return p.on_hand, p.quarantined, p.reserved, p.committed
        return 0, 0, 0, 0


def reserve(
    request_id: str,
    lines: Sequence[tuple[str, int]],
    *,
    hold_ms: int = 3_600_000,
    channel: str = "web",
    order_source: str = "",
    order_ref: str = "",
    allow_partial: bool = False,
    node: str = "",
    uuid_ms: int = 0,
) -> calls.Reserve:
    """Build a reserve; the reservation's id is the request's with ``r-`` before it."""
    content = (lines, hold_ms, channel, order_source, order_ref, allow_partial, node)
    return calls.Reserve(
        request_key(request_id, content, uuid_ms=uuid_ms),
        f"r-{request_id}",
        channel,
        list(lines),
        hold_ms,
        order_source,
        order_ref,
        allow_partial,
        node,
        True,
    )


def _fcall(client: redis.Redis, function: str, epoch: bytes | str, payload: bytes) -> Any:
    reply: Any = client.execute_command("FCALL", function, 1, META, epoch, payload)
    return msgspec.msgpack.decode(reply)


class Process:
    """A server on a data directory that outlives it. ``start`` it, kill it, start it again."""

    def __init__(
        self, folder: Path, *, embedded: bool = True, listen: str = "127.0.0.1:0", **env: str
    ) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.log = folder / "server.log"
        self._ready = folder / "ready.json"
        self._embedded = embedded
        self._listen = listen
        self._env = {**os.environ, "AVAIL_DRAIN__NOTICE_MS": "0", **env}
        self._process: subprocess.Popen[bytes] | None = None
        self.grpc = ""
        self.redis_url = ""

    @property
    def command(self) -> list[str]:
        start = [sys.executable, "-m", "availability", "serve", "--no-auth", "--listen", self._listen]
        start += ["--data-dir", str(self.data_dir), "--ready-file", str(self._ready)]
        return [*start, "--embedded"] if self._embedded else start

    def start(self) -> None:
        """Start and wait until it serves."""
        self._ready.unlink(missing_ok=True)
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                self.command, stdout=out, stderr=subprocess.STDOUT, env=self._env
            )
        told = poll(self._told, "the server is ready", within_s=READY_S)
        self.grpc, self.redis_url = told["grpc"], told["redis"]

    def _told(self) -> dict[str, str] | None:
        assert self._process is not None
        ended = self._process.poll()
        assert ended is None, f"the server ended with {ended}: {self.log.read_text()[-3000:]}"
        return json.loads(self._ready.read_text()) if self._ready.exists() else None

    def refuses(self) -> tuple[int, list[str]]:
        """Start where it should refuse: exit code, and what stands on stderr apart from logs."""
        done = subprocess.run(
            self.command, capture_output=True, text=True, env=self._env, timeout=READY_S, check=False
        )
        lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
        return done.returncode, lines

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def redis(self) -> Any:
        return redis.Redis.from_url(self.redis_url)

    def redis_pid(self) -> int:
        with self.redis() as client:
            return int(client.info("server")["process_id"])

    def kill(self) -> None:
        """Kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def returncode(self) -> int | None:
        """Exit code of a process that ended."""
        assert self._process is not None
        return self._process.poll()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def new_folder() -> Path:
    """Make a folder with a short path: a unix socket's has 108 bytes at most."""
    return Path(tempfile.mkdtemp(prefix="avail-"))


@contextmanager
def own_redis() -> Iterator[EmbeddedRedis]:
    """A real Redis that nobody else uses; it is gone afterwards."""
    folder = new_folder()
    server = EmbeddedRedis(folder / "redis")
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def own_lab() -> Iterator[Lab]:
    """A ledger in a Redis of its own, without servers: nobody sweeps."""
    with own_redis() as server:
        made = Lab(server.url)
        try:
            yield made
        finally:
            made.close()


def runs(pid: int) -> bool:
    """Tell whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
