"""Kits, as a shop meets them: whole or not at all, exact with their parts, and by the recipe of their day."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any  # Any: fields of a delta

import pytest

from tests import wire
from tests.conftest import Names
from tests.model import Delta, Policy, Refusal
from tests.wire import Service

NODES = ("north", "south")


class Shop:
    """One test's shop: two nodes of its own, a channel, and skus by short names."""

    def __init__(self, service: Service, names: Names) -> None:
        self.service = service
        self.names = names
        self.numbers: Counter[str] = Counter()
        self.web = names.channel("web")
        self.sku = names.sku
        for node in NODES:
            service.set_node(names.node(node), online=True)
        service.set_channel(self.web, Policy(nodes=tuple(map(names.node, NODES))))

    def next_id(self, kind: str) -> str:
        self.numbers[kind] += 1
        return self.names.id(f"{kind}{self.numbers[kind]}")

    def tell(self, type_: str, **fields: Any) -> tuple[str, str]:
        source = self.names.id("erp")
        return self.service.apply_delta(
            Delta(source=source, type=type_, event_id=self.next_id("event"), **fields)
        )

    def stock(self, units: Mapping[str, int], node: str = "north") -> None:
        for sku, quantity in units.items():
            result = self.tell("RECEIPT", sku=self.sku(sku), node=self.names.node(node), quantity=quantity)
            assert result == ("APPLIED", "")

    def kit(self, kit: str, **components: int) -> dict[str, int]:
        parts = [(self.sku(sku), units) for sku, units in components.items()]
        flat = self.service.set_kit(self.sku(kit), parts)
        return {sku.rpartition(":")[2]: units for sku, units in flat.items()}

    def reserve(self, **lines: int) -> tuple[str, str]:
        """Ask for skus; (outcome, reservation)."""
        return self.ask(lines)[:2]

    def ask(self, lines: Mapping[str, int], **fields: Any) -> tuple[str, str, dict[str, tuple[int, int]]]:
        made = self.service.reserve(
            self.next_id("q"), self.web, [(self.sku(sku), n) for sku, n in lines.items()], **fields
        )
        short = {s.sku.rpartition(":")[2]: (s.requested, s.sellable) for s in made.shortages}
        return made.outcome, made.reservation_id, short

    def release(self, hold: str, **lines: int) -> str:
        back = [(self.sku(sku), n) for sku, n in lines.items()]
        return self.service.release(self.next_id("q"), hold, back).state

    def lines(self) -> dict[tuple[str, str], int]:
        """What the reservation of the last answer holds, by sku and kit."""
        held: Counter[tuple[str, str]] = Counter()
        for line in self.service.reservation.lines:
            held[line.sku.rpartition(":")[2], line.kit_sku.rpartition(":")[2]] += line.quantity
        return dict(held)

    def free(self, *skus: str) -> dict[str, int]:
        found = self.service.sellables(self.web, [self.sku(s) for s in skus], at=self.service.version)
        return {sku: quantity for sku, (quantity, _) in zip(skus, found, strict=True)}


@pytest.fixture
def shop(client: Service, names: Names) -> Shop:
    return Shop(client, names)


def refused(call: Any, *args: Any, **fields: Any) -> str:
    with pytest.raises(Refusal) as refusal:
        call(*args, **fields)
    return refusal.value.reason


# --- recipes


def test_a_kit_of_kits_is_flattened_and_follows_its_parts(shop: Shop) -> None:
    """Equal components are added up at any depth, and a change inside reaches every kit around it."""
    assert shop.kit("lamp", foot=1, bulb=2) == {"foot": 1, "bulb": 2}
    assert shop.kit("desk", lamp=2, bulb=1, board=1) == {"foot": 2, "bulb": 5, "board": 1}
    assert shop.kit("room", desk=2, lamp=1) == {"foot": 5, "bulb": 12, "board": 2}
    shop.stock({"foot": 5, "bulb": 12, "board": 2, "wire": 100})
    assert shop.ask({"room": 2})[0::2] == ("INSUFFICIENT_STOCK", {"room": (2, 1)})
    shop.kit("lamp", foot=1, wire=1)
    outcome, _ = shop.reserve(room=1)
    assert outcome == "RESERVED"
    assert shop.lines() == {
        ("board", "room"): 2,
        ("bulb", "room"): 2,
        ("foot", "room"): 5,
        ("wire", "room"): 5,
    }


