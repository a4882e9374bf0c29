"""Witnessed linearizability: many clients at once, and afterwards one plain model that replays what they saw.

Every answer names the version at which it was decided. `run` lets threads send seeded operations and collects
(operation, answer, version, times); `Replay` sorts them by version and replays them in the plain model: a
change is made in the model at its version, a refusal or a read is checked against the model's state at its
version, a duplicate against the first answer of its id. `order_violations` checks that versions respect real
time.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any  # an operation's arguments, as the model's calls take them

from availability.domain.version import Version
from availability.ledger.connection import ConnectionSettings
from availability.ledger.ledger import Ledger, LedgerSettings
from tests.model import Changed, Delta, Granted, Model, Refusal
from tests.wire import Service, held, reservation_state

Answer = Granted | Changed | Refusal | list[Any]
HOLD_MS = 6 * 3_600_000
POOL_MAX = 200


@dataclass(frozen=True)
class Operation:
    """One call as the model and the service both take it."""

    call: str
    args: tuple[Any, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)

    def request_id(self) -> str:
        """Give the idempotency key, or nothing for reads and deltas."""
        return self.args[0] if self.call in ("reserve", "extend", "commit", "release") else ""


@dataclass(frozen=True)
class Witness:
    """What one client saw. `units` is what the reservation holds by (sku, node), as answered."""

    operation: Operation
    answer: Answer
    version: Version | None
    started: float
    ended: float
    state: str = ""
    units: dict[tuple[str, str], int] = field(default_factory=dict)

    def replayed(self) -> bool:
        return getattr(self.answer, "replayed", False)

    def changes(self) -> bool:
        """Tell whether this answer is that of the call that made a change."""
        if self.operation.call in ("set_node", "set_override", "set_channel"):
            return True
        if isinstance(self.answer, Granted):
            return not self.answer.replayed and bool(self.answer.reservation_id)
        if isinstance(self.answer, Changed):
            return not self.answer.replayed
        return self.says("APPLIED")

    def says(self, result: str) -> bool:
        """Tell whether one of its deltas ended so."""
        answer = self.answer
        return (
            self.operation.call == "apply_deltas"
            and isinstance(answer, list)
            and any(one == result for one, _ in answer)
        )


class Board:
    """What the clients tell each other: reservations to end, operations to repeat."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.reservations: list[str] = []
        self.sent: list[Operation] = []

    def keep(self, kept: list[Any], new: Any, rng: random.Random) -> None:
        with self.lock:
            if len(kept) >= POOL_MAX:
                kept[rng.randrange(len(kept))] = new
            else:
                kept.append(new)

    def pick(self, kept: list[Any], rng: random.Random) -> Any:
        with self.lock:
            return rng.choice(kept) if kept else None


Workload = Callable[[random.Random, Board, str], Operation]
"""Draws the next operation of a client; the text is an id that nobody else uses."""


