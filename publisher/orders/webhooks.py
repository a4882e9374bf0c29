"""Keep a shop's webhooks alive: make those that are missing, and make anew those that the shop switched off.

The shop disables a webhook at the seventh failure in a row, tells nobody, and drops what happens meanwhile. Switching
it on again is no cure: its count of failures stays at six, so that the next failure disables it again. It is deleted
and made anew. One that a person paused is left alone, and told. Polling finds what was lost in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog
from pydantic import SecretStr

from publisher.orders.receiver import TOPICS

_LOG = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopWebhook:
    """A webhook as the shop tells of it. It never tells its secret or its failures."""

    webhook_id: int
    topic: str
    status: str
    delivery_url: str


class ShopWebhooks(Protocol):
    """What is asked of the shop. Every method raises ShopFailure."""

    async def webhooks(self) -> list[ShopWebhook]:
        """Return all webhooks, whoever made them."""
        ...

    async def create_webhook(self, topic: str, delivery_url: str, secret: str) -> None:
        """Make one."""
        ...

    async def delete_webhook(self, webhook_id: int) -> None:
        """Delete one for good."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tended:
    """What one look came to, by topics."""

    made: tuple[str, ...] = ()
    disabled: tuple[str, ...] = ()
    paused: tuple[str, ...] = ()


async def tend(
    shop: str,
    calls: ShopWebhooks,
    delivery_url: str,
    secret: Callable[[], SecretStr],
    *,
    topics: Sequence[str] = TOPICS,
    alarm: Callable[[str], None] = lambda _: None,
) -> Tended:
    """Look at the shop's webhooks once and mend them. ``alarm`` is told the topic of each disabled one."""
    mine = [one for one in await calls.webhooks() if one.delivery_url == delivery_url]
    made, disabled, paused = [], [], []
    for topic in topics:
        found = sorted(
            (one for one in mine if one.topic == topic),
            key=lambda one: (one.status != "active", one.webhook_id),
        )
        dead = [one for one in found if one.status == "disabled"]
        alive = [one for one in found if one.status == "active"]
        asleep = [one for one in found if one.status not in ("active", "disabled")]
        if dead and not alive:
            disabled.append(topic)
            alarm(topic)
            _LOG.error("the shop has switched a webhook off; it is made anew", shop=shop, topic=topic)
        for one in (*dead, *alive[1:]):
            await calls.delete_webhook(one.webhook_id)
        if alive:
            continue
        if asleep and not dead:
            paused.append(topic)
            _LOG.warning("somebody has paused a webhook", shop=shop, topic=topic)
            continue
        await calls.create_webhook(topic, delivery_url, secret().get_secret_value())
        made.append(topic)
    return Tended(made=tuple(made), disabled=tuple(disabled), paused=tuple(paused))
