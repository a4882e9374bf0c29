"""Which number is shown for what the ledger says: limits, and scarce units where they count."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from publisher.numbers import wanted
from publisher.settings import RankedRule
from publisher.testing.server import serve
from tests.publishing import CHANNEL, FakeLedger, double_shop, publishing
from tests.shop_lab import open_copy

SCARCE = RankedRule(below=5, channels=("web", "app"))


@pytest.mark.parametrize(
    ("sellable", "channel", "limit", "shop_limit", "ranked", "shown"),
    [
        (12, "web", None, None, None, 12),
        (12, "web", 10, None, None, 10),
        (12, "web", 10, 8, None, 8),
        (12, "web", 8, 10, None, 8),
        (12, "web", 0, None, None, 0),
        (-3, "web", None, None, None, 0),
        (4, "web", None, None, SCARCE, 4),
        (4, "outlet", None, None, SCARCE, 0),
        (5, "outlet", None, None, SCARCE, 5),
        (5, "outlet", 2, None, SCARCE, 2),
        (4, "app", 2, None, SCARCE, 2),
    ],
)
def test_the_number_to_show(
    sellable: int,
    channel: str,
    limit: int | None,
    shop_limit: int | None,
    ranked: RankedRule | None,
    shown: int,
) -> None:
    """The lower limit counts; below the rule's number only the channels named first show any; never below 0."""
    assert wanted(sellable, channel=channel, limit=limit, shop_limit=shop_limit, ranked=ranked) == shown


def test_a_channel_that_is_not_named_loses_its_last_units(tmp_path: Path) -> None:
    """With 9 it shows 9, with 4 it shows 0, with 6 it shows 6 again."""
    engine, ledger, shop = open_copy(tmp_path), FakeLedger(), double_shop(A=1)
    ledger.say(A=9)

    async def day() -> None:
        with serve(shop) as double:
            ranked = {"below": 5, "channels": ["outlet"]}
            async with publishing(engine, ledger, double, ranked=ranked) as running:
                for sellable, shown in ((9, 9), (4, 0), (6, 6)):
                    ledger.say(A=sellable)
                    await running.quiet()
                    assert shop.stock("A") == shown

    assert CHANNEL not in ("outlet",)
    asyncio.run(day())
    engine.dispose()