def test_a_removed_kit_is_a_plain_sku_again(shop: Shop) -> None:
    """Without components a code is no kit: it may have stock, and kits around it then want the code itself."""
    shop.kit("gift", tea=1)
    shop.kit("hamper", gift=1, cake=1)
    shop.stock({"tea": 9, "cake": 9})
    assert shop.tell("RECEIPT", sku=shop.sku("gift"), node=shop.names.node("north"), quantity=1) == (
        "REJECTED",
        "KIT_SKU",
    )
    assert shop.kit("gift") == {}
    assert shop.ask({"hamper": 1})[2] == {"hamper": (1, 0)}
    shop.stock({"gift": 3})
    assert shop.ask({"hamper": 4})[2] == {"hamper": (4, 3)}
    assert refused(shop.kit, "gift", tea=1) == "KIT_HAS_STOCK"


@pytest.mark.parametrize("units", [0, -1, 1_000_001, 2**62])
def test_units_outside_their_range_are_refused(shop: Shop, units: int) -> None:
    """A component has 1 to 1,000,000 units in one kit."""
    assert refused(shop.kit, "kit", part=units) == "INVALID_REQUEST"


def test_a_kit_cannot_contain_itself(shop: Shop) -> None:
    """Neither directly nor through others; the recipes stay as they were."""
    assert refused(shop.kit, "a", a=1) == "KIT_CYCLE"
    shop.kit("a", b=1, x=1)
    assert refused(shop.kit, "b", a=1) == "KIT_CYCLE"
    shop.kit("b", c=1)
    assert refused(shop.kit, "c", y=1, a=2) == "KIT_CYCLE"
    shop.stock({"c": 2, "x": 2})
    assert shop.ask({"a": 3})[2] == {"a": (3, 2)}


def test_a_kit_is_not_too_deep(shop: Shop) -> None:
    """Eight kits may stand in each other, from whichever end the ninth is added."""
    for number in range(8):
        shop.kit(f"k{number}", **{f"k{number + 1}": 1})
    assert refused(shop.kit, "k8", k9=1) == "KIT_TOO_DEEP"
    assert refused(shop.kit, "top", k0=1) == "KIT_TOO_DEEP"


def test_a_kit_is_not_too_large(shop: Shop) -> None:
    """At most 100 components, as set and flattened, and units that can still be counted."""
    assert refused(shop.kit, "huge", **{f"p{n}": 1 for n in range(500)}) == "KIT_TOO_LARGE"
    shop.kit("half", **{f"p{n}": 1 for n in range(60)})
    shop.kit("other", **{f"o{n}": 1 for n in range(40)})
    shop.kit("both", half=1, other=1)
    assert refused(shop.kit, "other", **{f"o{n}": 1 for n in range(41)}) == "KIT_TOO_LARGE"
    shop.kit("box", nail=1_000_000)
    assert refused(shop.kit, "truck", box=1_001) == "KIT_TOO_LARGE"
    assert shop.kit("van", box=1_000) == {"nail": 1_000_000_000}


def test_a_code_with_stock_cannot_be_a_kit(shop: Shop) -> None:
    """Nor does a kit get positions, by whatever way."""
    shop.stock({"box": 1})
    assert refused(shop.kit, "box", tea=1) == "KIT_HAS_STOCK"
    shop.kit("set", tea=1)
    north, order = shop.names.node("north"), {"order_source": shop.web, "order_ref": "1"}
    for type_ in ("RECEIPT", "RETURN_RECEIVED", "ADJUSTMENT"):
        assert shop.tell(type_, sku=shop.sku("set"), node=north, quantity=1) == ("REJECTED", "KIT_SKU")
    for type_ in ("ORDER_PLACED", "ORDER_CHANGED", "ORDER_ALLOCATED", "ORDER_CANCELLED", "SHIPMENT"):
        node = north if type_ in ("ORDER_ALLOCATED", "SHIPMENT") else ""
        result = shop.tell(type_, sku=shop.sku("set"), node=node, quantity=1, **order)
        assert result == ("REJECTED", "KIT_SKU"), type_
    assert refused(shop.service.set_safety_stock, north, 1, sku=shop.sku("set")) == "KIT_SKU"


