"""A scripted week in a shop with two brands, three warehouses and two stores: kits, a fence, an ERP that has
numbers of its own, allocates elsewhere and cancels in part, a WMS that reports late and twice.

At every hour the service equals the plain model, number by number. Then the same week with ERP's and WMS's words in any
order of arrival between the systems: the same end.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.conftest import Names, Server, fresh_names, serving
from tests.model import Buffer, Delta, Model, Override, Policy, Refusal
from tests.wire import Service

HOURS = 7 * 24
BASE_US = 1_900_000_000_000_000
HOUR_US = 3_600_000_000
LATE_HOURS = 9
TWICE_SHARE = 0.25
COMPARE_NODES_EVERY = 24


@dataclass(frozen=True)
class Shop:
    """What there is: names that no other test uses."""

    names: Names

    @property
    def warehouses(self) -> list[str]:
        return [self.names.node(name) for name in ("north", "south", "east")]

    @property
    def stores(self) -> list[str]:
        return [self.names.node(name) for name in ("store 1", "store 2")]

    @property
    def skus(self) -> list[str]:
        return [self.names.sku(f"{brand}{number}") for brand in "AB" for number in range(4)]

    @property
    def kits(self) -> list[str]:
        return [self.names.sku("bundle"), self.names.sku("hamper")]

    def channel(self, name: str) -> str:
        return self.names.channel(name)

    @property
    def channels(self) -> dict[str, Policy]:
        north, south, east = self.warehouses
        first, second = self.stores
        return {
            self.channel("A web"): Policy(nodes=(north, south, first), buffer=Buffer(percent=10)),
            self.channel("A market"): Policy(nodes=(north, south), buffer=Buffer(units=2)),
            self.channel("B web"): Policy(
                nodes=(south, east, second), oversell_limit=1, low_stock_threshold=3
            ),
            self.channel("pos"): Policy(nodes=(first, second)),
        }


@dataclass(frozen=True)
class Word:
    """One thing that a system says, and when it arrives."""

    arrives: float
    system: str
    tell: Callable[[Week], None]


@dataclass
class Week:
    """One telling of the week, to the model and (where there is one) the service."""

    shop: Shop
    model: Model
    service: Service | None
    holds: dict[str, str] = field(default_factory=dict)
    outcomes: list[str] = field(default_factory=list)

    def both(self, what: str, *arguments: Any, **named: Any) -> None:
        """Tell both the same; refusals must be the same too."""
        answers = []
        for one in (self.model, self.service):
            if one is not None:
                try:
                    answer = getattr(one, what)(*arguments, **named)
                except Refusal as refusal:
                    answer = refusal.reason
                answers.append(answer if isinstance(answer, str) else None)
        assert len(set(answers)) == 1, f"{what} {arguments} {named}: {answers}"

    def delta(self, delta: Delta) -> None:
        mine = self.model.apply_delta(delta)[0]
        if self.service is not None:
            assert self.service.apply_delta(delta)[0] == mine, str(delta)

    def reserve(self, name: str, channel: str, lines: list[tuple[str, int]], order_ref: str = "") -> None:
        request = (self.shop.names.id(f"r {name} {id(self)}"), channel, lines)
        made = name
        theirs = ""
        if self.service is not None:
            answer = self.service.reserve(*request, order_ref=order_ref)
            made, theirs = answer.reservation_id or name, answer.outcome
        mine = self.model.reserve(*request, order_ref=order_ref, reservation_id=made)
        assert theirs in ("", mine.outcome), f"{name}: {theirs} but {mine.outcome} in the model"
        self.outcomes.append(mine.outcome)
        if mine.outcome == "RESERVED":
            self.holds[name] = made

    def end(self, name: str, how: str, **named: str) -> None:
        if name in self.holds:
            self.both(how, self.shop.names.id(f"{how} {name} {id(self)}"), self.holds[name], **named)


def set_up(week: Week) -> None:
    """Nodes, channels, kits, opening stock, then the fence."""
    shop = week.shop
    for node in (*shop.warehouses, *shop.stores):
        week.both("set_node", node, online=True)
    for channel, policy in shop.channels.items():
        week.both("set_channel", channel, policy)
    bundle, hamper = shop.kits
    week.both("set_kit", bundle, [(shop.skus[0], 2), (shop.skus[1], 1)])
    week.both("set_kit", hamper, [(bundle, 1), (shop.skus[4], 3)])
    week.both("set_override", shop.channel("B web"), shop.skus[5], Override(buffer=Buffer(units=1)))
    week.both("set_safety_stock", shop.stores[0], 1)


def opening(shop: Shop, units: int) -> Iterator[Word]:
    for sku in shop.skus:
        for node in (*shop.warehouses, *shop.stores):
            delta = Delta(
                source=shop.names.id("wms"),
                type="RECEIPT",
                event_id=f"opening {sku} {node}",
                sku=sku,
                node=node,
                quantity=units,
                occurred_us=BASE_US - HOUR_US,
            )
            yield Word(-1.0, "opening", lambda week, delta=delta: week.delta(delta))  # type: ignore[misc]


def script(shop: Shop, chance: random.Random) -> list[Word]:
    """Write the week down: every word of every system, with the hour at which it arrives."""
    words: list[Word] = []
    erp, wms = shop.names.id("erp"), shop.names.id("wms")
    web, market, brand_b, pos = shop.channels
    number = 0

    def ours(at: float, tell: Callable[[Week], None]) -> None:
        words.append(Word(at, "us", tell))

    def told(at: float, system: str, late: float, **fields: Any) -> None:
        nonlocal number
        number += 1
        source = erp if system == "erp" else wms
        delta = Delta(
            source=source, event_id=f"{system} {number}", occurred_us=BASE_US + int(at * HOUR_US), **fields
        )
        times = 1 + (chance.random() < TWICE_SHARE)
        words.extend(
            Word(at + late * (1 + repeat), system, lambda week: week.delta(delta)) for repeat in range(times)
        )

    fence = shop.skus[1]
    ours(0.0, lambda week: week.both("set_fence", market, fence, 4))
    ours(60.0, lambda week: week.both("set_fence", market, fence, 3))
    ours(70.0, lambda week: week.both("set_kit", shop.kits[0], [(shop.skus[0], 1), (shop.skus[2], 1)]))
    ours(40.0, lambda week: week.both("set_node", shop.warehouses[1], online=False))
    ours(46.0, lambda week: week.both("set_node", shop.warehouses[1], online=True))
    ours(90.0, lambda week: week.both("set_sale_state", sku=shop.skus[6], blocked=True))
    ours(99.0, lambda week: week.both("set_sale_state", sku=shop.skus[6], blocked=False))
    for hour in range(HOURS):
        for visit in range(chance.randint(0, 2)):
            name, at = f"{hour}.{visit}", hour + chance.random() * 0.5
            channel = chance.choice([web, web, market, brand_b, pos])
            choice = [*shop.skus[:4], *shop.kits] if channel in (web, market) else shop.skus
            lines = [(sku, chance.randint(1, 2)) for sku in chance.sample(choice, chance.randint(1, 2))]
            ref = f"W{name}"
            carries = chance.random() < 0.3
            ours(
                at,
                lambda week, n=name, c=channel, li=lines, r=ref if carries else "": week.reserve(n, c, li, r),  # type: ignore[misc]
            )
            if chance.random() < 0.25:
                ours(at + 0.3, lambda week, n=name: week.end(n, "release"))  # type: ignore[misc]
                continue
            ours(at + 0.3, lambda week, n=name, r=ref: week.end(n, "commit", order_ref=r))  # type: ignore[misc]
            order = {"order_source": channel, "order_ref": ref}
            if (
                chance.random() < 0.5
            ):  # the ERP speaks of it by a number of its own, and says late whose that is
                other = {"linked_source": erp, "linked_ref": f"SO-{name}"}
                told(
                    at + 0.6,
                    "erp",
                    chance.uniform(0, LATE_HOURS),
                    type="LINK_ORDER",
                    quantity=1,
                    **order,
                    **other,
                )
                order = {"order_source": erp, "order_ref": f"SO-{name}"}
            plain = [(sku, units) for sku, units in lines if sku not in shop.kits]
            for sku, units in plain:
                nodes = shop.channels[channel].nodes
                assert nodes is not None
                node = chance.choice(nodes)
                late = chance.uniform(0, LATE_HOURS)
                told(at + 0.4, "erp", late / 2, type="ORDER_PLACED", sku=sku, quantity=units, **order)
                told(
                    at + 0.5,
                    "erp",
                    late / 2,
                    type="ORDER_ALLOCATED",
                    sku=sku,
                    node=node,
                    quantity=units,
                    **order,
                )
                fate = chance.random()
                if fate < 0.15:
                    told(at + 1, "erp", late, type="ORDER_CHANGED", sku=sku, quantity=units - 1, **order)
                elif fate < 0.25:
                    told(at + 1, "erp", late, type="ORDER_CANCELLED", sku=sku, **order)
                elif fate < 0.85:
                    told(at + 2, "wms", late, type="SHIPMENT", sku=sku, node=node, quantity=units, **order)
        if chance.random() < 0.3:
            sku, node = chance.choice(shop.skus), chance.choice(shop.warehouses)
            reference, units = f"PO{hour}", chance.randint(1, 4)
            told(hour, "erp", 0.1, type="EXPECTED", sku=sku, node=node, quantity=units, reference=reference)
            told(hour + 3, "wms", 2, type="RECEIPT", sku=sku, node=node, quantity=units, reference=reference)
        if chance.random() < 0.1:
            sku = chance.choice(shop.skus)
            here, there = chance.sample((*shop.warehouses, *shop.stores), 2)
            transfer, units = {"sku": sku, "reference": f"TR{hour}"}, chance.randint(1, 2)
            told(hour, "wms", 1, type="TRANSFER_OUT", node=here, to_node=there, quantity=units, **transfer)
            arrived = units - (chance.random() < 0.3)
            if arrived:
                told(hour + 5, "wms", 2, type="TRANSFER_IN", node=there, quantity=arrived, **transfer)
        if chance.random() < 0.1:
            sku, node = chance.choice(shop.skus), chance.choice((*shop.warehouses, *shop.stores))
            told(hour, "wms", 1, type="QUARANTINE", sku=sku, node=node, quantity=1, reason="damage")
            told(hour + 2, "wms", 3, type="WRITE_OFF", sku=sku, node=node, quantity=1, reason="damage")
    return words


def in_time(words: list[Word]) -> list[Word]:
    return sorted(words, key=lambda word: word.arrives)


def in_any_order(words: list[Word], chance: random.Random) -> list[Word]:
    """Ours in their own order; each word of the others at any place in between."""
    mine = in_time([word for word in words if word.system == "us"])
    theirs = [word for word in words if word.system != "us"]
    chance.shuffle(theirs)
    mixed = [*mine]
    for word in theirs:
        mixed.insert(chance.randint(0, len(mixed)), word)
    return mixed


def compare(week: Week, hour: int) -> None:
    """Sellable and state of every sku and kit in every channel; now and then every figure of every position."""
    assert week.service is not None
    week.model.audit()
    shop = week.shop
    for channel in shop.channels:
        names = [*shop.skus, *shop.kits]
        found = [sellable for sellable, _ in week.service.sellables(channel, names, strong=True)]
        expected = [week.model.sellable(channel, sku) for sku in shop.skus]
        expected += [week.model.kit_sellable(channel, kit) for kit in shop.kits]
        assert found == expected, (
            f"hour {hour}, {channel}: {dict(zip(names, zip(found, expected, strict=True), strict=True))}"
        )
    if hour % COMPARE_NODES_EVERY == 0:
        assert figures_of(week.service, shop) == figures(week.model, shop), f"hour {hour}"


Figures = dict[tuple[str, str], tuple[int, int, int, int]]


def figures(model: Model, shop: Shop) -> Figures:
    """on_hand, quarantined, reserved, committed of every position by the model."""
    found: Figures = {}
    for sku in shop.skus:
        for node, position in model.positions.get(sku, {}).items():
            quarantined = sum(position.quarantined.values())
            promises = model.reserved(sku, node), model.committed(sku, node)
            found[sku, node] = (position.on_hand, quarantined, *promises)
    return found


def figures_of(service: Service, shop: Shop) -> Figures:
    """The same by the service."""
    found: Figures = {}
    for sku in shop.skus:
        for node in service.explain(shop.names.channel("everything"), sku).terms.nodes:
            if node.node in (*shop.warehouses, *shop.stores):
                found[sku, node.node] = (node.on_hand, node.quarantined, node.reserved, node.committed)
    return found


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server whose only nodes are this module's."""
    with serving() as started:
        yield started


