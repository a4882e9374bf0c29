"""The rolling digest: what differs is found within one walk and mended, and a healthy memory never differs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from availability.ledger.record import NodeState
from availability.replica import Replica, ReplicaSettings
from availability.replica.digest import CPU_SHARE_MAX
from tests.fakes_ledger import FakeLedger

SKUS = 20
BATCH = 4
RATE = 100
PIECES = SKUS // BATCH + 1 + 2
"""Of one walk: pages (one more to see the end), what only memory knows, policies."""


class World:
    """A ledger, a replica that has read it, and time."""

    def __init__(self, *, rate: int = RATE, cpu_s_per_piece: float = 0.0) -> None:
        self.now = 1000.0
        self.cpu = 0.0
        self.cpu_s_per_piece = cpu_s_per_piece
        self.reasons: list[str] = []
        self.ledger = FakeLedger()
        self.ledger.set_node("a")
        self.ledger.set_channel("web", ["a"], buffer_units=1)
        self.ledger.put(*((f"sku {number}", "a", (9, 0, 0, 0, -1)) for number in range(SKUS)))
        self.ledger.set_override("web", "sku 3", units=2)
        settings = ReplicaSettings(digest_skus_per_s=rate, digest_batch_skus=BATCH)
        self.replica = Replica(
            self.ledger,
            settings,
            lambda: self.now,
            Random(1),
            on_resync=self.reasons.append,
            cpu_s=self.spent,
        )
        self.step()

    def spent(self) -> float:
        self.cpu += self.cpu_s_per_piece
        return self.cpu

    def step(self, seconds: float = 2.0 * BATCH / RATE) -> None:
        self.now += seconds
        self.replica.step()

    def walk(self) -> None:
        """Let one whole walk pass from here: the rest of the present one, then all of the next."""
        for _ in range(2 * PIECES):
            self.step()


@pytest.fixture
def world() -> World:
    return World()


def corrupt_position(world: World) -> None:
    world.replica._state.positions._values[7, 0] += 1


def corrupt_answer(world: World) -> None:
    world.replica._state.columns["web"].packed[7] += 8


def corrupt_override(world: World) -> None:
    channel = world.replica._state.policies.channels["web"]
    by_sku = channel.overrides.by_sku
    assert isinstance(by_sku, dict)
    by_sku.clear()


def forget_sku(world: World) -> None:
    """The ledger has one that memory never heard of."""
    world.ledger.now.positions["unheard"] = {"a": (5, 0, 0, 0, -1)}


def invent_sku(world: World) -> None:
    """Memory has one that the ledger does not name."""
    del world.ledger.now.positions["sku 5"]


def corrupt_node(world: World) -> None:
    state = world.replica._state
    nodes = state.policies.nodes
    wrong = NodeState("a", 2, 0, "", "", "", 0)
    state.policies = replace(state.policies, nodes=replace(nodes, states=(wrong,)))


def corrupt_channel(world: World) -> None:
    channels = world.replica._state.policies.channels
    assert isinstance(channels, dict)
    channels["web"] = replace(channels["web"], declared=False)


@pytest.mark.parametrize(
    ("corrupt", "named"),
    [
        (corrupt_position, "'sku 7'"),
        (corrupt_answer, "'sku 7'"),
        (corrupt_override, "'sku 3'"),
        (forget_sku, "'unheard'"),
        (invent_sku, "'sku 5'"),
        (corrupt_node, "the node ('a',)"),
        (corrupt_channel, "the channel ('web',)"),
    ],
)
def test_what_differs_is_found_within_one_walk_and_mended(
    world: World, corrupt: Callable[[World], None], named: str
) -> None:
    """It is counted and named; memory is read anew, serves again, and the next walks find nothing."""
    world.walk()
    assert world.replica.digest.disagreements == 0
    corrupt(world)
    world.walk()
    assert world.replica.digest.disagreements == 1
    assert any(f"differ about {named} at" in reason for reason in world.reasons)
    world.walk()
    assert world.replica.ready
    assert world.replica.digest.disagreements == 1
    value = world.replica.get("web", "sku 7")
    assert (value.sellable, value.state) == world.ledger.answer("web", "sku 7")


def test_a_walk_takes_what_its_rate_says(world: World) -> None:
    """All skus, no faster than so many a second; then its age grows from 0."""
    began = world.now
    assert world.replica.digest_age_s() == float("inf")
    while not world.replica.digest.walks:
        world.step(0.01)
        assert world.now - began < 10 * SKUS / RATE
    assert world.replica.digest.skus >= SKUS
    assert world.now - began >= SKUS / RATE
    assert world.replica.digest_age_s() == pytest.approx(0.0)
    world.now += 7
    assert world.replica.digest_age_s() == pytest.approx(7.0)


def test_a_walk_that_would_cost_too_much_takes_longer() -> None:
    """At most CPU_SHARE_MAX of a core is spent on it, whatever the rate says."""
    world = World(rate=100_000, cpu_s_per_piece=0.01)
    began, cpu = world.now, world.cpu
    for _ in range(20_000):
        world.step(0.01)
    assert world.replica.digest.walks >= 3
    assert (world.cpu - cpu) / 2 / (world.now - began) <= CPU_SHARE_MAX * 1.1  # each span is asked for twice


def test_a_rate_of_0_switches_it_off() -> None:
    """Then nothing is read back."""
    world = World(rate=0)
    calls = len(world.ledger.calls)
    world.walk()
    assert not {"page", "skus", "policies"} & set(world.ledger.calls[calls:])


def test_a_healthy_memory_never_differs_under_load(world: World) -> None:
    """Records come between every two calls, policies and new skus among them."""
    rng = Random(5)

    def change(call: str) -> None:
        if call == "head":
            return
        kind = rng.randrange(6)
        if kind == 0:
            world.ledger.set_channel("web", ["a"], buffer_units=rng.randrange(4))
        elif kind == 1:
            world.ledger.put((f"sku {rng.randrange(2 * SKUS)}", "a", (rng.randrange(9), 0, 0, 0, -1)))
        elif kind == 2:
            world.ledger.set_override("web", f"sku {rng.randrange(SKUS)}", units=rng.randrange(4))
        elif kind == 3:
            world.ledger.set_stop("web", f"sku {rng.randrange(SKUS)}", blocked=rng.random() < 0.5)
        elif kind == 4:
            world.ledger.set_node("a", rng.choice((1, 2)), rng.randrange(3))
        else:
            world.ledger.reserve(f"sku {rng.randrange(SKUS)}", "a", 1)

    world.ledger.before_call = change
    for _ in range(2_000):
        world.step()
        assert world.replica.ready, world.replica.not_ready_reason
    figures = world.replica.digest
    assert (figures.disagreements, world.replica.counts().resyncs) == (0, 1)
    assert figures.walks > 50
