"""Keep one shop's orders coming: rounds of the poller by time and by webhooks, and the webhooks themselves.

A round that fails is told and tried again, with longer pauses while it goes on failing; nothing of it is lost. Order
facts are worth more than numbers, so this loop waits for no permit of the shop's pace: a poll is one small read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import quote

import structlog
from pydantic import SecretStr

from availability.client import ClientError
from availability.history.database import HistoryError
from publisher.orders.poller import Moved, OrderPoller
from publisher.orders.receiver import PATH
from publisher.orders.webhooks import ShopWebhooks, tend
from publisher.settings import OrdersSettings, SettingsRefused
from publisher.storefront import ShopFailure

_LOG = structlog.get_logger(__name__)

PAUSE_MAX_S = 60.0
FORGET_EVERY_S = 3_600.0
ROUNDS_MAX = 20
"""Rounds of hints, or of vanished orders, before the other kinds have their turn."""
FAILURES_TOLD = 5
"""Failures of one kind of round in a row before a person has to know."""
DISABLED_TOLD_S = 3_600.0
"""So long a webhook that was switched off is told of."""
CHECKS = 10
"""In so many parts all orders that count are looked for, spread over ``check_ms``."""
TROUBLE = (ShopFailure, ClientError, HistoryError, SettingsRefused)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tending:
    """What looking after the shop's webhooks takes. ``alarm`` is told the topic of each that was switched off."""

    calls: ShopWebhooks
    secret: Callable[[], SecretStr]
    alarm: Callable[[str], None] = lambda _: None


class OrderIntake:
    """One shop's loop. ``monotonic``: seconds. ``touched`` is told of skus that orders moved, and at which version."""

    def __init__(
        self,
        poller: OrderPoller,
        settings: OrdersSettings,
        *,
        monotonic: Callable[[], float],
        tending: Tending | None = None,
        touched: Callable[[Moved], None] = lambda _: None,
    ) -> None:
        self.poller = poller
        self._settings = settings
        self._monotonic = monotonic
        self._tending = tending
        self._touched = touched
        self._hinted = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._disabled_at = 0.0
        self.trouble = ""
        self.disabled: tuple[str, ...] = ()
        """Webhooks that the shop had switched off within the last hour."""

    @property
    def lasting_trouble(self) -> bool:
        """Say whether a kind of round has failed several times in a row."""
        return max(self._failures.values(), default=0) >= FAILURES_TOLD

    def came(self) -> None:
        """Say that a webhook came. From any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._hinted.set)

    async def catch_up(self) -> str:
        """Bring all that the shop knows into the ledger; return a version that holds it, '' for none."""
        self._tell(await self.poller.catch_up())
        return self.poller.version

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop``."""
        self._loop = asyncio.get_running_loop()
        self._hinted.set()  # what came before the last end
        while not stop.is_set():
            settings = self._settings
            if self._hinted.is_set() or self._is_due("polling"):  # another process may have taken webhooks in
                self._hinted.clear()
                await self._try("hints", self._hints)
            await self._when_due("polling", settings.poll_ms / 1000, self._poll)
            await self._when_due("vanished orders", settings.check_ms / CHECKS / 1000, self._vanished)
            if self._tending is not None and settings.webhooks is not None and settings.webhooks.manage:
                await self._when_due("webhooks", settings.webhooks.check_ms / 1000, self._webhooks)
            await self._when_due("forgetting", FORGET_EVERY_S, self._forget)
            await self._pause(stop)

    async def _when_due(self, name: str, every_s: float, round_of: Callable[[], Awaitable[None]]) -> None:
        if not self._is_due(name):
            return
        await self._try(name, round_of)
        pause_s = min(PAUSE_MAX_S, every_s * 2.0 ** min(self._failures.get(name, 0), 16))
        self._due[name] = self._monotonic() + max(every_s, pause_s)

    def _is_due(self, name: str) -> bool:
        return self._monotonic() >= self._due.get(name, 0.0)

    async def _try(self, name: str, round_of: Callable[[], Awaitable[None]]) -> None:
        try:
            await round_of()
        except TROUBLE as error:
            self._failures[name] = self._failures.get(name, 0) + 1
            self.trouble = f"{name}: {error}"
            _LOG.warning("orders are late", shop=self.poller.shop, round=name, message=str(error)[:300])
        else:
            if self._failures.pop(name, 0):
                _LOG.info("orders are coming again", shop=self.poller.shop, round=name)
            if not self._failures:
                self.trouble = ""

    async def _poll(self) -> None:
        self._tell(await self.poller.catch_up())

    async def _hints(self) -> None:
        for _ in range(ROUNDS_MAX):
            followed, moved = await self.poller.follow_hints()
            self._tell(moved)
            if not followed:
                return
        self._hinted.set()

    async def _vanished(self) -> None:
        for _ in range(ROUNDS_MAX):
            looked, moved = await self.poller.check_vanished()
            self._tell(moved)
            if not looked:
                return

    async def _forget(self) -> None:
        await self.poller.forget()

    async def _webhooks(self) -> None:
        hooks, tending = self._settings.webhooks, self._tending
        if hooks is None or tending is None:
            return
        url = hooks.public_url + PATH.replace("{shop}", quote(self.poller.shop, safe=""))
        tended = await tend(self.poller.shop, tending.calls, url, tending.secret, alarm=tending.alarm)
        if tended.disabled or self._monotonic() - self._disabled_at > DISABLED_TOLD_S:
            self.disabled, self._disabled_at = tended.disabled, self._monotonic()
        if tended.disabled:
            await self._poll()  # what happened while it was off was told to nobody

    def _tell(self, moved: Moved) -> None:
        if moved.skus:
            self._touched(moved)

    async def _pause(self, stop: asyncio.Event) -> None:
        """Wait for the next round that is due, a webhook, or the end."""
        wait_s = max(0.0, min(self._due.values()) - self._monotonic()) if self._due else 0.0
        waits = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(self._hinted.wait())]
        try:
            await asyncio.wait(waits, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()
