"""Puts the publisher together for the command line: the one place that opens databases, connections and shops."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from sqlalchemy.engine import Engine

from availability.client import Client
from availability.history.database import open_database
from availability.telemetry import PublishMetrics, start_metrics_listener
from publisher.assembly import Assembled, Surroundings, assemble, intake_of
from publisher.catalogue import Catalogue, Problem
from publisher.feed import ClientLedger
from publisher.golive import Approvals
from publisher.json_webhook import JsonWebhook
from publisher.letters import Letters
from publisher.listing_rows import ListingRows
from publisher.mirror import SecondLooks, sellables_of
from publisher.orders.book import OrderBook
from publisher.settings import SettingsRefused, ShopSettings, read_shops
from publisher.shop_publisher import ShopPublisher
from publisher.state import State
from publisher.status import ShopStatus, statuses
from publisher.storefront import Storefront
from publisher.survey import SETTLE_S, Survey
from publisher.traces import Spans
from publisher.verify import WRITABLE, Report
from publisher.woocommerce.client import WooClient
from publisher.woocommerce.stock import WooStock

_LOG = structlog.get_logger(__name__)

START_S = 10.0
CONNECTIONS_MAX = 256
"""Of webhooks at a time; others are answered 503. What strangers send is in memory until its signature is tried."""
REFUSED_MAX = 100_000
STOP_S = 75.0
"""What is under way when we are stopped is waited for, a shop's longest time-out and some."""


def now() -> float:
    """Return the time, seconds since 1970."""
    return time.time()


def storefront_of(
    settings: ShopSettings, environment: Mapping[str, str], woo: WooClient | None = None
) -> Storefront:
    """Return the shop's port; ``woo``: its connections, where they are shared. Nothing is connected yet."""
    if settings.kind == "json_webhook":
        return JsonWebhook(settings, lambda: settings.credentials(environment))
    pause_s = settings.catalogue.page_pause_ms / 1000
    return WooStock(
        woo or woo_client(settings, environment),
        cross_parent=settings.catalogue.cross_parent_batches,
        pause=(lambda: asyncio.sleep(pause_s)) if pause_s else None,
    )


def woo_client(settings: ShopSettings, environment: Mapping[str, str]) -> WooClient:
    """Return a WooCommerce shop's connections. Nothing is connected yet."""
    return WooClient(settings, lambda: settings.credentials(environment))


@dataclass(frozen=True, slots=True)
class PublisherDesk:
    """Everything that the commands need."""

    shops: Mapping[str, ShopSettings]
    engine: Engine
    client: Client | None = None

    @property
    def letters(self) -> Letters:
        """Return the dead letters of all shops."""
        return Letters(self.engine)

    def shop(self, channel: str) -> ShopSettings:
        """Return a shop's settings. Raises SettingsRefused."""
        found = self.shops.get(channel)
        if found is None:
            raise SettingsRefused(f"no shop is of the channel {channel!r}; there are {', '.join(self.shops)}")
        return found

    def statuses(self) -> list[ShopStatus]:
        """Return how all shops fare."""
        return statuses(self.engine, time.time())

    def problems(self, channel: str) -> list[Problem]:
        """Return which of the ledger's skus have no place in the shop, by the catalogue as last seen."""
        settings = self.shop(channel)
        skus = {row[0] for row in State(self.engine, channel, "").acknowledged()}
        catalogue = Catalogue(
            settings.aliases,
            switch_on=settings.catalogue.manage_stock == "switch_on",
            known=skus.__contains__,
        )
        catalogue.put(ListingRows(self.engine, channel).all())
        allowed = settings.allowed()
        return list(catalogue.problems(sorted(skus if allowed is None else skus & allowed)))

    def not_in_ledger(self, channel: str) -> list[str]:
        """Return the shop's skus that the ledger does not sell there."""
        catalogue = Catalogue(self.shop(channel).aliases)
        catalogue.put(ListingRows(self.engine, channel).all())
        return catalogue.not_in({row[0] for row in State(self.engine, channel, "").acknowledged()})

    # --- Comparing ----------------------------------------------------------------------------------------

    def survey(
        self,
        channel: str,
        *,
        settle_s: float = SETTLE_S,
        progress: Callable[[int], None] = lambda _: None,
        environment: Mapping[str, str] | None = None,
    ) -> Report:
        """Compare what the shop shows with the ledger; nothing is written. Raises SettingsRefused, ShopFailure."""
        assert self.client is not None
        settings = self.shop(channel)
        if settings.kind != "woocommerce":
            raise SettingsRefused(f"{channel}: nothing can be read back from this kind of shop")
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        environment = os.environ if environment is None else environment
        settings.credentials(environment)
        storefront = storefront_of(settings, environment)
        survey = Survey(
            channel=channel,
            settings=settings,
            storefront=storefront,
            ledger=ClientLedger(self.client),
            sellables=sellables_of(self.client, channel),
            engine=self.engine,
            settle_s=settle_s,
            progress=progress,
        )

        async def take() -> Report:
            try:
                return await survey.take()
            finally:
                await storefront.close()

        return asyncio.run(take())

    def resync(self, channel: str, report: Report) -> int:
        """Have the running publisher write again what differs and can be written; return how many it knows."""
        skus = [one.sku for one in report.differences if one.cause in WRITABLE]
        return State(self.engine, channel, "").ask(skus)

    def approvals(self, channel: str) -> Approvals:
        """Return where zeros wait for an operator."""
        self.shop(channel)
        return Approvals(self.engine, channel)

    # --- Orders -------------------------------------------------------------------------------------------

    def orders(self, channel: str) -> OrderBook:
        """Return the book of a shop's orders."""
        self.shop(channel)
        return OrderBook(self.engine, channel)

    def retell(self, channel: str, order_id: int, environment: Mapping[str, str] | None = None) -> str:
        """Read one order and tell the ledger all of it again; return why nothing or a word was not taken, '' for none.

        Raises SettingsRefused, ShopFailure, ClientError.
        """
        assert self.client is not None
        settings = self.shop(channel)
        orders = settings.order_settings
        if orders is None:
            raise SettingsRefused(f"{channel}: its orders are not taken in")
        environment = os.environ if environment is None else environment
        around = Surroundings(
            engine=self.engine,
            client=self.client,
            environment=environment,
            metrics=PublishMetrics(),
            owner="",
        )
        woo = woo_client(settings, environment)
        intake = intake_of(channel, settings, orders, woo, SecondLooks(0.0, time.monotonic), around)

        async def tell() -> None:
            try:
                await intake.poller.retell(order_id)
            finally:
                await woo.close()

        asyncio.run(tell())
        book = self.orders(channel)
        if not book.told([order_id]):
            return (
                "nothing was told: the shop does not have it, or it never counted (not paid, finished before)"
            )
        return book.refused(REFUSED_MAX).get(order_id, "")

    def run(
        self,
        *,
        channels: list[str],
        stopped: Callable[[Callable[[], None]], None],
        metrics_listen: str = "",
        listen: str = "",
        environment: Mapping[str, str] | None = None,
        told: Callable[[str], None] = lambda _: None,
        spans: Spans | None = None,
    ) -> None:
        """Publish to these shops (empty: all) until stopped. ``stopped`` is given what to call then, from any thread.

        ``listen``: HOST:PORT for the shops' webhooks. Raises SettingsRefused for keys that are not there.
        """
        assert self.client is not None
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # it tells every call
        environment = os.environ if environment is None else environment
        metrics = PublishMetrics()
        owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        around = Surroundings(
            engine=self.engine,
            client=self.client,
            environment=environment,
            metrics=metrics,
            owner=owner,
            spans=spans,
            told=told,
        )
        assembled: dict[str, Assembled] = {}
        for channel in channels or list(self.shops):
            settings = self.shop(channel)
            woo = woo_client(settings, environment) if settings.kind == "woocommerce" else None
            storefront = storefront_of(settings, environment, woo)
            assembled[channel] = assemble(channel, settings, storefront, woo, around)
        publishers = [one.publisher for one in assembled.values()]
        doors = {channel: one for channel, one in assembled.items() if one.door is not None}
        if doors and not listen:
            raise SettingsRefused(f"{', '.join(doors)}: webhooks need an address to listen on: --listen")
        metrics.watch(lambda: [one.figures for one in publishers if one.figures is not None])
        stop_metrics = start_metrics_listener(metrics_listen, metrics.registry)
        told(f"publishing to {', '.join(one.channel for one in publishers)}")
        try:
            with webhook_server(doors, listen) as where:
                if where:
                    told(f"webhooks of {', '.join(doors)} come in at {where}")
                asyncio.run(_run_all(publishers, stopped))
        finally:
            if stop_metrics is not None:
                stop_metrics()


