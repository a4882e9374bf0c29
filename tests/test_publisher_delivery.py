"""From the ledger's numbers to a shop's, whatever the shop does: the last word is always the ledger's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from availability.history.database import open_database
from availability.history.shop_tables import shop_skus, shops
from publisher.letters import Letters
from publisher.numbers import Limits
from publisher.testing.faults import Fault, Kind
from publisher.testing.latency import Latency
from publisher.testing.server import Storefront as Double
from publisher.testing.server import serve
from publisher.woocommerce.stock import _lists
from tests.publishing import CHANNEL, FakeLedger, double_shop, publishing

NONE = Latency(request_s=0.0, write_item_s=0.0, read_item_s=0.0)
"""Work takes no time; what a failure says of waiting is waited."""
SKUS = {f"S-{number}": 10 for number in range(12)}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database("", tmp_path)
    yield engine
    engine.dispose()


@pytest.fixture
def ledger() -> FakeLedger:
    return FakeLedger()


def shown(double: Double, *skus: str) -> dict[str, int | float | None]:
    with double.shop.lock:
        return {sku: double.shop.stock(sku) for sku in skus}


def test_the_ledgers_numbers_are_in_the_shop(engine: Engine, ledger: FakeLedger) -> None:
    """First everything, then each change; what the shop shows already costs no write."""

    async def scenario() -> None:
        with serve(double_shop(**SKUS), latency=NONE, tls=False) as double:
            ledger.tell({**SKUS, "S-0": 3, "S-1": 0})
            async with publishing(engine, ledger, double) as running:
                await running.quiet()
                assert shown(double, "S-0", "S-1", "S-2") == {"S-0": 3, "S-1": 0, "S-2": 10}
                written = [call for call in double.shop.log if call.path.endswith("batch")]
                assert sum(len(call.items) for call in written) == 2, "only what differed was written"
                ledger.tell({"S-2": 7})
                await running.quiet()
                ledger.tell({"S-2": 0, "S-3": 1})
                await running.quiet()
                assert shown(double, "S-2", "S-3") == {"S-2": 0, "S-3": 1}
                assert running.letters() == []
                assert running.pending() == 0
                assert double.shop.overlaps == []

    asyncio.run(scenario())


def test_publish_limit_hides_what_nobody_needs_to_see(engine: Engine, ledger: FakeLedger) -> None:
    """Above the limit on both sides nothing is written; a limit of the sku goes before the channel's."""

    async def scenario() -> None:
        with serve(double_shop(a=1, b=1), latency=NONE, tls=False) as double:
            ledger.limit = Limits(channel=10, skus={"b": 2})
            ledger.tell({"a": 50, "b": 50})
            async with publishing(engine, ledger, double) as running:
                await running.quiet()
                assert shown(double, "a", "b") == {"a": 10, "b": 2}
                calls = len(double.shop.log)
                ledger.tell({"a": 49, "b": 3})
                await running.quiet()
                assert len(double.shop.log) == calls, "no shopper can see this"
                ledger.tell({"a": 9})
                await running.quiet()
                assert shown(double, "a") == {"a": 9}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind=Kind.FATAL_EARLY, path="batch"),
        Fault(kind=Kind.FATAL_AT_ITEM, path="batch", items=2),
        Fault(kind=Kind.HOOK_EXCEPTION, path="batch", items=1),
        Fault(kind=Kind.READ_ONLY, path="batch", times=3),
        Fault(kind=Kind.DATABASE_DOWN, times=4),
        Fault(kind=Kind.PLUGIN_REFUSES, path="batch"),
        Fault(kind=Kind.TOO_MANY_REQUESTS, path="batch", seconds=0.2),
        Fault(kind=Kind.HTML_BEFORE_JSON, path="batch", times=2),
        Fault(kind=Kind.CHALLENGE_PAGE, times=3),
        Fault(kind=Kind.EMPTY_LIST, path="batch", times=2),
        Fault(kind=Kind.BAD_GATEWAY, times=4),
        Fault(kind=Kind.GATEWAY_TIMEOUT, path="batch", seconds=0.05),
        Fault(kind=Kind.HANG, path="batch", seconds=1.2),
        Fault(kind=Kind.CUT_ANSWER, path="batch", times=2),
        Fault(kind=Kind.TORN_STATUS, path="batch"),
        Fault(kind=Kind.LOCK_TIMEOUT, path="batch", times=2),
        Fault(kind=Kind.SLOW, factor=3.0, times=3),
    ],
    ids=lambda fault: fault.kind.name,
)
def test_every_failure_ends_with_the_ledgers_number(engine: Engine, ledger: FakeLedger, fault: Fault) -> None:
    """Each failure that was seen at a real shop is got over: at quiet number and status are right, no letters.

    Numbers change while it lasts: what is repeated is the current number.
    """

    async def scenario() -> None:
        with serve(double_shop(**SKUS), latency=NONE, tls=False) as double:
            ledger.tell(SKUS)
            async with publishing(engine, ledger, double, timeout_ms=1_000, orphan_ms=400) as running:
                await running.quiet()
                armed = double.faults.add(
                    Fault(**{name: getattr(fault, name) for name in fault.__slots__ if name != "hits"})
                )
                ledger.tell({sku: number % 5 for number, sku in enumerate(SKUS)})
                for step in range(3):  # half of them change on, the others were told for the last time
                    await asyncio.sleep(0.05)
                    ledger.tell(dict.fromkeys(list(SKUS)[::2], step % 5))
                await running.until(lambda: armed.hits >= max(1, armed.times))
                await running.quiet()
                assert shown(double, *SKUS) == ledger.sellable()
                with double.shop.lock:
                    for product in double.shop.products.values():
                        assert (product.stock_status == "outofstock") == (product.quantity == 0)
                assert running.letters() == []
                assert running.pending() == 0
                assert double.shop.overlaps == []

    asyncio.run(scenario())


