"""What a replay tells and asks: facts, what is kept of answers, limits, and a call that is made again.

Nothing is judged here but answers that no client could go on with. Threads, because the service takes most of the two
cores: the messages of a year cost about half a minute of one.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import grpc
from google.protobuf.message import Message

from availability.domain.uuid7 import UUID7_RANDOM_BYTES, uuid7
from availability.v1 import stock_pb2 as stk
from benchmarks.replay_plan import HOUR_S

ORDER_SOURCE = "shop"
"""Who names the orders; one name for holds, ERP and WMS alike."""
ERP, WMS = "erp", "wms"
STREAM = "replay"
REASONS = ("", "damage", "return")
DAMAGE, RETURN = 1, 2

CALL_TIMEOUT_S = 15.0
ATTEMPTS_MAX = 8
STREAM_TIMEOUT_S = 3600.0
BATCH_FACTS_MAX = 1000
LINGER_S = 0.03
"""A batch waits this long for company."""
UNACKED_MAX = 4
BACKLOG_FACTS_MAX = 20_000
"""Shoppers wait while ERP and WMS are further behind than this."""
REPEAT_SHARE = 0.2
"""Share of WMS batches that end with a delta sent before."""
LINES_MAX = 500
HOLD_S = 900
EXPIRING_HOLD_S = 1
LEFT_HOLD_S = 24 * HOUR_S
CHANNEL_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 64 << 20)]
RETRYABLE = frozenset(
    (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED)
)

RECEIPT = stk.DELTA_TYPE_RECEIPT
ADJUSTMENT = stk.DELTA_TYPE_ADJUSTMENT
SHIPMENT = stk.DELTA_TYPE_SHIPMENT
QUARANTINE = stk.DELTA_TYPE_QUARANTINE
QUARANTINE_RELEASE = stk.DELTA_TYPE_QUARANTINE_RELEASE
WRITE_OFF = stk.DELTA_TYPE_WRITE_OFF
RETURN_RECEIVED = stk.DELTA_TYPE_RETURN_RECEIVED
ORDER_CHANGED = stk.DELTA_TYPE_ORDER_CHANGED
ORDER_ALLOCATED = stk.DELTA_TYPE_ORDER_ALLOCATED
ORDER_CANCELLED = stk.DELTA_TYPE_ORDER_CANCELLED
ABSOLUTE = frozenset((ORDER_CHANGED, ORDER_ALLOCATED, ORDER_CANCELLED))

GRANT, COMMIT, RELEASE, EXPIRE = range(4)
"""What an answer did to a hold."""

R = TypeVar("R")


class ReplayFailed(Exception):
    """The replay cannot go on; the text says why."""


class Fact(NamedTuple):
    """A delta before it has a sequence. Indices as in the plan; -1 where there is none."""

    type: int
    sku: int
    node: int
    quantity: int
    order: int = -1
    reason: int = 0
    occurred_s: int = 0


class Told(NamedTuple):
    """A batch of facts and what the service made of it."""

    first_sequence: int
    facts: list[Fact]
    results: list[int]
    calls: list[tuple[int, str]]
    """(index of the first fact, version) of each ledger call."""


class HoldAnswer(NamedTuple):
    """An answer that changed a hold: per sku and node, what it now holds, or what it no longer holds."""

    version: str
    kind: int
    channel: int
    order: int
    skus: list[int]
    nodes: list[int]
    quantities: list[int]


class Refused(NamedTuple):
    """A shortage: what was asked, and what the service said could have been held."""

    version: str
    partial: bool
    channel: int
    sku: int
    requested: int
    sellable: int


class Stop:
    """Shared by all threads: the first failure, which ends them all."""

    def __init__(self) -> None:
        self._failed = threading.Event()
        self._reason = ""

    def fail(self, reason: str) -> None:
        """Keep the first reason."""
        if not self._failed.is_set():
            self._reason = reason
            self._failed.set()

    def check(self) -> None:
        """Raise ReplayFailed where a thread has failed."""
        if self._failed.is_set():
            raise ReplayFailed(self._reason)


def request_id() -> str:
    """Make a new idempotency key."""
    return uuid7(time.time_ns() // 1_000_000, os.urandom(UUID7_RANDOM_BYTES))


def ask(method: Callable[..., R], request: Message, counts: Counter[str]) -> R:
    """Call with a deadline; send the same request again, with its request_id, while that can help."""
    for attempt in range(ATTEMPTS_MAX):
        try:
            return method(request, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            if error.code() not in RETRYABLE or attempt == ATTEMPTS_MAX - 1:
                raise
        counts["retries"] += 1
        time.sleep(random.uniform(0.5, 1.0) * min(2.0, 0.02 * 2**attempt))
    raise AssertionError("unreachable")


def refused_call(error: grpc.RpcError) -> str:
    """Say in one line what a failed call answered."""
    return f"{error.code().name}: {error.details()}"