# --- reserving


def test_kits_and_their_parts_are_judged_together(shop: Shop) -> None:
    """What one line takes, the next line does not find: kits that share a part, and the part by itself."""
    shop.kit("pair", cup=2)
    shop.kit("set", cup=4, pot=1)
    shop.stock({"cup": 6, "pot": 2})
    shop.stock({"cup": 4}, "south")
    assert shop.ask({"cup": 3, "pair": 1, "set": 2}) == ("INSUFFICIENT_STOCK", "", {"set": (2, 1)})
    assert shop.ask({"set": 2, "pair": 1, "cup": 1})[2] == {"cup": (1, 0)}
    outcome, hold = shop.reserve(set=1, cup=4, pair=1)
    assert outcome == "RESERVED"
    assert shop.lines() == {("cup", "set"): 4, ("pot", "set"): 1, ("cup", ""): 4, ("cup", "pair"): 2}
    assert sum(line.quantity for line in shop.service.reservation.lines) == 11
    assert wire.held(shop.service.reservation) == {
        (shop.sku("cup"), shop.names.node("north")): 6,
        (shop.sku("cup"), shop.names.node("south")): 4,
        (shop.sku("pot"), shop.names.node("north")): 1,
    }
    assert shop.free("cup", "pot") == {"cup": 0, "pot": 1}
    assert shop.release(hold) == "RELEASED"
    assert shop.free("cup", "pot") == {"cup": 10, "pot": 2}


def test_an_explanation_adds_a_part_and_its_kits_up(shop: Shop) -> None:
    """One hold stands behind a figure with all that it has of the sku, in kits and beside them."""
    shop.kit("set", cup=4)
    shop.stock({"cup": 9})
    _, hold = shop.reserve(set=1, cup=2)
    terms = shop.service.explain(shop.web, shop.sku("cup")).terms
    assert [node.reserved for node in terms.nodes if node.reserved] == [6]
    assert [(h.reservation_id, h.quantity) for h in terms.holds] == [(hold, 6)]


def test_a_partial_answer_holds_whole_kits_in_order(shop: Shop) -> None:
    """With allow_partial, a kit is never held in pieces."""
    shop.kit("set", cup=4, pot=1)
    shop.stock({"cup": 11, "pot": 9})
    outcome, _, short = shop.ask({"set": 3, "cup": 5}, allow_partial=True)
    assert (outcome, short) == ("PARTIAL", {"set": (3, 2), "cup": (5, 3)})
    assert shop.lines() == {("cup", "set"): 8, ("pot", "set"): 2, ("cup", ""): 3}


def test_a_stopped_kit_is_not_sold_but_its_parts_are(shop: Shop) -> None:
    """A stop of the kit's code blocks the kit; a stop of a part blocks both."""
    shop.kit("set", cup=1, pot=1)
    shop.stock({"cup": 5, "pot": 5})
    shop.service.set_sale_state(sku=shop.sku("set"), blocked=True)
    assert shop.ask({"set": 1})[2] == {"set": (1, 0)}
    assert shop.reserve(cup=1)[0] == "RESERVED"
    shop.service.set_sale_state(sku=shop.sku("set"), blocked=False)
    shop.service.set_sale_state(sku=shop.sku("pot"), blocked=True)
    assert shop.ask({"set": 1})[2] == {"set": (1, 0)}


def test_a_kit_with_an_unknown_part_cannot_be_sold(shop: Shop) -> None:
    """Nobody can hold what no position has."""
    shop.kit("set", cup=1, ghost=1)
    shop.stock({"cup": 5})
    assert shop.ask({"set": 1})[2] == {"set": (1, 0)}