def test_reads_that_lag_behind_end_right_too(engine: Engine, ledger: FakeLedger) -> None:
    """A shop whose reads show old numbers after failed writes: a later look finds what was taken for written."""

    async def scenario() -> None:
        with serve(double_shop(**SKUS), latency=NONE, tls=False) as double:
            ledger.tell(SKUS)
            async with publishing(engine, ledger, double) as running:
                await running.quiet()
                ledger.tell(dict.fromkeys(SKUS, 4))
                await running.quiet()
                double.faults.add(Fault(kind=Kind.FATAL_AT_ITEM, path="batch", items=1))
                double.faults.add(Fault(kind=Kind.STALE_READ, method="GET", path="products", times=2))
                ledger.tell(dict.fromkeys(SKUS, 10))  # what a stale read shows of those that were written
                await running.until(lambda: shown(double, *SKUS) == dict.fromkeys(SKUS, 10))
                await running.quiet()
                assert running.letters() == []

    asyncio.run(scenario())


def test_stock_keeping_switched_off_in_the_whole_shop(engine: Engine, ledger: FakeLedger) -> None:
    """Every write then answers 200 and does nothing: letters say so, and a replay works once it is on again."""

    async def scenario() -> None:
        with serve(double_shop(a=1, b=2), latency=NONE, tls=False) as double:
            ledger.tell({"a": 1, "b": 2})
            async with publishing(engine, ledger, double) as running:
                await running.quiet()
                with double.shop.lock:
                    double.shop.settings.manage_stock = False
                ledger.tell({"a": 5, "b": 6})
                await running.until(lambda: len(running.letters()) == 2)
                assert {(one.category, one.reason) for one in running.letters()} == {("MAPPING", "UNMANAGED")}
                with double.shop.lock:
                    double.shop.settings.manage_stock = True
                Letters(engine).replay(running.letters(), 0.0)
                await running.until(lambda: shown(double, "a", "b") == {"a": 5, "b": 6})
                await running.quiet()
                assert running.letters() == []

    asyncio.run(scenario())


