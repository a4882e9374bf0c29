"""Condense recorded WooCommerce exchanges into the fixtures of ``test_storefront_replay``.

    python -m tests.condense_exchanges ../shared/woocommerce tests/exchanges

Kept are statuses, codes, the paging and retry headers, and the fields that concern stock; texts, prices and everything
about people are dropped. Each fixture is a list of lines, an exchange or a note a line.
"""

from __future__ import annotations

import json
import sys
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

PRODUCT = "id sku type status manage_stock stock_quantity stock_status backorders low_stock_amount parent_id"
ORDER = "product_id variation_id quantity line_items order_id items_count amount"
OTHERS = (
    "update create delete error is_in_stock maximum add_to_cart value topic delivery_url environment version"
)
KEPT = frozenset(f"{PRODUCT} {ORDER} {OTHERS}".split())
HEADERS = ("x-wp-total", "x-wp-totalpages", "retry-after", "allow")
SENT_HEADERS = (
    "content-type",
    "x-test-fault",
    "if-match",
    "if-unmodified-since",
    "if-none-match",
    "cart-token",
)
DROPPED_PARAMETERS = (
    "consumer_key",
    "consumer_secret",
    "oauth_signature",
    "oauth_timestamp",
    "oauth_consumer_key",
)
ABOUT_WEBHOOKS = "event deliveries webhooks answer case failure_number after_success reset while_disabled"
NOTES = frozenset(f"{ABOUT_WEBHOOKS} after_reactivation after_draft after_place reserved".split())
TEXT_MAX = 200


def condensed(body: Any) -> Any:
    """Return what is kept of a JSON value."""
    if isinstance(body, list):
        return [condensed(item) for item in body]
    if not isinstance(body, dict):
        return body
    if "code" in body and "message" in body:
        data = body.get("data")
        kept = {"code": body["code"], "status": data.get("status") if isinstance(data, dict) else None}
        if body["code"] == "woocommerce_rest_authentication_error":
            kept["message"] = body["message"]
        return kept
    return {name: condensed(value) for name, value in body.items() if name in KEPT}


def exchange(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return a recorded exchange or note as a line of a fixture."""
    if "method" not in recorded:
        note = recorded.get("note")
        return (
            {"note": {k: _note(v) for k, v in note.items() if k in NOTES}}
            if isinstance(note, dict)
            else {"note": {}}
        )
    split = urlsplit(recorded["url"])
    query = [(k, v) for k, v in parse_qsl(split.query, keep_blank_values=True) if k not in DROPPED_PARAMETERS]
    sent = {
        k.lower(): v for k, v in (recorded.get("request_headers") or {}).items() if k.lower() in SENT_HEADERS
    }
    answered = {k.lower(): v for k, v in (recorded.get("response_headers") or {}).items()}
    body = recorded.get("response_body")
    line: dict[str, Any] = {
        "at": _seconds(answered.get("date")),
        "label": recorded["label"],
        "method": recorded["method"],
        "tls": split.scheme == "https",
        "port": split.port,
        "url": split.path + (f"?{urlencode(query)}" if query else ""),
        "auth": recorded.get("auth"),
        "sent": sent,
        "body": _sent(recorded.get("request_body")),
        "status": recorded["status"],
        "kind": answered.get("content-type", "").partition(";")[0],
        "headers": {name: answered[name] for name in HEADERS if name in answered},
        "answer": condensed(body) if isinstance(body, dict | list) else str(body)[:TEXT_MAX],
    }
    return line


def _seconds(date: str | None) -> float | None:
    """Return the answer's time in seconds since 1970."""
    return None if date is None else parsedate_to_datetime(date).timestamp()


def _sent(body: Any) -> Any:
    """Return a request's body without people in it; a very long text by its length."""
    if isinstance(body, str) and len(body) > TEXT_MAX:
        return {"__long_text__": len(body)}
    if isinstance(body, dict):
        return {
            k: v
            for k, v in body.items()
            if k not in ("billing", "billing_address", "shipping_address", "secret")
        }
    return body


def _note(value: Any) -> Any:
    if isinstance(value, list):
        return [_note(item) for item in value][:20]
    if isinstance(value, dict):
        return {k: v for k, v in value.items() if k in ("path", "id", "status", "stock") or k.isdigit()}
    return value


def main(source: Path, target: Path) -> None:
    """Write a fixture for each recording."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("[0-9]*.json")):
        recorded = json.loads(path.read_bytes())["exchanges"]
        lines = [json.dumps(exchange(one), separators=(",", ":"), ensure_ascii=False) for one in recorded]
        (target / path.name).write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
