"""Cost must not grow with the reservations ever made or the deltas ever seen: Redis's time per call at 1× and 10×."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from availability.ledger import calls
from availability.ledger.commit_queue import Pending
from availability.ledger.embedded import EmbeddedRedis
from availability.ledger.ledger import Ledger, bucket, fingerprint
from availability.service.delta_codec import pack
from benchmarks.common import (
    CALL_TIMEOUT_S,
    DELTAS_PER_CALL,
    NODES,
    SKUS,
    SOURCE,
    Rates,
    Row,
    Size,
    fill,
    ledger_of_own,
    main_thread_s,
    receipt,
    reserve_call,
    say,
    sku,
    spread,
)

AHEAD = 100
GROWTH_MAX = 1.15
"""What is still taken for noise."""
BLOCKS = 9
PER_BLOCK = 1_000
DELTAS_PER_RESERVATION = 10


class History:
    """A ledger that is used: reservations, two of three of them ended, and deltas."""

    def __init__(self, ledger: Ledger, redis: EmbeddedRedis) -> None:
        self._ledger, self._redis = ledger, redis
        self._numbers = {"reserve": 0, "delta": 0}
        self._run = secrets.token_hex(4)

    def reserve(self, count: int, *, end: bool) -> None:
        """Make reservations; ``end`` releases a third and commits a third of them."""
        first = self._numbers["reserve"]
        self._numbers["reserve"] += count
        for start in range(first, first + count, AHEAD):
            numbers = range(start, min(start + AHEAD, first + count))
            self._all("reserve", [reserve_call(n, self._sku(n), run=self._run) for n in numbers])
            if end:
                self._all("release", [self._release(n) for n in numbers if n % 3 == 0])
                self._all("commit", [self._commit(n) for n in numbers if n % 3 == 1])

    def deltas(self, count: int) -> None:
        """Apply receipts of one stream."""
        first = self._numbers["delta"]
        self._numbers["delta"] += count
        pending: list[Pending] = []
        for start in range(first, first + count, DELTAS_PER_CALL):
            packed = [
                pack(
                    receipt(
                        self._sku(n), NODES[n % len(NODES)], 1, stream=f"history-{self._run}", sequence=n + 1
                    ),
                    SOURCE,
                )[0]
                for n in range(start, min(start + DELTAS_PER_CALL, first + count))
            ]
            pending.append(
                self._ledger.submit_deltas(
                    SOURCE, packed, facts_only=False, deadline=time.monotonic() + CALL_TIMEOUT_S
                )
            )
            if len(pending) == AHEAD:
                self._settle(pending)
        self._settle(pending)

    def cost_us(self, work: Callable[[int], None]) -> float:
        """Return Redis's processor time for one."""
        before = main_thread_s(self._redis.pid)
        work(PER_BLOCK)
        return (main_thread_s(self._redis.pid) - before) / PER_BLOCK * 1e6

    def _sku(self, number: int) -> str:
        return sku(number * 7_919 % SKUS)

    def _key(self, number: int, what: str) -> calls.RequestKey:
        text = f"{what}{self._run}-{number}"
        return calls.RequestKey(text, bucket(text), fingerprint(text.encode()), 0, "checkout", "")

    def _release(self, number: int) -> calls.Release:
        return calls.Release(self._key(number, "r"), f"r{self._run}{number:016d}", [])

    def _commit(self, number: int) -> calls.Commit:
        return calls.Commit(
            self._key(number, "c"), f"r{self._run}{number:016d}", "shop", f"order-{self._run}-{number}"
        )

    def _all(
        self, name: str, commands: list[calls.Reserve] | list[calls.Release] | list[calls.Commit]
    ) -> None:
        deadline = time.monotonic() + CALL_TIMEOUT_S
        for pending in [self._ledger.submit(name, command, deadline) for command in commands]:
            reply = pending.wait()
            if not any(word in reply for word in (b"RESERVED", b"RELEASED", b"COMMITTED")):
                raise RuntimeError(f"{name} was refused: {reply!r}")

    @staticmethod
    def _settle(pending: list[Pending]) -> None:
        for one in pending:
            reply = Ledger.decode_deltas(one.wait())
            if reply.status != "OK" or reply.details:
                raise RuntimeError(f"deltas were not applied: {reply.status} {reply.details[:3]}")
        pending.clear()


def run(size: Size) -> list[Row]:
    """Give one ledger 1× and another 10×, then measure both in turns."""
    reservations, deltas = size.history, size.history * DELTAS_PER_RESERVATION
    found: dict[str, tuple[list[float], list[float]]] = {"reserve": ([], []), "delta": ([], [])}
    with ledger_of_own() as (young, young_redis), ledger_of_own() as (old, old_redis):
        histories = []
        for ledger, redis, times in ((young, young_redis, 1), (old, old_redis, 10)):
            fill(ledger)
            history = History(ledger, redis)
            say(f"  {times}×: {reservations * times:,} reservations, {deltas * times:,} deltas")
            history.reserve(reservations * times, end=True)
            history.deltas(deltas * times)
            histories.append(history)
        for block in range(BLOCKS + 1):
            for which, history in enumerate(histories):
                reserve = history.cost_us(lambda count, h=history: h.reserve(count, end=False))  # type: ignore[misc]
                delta = history.cost_us(history.deltas)
                if block:  # the first warms up
                    found["reserve"][which].append(reserve)
                    found["delta"][which].append(delta)
    rows = []
    for name, (one, ten) in found.items():
        ratio = min(ten) / min(one)  # the least of the blocks: neighbours only add
        say(f"  {name}: {ratio:.2f}, block by block {spread(Rates(tuple(ten)).over(Rates(tuple(one))))}")
        rows.append(
            Row(
                measure=f"Redis's time a {name} after 10× ÷ 1× history",
                figure=f"{min(ten):.1f} µs ÷ {min(one):.1f} µs",
                ratio=ratio,
                target=f"≤ {GROWTH_MAX}",
                met=ratio <= GROWTH_MAX,
            )
        )
    return rows
