"""A ledger that is told what to say, a shop's publisher around it, and waiting for what shall come."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import sqlalchemy as sa
from pydantic import SecretStr
from sqlalchemy.engine import Engine

from availability.history.shop_tables import shop_skus
from availability.telemetry import PublishMetrics
from availability.v1 import availability_pb2 as av
from publisher.letters import KeptLetter, Letters
from publisher.numbers import Limits
from publisher.settings import Credentials, ShopSettings
from publisher.shop_publisher import ShopPublisher
from publisher.testing.keys import ApiKey
from publisher.testing.server import Storefront as Double
from publisher.testing.shop import Shop as DoubleShop
from publisher.woocommerce.client import WooClient
from publisher.woocommerce.stock import WooStock

CHANNEL = "web"
KEYS = Credentials(SecretStr("ck_test"), SecretStr("cs_test"))
WAIT_S = 20.0
FAST: Mapping[str, object] = {
    "timeout_ms": 2_000,
    "orphan_ms": 150,
    "recheck_ms": 300,
    "pace": {
        "open_ms": 40,
        "open_ms_max": 200,
        "retry_ms": 10,
        "retry_ms_max": 100,
        "attempts_max": 4,
        "items_per_s_max": 100_000,
    },
}


@dataclass(slots=True)
class FakeLedger:
    """Says what it is told; each saying is a version. ``limit``: the channel's publish_limits."""

    values: dict[str, tuple[int, bool, int]] = field(default_factory=dict)
    version: int = 0
    limit: Limits = field(default_factory=Limits)
    correlation_ids: dict[str, str] = field(default_factory=dict)
    watched: list[str] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def say(self, *, blocked: bool = False, **quantities: int) -> None:
        """Change sellables, one version."""
        self.tell(quantities, blocked=blocked)

    def tell(self, quantities: Mapping[str, int], *, blocked: bool = False) -> None:
        """The same for any names."""
        with self.changed:
            self.version += 1
            for sku, quantity in quantities.items():
                self.values[sku] = (quantity, blocked, self.version)
            self.changed.notify_all()

    def sellable(self) -> dict[str, int]:
        """Return what it says now."""
        return {sku: quantity for sku, (quantity, _, _) in self.values.items()}

    def limits(self, channel: str) -> Limits | None:
        """See ``publisher.feed.Ledger``."""
        return self.limit

    def watch(
        self, channel: str, *, resume_version: str, opened: Callable[[grpc.Call], None]
    ) -> Iterator[av.WatchAvailabilityResponse]:
        """See ``publisher.feed.Ledger``."""
        call = _Call(self.changed)
        opened(call)  # type: ignore[arg-type]  # only cancel() is used
        self.watched.append(resume_version)
        seen = int(resume_version.split("-")[1]) if resume_version else 0
        initial = True
        while not call.cancelled:
            with self.changed:
                found = {sku: value for sku, value in self.values.items() if value[2] > seen}
                if not found and not initial:
                    self.changed.wait(0.05)
                    continue
                seen = self.version
            message = av.WatchAvailabilityResponse(initial=initial)
            message.as_of.version = f"1-{seen}"
            for sku, (quantity, blocked, _) in found.items():
                state = av.AVAILABILITY_STATE_BLOCKED if blocked else av.AVAILABILITY_STATE_IN_STOCK
                message.changes.add(sku=sku, channel=channel, sellable_quantity=quantity, state=state)
            if self.correlation_ids:
                message.correlation_ids.extend(self.correlation_ids.get(sku, "") for sku in found)
            initial = False
            yield message


@dataclass(slots=True)
class _Call:
    changed: threading.Condition
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


def double_shop(**stock: int) -> DoubleShop:
    """Return a shop that knows our keys, with simple products."""
    shop = DoubleShop(clock=time.time)
    shop.keys["ck_test"] = ApiKey(secret="cs_test")
    for sku, quantity in stock.items():
        shop.add(sku, quantity)
    return shop


def shop_settings(url: str, **changed: Any) -> ShopSettings:  # Any: settings
    """Return a shop's settings with short times."""
    pace = {**FAST["pace"], **changed.pop("pace", {})}  # type: ignore[dict-item]  # a mapping of settings
    return ShopSettings.model_validate(
        {"url": url, "key": {"env": "K"}, "secret": {"env": "S"}, **FAST, **changed, "pace": pace}
    )


@dataclass(slots=True, kw_only=True)
class Running:
    """A publisher at work."""

    publisher: ShopPublisher
    engine: Engine
    ledger: FakeLedger
    stop: asyncio.Event

    async def until(self, what: Callable[[], bool]) -> None:
        """Wait until something holds. Raises AssertionError where it takes too long."""
        deadline = time.monotonic() + WAIT_S
        while not what():
            assert time.monotonic() < deadline, f"waited {WAIT_S} s in vain"
            await asyncio.sleep(0.01)

    async def quiet(self) -> None:
        """Wait until everything that was said has been heard, and nothing waits for the shop."""
        await self.until(self.is_quiet)

    def is_quiet(self) -> bool:
        """Say whether the shop has acknowledged what the ledger said."""
        parts = self.publisher.parts
        if parts is None or not parts.feed.complete.is_set() or len(parts.shop.coalescer):
            return False
        if parts.feed.heard_version != f"1-{self.ledger.version}":  # noted, and not on its way yet
            return False
        row = parts.shop.state.shop()
        return row is not None and row.resume_version == f"1-{self.ledger.version}"

    def letters(self) -> list[KeptLetter]:
        """Return the waiting letters."""
        return Letters(self.engine).find()

    def pending(self) -> int:
        """Return how many rows wait, by the database."""
        with self.engine.connect() as connection:
            query = sa.select(sa.func.count()).select_from(shop_skus).where(shop_skus.c.pending)
            return int(connection.execute(query).scalar_one())


def publisher_of(
    engine: Engine, ledger: FakeLedger, settings: ShopSettings, *, owner: str = "one", **changed: Any
) -> ShopPublisher:  # Any: fields of the publisher
    """Return a publisher for the double, not started."""
    storefront = WooStock(
        WooClient(settings, lambda: KEYS), cross_parent=settings.catalogue.cross_parent_batches
    )
    return ShopPublisher(
        **{
            "channel": CHANNEL,
            "settings": settings,
            "engine": engine,
            "ledger": ledger,
            "storefront": storefront,
            "keys": KEYS.fingerprint,
            "owner": owner,
            "metrics": PublishMetrics(),
            "lease_s": 5.0,
            **changed,
        }
    )


@asynccontextmanager
async def publishing(
    engine: Engine, ledger: FakeLedger, double: Double, *, owner: str = "one", **changed: Any
) -> AsyncIterator[Running]:  # Any: settings
    """Publish to the double until the block ends; what the publisher raises is raised."""
    fields = {
        name: changed.pop(name)
        for name in ("keys", "storefront", "lease_s", "guard", "channel", "metrics")
        if name in changed
    }
    settings = shop_settings(double.url, **changed)
    publisher = publisher_of(engine, ledger, settings, owner=owner, **fields)
    stop = asyncio.Event()
    task = asyncio.create_task(publisher.run(stop))
    try:
        running = Running(publisher=publisher, engine=engine, ledger=ledger, stop=stop)
        yield running
    finally:
        stop.set()
        if publisher.parts is not None:
            publisher.parts.delivery.wake.set()
        await asyncio.wait_for(task, WAIT_S)