def test_skus_that_no_list_can_name(engine: Engine, ledger: FakeLedger) -> None:
    """A comma or a case in a name, text of any kind: found by id, or by its exact name, never by a neighbour's."""

    async def scenario() -> None:
        names = ["A,B", "ü 50%25 & +", "A", "B", "x=y;z"]
        shop = double_shop()
        for name in names:
            shop.add(name, 1)
        with serve(shop, latency=NONE, tls=False) as double:
            ledger.tell({name: number + 2 for number, name in enumerate(names)})
            async with publishing(engine, ledger, double) as running:
                await running.quiet()
                assert running.letters() == []
                assert shown(double, *names) == ledger.sellable()

    asyncio.run(scenario())


def test_a_list_of_skus_fits_into_an_address() -> None:
    """However long names are, and however much longer they become encoded, none is lost and no address is too long."""
    skus = ["ü" * 30 + str(number) for number in range(100)] + [f"S-{number}" for number in range(250)]
    lists = list(_lists(skus, 100))
    assert ",".join(lists).split(",") == skus
    assert max(len(quote(one, safe="")) for one in lists) <= 4_000
    assert max(one.count(",") for one in lists) < 100


def test_a_pilot_touches_only_its_skus(engine: Engine, ledger: FakeLedger, tmp_path: Path) -> None:
    """With an allow-list no other product is written or looked up."""

    async def scenario() -> None:
        (tmp_path / "pilot.txt").write_text("a\n")
        with serve(double_shop(a=1, b=1), latency=NONE, tls=False) as double:
            ledger.tell({"a": 5, "b": 5})
            async with publishing(engine, ledger, double, allow_list=str(tmp_path / "pilot.txt")) as running:
                await running.quiet()
                assert shown(double, "a", "b") == {"a": 5, "b": 1}

    asyncio.run(scenario())


def test_maintenance_is_waited_for(engine: Engine, ledger: FakeLedger) -> None:
    """A shop that says when it comes back is left alone until then, and the shop's state says so."""

    async def scenario() -> None:
        with serve(double_shop(a=1), latency=NONE, tls=False) as double:
            ledger.tell({"a": 1})
            async with publishing(engine, ledger, double) as running:
                await running.quiet()
                double.faults.add(Fault(kind=Kind.MAINTENANCE))
                ledger.tell({"a": 0})
                parts = running.publisher.parts
                assert parts is not None
                await running.until(lambda: parts.shop.pace.open_until > 0)
                assert parts.shop.pace.open_until - parts.shop.monotonic() > 590
                calls = len(double.shop.log)
                await running.until(lambda: (parts.shop.state.shop() or pytest.fail("gone")).state == "OPEN")
                assert len(double.shop.log) == calls
                assert running.pending() == 1

    asyncio.run(scenario())


def test_refused_keys_stop_the_shop_until_they_change(engine: Engine, ledger: FakeLedger) -> None:
    """401 is not tried again; nothing is lost, and with other keys it goes on."""

    async def scenario() -> None:
        with serve(double_shop(a=1), latency=NONE, tls=False) as double:
            ledger.tell({"a": 1})
            fingerprint = ["first"]
            async with publishing(engine, ledger, double, keys=lambda: fingerprint[0]) as running:
                await running.quiet()
                with double.shop.lock:
                    double.shop.keys["ck_test"] = type(double.shop.keys["ck_test"])(secret="other")
                ledger.tell({"a": 0})
                parts = running.publisher.parts
                assert parts is not None
                await running.until(lambda: bool(parts.delivery.stopped_reason))
                calls = len(double.shop.log)
                ledger.tell({"a": 5})
                await running.until(
                    lambda: (parts.shop.state.shop() or pytest.fail("gone")).state == "STOPPED"
                )
                assert len(double.shop.log) == calls
                with double.shop.lock:
                    double.shop.keys["ck_test"] = type(double.shop.keys["ck_test"])(secret="cs_test")
                fingerprint[0] = "second"
                parts.delivery.wake.set()
                await running.quiet()
                assert shown(double, "a") == {"a": 5}
                assert running.letters() == []

    asyncio.run(scenario())