def test_at_every_hour_the_service_equals_the_model(own_server: Server, seed: int) -> None:
    """Short stock on purpose: a good part of the shoppers finds too little."""
    chance = random.Random(seed)
    shop = Shop(fresh_names())
    service = Service(own_server.grpc)
    week = Week(shop, Model(), service)
    set_up(week)
    words = in_time([*opening(shop, 4), *script(shop, chance)])
    hour = -1
    for word in words:
        while word.arrives >= hour + 1:
            hour += 1
            compare(week, hour)
        word.tell(week)
    compare(week, 0)
    assert week.outcomes.count("INSUFFICIENT_STOCK") > 5
    assert week.outcomes.count("RESERVED") > 50
    service.close()


def test_any_order_of_arrival_between_systems_ends_alike(own_server: Server, seed: int) -> None:
    """Stock for all, so that our own answers are the same: then every position is, whatever came when."""
    shop_seed = seed
    ends = []
    service = Service(own_server.grpc)
    for telling in range(3):
        chance = random.Random(f"{shop_seed} {telling}")
        shop = Shop(fresh_names())
        week = Week(shop, Model(), service if telling < 2 else None)
        set_up(week)
        words = script(shop, random.Random(shop_seed))
        for word in opening(shop, 400):
            word.tell(week)
        for word in in_time(words) if telling == 0 else in_any_order(words, chance):
            word.tell(week)
        if week.service is not None:
            compare(week, 0)
        numbered = {name: place for place, name in enumerate((*shop.skus, *shop.warehouses, *shop.stores))}
        places = {
            (numbered[sku], numbered[node]): row for (sku, node), row in figures(week.model, shop).items()
        }
        ends.append((week.outcomes, places))
    assert ends[1] == ends[0]
    assert ends[2] == ends[0]
    service.close()
