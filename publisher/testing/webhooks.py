"""Webhooks: by REST, the queue, and the deliveries as the shop makes them.

Nothing is sent inside a request. A delivery carries the state of the moment at which it is sent, is never repeated
when it fails, and after six failures in a row the next one disables the webhook. Losing, doubling and shuffling are on
demand (``Losses``).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson

from publisher.testing import php
from publisher.testing.clock import stamp
from publisher.testing.orders import order_view
from publisher.testing.products import Handler, Reply, Request, linked, view
from publisher.testing.shop import Shop
from publisher.testing.webhook_state import FAILURES_MAX, TOPICS, Webhook
from publisher.testing.wire import Json, RestError, Step, Work

SECRET_LENGTH = 50

Sender = Callable[[str, dict[str, str], bytes], int]
"""POSTs a body with headers to a URL and returns the status; 0 or less where there was no answer."""


@dataclass(slots=True, kw_only=True)
class Losses:
    """What happens to deliveries on their way, each with its probability."""

    rng: random.Random
    lost: float = 0.0
    doubled: float = 0.0
    shuffled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One delivery that was tried."""

    webhook_id: int
    topic: str
    resource_id: int
    body: bytes
    headers: dict[str, str]
    status: int


def signature(secret: str, body: bytes) -> str:
    """Return the X-WC-Webhook-Signature of a body."""
    return base64.b64encode(hmac.new(secret.encode(), body, hashlib.sha256).digest()).decode()


def deliver_all(
    shop: Shop, send: Sender, losses: Losses | None = None, *, most: int = 10_000
) -> list[Delivery]:
    """Send what waits in the queue now, one after the other, and return what was tried."""
    with shop.lock:
        waiting = deque(shop.queue.popleft() for _ in range(min(most, len(shop.queue))))
    if losses is not None and losses.shuffled:
        shuffled = list(waiting)
        losses.rng.shuffle(shuffled)
        waiting = deque(shuffled)
    done: list[Delivery] = []
    for webhook_id, resource_id in waiting:
        prepared = _prepare(shop, webhook_id, resource_id)
        if prepared is None:
            continue
        hook, body, headers = prepared
        if losses is not None and losses.rng.random() < losses.lost:
            continue
        times = 2 if losses is not None and losses.rng.random() < losses.doubled else 1
        for _ in range(times):
            status = send(hook.delivery_url, headers, body)
            _count(shop, hook, status)
            done.append(
                Delivery(
                    webhook_id=hook.id,
                    topic=hook.topic,
                    resource_id=resource_id,
                    body=body,
                    headers=headers,
                    status=status,
                )
            )
    return done


def send_pings(shop: Shop, send: Sender) -> None:
    """Send the pings of webhooks that were just made: a form, unsigned, whose answer does not matter."""
    while shop.pings:
        hook = shop.webhooks.get(shop.pings.popleft())
        if hook is not None:
            headers = {"Content-Type": "application/x-www-form-urlencoded", "User-Agent": _agent(shop)}
            send(hook.delivery_url, headers, f"webhook_id={hook.id}".encode())


def _prepare(shop: Shop, webhook_id: int, resource_id: int) -> tuple[Webhook, bytes, dict[str, str]] | None:
    """Return the delivery with the state of now; None where the webhook or the resource is gone or disabled."""
    with shop.lock:
        hook = shop.webhooks.get(webhook_id)
        if hook is None:
            return None
        hook.waiting.discard((webhook_id, resource_id))
        payload = _payload(shop, hook.topic, resource_id)
        if hook.status != "active" or payload is None:
            return None
        body = orjson.dumps(payload)
        resource, _, event = hook.topic.partition(".")
        delivery_id = hashlib.md5(f"{hook.id}:{resource_id}:{shop.clock()}".encode(), usedforsecurity=False)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": _agent(shop),
            "X-WC-Webhook-Source": f"{shop.home_url}/",
            "X-WC-Webhook-Topic": hook.topic,
            "X-WC-Webhook-Resource": resource,
            "X-WC-Webhook-Event": event,
            "X-WC-Webhook-Signature": signature(hook.secret, body),
            "X-WC-Webhook-ID": str(hook.id),
            "X-WC-Webhook-Delivery-ID": delivery_id.hexdigest(),
            "Connection": "close",
        }
        return hook, body, headers


def _payload(shop: Shop, topic: str, resource_id: int) -> Json | None:
    if topic.endswith(".deleted"):
        return {"id": resource_id}
    if topic.startswith("order."):
        order = shop.orders.get(resource_id)
        return None if order is None else order_view(shop, order)
    product = shop.products.get(resource_id)
    return None if product is None else view(shop, product)


def _count(shop: Shop, hook: Webhook, status: int) -> None:
    """Count a delivery's outcome: 2xx, 301 and 302 are successes."""
    with shop.lock:
        if 200 <= status < 300 or status in (301, 302):
            hook.failure_count = 0
        elif hook.failure_count >= FAILURES_MAX:
            hook.status = "disabled"
        else:
            hook.failure_count += 1


