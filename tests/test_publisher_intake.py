"""The loop that keeps orders coming: by time, by webhooks, through failures."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from publisher.orders.intake import OrderIntake, Tending
from publisher.orders.poller import Moved, PollRules
from publisher.settings import OrdersSettings
from publisher.testing.faults import Fault, Kind
from publisher.testing.orders import delete_order, set_status
from tests.shop_lab import OrderLab

SETTINGS = OrdersSettings.model_validate(
    {
        "poll_ms": 100,
        "check_ms": 1_000,
        "webhooks": {"public_url": "https://ours.example.test", "secret": {"env": "X"}, "check_ms": 1_000},
    }
)
SLOW = SETTINGS.model_copy(update={"poll_ms": 3_600_000})
WITHIN_S = 20.0


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[OrderLab]:
    made = OrderLab(tmp_path, poll_rules=PollRules(check_s=1))
    made.add("A", 100)
    asyncio.run(made.poller.catch_up())
    yield made
    made.stop()


async def until(holds: object) -> None:
    """Wait until something holds, or fail."""
    assert callable(holds)
    async with asyncio.timeout(WITHIN_S):
        while not holds():
            await asyncio.sleep(0.01)


def intake_of(
    lab: OrderLab, settings: OrdersSettings, *, alarms: list[str] | None = None
) -> tuple[OrderIntake, list[Moved]]:
    """Return a loop with the real clock for its pauses, and what it told of skus."""
    told: list[Moved] = []
    heard = alarms if alarms is not None else []
    tending = Tending(calls=lab.orders, secret=lambda: SecretStr("s" * 16), alarm=heard.append)
    loop = OrderIntake(
        lab.poller,
        settings,
        monotonic=lambda: asyncio.get_running_loop().time(),
        tending=tending if alarms is not None else None,
        touched=told.append,
    )
    return loop, told


def test_polling_alone_brings_everything(lab: OrderLab) -> None:
    """An order, its cancel and its deletion arrive without any webhook; skus are told with a version."""

    async def day() -> None:
        intake, told = intake_of(lab, SETTINGS)
        stop = asyncio.Event()
        running = asyncio.create_task(intake.run(stop))
        order = lab.buy()
        await until(lambda: told)
        assert told[-1] == Moved(skus=frozenset({"A"}), version="1-1")
        assert lab.ledger.ordered("A") == 3
        lab.clock.advance(5)
        set_status(lab.shop, order, "cancelled")
        await until(lambda: lab.ledger.ordered("A") == 0)
        gone = lab.buy()
        await until(lambda: lab.ledger.ordered("A") == 3)
        delete_order(lab.shop, gone)
        lab.clock.advance(5)
        await until(lambda: lab.book.told([gone.id])[gone.id].status == "vanished")
        stop.set()
        await running

    asyncio.run(day())


def test_a_webhook_wakes_the_loop(lab: OrderLab) -> None:
    """What was hinted is read at once, from another thread too; and what was hinted before the last end."""

    async def day() -> None:
        first = lab.buy()
        lab.book.hint(first.id, lab.clock())
        intake, _ = intake_of(lab, SLOW)
        stop = asyncio.Event()
        running = asyncio.create_task(intake.run(stop))
        await until(lambda: lab.ledger.ordered("A") == 3)
        await until(lambda: intake._due.get("forgetting") is not None)
        second = lab.buy(quantity=1)
        await asyncio.to_thread(lab.book.hint, second.id, lab.clock())
        await asyncio.to_thread(intake.came)
        await until(lambda: lab.ledger.ordered("A") == 4)
        stop.set()
        await running

    asyncio.run(day())


def test_a_failing_shop_is_told_and_waited_for(lab: OrderLab) -> None:
    """Trouble has a text while it lasts; then everything arrives."""

    async def day() -> None:
        fault = lab.shop.faults.add(Fault(kind=Kind.DATABASE_DOWN, path="orders", times=0))
        intake, _ = intake_of(lab, SETTINGS)
        stop = asyncio.Event()
        running = asyncio.create_task(intake.run(stop))
        lab.buy()
        await until(lambda: "polling" in intake.trouble)
        assert lab.ledger.taken == []
        lab.shop.faults.remove(fault)
        await until(lambda: lab.ledger.ordered("A") == 3 and intake.trouble == "")
        stop.set()
        await running

    asyncio.run(day())


def test_webhooks_are_looked_after(lab: OrderLab) -> None:
    """They are made; one that was switched off raises an alarm, is made anew, and orders are polled at once."""

    async def day() -> None:
        alarms: list[str] = []
        intake, _ = intake_of(lab, SLOW, alarms=alarms)
        stop = asyncio.Event()
        running = asyncio.create_task(intake.run(stop))
        await until(lambda: len(lab.shop.webhooks) == 4)
        urls = {hook.delivery_url for hook in lab.shop.webhooks.values()}
        assert urls == {"https://ours.example.test/shops/shop/orders"}
        for hook in lab.shop.webhooks.values():
            if hook.topic == "order.updated":
                hook.status = "disabled"
        lab.buy()
        await until(lambda: alarms == ["order.updated"] and lab.ledger.ordered("A") == 3)
        assert {hook.status for hook in lab.shop.webhooks.values()} == {"active"}
        stop.set()
        await running

    asyncio.run(day())