def test_too_many_components_of_a_request_are_refused(shop: Shop) -> None:
    """A basket explodes into 2,000 lines at most."""
    shop.kit("c0", **{f"p{n}": 1 for n in range(100)})
    for number in range(1, 21):
        shop.kit(f"c{number}", c0=1, p0=number)
    assert shop.ask({f"c{n}": 1 for n in range(20)})[0] == "INSUFFICIENT_STOCK"
    assert refused(shop.ask, {f"c{n}": 1 for n in range(21)}) == "BATCH_TOO_LARGE"


# --- the rest of a hold's life


def test_kits_are_released_whole(shop: Shop) -> None:
    """A line that names the kit gives back whole kits; a part that is held in kits only cannot be named."""
    shop.kit("set", cup=4, pot=1)
    shop.stock({"cup": 20, "pot": 9})
    _, hold = shop.reserve(set=3, cup=2)
    assert refused(shop.release, hold, pot=1) == "INVALID_REQUEST"
    assert refused(shop.release, hold, cup=3) == "INVALID_REQUEST"
    assert refused(shop.release, hold, set=4) == "INVALID_REQUEST"
    assert shop.release(hold, set=2, cup=1) == "ACTIVE"
    assert shop.lines() == {("cup", "set"): 4, ("pot", "set"): 1, ("cup", ""): 1}
    assert shop.free("cup", "pot") == {"cup": 15, "pot": 8}
    assert shop.release(hold, set=1) == "ACTIVE"
    assert shop.free("cup", "pot") == {"cup": 19, "pot": 9}
    assert shop.release(hold, cup=1) == "RELEASED"
    assert shop.free("cup", "pot") == {"cup": 20, "pot": 9}


def test_a_hold_and_its_order_keep_their_recipe(shop: Shop) -> None:
    """A recipe changed meanwhile changes neither what a release gives back nor what the order says it contains."""
    shop.kit("set", cup=4, pot=1)
    shop.stock({"cup": 20, "pot": 9, "tray": 9})
    _, hold = shop.reserve(set=3)
    shop.kit("set", cup=2, tray=1)
    assert shop.release(hold, set=1) == "ACTIVE"
    assert shop.lines() == {("cup", "set"): 8, ("pot", "set"): 2}
    shop.service.commit(shop.next_id("q"), hold, order_source=shop.web, order_ref="7")
    _, other = shop.reserve(set=1)
    shop.service.commit(shop.next_id("q"), other, order_source=shop.web, order_ref="7")
    order = shop.service.get_order(shop.web, "7")
    assert [(k.kit_sku, k.quantity, {c.sku: c.units for c in k.components}) for k in order.kits] == [
        (shop.sku("set"), 2, {shop.sku("cup"): 4, shop.sku("pot"): 1}),
        (shop.sku("set"), 1, {shop.sku("cup"): 2, shop.sku("tray"): 1}),
    ]
    ordered = {line.sku: line.ordered for line in order.lines}
    assert ordered == {shop.sku("cup"): 10, shop.sku("pot"): 2, shop.sku("tray"): 1}
    assert shop.free("cup", "pot", "tray") == {"cup": 10, "pot": 7, "tray": 8}


def test_a_cancelled_part_leaves_the_rest_of_the_kit(shop: Shop) -> None:
    """An order that does not want one plain sku any more lets go of it in kits too; the kit's rest stays a kit."""
    shop.kit("set", cup=4, pot=1)
    shop.stock({"cup": 20, "pot": 9})
    order = {"order_source": shop.web, "order_ref": "8"}
    _, hold, _ = shop.ask({"set": 2, "cup": 1}, **order)
    assert shop.tell("ORDER_CANCELLED", sku=shop.sku("cup"), **order) == ("APPLIED", "")
    assert shop.free("cup", "pot") == {"cup": 20, "pot": 7}
    assert shop.release(hold, set=1) == "ACTIVE"
    assert shop.lines() == {("pot", "set"): 1}
    assert shop.release(hold, set=1) == "RELEASED"
    assert shop.free("cup", "pot") == {"cup": 20, "pot": 9}
