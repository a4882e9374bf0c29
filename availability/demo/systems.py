"""The demo's systems: the operator's console, the WMS and the ERP."""

from __future__ import annotations

import queue
import random

from availability.client import ClientError
from availability.demo.books import Buffer, Line
from availability.demo.catalogue import (
    CHANNELS,
    FENCE_CHANNEL,
    FENCE_SKU,
    FENCE_UNITS,
    FLASH,
    FLASH_CHANNEL,
    ITEMS,
    KIT,
    KIT_PARTS,
    NODES,
    SAFETY_STOCK,
    SOUTH,
    STORE,
)
from availability.demo.story import Feed, Order, Story
from availability.v1 import common_pb2 as common
from availability.v1 import policy_pb2 as pol
from availability.v1 import stock_pb2 as stk

FENCE_AT, OFFLINE_AT, ONLINE_AT, TWICE_AT = 0.34, 0.56, 0.80, 0.42
"""Moments of the show, as parts of its length."""
TICK_S = 0.25
RECEIVING = (4, 3, 2)
"""How often goods arrive at each of NODES."""
TWICE_DELTAS_MIN = 3
"""A batch worth sending twice."""
SET_UP = "demo set-up"


# --- The operator -----------------------------------------------------------------------------------------


def set_up(story: Story) -> None:
    """Declare nodes, channels and policies, receive the opening stock."""
    for node in NODES:
        _set_node(story, node, online=True, reason=SET_UP)
    for name in CHANNELS:
        _set_channel(story, name)
    for sku, node in SAFETY_STOCK:
        _set_safety_stock(story, sku, node, SAFETY_STOCK[sku, node])
    _set_no_buffer(story, FLASH_CHANNEL, FLASH.sku)
    _set_kit(story)
    opening = Feed(story, "count")  # the stock-taking before the first day is a source like any other
    for item in (FLASH, *ITEMS):
        for node, units in zip(NODES, item.opening, strict=True):
            if units:
                receipt = stk.Delta(type=stk.DELTA_TYPE_RECEIPT, sku=item.sku, node=node, quantity=units)
                opening.add(node, receipt)
    received = opening.send(settle=True)
    opening.close()
    _set_fence(story, "agreed with the marketplace")
    units = sum(delta.quantity for delta in received)
    story.journal.tell(
        "stock", f"opening stock: {units} units of {len(ITEMS) + 1} skus in {len(NODES)} nodes"
    )


def operator(story: Story) -> None:
    """Fill the marketplace's fence again; take one warehouse offline, and bring it back."""
    if not story.wait_until(FENCE_AT):
        return
    _set_fence(story, "the marketplace's second week")
    story.journal.tell("fence", f"{FENCE_UNITS} {FENCE_SKU} are fenced for {FENCE_CHANNEL} again")
    if not story.wait_until(OFFLINE_AT):
        return
    try:
        _set_node(story, SOUTH, online=False, reason="power cut")
        story.journal.tell("offline", f"{SOUTH} goes offline: its stock leaves every channel at once")
        story.wait_until(ONLINE_AT)
    finally:
        _set_node(story, SOUTH, online=True, reason="power is back")
        story.journal.tell("online", f"{SOUTH} is back")


def _set_node(story: Story, node: str, *, online: bool, reason: str) -> None:
    state = common.NODE_STATE_ONLINE if online else common.NODE_STATE_OFFLINE
    request = pol.SetNodeRequest(node=node, state=state, reason=reason)
    answer = story.client.call(story.client.policies.SetNode, request)
    if online:
        story.journal.enter(answer.version, lambda books: books.offline.discard(node))
        story.journal.offline.discard(node)
    else:
        story.journal.enter(answer.version, lambda books: books.offline.add(node))
        story.journal.offline.add(node)


