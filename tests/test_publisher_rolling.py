"""The shop is read back all the time; what it shows otherwise than it should counts when it lasts, and is mended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from publisher.pace import Breaker
from publisher.rolling import Rolling
from publisher.shop_publisher import Parts
from publisher.testing.server import serve
from publisher.testing.shop import Shop
from tests.publishing import FakeLedger, Running, double_shop, publishing
from tests.shop_lab import open_copy

DOUBT_S = 0.3


@dataclass(slots=True, kw_only=True)
class Walked:
    """A published shop and a walk that the test steers."""

    running: Running
    shop: Shop
    rolling: Rolling

    @property
    def parts(self) -> Parts:
        assert self.running.publisher.parts is not None
        return self.running.publisher.parts

    def change(self, sku: str, quantity: int) -> None:
        """Somebody changes a number by hand."""
        with self.shop.lock:
            product = self.shop.find(sku)[0]
            product.quantity = quantity
            self.shop.store(product)

    async def look(self) -> int:
        """Look at everything once, and at what was in doubt when its time has come."""
        found = await self.rolling.look(self.parts)
        await asyncio.sleep(DOUBT_S + 0.25)
        return found


def play(folder: Path, day: Callable[[Walked], Awaitable[None]]) -> None:
    """Publish A, B and C, and let the test change things."""
    engine, ledger, shop = open_copy(folder), FakeLedger(), double_shop(A=1, B=1, C=1)
    ledger.say(A=5, B=6, C=0)

    async def whole() -> None:
        with serve(shop) as double:
            async with publishing(engine, ledger, double) as running:
                await running.quiet()
                await day(Walked(running=running, shop=shop, rolling=Rolling(0.0, DOUBT_S)))

    asyncio.run(whole())
    engine.dispose()


def test_what_lasts_is_mended(tmp_path: Path) -> None:
    """A number that somebody changed is seen, seen again, told, and written as it should be."""

    async def day(walked: Walked) -> None:
        walked.change("A", 99)
        assert await walked.look() == 0
        assert await walked.look() == 1
        await walked.running.until(lambda: walked.shop.stock("A") == 5)
        await walked.running.quiet()
        assert await walked.look() == 0
        assert await walked.look() == 0
        assert walked.rolling.differences == 1
        assert walked.rolling.ended_at is not None

    play(tmp_path, day)


def test_what_was_a_moment_is_nothing(tmp_path: Path) -> None:
    """A sale whose order arrives with the next poll is no difference."""

    async def day(walked: Walked) -> None:
        walked.change("A", 4)
        assert await walked.rolling.look(walked.parts) == 0
        assert await walked.rolling.look(walked.parts) == 0, "it is read again only when its time has come"
        walked.change("A", 5)
        await asyncio.sleep(DOUBT_S)
        assert await walked.rolling.look(walked.parts) == 0
        assert walked.rolling.differences == 0

    play(tmp_path, day)


def test_a_number_that_the_feed_has_changed_is_no_difference(tmp_path: Path) -> None:
    """What is on its way is left to delivery."""

    async def day(walked: Walked) -> None:
        walked.change("B", 60)
        assert await walked.rolling.look(walked.parts) == 0
        walked.running.ledger.say(B=7)
        await walked.running.until(lambda: walked.shop.stock("B") == 7)
        await walked.running.quiet()
        await asyncio.sleep(DOUBT_S)
        assert await walked.rolling.look(walked.parts) == 0
        assert walked.rolling.differences == 0

    play(tmp_path, day)


def test_a_sick_shop_is_not_read(tmp_path: Path) -> None:
    """While the breaker is open nothing is asked."""

    async def day(walked: Walked) -> None:
        walked.parts.shop.pace.breaker = Breaker.OPEN
        stop = asyncio.Event()

        async def few(_: float) -> None:
            await asyncio.sleep(0)
            stop.set()

        await walked.rolling.run(walked.parts, stop, few)
        assert walked.rolling.looks == 0
        walked.parts.shop.pace.breaker = Breaker.CLOSED

    play(tmp_path, day)
