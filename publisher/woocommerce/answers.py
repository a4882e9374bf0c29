"""What an answer of WooCommerce means. Pure: status, headers and bytes in, JSON or a ShopFailure out.

A 200 is no success by itself: a challenge page, a plugin's warning before the JSON or an empty list may come with it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from publisher.storefront import FailureKind, ShopFailure

RETRY_AFTER_MAX_S = 3_600.0
MESSAGE_CHARS_MAX = 200
TOO_MANY_ITEMS = "woocommerce_rest_request_entity_too_large"

_TAGS = re.compile(r"<[^>]*>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A JSON answer. ``total`` and ``pages`` are of a list: -1 where the shop said nothing."""

    status: int
    json: Any  # Any: JSON
    total: int = -1
    pages: int = -1


def read_answer(status: int, headers: Mapping[str, str], body: bytes, now: float) -> Answer:
    """Return a JSON answer with a status below 300. Raises ShopFailure for everything else.

    ``headers`` by lower-case names. ``now``: seconds since 1970, for a Retry-After that is a date.
    """
    is_json = "json" in headers.get("content-type", "").lower()
    found: Any = None  # Any: JSON
    readable = False
    if is_json:
        try:
            found, readable = msgspec.json.decode(body), True
        except (msgspec.DecodeError, UnicodeDecodeError):
            readable = False
    if 200 <= status < 300:
        if not readable:
            what = "text before or after the JSON" if is_json else headers.get("content-type", "no type")
            raise ShopFailure(FailureKind.BROKEN, f"answered {status} with {what}", status=status)
        return Answer(
            status=status,
            json=found,
            total=_number(headers.get("x-wp-total")),
            pages=_number(headers.get("x-wp-totalpages")),
        )
    code, message = error_of(found) if readable else ("", "")
    kind = _kind(status, code, readable)
    raise ShopFailure(
        kind,
        f"answered {status}{f' {code}' if code else ''}: {message or 'no reason that can be read'}",
        code=code,
        status=status,
        retry_after_s=retry_after_s(headers.get("retry-after", ""), now),
    )


def _kind(status: int, code: str, readable: bool) -> FailureKind:
    if status == 401 or (status == 403 and readable):
        return FailureKind.AUTHENTICATION
    if status == 413:
        return FailureKind.TOO_LARGE
    if status in (403, 408, 429, 503):  # 403 without JSON: a firewall's page
        return FailureKind.OVERLOADED
    if status == 504:
        return FailureKind.TIMEOUT
    if status >= 500:
        return FailureKind.BROKEN
    if status in (404, 410) and code not in ("", "rest_no_route"):
        return FailureKind.NOT_FOUND
    return FailureKind.REJECTED


def error_of(found: Any) -> tuple[str, str]:  # Any: JSON
    """Return code and message of an error object, without HTML; empty where there is none."""
    if not isinstance(found, dict):
        return "", ""
    code, message = found.get("code"), found.get("message")
    return (code if isinstance(code, str) else ""), plain(message if isinstance(message, str) else "")


def plain(text: str) -> str:
    """Return a text without tags, on one line, not too long: it stands in logs and tables."""
    words = " ".join(html.unescape(_TAGS.sub(" ", text)).split())
    return words if len(words) <= MESSAGE_CHARS_MAX else words[: MESSAGE_CHARS_MAX - 1] + "…"


def retry_after_s(told: str, now: float) -> float:
    """Read Retry-After: seconds or a date; 0 where it says nothing that can be read."""
    text = told.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return min(float(text), RETRY_AFTER_MAX_S)
    try:
        wait_s = parsedate_to_datetime(text).timestamp() - now
    except (TypeError, ValueError):
        return 0.0
    return min(max(0.0, wait_s), RETRY_AFTER_MAX_S)


def _number(told: str | None) -> int:
    return int(told) if told is not None and told.isascii() and told.isdigit() else -1