def _set_channel(story: Story, name: str) -> None:
    channel = CHANNELS[name]
    policy = pol.ChannelPolicy(channel=name, nodes=channel.nodes, low_stock_threshold=5)
    if channel.buffer.percent:
        policy.buffer.percent = channel.buffer.percent
    else:
        policy.buffer.units = channel.buffer.units
    request = pol.SetChannelPolicyRequest(policy=policy, reason=SET_UP)
    answer = story.client.call(story.client.policies.SetChannelPolicy, request)
    story.journal.enter(answer.version, lambda books: books.channels.update({name: channel}))


def _set_safety_stock(story: Story, sku: str, node: str, units: int) -> None:
    request = pol.SetSafetyStockRequest(sku=sku, node=node, quantity=units, reason=SET_UP)
    answer = story.client.call(story.client.policies.SetSafetyStock, request)
    story.journal.enter(answer.version, lambda books: books.safety.update({(sku, node): units}))


def _set_no_buffer(story: Story, channel: str, sku: str) -> None:
    override = pol.SkuOverride(buffer=common.Buffer(units=0))
    request = pol.SetSkuOverrideRequest(channel=channel, sku=sku, override=override, reason="flash sale")
    answer = story.client.call(story.client.policies.SetSkuOverride, request)
    story.journal.enter(answer.version, lambda books: books.overrides.update({(channel, sku): Buffer()}))


def _set_kit(story: Story) -> None:
    parts = [pol.KitComponent(sku=sku, units=units) for sku, units in KIT_PARTS.items()]
    request = pol.SetKitRequest(kit_sku=KIT, components=parts, reason=SET_UP)
    answer = story.client.call(story.client.policies.SetKit, request)
    story.journal.enter(answer.version, lambda books: books.kits.update({KIT: KIT_PARTS}))


def _set_fence(story: Story, reason: str) -> None:
    """Fence what is agreed, or what there is where that is less."""
    units = FENCE_UNITS
    while True:
        request = pol.SetRingFenceRequest(channel=FENCE_CHANNEL, sku=FENCE_SKU, units=units, reason=reason)
        try:
            answer = story.client.call(story.client.policies.SetRingFence, request)
            break
        except ClientError as error:
            if error.reason != "FENCE_OVER_POOL" or units == 0:
                raise
            units -= 1
    story.journal.enter(answer.version, lambda books: books.set_fence(FENCE_CHANNEL, FENCE_SKU, units))


# --- The ERP ----------------------------------------------------------------------------------------------


def erp(story: Story) -> None:
    """Take orders over: allocate them where their units are, cancel a few, hand them to the WMS."""
    chance, feed = story.chance("erp"), Feed(story, "erp")
    while not story.stop.wait(TICK_S):
        _take_over(story, chance, feed)
    _take_over(story, chance, feed)
    feed.close()


def _take_over(story: Story, chance: random.Random, feed: Feed) -> None:
    accepted = []
    while (order := _next(story.placed)) is not None:
        if order.lines[0].sku != FLASH.sku and chance.random() < 0.07:  # a cancelled one would sell again
            _order_fact(feed, order, stk.DELTA_TYPE_ORDER_CANCELLED)
            story.journal.count("cancelled")
            story.journal.tell("cancel", f"ERP cancels {order.ref}")
            continue
        if chance.random() < 0.3:  # the ERP's own word on the quantity; it repeats what we know
            for sku in {line.sku for line in order.lines}:
                units = sum(line.quantity for line in order.lines if line.sku == sku)
                _order_fact(feed, order, stk.DELTA_TYPE_ORDER_PLACED, Line(sku=sku, node="", quantity=units))
        for line in order.lines:
            _order_fact(feed, order, stk.DELTA_TYPE_ORDER_ALLOCATED, line)
        accepted.append(order)
    if feed.send(settle=True) and accepted:
        story.journal.count("allocated", len(accepted))
        story.journal.tell("erp", f"ERP allocates {len(accepted)} order{'s' if len(accepted) > 1 else ''}")
    for (
        order
    ) in accepted:  # only now: a shipment of an order that the ledger has not heard of is another story
        story.to_ship.put(order)


def _order_fact(feed: Feed, order: Order, kind: stk.DeltaType.ValueType, line: Line | None = None) -> None:
    delta = stk.Delta(type=kind, order_source=order.source, order_ref=order.ref)
    if line is not None:
        delta.sku, delta.node, delta.quantity = line.sku, line.node, line.quantity
    feed.add("orders", delta)