def _agent(shop: Shop) -> str:
    return f"WooCommerce/{shop.version.text} Hookshot (WordPress/6.9.7)"


# --- REST


def hook_view(hook: Webhook) -> Json:
    """Return a webhook as JSON: neither its secret nor its failures are shown."""
    resource, _, event = hook.topic.partition(".")
    return {
        "id": hook.id,
        "name": hook.name,
        "status": hook.status,
        "topic": hook.topic,
        "resource": resource,
        "event": event,
        "delivery_url": hook.delivery_url,
        "date_created": stamp(hook.created_s),
        "date_created_gmt": stamp(hook.created_s),
    }


def post_webhook(request: Request) -> Handler:
    """POST /webhooks: makes one and pings its address."""
    yield Step(Work.READ_ITEM)
    shop, params = request.shop, request.params
    topic, url = str(params.get("topic", "")), str(params.get("delivery_url", ""))
    if topic not in TOPICS:
        text = "Webhook topic is required and must be valid."
        raise RestError("woocommerce_rest_shop_webhook_invalid_topic", text, 400)
    _check_url(url)
    hook = Webhook(
        id=shop.next_webhook_id,
        name=str(params.get("name", "")),
        topic=topic,
        delivery_url=url,
        secret=str(params.get("secret") or random.SystemRandom().randbytes(SECRET_LENGTH // 2).hex()),
        created_s=shop.clock(),
    )
    shop.next_webhook_id += 1
    shop.webhooks[hook.id] = hook
    shop.pings.append(hook.id)
    return Reply(status=201, body=linked(shop, hook_view(hook), "webhooks"))


def list_webhooks(request: Request) -> Handler:
    """GET /webhooks."""
    hooks = sorted(request.shop.webhooks.values(), key=lambda hook: -hook.id)
    per_page, page = int(request.query.get("per_page", 10)), int(request.query.get("page", 1))
    yield Step(Work.READ_ITEM, max(1, len(hooks)))
    total = {"X-WP-Total": str(len(hooks)), "X-WP-TotalPages": str(-(-len(hooks) // per_page))}
    cut = hooks[(page - 1) * per_page : page * per_page]
    return Reply(body=[hook_view(hook) for hook in cut], headers=total)


def get_webhook(request: Request, raw_id: str) -> Handler:
    """GET /webhooks/{id}."""
    yield Step(Work.READ_ITEM)
    hook = request.shop.webhooks.get(php.to_int(raw_id))
    if hook is None:
        raise RestError("woocommerce_rest_shop_webhook_invalid_id", "Invalid ID.", 404)
    return Reply(body=linked(request.shop, hook_view(hook), "webhooks"))


def put_webhook(request: Request, raw_id: str) -> Handler:
    """PUT /webhooks/{id}: activating it again does not forget its failures."""
    yield Step(Work.READ_ITEM)
    shop, params = request.shop, request.params
    hook = shop.webhooks.get(php.to_int(raw_id))
    if hook is None:
        raise RestError("woocommerce_rest_shop_webhook_invalid_id", "ID is invalid.", 400)
    if "delivery_url" in params:
        _check_url(str(params["delivery_url"]))
        hook.delivery_url = str(params["delivery_url"])
    hook.status = str(params.get("status", hook.status))
    hook.secret = str(params.get("secret", hook.secret))
    hook.name = str(params.get("name", hook.name))
    return Reply(body=linked(shop, hook_view(hook), "webhooks"))


def delete_webhook(request: Request, raw_id: str) -> Handler:
    """DELETE /webhooks/{id}, which needs ``force``."""
    yield Step(Work.READ_ITEM)
    shop = request.shop
    if not php.schema_bool(request.params.get("force", False)):
        raise RestError("woocommerce_rest_trash_not_supported", "Webhooks do not support trashing.", 501)
    hook = shop.webhooks.pop(php.to_int(raw_id), None)
    if hook is None:
        raise RestError("woocommerce_rest_shop_webhook_invalid_id", "Invalid ID.", 404)
    return Reply(body=linked(shop, hook_view(hook), "webhooks"))


def _check_url(url: str) -> None:
    if urlsplit(url).scheme not in ("http", "https"):
        text = "Webhook delivery URL must be a valid URL starting with http:// or https://."
        raise RestError("woocommerce_rest_shop_webhook_invalid_delivery_url", text, 400)


def setting_reply(request: Request, name: str) -> Handler:
    """GET or PUT of the two settings of products that matter here."""
    yield Step(Work.READ_ITEM)
    settings, value = request.shop.settings, request.params.get("value")
    shown: Any
    if name == "woocommerce_manage_stock":
        if value is not None:
            settings.manage_stock = value == "yes"
        shown = "yes" if settings.manage_stock else "no"
    elif name == "woocommerce_notify_no_stock_amount":
        if value is not None:
            settings.no_stock_amount = php.to_int(value)
        shown = str(settings.no_stock_amount)
    else:
        raise RestError("rest_setting_setting_invalid", "Invalid setting.", 404)
    return Reply(body={"id": name, "value": shown})