def test_skus_without_a_place_become_letters_and_leave_the_others_alone(
    engine: Engine, ledger: FakeLedger
) -> None:
    """Missing, doubled, differing by case, unmanaged, grouped: each a letter that says so; nothing is guessed."""

    async def scenario() -> None:
        shop = double_shop(good=1)
        shop.add("twice", 1)
        shop.add("twice", 2)
        shop.add("Case", 1)
        shop.add("unmanaged", None)
        shop.add("grouped", None, kind="grouped")
        with serve(shop, latency=NONE, tls=False) as double:
            ledger.tell({"good": 4, "twice": 4, "case": 4, "unmanaged": 4, "grouped": 4, "missing": 4})
            async with publishing(engine, ledger, double) as running:
                await running.quiet()
                letters = {one.sku: (one.category, one.reason) for one in running.letters()}
                assert letters == {
                    "twice": ("MAPPING", "DUPLICATE"),
                    "case": ("MAPPING", "CASE_DIFFERS"),
                    "unmanaged": ("MAPPING", "UNMANAGED"),
                    "grouped": ("MAPPING", "NO_STOCK"),
                    "missing": ("MAPPING", "MISSING"),
                }
                assert shown(double, "good") == {"good": 4}
                with double.shop.lock:
                    assert [one.quantity for one in double.shop.find("twice")] == [1, 2]
                    assert [one.quantity for one in double.shop.find("case")] == [1]
                    assert not double.shop.find("unmanaged")[0].manage_stock
                # Somebody puts it into the shop, and asks for another try.
                shop.add("missing", 0)
                found = Letters(engine).find(category="MAPPING")
                Letters(engine).replay([one for one in found if one.sku == "missing"], 0.0)
                running.publisher.parts.delivery.catalogue_changed()  # type: ignore[union-attr]
                await running.until(lambda: shown(double, "missing") == {"missing": 4})
                await running.quiet()
                assert "missing" not in {one.sku for one in running.letters()}

    asyncio.run(scenario())


def test_stock_keeping_is_switched_on_only_where_the_settings_say_so(
    engine: Engine, ledger: FakeLedger
) -> None:
    """switch_on changes the merchant's setting of a product, once asked for."""

    async def scenario() -> None:
        shop = double_shop()
        shop.add("unmanaged", None)
        with serve(shop, latency=NONE, tls=False) as double:
            ledger.tell({"unmanaged": 4})
            async with publishing(engine, ledger, double, catalogue={"manage_stock": "switch_on"}) as running:
                await running.quiet()
                assert shown(double, "unmanaged") == {"unmanaged": 4}
                assert running.letters() == []

    asyncio.run(scenario())


