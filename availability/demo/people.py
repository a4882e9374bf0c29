"""The demo's people: shoppers with baskets, and the crowd of the flash sale."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from availability.demo.books import Books, Line
from availability.demo.catalogue import (
    BUYERS_A_UNIT,
    CHANNEL_SHARES,
    FLASH,
    FLASH_CHANNEL,
    ITEMS,
    KIT,
)
from availability.demo.journal import ENDED, REFUSED
from availability.demo.story import Order, Story
from availability.v1 import reservation_pb2 as res

SHOPPERS = 8
CHECKOUT_HOLD_S = 900.0
ABANDONED_HOLD_S = (1.0, 2.5)
FLASH_AT = 0.22
"""Moment of the flash sale, as a part of the show's length."""
FLASH_THREADS = 32
KIT_SHARE = 0.12
"""How often a shopper takes the bundle."""
DOUBLE_CLICK_SHARE = 0.08
EXPIRY_LATEST_S = 15.0
"""How long the end waits for abandoned holds to end (CONTRACT section 4: 1 s after they are due)."""


# --- Shoppers ---------------------------------------------------------------------------------------------


def shopper(number: int) -> Callable[[Story], None]:
    """Return the actor of one shopper after the other."""

    def actor(story: Story) -> None:
        chance, visit = story.chance(f"shopper {number}"), 0
        while not story.stop.wait(chance.uniform(0.1, 0.7)):
            visit += 1
            _visit(story, chance, f"{number}{visit:03d}")

    return actor


def _visit(story: Story, chance: random.Random, name: str) -> None:
    """Fill a basket, and buy it, give it back, give a part of it back, or walk away."""
    journal, client = story.journal, story.client
    channel = chance.choices(list(CHANNEL_SHARES), weights=list(CHANNEL_SHARES.values()))[0]
    items = chance.sample(ITEMS, k=chance.choices((1, 2, 3), weights=(6, 3, 1))[0])
    wanted = {item.sku: chance.choices((1, 2, 3, 6), weights=(6, 3, 2, 1))[0] for item in items}
    if chance.random() < KIT_SHARE:
        wanted = {KIT: chance.choice((1, 1, 2))}
    fate = chance.random()
    walks_away = fate >= 0.78
    hold_s = chance.uniform(*ABANDONED_HOLD_S) if walks_away else CHECKOUT_HOLD_S
    hold = reserve(story, chance, channel, wanted, hold_s=hold_s)
    if hold is None:
        return
    basket = ", ".join(f"{units} {sku}" for sku, units in wanted.items())
    if walks_away:
        journal.short_holds.append(hold.reservation_id)
        journal.count("abandoned")
        journal.tell("abandon", f"{channel}: somebody walks away from {basket}")
        return
    if story.stop.wait(chance.uniform(0.1, 0.8)):
        return  # still at the till when the show ends: an active hold in the final balance
    if fate < 0.62:
        if fate < 0.05:  # a slow payment
            client.extend(hold.reservation_id, hold_s=CHECKOUT_HOLD_S)
        commit(story, hold, f"{channel[0].upper()}-{name}")
        journal.tell("order", f"{channel}: {basket} ordered")
    elif fate < 0.70 and sum(wanted.values()) > 1 and KIT not in wanted:
        _give_back_one(
            story, hold, next(sku for sku, units in wanted.items() if units > 1 or len(wanted) > 1)
        )
    else:
        answer = client.release(hold.reservation_id)
        journal.enter(answer.version, lambda books: books.end_hold(hold.reservation_id))
        journal.count("released")
        journal.tell("release", f"{channel}: {basket} given back")


def _give_back_one(story: Story, hold: res.Reservation, sku: str) -> None:
    """Take one unit out of the basket, and keep the rest at the till."""
    answer = story.client.release(hold.reservation_id, {sku: 1})
    left = lines_of(answer.reservation)
    hold_id = hold.reservation_id
    story.journal.enter(
        answer.version, lambda books: books.shrink_hold(hold_id, left, {sku: 1}, where=answer.version)
    )
    story.journal.count("released")
    story.journal.tell("release", f"{hold.channel}: 1 {sku} taken out of a basket")


