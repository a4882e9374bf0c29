"""What happens in and around the shops on a simulated day: shoppers, merchants, the warehouse, the shops' failures.

One thread acts, event by event, on two shops with a ledger between them: ``mirror`` counts its own sales, ``owner``
lets the ledger grant them. What each event means for the truth is entered into the shop's ``Books`` at once.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from availability.client import Client, ClientError
from availability.v1 import policy_pb2 as pol
from availability.v1 import reservation_pb2 as res
from availability.v1 import stock_pb2 as stk
from publisher.testing.checkout import buy, offered
from publisher.testing.faults import Fault, Kind
from publisher.testing.order_state import Line, Order
from publisher.testing.orders import delete_order, edit_lines, refund_order, set_status, trash_order
from publisher.testing.server import Storefront
from publisher.testing.stock import VARIABLE, VARIATION, Product
from publisher.testing.webhooks import Losses
from tests.day_books import Books

OPENING = (3, 40)
"""Least and most units of a sku at the start."""
HOT, HOT_SHARE = 3, 0.4
"""So many skus have that share of the sales and deltas: there the races are."""
HOLD_S = 600.0
WAREHOUSE = "wms"
WRITES = "POST|PUT|PATCH"
STOCK_PATHS = r"/products"
FAILURES: tuple[tuple[Kind, str, dict[str, float]], ...] = (
    (Kind.TOO_MANY_REQUESTS, "", {"seconds": 1}),
    (Kind.MAINTENANCE, "", {"seconds": 1}),
    (Kind.FATAL_AT_ITEM, WRITES, {"items": 2}),
    (Kind.FATAL_EARLY, "", {}),
    (Kind.HOOK_EXCEPTION, WRITES, {"items": 0}),
    (Kind.LOCK_TIMEOUT, WRITES, {"seconds": 0.2}),
    (Kind.READ_ONLY, WRITES, {}),
    (Kind.DATABASE_DOWN, "", {}),
    (Kind.HTML_BEFORE_JSON, "", {}),
    (Kind.CHALLENGE_PAGE, "", {}),
    (Kind.EMPTY_LIST, WRITES, {}),
    (Kind.BAD_GATEWAY, "", {}),
    (Kind.GATEWAY_TIMEOUT, WRITES, {"seconds": 0.5}),
    (Kind.HANG, "", {"seconds": 5.0}),
    (Kind.CUT_ANSWER, "", {}),
    (Kind.TORN_STATUS, WRITES, {}),
    (Kind.STALE_READ, "GET", {}),
    (Kind.SLOW, "", {"factor": 8.0}),
)
"""Kind, methods and further facts of the failures that a day has; the caller's time-out is 4 s."""


@dataclass(slots=True, kw_only=True)
class Side:
    """One shop: its channel and node, its double, its books, the skus that shoppers buy."""

    channel: str
    node: str
    front: Storefront
    owner: bool
    books: Books = field(default_factory=Books)
    skus: list[str] = field(default_factory=list)
    refused: int = 0

    def watch(self) -> None:
        """Tell the books what the shop shows; a store from another thread than the actor's is the publisher's."""
        actor = threading.current_thread()

        def shown(product: Product) -> None:
            if product.quantity is not None:
                written = threading.current_thread() is not actor
                self.books.shows(product.sku, int(product.quantity), written=written)

        self.front.shop.listeners.append(shown)


def stock(side: Side, count: int, rng: random.Random) -> None:
    """Fill a shop: simple products, and a third of them as variations of one product with stock of their own."""
    shop = side.front.shop
    parent = shop.add(f"{side.channel}-SHIRT", kind=VARIABLE)
    for index in range(count):
        sku = f"{side.channel}-{index:03d}"
        units = rng.randint(*OPENING)
        kind = VARIATION if index % 3 == 2 else "simple"
        shop.add(sku, units, kind=kind, parent=parent.id if kind == VARIATION else 0)
        side.books.opened(sku, units)
        side.skus.append(sku)


def open_ledger(client: Client, side: Side) -> None:
    """Give the shop's channel its node, and the node the units that the shop begins with."""
    policy = pol.ChannelPolicy(channel=side.channel, nodes=[side.node])
    client.call(client.policies.SetChannelPolicy, pol.SetChannelPolicyRequest(policy=policy, reason="a day"))
    deltas = []
    for number, sku in enumerate(side.skus, 1):
        units = side.books[sku].on_hand
        deltas.append(_delta(side, stk.DELTA_TYPE_RECEIPT, sku, units, f"open-{side.channel}-{number}"))
    _apply(client, deltas)


