"""One shop's publisher with all that is around it: zero guard, rolling verification, orders in, Mirror's rule, door."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog
from pydantic import SecretStr
from sqlalchemy.engine import Engine

from availability.client import Client
from availability.telemetry import PublishMetrics
from publisher.alarms import Alarms, Concern
from publisher.catalogue import Catalogue
from publisher.feed import ClientLedger
from publisher.golive import LOOK_S, WINDOW_S, Approvals, GuardedStorefront, ZeroGuard, keep_guard
from publisher.mirror import SecondLooks, mirror_rule, sellables_of
from publisher.orders.book import OrderBook
from publisher.orders.facts import TAKEN, Rules
from publisher.orders.intake import OrderIntake, Tending
from publisher.orders.ledger import OrderClient
from publisher.orders.poller import OrderPoller, PollRules
from publisher.orders.receiver import TOPICS, Door
from publisher.progress import Progress
from publisher.rolling import Rolling
from publisher.settings import Mode, OrdersSettings, SettingsRefused, ShopSettings, WebhookSettings
from publisher.shop_publisher import Companion, Parts, RuleMaker, ShopPublisher
from publisher.storefront import Storefront
from publisher.traces import Spans, Traces
from publisher.woocommerce.client import WooClient
from publisher.woocommerce.orders import WooOrders

_LOG = structlog.get_logger(__name__)

SECRET_BYTES_MIN = 16
REFUSED_MAX = 1_000
DOUBT_S = 2.0
"""What an Owner shop shows otherwise than it should is read again after so long before it counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """One shop, ready to run. ``door``: where its webhooks come in, with the size of their bodies."""

    publisher: ShopPublisher
    intake: OrderIntake | None = None
    door: Door | None = None
    body_bytes_max: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all shops of a process share. ``told`` is given lines for a person: how far a large publish has come."""

    engine: Engine
    client: Client
    environment: Mapping[str, str]
    metrics: PublishMetrics
    owner: str
    spans: Spans | None = None
    told: Callable[[str], None] = lambda _: None
    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic


def assemble(
    channel: str, settings: ShopSettings, storefront: Storefront, woo: WooClient | None, around: Surroundings
) -> Assembled:
    """Put one shop together. ``woo``: its connections, for orders. Raises SettingsRefused."""
    settings.credentials(around.environment)  # told at once, not at the first write
    around.metrics.known(channel, TOPICS)
    guard = ZeroGuard(percent=settings.zero_guard_percent, least=settings.zero_guard_min, now=around.now)
    approvals = Approvals(around.engine, channel)
    orders = settings.order_settings
    # A sale of a Mirror shop arrives with the next poll at the latest, and is looked at once more after that.
    doubt_s = (2 * orders.poll_ms + orders.settle_ms) / 1000 if orders is not None else DOUBT_S
    rolling = Rolling(settings.verify_ms / 1000, doubt_s)
    looks = SecondLooks(orders.settle_ms / 1000 if orders is not None else 0.0, around.monotonic)
    intake = None
    if orders is not None:
        if woo is None:
            raise SettingsRefused(f"{channel}: this kind of shop has no orders to read")
        intake = intake_of(channel, settings, orders, woo, looks, around)
    mirror = settings.mode is Mode.MIRROR
    publisher = ShopPublisher(
        channel=channel,
        settings=settings,
        engine=around.engine,
        ledger=ClientLedger(around.client),
        storefront=GuardedStorefront(storefront, guard, Catalogue(settings.aliases).ledger_sku),
        keys=lambda: settings.credentials(around.environment).fingerprint(),
        owner=around.owner,
        metrics=around.metrics,
        traces=Traces(spans=around.spans),
        guard=guard,
        rule=_mirrored(intake, channel, around) if mirror and intake is not None else None,
        prepare=_prepared(guard, approvals, around.now),
        companions=(
            _guarded(guard, approvals, around.now),
            _telling(guard, around),
            *((rolling.run,) if settings.kind == "woocommerce" else ()),
            *((_taking_orders(intake),) if intake is not None else ()),
            *((_looking_again(looks),) if mirror else ()),
            Alarms(around.client, channel, around.now, lambda: _concerns(channel, guard, intake, around)).run,
        ),
        verified_at=lambda: rolling.ended_at,
        zeros_held=lambda: len(guard.held),
        now=around.now,
        monotonic=around.monotonic,
    )
    hooks = orders.webhooks if orders is not None else None
    if intake is None or hooks is None:
        return Assembled(publisher=publisher, intake=intake)
    door = door_of(channel, hooks, intake, around)
    return Assembled(publisher=publisher, intake=intake, door=door, body_bytes_max=hooks.body_bytes_max)


def intake_of(
    channel: str,
    settings: ShopSettings,
    orders: OrdersSettings,
    woo: WooClient,
    looks: SecondLooks,
    around: Surroundings,
) -> OrderIntake:
    """Return what brings a shop's orders in."""
    metrics = around.metrics
    source = orders.source or channel
    calls = WooOrders(
        woo, settings.aliases, unreadable=lambda _id, _reason: metrics.order(channel, "unreadable")
    )
    poller = OrderPoller(
        shop=channel,
        source=source,
        orders=calls,
        book=OrderBook(around.engine, channel),
        ledger=OrderClient(around.client, source),
        now=around.now,
        rules=Rules(
            taken=TAKEN | frozenset(orders.more_statuses),
            gives_back=frozenset(orders.gives_back),
            shop_reduces=settings.mode is Mode.MIRROR,
            owned_node=orders.owned_node,
        ),
        poll_rules=PollRules(
            overlap_s=orders.overlap_s,
            check_s=orders.check_ms / 1000,
            watch_days=orders.watch_days,
            keep_days=orders.keep_days,
        ),
        count=lambda result: metrics.order(channel, result),
    )
    hooks = orders.webhooks
    tending = None
    if hooks is not None and hooks.manage:
        if settings.url.startswith("http://"):
            _LOG.warning(
                "the webhooks' secret goes to the shop unencrypted: its address is http", channel=channel
            )
        tending = Tending(
            calls=calls,
            secret=lambda: secret_of(hooks, around.environment),
            alarm=lambda topic: metrics.webhook_disabled(channel, topic),
        )
    return OrderIntake(poller, orders, monotonic=around.monotonic, tending=tending, touched=looks.touched)


