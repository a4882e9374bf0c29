"""The door for a shop's webhooks. What comes in is a hint and no more: the order is read again before it counts.

A delivery is signed over its raw bytes; the ping at a webhook's creation is a form without a signature and may say
nothing but an id. The shop never tries again and switches a webhook off at the seventh failure in a row, so whatever
is signed is answered 200 as soon as its order's id is kept, drafts and unwanted topics included; only an id that could
not be kept is answered 503. Of a delivery nothing is kept but the order's id.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import structlog
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from availability.history.database import HistoryError

_LOG = structlog.get_logger(__name__)

BODY_BYTES_MAX = 2_000_000
"""An order of a hundred lines with a plugin's meta data has a few hundred KB."""
PING_BYTES_MAX = 64
ORDER_ID_MAX = 2**63 - 1
PATH = "/shops/{shop}/orders"
TOPICS = ("order.created", "order.updated", "order.deleted", "order.restored")


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """Where one shop's deliveries go. ``keep`` stores an order's id durably (it blocks and raises HistoryError);
    ``came`` says that one came; ``count`` is told each result."""

    secret: Callable[[], SecretStr]
    keep: Callable[[int], None]
    came: Callable[[], None] = lambda: None
    count: Callable[[str], None] = lambda _: None


def signature(secret: bytes, body: bytes) -> str:
    """Return what WooCommerce sends in X-WC-Webhook-Signature for these bytes."""
    return base64.b64encode(hmac.new(secret, body, hashlib.sha256).digest()).decode()


def receiver_app(doors: Mapping[str, Door], *, body_bytes_max: int = BODY_BYTES_MAX) -> Starlette:
    """Return the ASGI application: POST /shops/SHOP/orders. Counts by result go to each door's ``count``."""

    async def take(request: Request) -> Response:
        door = doors.get(request.path_params["shop"])
        body = await _body(request, body_bytes_max)
        if isinstance(body, Response):
            return body
        told = request.headers.get("x-wc-webhook-signature", "")
        if not told and _is_ping(request, body):
            if door is not None:
                door.count("ping")
            return JSONResponse({"result": "ping"})
        if door is None:
            return _refused()
        expected = signature(door.secret().get_secret_value().encode(), body)
        if not hmac.compare_digest(told.encode("utf-8", "replace"), expected.encode()):
            door.count("forged")
            return _refused()
        return await _signed(door, request.headers.get("x-wc-webhook-topic", ""), body)

    return Starlette(routes=[Route(PATH, take, methods=["POST"])])


async def _body(request: Request, bytes_max: int) -> bytes | Response:
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > bytes_max):
        return _told(413, "BATCH_TOO_LARGE", f"at most {bytes_max} bytes")
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > bytes_max:
                return _told(413, "BATCH_TOO_LARGE", f"at most {bytes_max} bytes")
    except ClientDisconnect:
        return Response(status_code=400)
    return bytes(body)


async def _signed(door: Door, topic: str, body: bytes) -> Response:
    if not topic.startswith("order."):
        door.count("unwanted")  # product.updated comes for every number that we write ourselves
        return JSONResponse({"result": "ignored"})
    order_id = _order_id(body)
    if order_id is None:
        # Signed, and no order: polling finds what it meant. A refusal would only help to switch the webhook off.
        door.count("unreadable")
        _LOG.warning("a signed webhook names no order", topic=topic[:64], bytes=len(body))
        door.came()
        return JSONResponse({"result": "unreadable"})
    try:
        await asyncio.to_thread(door.keep, order_id)
    except HistoryError as error:
        door.count("lost")
        _LOG.error("a webhook's order cannot be kept; polling will find it", reason=error.reason)
        return _told(503, "OVERLOADED", "not kept")
    door.count("kept")
    door.came()
    return JSONResponse({"result": "kept"})


def _is_ping(request: Request, body: bytes) -> bool:
    """A ping says ``webhook_id=N``, as a form, and nothing else."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded" or len(body) > PING_BYTES_MAX:
        return False
    try:
        fields = parse_qsl(body.decode("ascii"), strict_parsing=True, max_num_fields=2)
    except ValueError:
        return False
    return len(fields) == 1 and fields[0][0] == "webhook_id" and fields[0][1].isdigit()


def _order_id(body: bytes) -> int | None:
    try:
        found: Any = msgspec.json.decode(body)  # Any: JSON
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    order_id = found.get("id") if isinstance(found, dict) else None
    if not isinstance(order_id, int) or isinstance(order_id, bool) or not 0 < order_id <= ORDER_ID_MAX:
        return None
    return order_id


def _refused() -> Response:
    """Answer an unknown shop as a wrong signature: shops stay unknown to strangers."""
    return _told(401, "UNAUTHENTICATED", "who are you?")


def _told(status: int, reason: str, message: str) -> Response:
    return JSONResponse({"reason": reason, "message": message}, status_code=status)
