"""What of a shop is wrong is told to the service, and what is over too."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import Engine

from availability.client import ClientError
from availability.history.database import open_database
from availability.v1 import exception_pb2 as exc
from publisher.alarms import Alarms, Concern
from publisher.testing.server import serve
from tests.publishing import FakeLedger, double_shop, publishing


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database("", tmp_path)
    yield engine
    engine.dispose()


class Desk:
    """Takes reports. ``away``: it does not, for so many."""

    def __init__(self) -> None:
        self.wrong: dict[str, str] = {}
        self.reports = 0
        self.away = 0

    def report_exceptions(
        self, source: str, wrong: list[exc.ReportedException], over: list[exc.ReportedException]
    ) -> None:
        if self.away:
            self.away -= 1
            raise ClientError("UNAVAILABLE", "LEDGER_UNREACHABLE", "away")
        self.reports += 1
        self.wrong |= {one.subject[0]: one.message for one in wrong}
        for one in over:
            self.wrong.pop(one.subject[0], None)


def test_letters_and_refused_keys_are_told_and_taken_back(engine: Engine) -> None:
    """A sku without a place, then refused keys: told once each, again after a minute, and over when they are."""

    async def scenario() -> None:
        ledger, desk, now = FakeLedger(), Desk(), [1_000.0]
        with serve(double_shop(a=1), tls=False) as double:
            ledger.say(a=2, missing=3)
            async with publishing(engine, ledger, double) as running:
                await running.quiet()
                parts = running.publisher.parts
                assert parts is not None
                alarms = Alarms(desk, "web", lambda: now[0])
                desk.away = 1
                await alarms.look(parts)
                assert desk.reports == 0
                await alarms.look(parts)
                assert list(desk.wrong) == ["MAPPING"]
                assert "'missing'" in desk.wrong["MAPPING"]
                await alarms.look(parts)
                assert desk.reports == 1
                now[0] += 61
                await alarms.look(parts)
                assert desk.reports == 2
                parts.delivery.stopped_reason = "answered 401"
                await alarms.look(parts)
                assert "refuses the keys" in desk.wrong["shop"]
                parts.delivery.stopped_reason = ""
                double.shop.add("missing", 0)
                parts.letters.replay(running.letters(), 0.0)
                parts.delivery.catalogue_changed()
                await running.until(lambda: not running.letters())
                await alarms.look(parts)
                assert desk.wrong == {}

    asyncio.run(scenario())


def test_other_concerns_are_told_while_they_last(engine: Engine) -> None:
    """Held zeros, late and refused orders, webhooks that were switched off: told, and over when they are."""

    async def scenario() -> None:
        ledger, desk, waits = FakeLedger(), Desk(), ["7 of 20 skus wait"]
        with serve(double_shop(a=1), tls=False) as double:
            ledger.say(a=2)
            async with publishing(engine, ledger, double) as running:
                await running.quiet()
                parts = running.publisher.parts
                assert parts is not None
                alarms = Alarms(
                    desk, "web", lambda: 1_000.0, lambda: [Concern(subject="zeros", message=waits[0])]
                )
                await alarms.look(parts)
                assert desk.wrong == {"zeros": "7 of 20 skus wait"}
                waits[0] = ""
                await alarms.look(parts)
                assert desk.wrong == {}

    asyncio.run(scenario())