def secret_of(hooks: WebhookSettings, environment: Mapping[str, str]) -> SecretStr:
    """Read the webhooks' secret. Raises SettingsRefused, without it."""
    secret = hooks.secret.read(environment)
    if len(secret.get_secret_value().encode()) < SECRET_BYTES_MIN:
        raise SettingsRefused(f"the webhooks' secret is shorter than {SECRET_BYTES_MIN} bytes")
    return secret


def door_of(channel: str, hooks: WebhookSettings, intake: OrderIntake, around: Surroundings) -> Door:
    """Return where a shop's webhooks come in. Raises SettingsRefused."""
    secret = secret_of(hooks, around.environment)
    book = OrderBook(around.engine, channel)
    return Door(
        secret=lambda: secret,
        keep=lambda order_id: book.hint(order_id, around.now()),
        came=intake.came,
        count=lambda result: around.metrics.webhook(channel, result),
    )


def _mirrored(intake: OrderIntake, channel: str, around: Surroundings) -> RuleMaker:
    sellables = sellables_of(around.client, channel)
    return lambda parts: mirror_rule(parts, intake, sellables)


def _prepared(
    guard: ZeroGuard, approvals: Approvals, now: Callable[[], float]
) -> Callable[[Parts], Awaitable[None]]:
    async def prepare(parts: Parts) -> None:
        """Tell the guard what is known of the shop, before anything is written."""
        shop = parts.shop
        guard.waiting = shop.coalescer.zeros
        for sku, acked in await shop.records.insist(shop.state.acknowledged):
            guard.saw(sku, acked)
        guard.remember(await shop.records.insist(approvals.zeroed_since, now() - WINDOW_S))

    return prepare


def _guarded(guard: ZeroGuard, approvals: Approvals, now: Callable[[], float]) -> Companion:
    async def guarded(parts: Parts, _: asyncio.Event) -> None:
        def released() -> None:
            parts.shop.coalescer.release()
            parts.delivery.wake.set()

        await keep_guard(
            guard,
            approvals,
            released,
            channel=parts.shop.channel,
            now=now,
            pause=lambda: asyncio.sleep(LOOK_S),
        )

    return guarded


def _telling(guard: ZeroGuard, around: Surroundings) -> Companion:
    async def telling(parts: Parts, _: asyncio.Event) -> None:
        progress = Progress()
        while True:
            said = progress.look(len(parts.shop.coalescer), len(guard.held), around.monotonic())
            if said is not None:
                around.told(f"{parts.shop.channel}: {said.text}")
            await asyncio.sleep(LOOK_S)

    return telling


def _taking_orders(intake: OrderIntake) -> Companion:
    async def taking_orders(_: Parts, stop: asyncio.Event) -> None:
        await intake.run(stop)

    return taking_orders


def _looking_again(looks: SecondLooks) -> Companion:
    async def looking_again(parts: Parts, _: asyncio.Event) -> None:
        await looks.run(parts)

    return looking_again


def _concerns(
    channel: str, guard: ZeroGuard, intake: OrderIntake | None, around: Surroundings
) -> list[Concern]:
    """Say what a person must see of a shop's zeros and orders. Raises HistoryError."""
    held = len(guard.held)
    waits = (
        f"{held} of {guard.on_sale} skus of {channel} would go to 0 at once and wait for `publish approve`"
    )
    found = [Concern(subject="zeros", message=waits if held else "", quantity=held)]
    if intake is None:
        return found
    refused = OrderBook(around.engine, channel).refused(REFUSED_MAX)
    said = f"the ledger refused words of {len(refused)} orders of {channel}; `publish orders {channel}`"
    off = ", ".join(intake.disabled)
    return [
        *found,
        Concern(subject="refused orders", message=said if refused else "", quantity=len(refused)),
        Concern(
            subject="late orders",
            message=f"orders of {channel} do not come in: {intake.trouble}" if intake.lasting_trouble else "",
        ),
        Concern(
            subject="webhooks",
            message=f"{channel} switched off its webhooks {off}; they were made anew" if off else "",
            warning=True,
        ),
    ]
