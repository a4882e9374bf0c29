"""A replica over a fake ledger, stepped by hand."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from availability.domain.formula import AvailabilityState
from availability.domain.version import Version
from availability.replica import Fork, Replica, ReplicaSettings
from tests.fakes_ledger import FakeLedger

UNKNOWN = int(AvailabilityState.UNKNOWN_SKU)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger() -> FakeLedger:
    """A ledger with two nodes, a channel and two skus."""
    made = FakeLedger()
    made.set_node("a")
    made.set_node("b", safety_stock=1)
    made.set_channel("web", ["b", "a"], buffer_units=1)
    made.put(("x", "a", (5, 0, 0, 0, -1)), ("x", "b", (4, 0, 0, 0, -1)), ("y", "a", (2, 0, 0, 0, -1)))
    return made


def replica_of(ledger: FakeLedger, clock: Clock, **changes: object) -> Replica:
    options = replace(ReplicaSettings(digest_skus_per_s=0), **changes)  # type: ignore[arg-type]  # any field
    return Replica(ledger, options, clock, Random(1))


def served(ledger: FakeLedger, clock: Clock, **changes: object) -> Replica:
    replica = replica_of(ledger, clock, **changes)
    catch_up(replica, ledger)
    return replica


def catch_up(replica: Replica, ledger: FakeLedger) -> None:
    for _ in range(60):
        replica.step()
        if replica.ready and replica.version == ledger.version and replica.freshness_ms() == 0:
            return
    raise AssertionError(f"not caught up: {replica.not_ready_reason or replica.version}")


def answer(replica: Replica, channel: str, sku: str) -> tuple[int, int]:
    value = replica.get(channel, sku)
    return value.sellable, value.state


def drained(watcher: object) -> list[tuple[bool, dict[str, int], Version]]:
    batches = []
    while (batch := watcher.next(0)) is not None:  # type: ignore[attr-defined]  # a Watcher
        batches.append((batch.initial, {sku: sellable for sku, sellable, _ in batch.changes}, batch.version))
    return batches


def forked(ledger: FakeLedger, clock: Clock) -> tuple[Replica, list[Fork], Version]:
    """A replica that read two versions which a failover lost."""
    forks: list[Fork] = []
    options = ReplicaSettings(digest_skus_per_s=0)
    replica = Replica(ledger, options, clock, Random(1), on_fork=forks.append)
    catch_up(replica, ledger)
    kept = ledger.now.copy()
    ledger.reserve("x", "a", 1)
    lost = ledger.reserve("x", "a", 1)
    catch_up(replica, ledger)
    ledger.now = kept
    return replica, forks, lost


def walk_until_doubt(replica: Replica, clock: Clock) -> None:
    for _ in range(4):  # skus, perhaps those that the ledger does not name, policies, skus
        clock.now += 2
        replica.step()
        if not replica.ready:
            return
    raise AssertionError("nobody noticed")