@pytest.mark.parametrize("version", ["10.5.0", "8.9.3"])
@pytest.mark.parametrize("cross_parent", [True, False])
def test_variations_go_to_where_they_are_now(
    engine: Engine, ledger: FakeLedger, version: str, cross_parent: bool
) -> None:
    """Own variations of two parents, a parent's own number shared by its variation, and one that moved meanwhile."""

    async def scenario() -> None:
        shop = double_shop(simple=1)
        shop.version = type(shop.version)(version)
        first = shop.add("P1", None, kind="variable")
        second = shop.add("P2", None, kind="variable")
        shared = shop.add("P3", 5, kind="variable")
        shop.add("V1", 1, kind="variation", parent=first.id)
        moving = shop.add("V2", 1, kind="variation", parent=first.id)
        shop.add("V3", 1, kind="variation", parent=second.id)
        shop.add("V4", None, kind="variation", parent=shared.id)
        with serve(shop, latency=NONE, tls=False) as double:
            ledger.tell({"simple": 2, "V1": 2, "V2": 3, "V3": 4, "V4": 6})
            async with publishing(
                engine, ledger, double, catalogue={"cross_parent_batches": cross_parent}
            ) as running:
                await running.quiet()
                assert running.letters() == []
                assert shown(double, "simple", "V1", "V2", "V3", "P3") == {
                    "simple": 2, "V1": 2, "V2": 3, "V3": 4, "P3": 6,
                }  # fmt: skip
                with double.shop.lock:
                    double.shop.move(moving, second.id)
                ledger.tell({"V1": 5, "V2": 6, "V3": 7})
                await running.quiet()
                assert shown(double, "V1", "V2", "V3") == {"V1": 5, "V2": 6, "V3": 7}
                with double.shop.lock:
                    parents = {sku: double.shop.find(sku)[0].parent_id for sku in ("V1", "V2", "V3")}
                assert parents == {"V1": first.id, "V2": second.id, "V3": second.id}
                assert running.letters() == []
                # The ledger now sells the parent too: its number is the parent's, and the variation's has no place.
                ledger.tell({"P3": 9, "V4": 1})
                await running.quiet()
                assert shown(double, "P3") == {"P3": 9}
                assert [(one.sku, one.reason) for one in running.letters()] == [("V4", "SHARED_STOCK")]

    asyncio.run(scenario())


def test_one_product_that_always_fails_does_not_stop_the_others(engine: Engine, ledger: FakeLedger) -> None:
    """A row that stays locked becomes a CONFLICT letter; the others go on, and its next number is tried again."""

    async def scenario() -> None:
        with serve(double_shop(**SKUS), latency=NONE, tls=False) as double:
            locked = double.shop.find("S-3")[0].id
            ledger.tell(SKUS)
            async with publishing(engine, ledger, double) as running:
                await running.quiet()
                fault = double.faults.add(
                    Fault(kind=Kind.LOCK_TIMEOUT, path="batch", times=0, ids=frozenset({locked}))
                )
                ledger.tell(dict.fromkeys(SKUS, 4))
                for step in range(200):  # others succeed meanwhile: its failures are its own
                    if running.letters():
                        break
                    ledger.tell({"S-0": step % 7})
                    await asyncio.sleep(0.02)
                assert [(one.sku, one.category) for one in running.letters()] == [("S-3", "CONFLICT")]
                await running.quiet()
                assert shown(double, "S-1", "S-3") == {"S-1": 4, "S-3": 10}
                double.faults.remove(fault)
                ledger.tell({"S-3": 2})
                await running.quiet()
                assert shown(double, "S-3") == {"S-3": 2}
                assert running.letters() == []

    asyncio.run(scenario())


def test_a_shop_that_is_away_makes_no_letters(engine: Engine, ledger: FakeLedger) -> None:
    """However long it lasts, and however often it is tried: an outage is not the items' fault."""

    async def scenario() -> None:
        with serve(double_shop(a=10, b=10), latency=NONE, tls=False) as double:
            ledger.say(a=10, b=10)
            async with publishing(
                engine,
                ledger,
                double,
                pace={"open_ms": 10, "open_ms_max": 20, "retry_ms": 1, "retry_ms_max": 2},
            ) as running:
                await running.quiet()
                armed = double.faults.add(Fault(kind=Kind.READ_ONLY, path="batch", times=30))
                also = double.faults.add(Fault(kind=Kind.FATAL_EARLY, path="batch", times=20))
                ledger.say(a=4, b=4)
                await running.until(lambda: armed.hits >= 30 and also.hits >= 20)
                assert running.letters() == []
                await running.quiet()
                assert shown(double, "a", "b") == {"a": 4, "b": 4}

    asyncio.run(scenario())