# --- The WMS ----------------------------------------------------------------------------------------------


def wms(story: Story) -> None:
    """Ship what is allocated, receive goods, find damage, and send one batch twice."""
    chance, feed = story.chance("wms"), Feed(story, "wms")
    twice = False
    while not story.stop.wait(TICK_S):
        _ship(story, chance, feed)
        _receive(story, chance, feed)
        _inspect(story, chance, feed)
        sent = feed.send(settle=True)
        if len(sent) >= TWICE_DELTAS_MIN and not twice and story.has_passed(TWICE_AT):
            twice = True
            feed.send_again(sent)
            story.journal.tell(
                "twice", f"WMS lost an ack, sends {len(sent)} deltas again: DUPLICATE, counted once"
            )
    feed.close()


def _ship(story: Story, chance: random.Random, feed: Feed) -> None:
    if chance.random() < 0.3:  # parcels leave in waves
        return
    orders = units = 0
    for _ in range(8):
        order = _next(story.to_ship)
        if order is None:
            break
        orders += 1
        for line in order.lines:
            units += line.quantity
            shipment = stk.Delta(
                type=stk.DELTA_TYPE_SHIPMENT,
                sku=line.sku,
                node=line.node,
                quantity=line.quantity,
                order_source=order.source,
                order_ref=order.ref,
            )
            feed.add(line.node, shipment)
        if chance.random() < 0.05:
            line = order.lines[0]
            back = stk.Delta(
                type=stk.DELTA_TYPE_RETURN_RECEIVED,
                sku=line.sku,
                node=line.node,
                quantity=1,
                order_source=order.source,
                order_ref=order.ref,
            )
            feed.add(line.node, back)
            story.journal.tell(
                "return", f"1 {line.sku} of {order.ref} comes back: quarantined until inspected"
            )
    if orders:
        story.journal.count("shipped", units)
        story.journal.tell("ship", f"WMS ships {orders} order{'s' if orders > 1 else ''}, {units} units")


def _receive(story: Story, chance: random.Random, feed: Feed) -> None:
    if chance.random() >= 0.4:
        return
    item, node = chance.choice(ITEMS), chance.choices(NODES, weights=RECEIVING)[0]
    units = chance.randint(3, 16) if node != STORE else chance.randint(1, 5)
    feed.add(node, stk.Delta(type=stk.DELTA_TYPE_RECEIPT, sku=item.sku, node=node, quantity=units))
    story.journal.tell("stock", f"{units} {item.sku} arrive at {node}")


def _inspect(story: Story, chance: random.Random, feed: Feed) -> None:
    """Quarantine damage, of which some is sold after all and some written off; recount a shelf."""
    if chance.random() >= 0.1:
        return
    item, node = chance.choice(ITEMS), chance.choice(NODES)
    what = chance.random()
    if what < 0.3:
        feed.add(node, stk.Delta(type=stk.DELTA_TYPE_ADJUSTMENT, sku=item.sku, node=node, quantity=1))
        story.journal.tell("count", f"a recount at {node} finds 1 more {item.sku}")
        return
    damaged = stk.DELTA_TYPE_QUARANTINE
    feed.add(node, stk.Delta(type=damaged, sku=item.sku, node=node, quantity=2, reason="damage"))
    if what < 0.6:
        for kind in (stk.DELTA_TYPE_QUARANTINE_RELEASE, stk.DELTA_TYPE_WRITE_OFF):
            feed.add(node, stk.Delta(type=kind, sku=item.sku, node=node, quantity=1, reason="damage"))
        story.journal.tell("damage", f"2 {item.sku} at {node} inspected: 1 is fine, 1 written off")
    else:
        story.journal.tell("damage", f"2 {item.sku} at {node} damaged: quarantined")


def _next(orders: queue.SimpleQueue[Order]) -> Order | None:
    try:
        return orders.get_nowait()
    except queue.Empty:
        return None