def reserve(
    story: Story, chance: random.Random, channel: str, wanted: Mapping[str, int], *, hold_s: float
) -> res.Reservation | None:
    """Ask for a hold and enter the answer; some people press the button twice, with one request_id."""
    client, journal = story.client, story.journal
    request_id = client.new_request_id()
    asked_s = time.perf_counter()
    answer = client.reserve(channel, wanted, hold_s=hold_s, request_id=request_id)
    journal.latency((time.perf_counter() - asked_s) * 1000)
    where = f"version {answer.version}"
    if chance.random() < DOUBLE_CLICK_SHARE:
        again = client.reserve(channel, wanted, hold_s=hold_s, request_id=request_id)
        same = again.reservation.reservation_id == answer.reservation.reservation_id
        if not (again.replayed and same and again.outcome == answer.outcome):
            journal.fail(f"{where}: request {request_id} sent twice was answered twice")
        journal.count("double clicks")
    if answer.outcome == res.RESERVATION_OUTCOME_RESERVED:
        hold, lines = answer.reservation, lines_of(answer.reservation)
        journal.enter(
            answer.version,
            lambda books: books.grant(hold.reservation_id, channel, wanted, lines, where=where),
        )
        journal.count("reserved")
        return hold
    told = {short.sku: short.sellable_quantity for short in answer.shortages}
    journal.enter(
        answer.version, lambda books: books.refuse(channel, wanted, told, where=where), rank=REFUSED
    )
    journal.count("refused")
    return None


def commit(story: Story, hold: res.Reservation, ref: str) -> None:
    """Turn a hold into an order, and tell the ERP."""
    answer = story.client.commit(hold.reservation_id, ref)
    order = Order(source=hold.channel, ref=ref, lines=tuple(lines_of(hold)))
    story.journal.enter(
        answer.version, lambda books: books.commit_hold(hold.reservation_id, (order.source, order.ref))
    )
    story.journal.count("orders")
    story.placed.put(order)


def lines_of(reservation: res.Reservation) -> Sequence[Line]:
    """Return a reservation's lines as the books write them."""
    return [
        Line(sku=line.sku, node=line.node, quantity=line.quantity, kit_sku=line.kit_sku)
        for line in reservation.lines
    ]


# --- The flash sale ---------------------------------------------------------------------------------------


def flash_sale(story: Story) -> None:
    """Let forty buyers a unit ask for one unit each, all at once."""
    if not story.wait_until(FLASH_AT):
        return
    flash, chance = story.journal.flash, story.chance("flash")
    flash.units = sum(FLASH.opening)
    flash.buyers = flash.units * BUYERS_A_UNIT
    channels = [FLASH_CHANNEL] * (flash.buyers - flash.buyers // 4) + ["market", "pos"] * (flash.buyers // 8)
    channels += [FLASH_CHANNEL] * (flash.buyers - len(channels))
    chance.shuffle(channels)
    story.journal.tell("flash", f"flash sale: {flash.units} {FLASH.sku}, {flash.buyers} buyers")
    begin_s = time.monotonic()
    with ThreadPoolExecutor(FLASH_THREADS, thread_name_prefix="buyer") as crowd:
        buyers = [crowd.submit(_buy_one, story, number, channel) for number, channel in enumerate(channels)]
        for buyer in buyers:
            buyer.result()
    flash.took_s = time.monotonic() - begin_s
    counts = story.journal.counts
    sold, refused = counts["flash sold"], counts["flash refused"]
    if (sold, refused) != (flash.units, flash.buyers - flash.units):
        story.fail(f"the flash sale of {flash.units} {FLASH.sku} sold {sold} and refused {refused}")
    story.journal.tell("flash", f"flash sale over in {flash.took_s:.1f} s: {sold} sold, {refused} refused")


def _buy_one(story: Story, number: int, channel: str) -> None:
    chance = story.chance(f"buyer {number}")
    hold = reserve(story, chance, channel, {FLASH.sku: 1}, hold_s=CHECKOUT_HOLD_S)
    if hold is None:
        story.journal.count("flash refused")
        return
    story.journal.count("flash sold")
    commit(story, hold, f"F-{number:03d}")


# --- After the show ---------------------------------------------------------------------------------------


def await_expiries(story: Story) -> None:
    """Wait until every abandoned hold has ended, and enter the version at which each did."""
    deadline = time.monotonic() + EXPIRY_LATEST_S
    waiting = list(story.journal.short_holds)
    while waiting:
        still = []
        for hold_id in waiting:
            hold = story.client.get_reservation(hold_id)
            if hold.state == res.RESERVATION_STATE_ACTIVE:
                still.append(hold_id)
            elif hold.state == res.RESERVATION_STATE_EXPIRED:
                story.journal.enter(hold.version, partial(Books.end_hold, hold_id=hold_id), rank=ENDED)
                story.journal.count("expired")
            else:
                state = res.ReservationState.Name(hold.state)
                story.fail(f"{hold_id} was abandoned and is {state}")
        waiting = still
        if waiting and time.monotonic() > deadline:
            story.fail(f"{len(waiting)} abandoned holds are still active, for instance {waiting[0]}")
            return
        if waiting:
            time.sleep(0.2)