async def _run_all(publishers: list[ShopPublisher], stopped: Callable[[Callable[[], None]], None]) -> None:
    """Run all shops, each for itself: a slow one delays nobody."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def end() -> None:
        stop.set()
        for one in publishers:
            if one.parts is not None:
                one.parts.delivery.wake.set()

    def stop_now() -> None:
        loop.call_soon_threadsafe(end)

    stopped(stop_now)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one.run(stop)) for one in publishers]
        await stop.wait()
        _, left = await asyncio.wait(tasks, timeout=STOP_S)
        for task in left:
            _LOG.warning("a shop did not end in time; what was under way is read back at the next start")
            task.cancel()


@contextmanager
def webhook_server(doors: Mapping[str, Assembled], listen: str) -> Iterator[str]:
    """Serve the shops' webhooks on HOST:PORT (0: any) meanwhile; yield where. Raises SettingsRefused."""
    if not doors:
        yield ""
        return
    import uvicorn

    from publisher.orders.receiver import receiver_app

    application = receiver_app(
        {channel: one.door for channel, one in doors.items() if one.door is not None},
        body_bytes_max=max(one.body_bytes_max for one in doors.values()),
    )
    host, _, port = listen.rpartition(":")
    if not port.isascii() or not port.isdigit():
        raise SettingsRefused(f"{listen!r} is no HOST:PORT")
    server = uvicorn.Server(
        uvicorn.Config(
            application,
            host=host or "127.0.0.1",
            port=int(port),
            log_config=None,
            access_log=False,
            limit_concurrency=CONNECTIONS_MAX,
        )
    )
    thread = threading.Thread(target=server.run, name="webhooks", daemon=True)
    thread.start()
    deadline = time.monotonic() + START_S
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise SettingsRefused(f"webhooks cannot listen on {listen}")
        time.sleep(0.01)
    bound = server.servers[0].sockets[0].getsockname()
    try:
        yield f"http://{bound[0]}:{bound[1]}"
    finally:
        server.should_exit = True
        thread.join(START_S)


@contextmanager
def desk(shops: Path, database: str, data_dir: Path, client: Client | None = None) -> Iterator[PublisherDesk]:
    """Open what the commands need. Raises SettingsRefused, HistoryError."""
    settings = read_shops(shops)
    engine = open_database(database, data_dir)
    try:
        yield PublisherDesk(settings, engine, client)
    finally:
        engine.dispose()
        if client is not None:
            client.close()