def test_a_slow_shop_delays_no_other(engine: Engine) -> None:
    """Two shops of one process: while one hangs in its first call, the other gets change after change."""

    async def scenario() -> None:
        slow_ledger, quick_ledger = FakeLedger(), FakeLedger()
        with (
            serve(double_shop(a=1), latency=NONE, tls=False) as slow_double,
            serve(double_shop(a=1), latency=NONE, tls=False) as quick_double,
        ):
            slow_ledger.say(a=1)
            quick_ledger.say(a=1)
            async with (
                publishing(engine, slow_ledger, slow_double, channel="slow", timeout_ms=8_000) as slow,
                publishing(engine, quick_ledger, quick_double) as quick,
            ):
                await slow.quiet()
                hanging = slow_double.faults.add(Fault(kind=Kind.HANG, path="batch", seconds=3.0))
                slow_ledger.say(a=2)
                await slow.until(lambda: hanging.hits > 0)
                for number in range(3):
                    quick_ledger.say(a=number + 2)
                    await quick.quiet()
                    assert shown(quick_double, "a") == {"a": number + 2}
                assert not slow.is_quiet(), "the slow one was not slow enough to tell"

    asyncio.run(scenario())


def test_a_shop_that_was_lost_and_came_back(engine: Engine, ledger: FakeLedger) -> None:
    """Whoever loses the shop stops at once; what it was writing is read back when the shop is its own again."""

    async def scenario() -> None:
        with serve(double_shop(**SKUS), latency=NONE, tls=False) as double:
            ledger.tell(SKUS)
            async with publishing(engine, ledger, double, lease_s=0.9, orphan_ms=1_500) as running:
                await running.quiet()
                hanging = double.faults.add(Fault(kind=Kind.HANG, path="batch", seconds=1.0))
                ledger.tell(dict.fromkeys(SKUS, 4))
                await running.until(lambda: hanging.hits > 0)
                with engine.begin() as connection:
                    connection.execute(sa.update(shops).values(owner="another", owned_until=9e9))
                await running.until(lambda: running.publisher.parts is None)
                calls = len(double.shop.log)
                ledger.tell(dict.fromkeys(list(SKUS)[:3], 10))  # what the shop acknowledged before
                await asyncio.sleep(0.3)
                assert len(double.shop.log) <= calls + 1, "only what was under way ends"
                with engine.begin() as connection:
                    connection.execute(sa.update(shops).values(owner="", owned_until=0.0))
                await running.until(lambda: running.publisher.parts is not None)
                await running.quiet()
                assert shown(double, *SKUS) == ledger.sellable()
                assert double.shop.overlaps == []
                assert running.pending() == 0

    asyncio.run(scenario())


def test_the_urgent_overtake_a_burst(engine: Engine, ledger: FakeLedger) -> None:
    """A burst waits; what sells out or comes back meanwhile is written before it."""

    async def scenario() -> None:
        many = {f"M-{number}": 10 for number in range(100)}
        with serve(double_shop(**many, out=5, back=0), latency=NONE, tls=False) as double:
            ledger.tell({**many, "out": 5, "back": 0})
            async with publishing(
                engine, ledger, double, pace={"items_max": 10, "items_start": 10}
            ) as running:
                await running.quiet()
                order: list[str] = []
                double.shop.listeners.append(lambda product: order.append(product.sku))
                ledger.tell(dict.fromkeys(many, 9))
                ledger.tell({"out": 0, "back": 3})
                await running.quiet()
                assert max(order.index("out"), order.index("back")) < 60

    asyncio.run(scenario())


def test_rows_say_what_the_shop_acknowledged(engine: Engine, ledger: FakeLedger) -> None:
    """Reconciliation reads it: quantity, version and time of the last acknowledgement, per sku."""

    async def scenario() -> None:
        with serve(double_shop(a=1), latency=NONE, tls=False) as double:
            ledger.tell({"a": 7})
            async with publishing(engine, ledger, double) as running:
                await running.quiet()

    asyncio.run(scenario())
    with engine.connect() as connection:
        row = connection.execute(sa.select(shop_skus).where(shop_skus.c.channel == CHANNEL)).one()
    assert (row.sku, row.acked, row.acked_version, row.shown, row.sending) == ("a", 7, "1-1", 7, None)
    assert row.acked_at > 0