class Day:
    """The actor of a day. ``tell`` is given a word now and then of what happened."""

    def __init__(self, client: Client, sides: list[Side], rng: random.Random) -> None:
        self._client = client
        self._sides = sides
        self._rng = rng
        self._number = 0
        self.happened: Counter[str] = Counter()
        self._losses = Losses(rng=rng, lost=0.2, doubled=0.2, shuffled=True)

    def run(self, seconds: float, *, events_per_s: float, between: Callable[[float], None]) -> None:
        """Act for so long; ``between`` is called with the part of the day that has passed."""
        began = time.monotonic()
        due = 0.0
        while (passed := time.monotonic() - began) < seconds:
            if passed < due:
                time.sleep(min(due - passed, 0.05))
                continue
            due += self._rng.expovariate(events_per_s)
            self.act()
            between(passed / seconds)

    def act(self) -> None:
        """Let one thing happen."""
        side = self._rng.choice(self._sides)
        self._number += 1
        acts: list[tuple[int, Callable[[Side], str]]] = [
            (40, self._sale),
            (14, self._delta),
            (8, self._ship),
            (6, self._cancel),
            (6, self._pay),
            (5, self._refund),
            (3, self._edit),
            (2, self._fail),
            (2, self._remove),
            (4, self._webhooks),
            (5, self._failure),
        ]
        act = self._rng.choices([one for _, one in acts], [weight for weight, _ in acts])[0]
        if act == self._webhooks:  # the shop does not stand still while it sends
            self.happened[act(side)] += 1
            return
        with side.front.shop.lock:
            self.happened[act(side)] += 1

    def quiet(self) -> None:
        """End the failures, and deliver the webhooks that still wait."""
        for side in self._sides:
            side.front.faults.clear()
            side.front.deliver_webhooks()

    # --- shoppers

    def _sale(self, side: Side) -> str:
        sku, units = self._sku(side), self._rng.randint(1, 4)
        found = side.front.shop.find(sku)[0]
        if offered(side.front.shop, found) < units:
            return "not on offer"
        if side.owner:
            return self._sale_by_ledger(side, sku, units)
        pending = self._rng.random() < 0.2
        status = "pending" if pending else self._rng.choice(("processing", "processing", "on-hold"))
        via = "store-api" if pending else "checkout"
        order = buy(side.front.shop, {sku: units}, status=status, created_via=via)
        if order is None:
            return "not on offer"
        if pending:
            return "checkout left open"
        side.books.sold(time.monotonic(), sku, _name(order.lines[0]), units)
        return "sale"

    def _sale_by_ledger(self, side: Side, sku: str, units: int) -> str:
        answer = self._client.reserve(side.channel, {sku: units}, hold_s=HOLD_S)
        if answer.outcome != res.RESERVATION_OUTCOME_RESERVED:
            side.refused += 1
            return "refused by the ledger"
        reservation = answer.reservation.reservation_id
        if self._rng.random() < 0.15:
            self._client.release(reservation)
            return "cart abandoned"
        order = buy(side.front.shop, {sku: units}, status="processing")
        if order is None:
            self._client.release(reservation)
            return "not on offer"
        side.books.sold(time.monotonic(), sku, _name(order.lines[0]), units)
        self._client.commit(reservation, str(order.id), order_source=side.channel)
        return "sale"

    # --- merchants

    def _cancel(self, side: Side) -> str:
        order = self._order(side, "processing", "on-hold", "pending")
        if order is None or self._shipped(side, order):
            return "nothing"
        was = order.status
        set_status(side.front.shop, order, "cancelled")
        if was != "pending":
            self._now_ordered(side, order, cancelled=True)
        return "order cancelled"

    def _pay(self, side: Side) -> str:
        order = self._order(side, "pending")
        if order is None:
            return "nothing"
        line = order.lines[0]
        set_status(side.front.shop, order, "processing")
        side.books.sold(time.monotonic(), str(line.sku), _name(line), line.quantity)
        return "checkout paid"

    def _refund(self, side: Side) -> str:
        order = self._order(side, "processing", "on-hold")
        if order is None or self._shipped(side, order) or order.lines[0].quantity < 2 or order.refunds:
            return "nothing"
        restock = self._rng.random() < 0.7
        refund_order(side.front.shop, order, [(order.lines[0].id, 1)], restock=restock)
        self._now_ordered(side, order, refunded=1)
        return "refund"

    def _edit(self, side: Side) -> str:
        order = self._order(side, "processing")
        if order is None or self._shipped(side, order) or order.refunds:
            return "nothing"
        line = order.lines[0]
        units = max(1, line.quantity - 1)
        edit_lines(side.front.shop, order, [{"id": line.id, "quantity": units}])
        set_status(side.front.shop, order, order.status)
        self._now_ordered(side, order)
        return "order edited"

    def _fail(self, side: Side) -> str:
        order = self._order(side, "processing", "on-hold")
        if order is None or (side.owner and not self._known(side, order)):
            return "nothing"  # of a failed order an Owner shop cannot say what it had taken
        set_status(side.front.shop, order, "failed")
        return "payment failed afterwards"

    def _remove(self, side: Side) -> str:
        order = self._order(side, "processing", "on-hold")
        if order is None or not self._known(side, order):
            return "nothing"  # what comes and goes between two polls was never there for anybody
        if self._rng.random() < 0.5:
            trash_order(side.front.shop, order)
            return "order trashed"
        delete_order(side.front.shop, order)
        return "order deleted"

    # --- the warehouse

    def _delta(self, side: Side) -> str:
        sku = self._sku(side)
        units = self._rng.choice((-2, -1, 1, 2, 5, 20))
        kind = stk.DELTA_TYPE_RECEIPT if units > 2 else stk.DELTA_TYPE_ADJUSTMENT
        _apply(self._client, [_delta(side, kind, sku, units, f"delta-{self._number}")])
        side.books.received(time.monotonic(), sku, units)
        return "delta"

    def _ship(self, side: Side) -> str:
        order = self._order(side, "processing")
        if order is None or self._shipped(side, order) or order.refunds:
            return "nothing"
        line = order.lines[0]
        delta = _delta(side, stk.DELTA_TYPE_SHIPMENT, str(line.sku), line.quantity, f"ship-{self._number}")
        delta.order_source, delta.order_ref, delta.line = side.channel, str(order.id), str(line.id)
        _apply(self._client, [delta])
        side.books.shipped(str(line.sku), _name(line), line.quantity)
        set_status(side.front.shop, order, "completed")
        return "shipment"

    # --- failures

    def _webhooks(self, side: Side) -> str:
        side.front.deliver_webhooks(self._losses)
        return "webhooks delivered"

    def _failure(self, side: Side) -> str:
        kind, methods, facts = self._rng.choice(FAILURES)
        fault = Fault(
            kind=kind,
            method=methods,
            path=STOCK_PATHS if methods else "/wc/v3/",
            times=self._rng.randint(1, 3),
            items=int(facts.get("items", 0)),
            seconds=facts.get("seconds", 0.0),
            factor=facts.get("factor", 1.0),
        )
        side.front.faults.add(fault)
        return f"failure {kind.name}"

    # --- small things

    def _sku(self, side: Side) -> str:
        return self._rng.choice(side.skus[:HOT] if self._rng.random() < HOT_SHARE else side.skus)

    def _order(self, side: Side, *statuses: str) -> Order | None:
        found = [
            order for order in side.front.shop.orders.values() if order.status in statuses and order.lines
        ]
        return self._rng.choice(found) if found else None

    def _known(self, side: Side, order: Order) -> bool:
        """Whether the ledger has heard of the order as it is now."""
        try:
            told = self._client.get_order(side.channel, str(order.id))
        except ClientError as error:
            if error.reason != "ORDER_NOT_FOUND":
                raise
            return False
        heard = sum(line.ordered for line in told.lines)
        return heard == sum(side.books[str(line.sku)].wanted[_name(line)][0] for line in order.lines)

    def _shipped(self, side: Side, order: Order) -> bool:
        return any(side.books[str(line.sku)].wanted.get(_name(line), [0, 0])[1] for line in order.lines)

    def _now_ordered(self, side: Side, order: Order, *, cancelled: bool = False, refunded: int = 0) -> None:
        for line in order.lines:
            units = 0 if cancelled else line.quantity - refunded
            side.books.ordered(time.monotonic(), str(line.sku), _name(line), units)


def _name(line: Line) -> str:
    return f"line {line.id}"


def _delta(side: Side, kind: stk.DeltaType.ValueType, sku: str, units: int, event_id: str) -> stk.Delta:
    delta = stk.Delta(
        source=WAREHOUSE,
        stream=side.node,
        type=kind,
        sku=sku,
        node=side.node,
        quantity=units,
        event_id=event_id,
    )
    delta.occurred_time.GetCurrentTime()
    return delta


def _apply(client: Client, deltas: list[stk.Delta]) -> None:
    """Apply deltas; all of them have to count."""
    answer = client.apply_deltas(WAREHOUSE, deltas)
    assert not answer.details, answer.details