def run(
    connect: Callable[[], Service],
    workload: Workload,
    *,
    seed: int,
    prefix: str,
    clients: int = 16,
    operations: int = 4_000,
    duplicates: float = 0.15,
) -> list[Witness]:
    """Let clients send operations at once, some of them repeated, also while the first is under way."""
    board = Board()
    seen: list[list[Witness]] = [[] for _ in range(clients)]
    failures: list[BaseException] = []
    start = threading.Barrier(clients)

    def client(number: int, service: Service) -> None:
        rng = random.Random(f"{seed} {number}")
        start.wait()
        try:
            for step in range(operations // clients):
                operation = board.pick(board.sent, rng) if rng.random() < duplicates else None
                if operation is None:
                    operation = workload(rng, board, f"{prefix}-{number}-{step}")
                if operation.call != "sellables" and not operation.call.startswith("set_"):
                    board.keep(board.sent, operation, rng)
                seen[number].append(witness(service, operation))
                made = seen[number][-1].answer
                if isinstance(made, Granted) and made.reservation_id and not made.replayed:
                    board.keep(board.reservations, made.reservation_id, rng)
        except BaseException as failure:
            failures.append(failure)
            raise

    services = [connect() for _ in range(clients)]
    threads = [threading.Thread(target=client, args=pair, daemon=True) for pair in enumerate(services)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [one for part in seen for one in part]


def witness(service: Service, operation: Operation) -> Witness:
    """Make one call and write down what came of it."""
    started = time.monotonic()
    answer: Answer
    try:
        answer = getattr(service, operation.call)(*operation.args, **operation.fields)
    except Refusal as refusal:
        return Witness(operation, refusal, None, started, time.monotonic())
    ended = time.monotonic()
    if isinstance(answer, Granted | Changed):
        known = service.reservation
        return Witness(
            operation, answer, service.version, started, ended, reservation_state(known), held(known)
        )
    return Witness(operation, answer, service.version, started, ended)


def order_violations(seen: Iterable[Witness]) -> list[str]:
    """Find answers older than one that had ended before they were asked for.

    A change must be later than everything known when it started; a strong read, a refusal or a duplicate not
    earlier. Replays of a known id and plain reads may show an older version.
    """
    timed = [w for w in seen if w.version is not None]
    ends = sorted(timed, key=lambda w: w.ended)
    found = []
    newest: Witness | None = None
    place = 0
    for one in sorted(timed, key=lambda w: w.started):
        while place < len(ends) and ends[place].ended < one.started:
            if newest is None or ends[place].version > newest.version:  # type: ignore[operator]  # timed ones
                newest = ends[place]
            place += 1
        if newest is None or one.replayed() or weak(one.operation):
            continue
        if one.version < newest.version or (one.changes() and one.version == newest.version):  # type: ignore[operator]
            found.append(f"{one} after {newest}")
    return found


def weak(operation: Operation) -> bool:
    """Tell whether a read may show an older version than the newest."""
    return operation.call == "sellables" and not operation.fields.get("strong")


class Replay:
    """Replays what was seen in a plain model, in order of version."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.first: dict[str, Witness] = {}
        self.checked = 0

    def check(self, seen: Iterable[Witness]) -> None:
        """Replay and check everything; fail at the first answer that the model does not give."""
        seen = list(seen)
        decided = [w for w in seen if w.version is not None and not w.replayed()]
        decided.sort(key=lambda w: (w.version, not w.changes(), not w.says("STALE")))
        for before, after in pairwise(one for one in decided if one.changes()):
            assert before.version != after.version, f"one version for two: {before} {after}"
        for one in decided:
            self.step(one)
        for one in seen:
            if one.replayed():
                self.check_replay(one)
            elif isinstance(one.answer, Refusal):
                self.check_refusal(one)

    def step(self, one: Witness) -> None:
        operation = one.operation
        self.checked += 1
        mine: object
        fields = dict(operation.fields)
        if isinstance(one.answer, Granted):
            assert operation.request_id() not in self.first, f"decided twice: {operation}"
            fields["reservation_id"] = one.answer.reservation_id
        if operation.request_id():
            self.first[operation.request_id()] = one
        if operation.call == "sellables":
            channel, skus = operation.args
            mine = [(self.model.sellable(channel, sku), self.model.state(channel, sku)) for sku in skus]
        elif operation.call == "apply_deltas":
            mine = [self.model.apply_delta(delta) for delta in operation.args[0]]
        else:
            mine = getattr(self.model, operation.call)(*operation.args, **fields)
        assert mine == one.answer, f"{one}, but {mine} in the model"
        if one.changes() and one.state == "ACTIVE":
            name = one.answer.reservation_id if isinstance(one.answer, Granted) else operation.args[1]
            assert one.units == self.model.held(name), f"{one}, but {self.model.held(name)} in the model"

    def check_replay(self, one: Witness) -> None:
        """A repeated id gets the first outcome; a repeated commit of the same order is one too."""
        first = self.first.get(one.operation.request_id())
        if first is None:
            assert one.operation.call == "commit", f"replay of nothing: {one}"
            hold = self.model.holds[one.operation.args[1]]
            assert hold.state == "COMMITTED"
            return
        assert first.operation == one.operation
        if isinstance(one.answer, Granted) and isinstance(first.answer, Granted):
            assert replace(one.answer, replayed=False) == first.answer

    def check_refusal(self, one: Witness) -> None:
        """A refused call names no version; what it says of the reservation must be true in the end."""
        assert isinstance(one.answer, Refusal)
        assert one.answer.reason == "RESERVATION_NOT_ACTIVE", str(one)
        assert self.model.holds[one.operation.args[1]].state in ("COMMITTED", "RELEASED")
        assert one.operation.request_id() not in self.first, f"refused, and done: {one}"


def differences(model: Model, service: Service, channels: Iterable[str], skus: list[str]) -> list[str]:
    """Compare every position and sellable with the ledger's, as explained and as a replica shows them."""
    found = []
    for channel in channels:
        answers = service.sellables(channel, skus, strong=True)
        for sku, answer in zip(skus, answers, strict=True):
            mine = model.terms(channel, sku)
            if answer != (mine.sellable, mine.state):
                found.append(f"{channel} {sku}: {answer}, {mine} in the model")
            terms = service.explain(channel, sku).terms
            known = answer[1] != "UNKNOWN_SKU"
            if terms.sellable_quantity != mine.sellable or (known and terms.pool != mine.pool):
                found.append(f"{channel} {sku} explained: {terms}, {mine} in the model")
            for node in terms.nodes:
                position = model.positions.get(sku, {}).get(node.node)
                have = (
                    position.on_hand if position else 0,
                    sum(position.quarantined.values()) if position else 0,
                    model.reserved(sku, node.node),
                    model.committed(sku, node.node),
                )
                if (node.on_hand, node.quarantined, node.reserved, node.committed) != have:
                    found.append(f"{sku} at {node.node}: {node}, {have} in the model")
    return found


def differences_in_redis(model: Model, redis_url: str, skus: list[str]) -> list[str]:
    """Compare every position with what Redis itself keeps: what a server explains comes from its replica."""
    ledger = Ledger(LedgerSettings(connection=ConnectionSettings(url=redis_url)))
    try:
        states = [
            state for start in range(0, len(skus), 1_000) for state in ledger.skus(skus[start:][:1_000]).skus
        ]
    finally:
        ledger.close()
    kept = {
        (state.sku, p.node): (p.on_hand, p.quarantined, p.reserved, p.committed)
        for state in states
        for p in state.positions
    }
    mine = {
        (sku, node): (
            p.on_hand,
            sum(p.quarantined.values()),
            model.reserved(sku, node),
            model.committed(sku, node),
        )
        for sku in skus
        for node, p in model.positions.get(sku, {}).items()
    }
    nothing = (0, 0, 0, 0)
    return [
        f"{place}: {kept.get(place)} in Redis, {mine.get(place)} in the model"
        for place in {*kept, *mine}
        if kept.get(place, nothing) != mine.get(place, nothing)
    ]


def adjust(source: str, event_id: str, sku: str, node: str, quantity: int) -> Delta:
    """Put stock somewhere."""
    return Delta(source=source, type="ADJUSTMENT", event_id=event_id, sku=sku, node=node, quantity=quantity)
