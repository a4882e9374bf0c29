"""Replays the recorded exchanges (tests/exchanges) against the storefront double and collects what differs.

The recordings are four shops (10.5.0, 10.0.2, 8.9.3, 5.9.0), told apart by their ports, whose state lives on from file
to file. What was done to a shop beside its API (a fault, a parallel run, a delivery) is done here by hand: ``SCENES``
by file and label, and the notes about webhooks. Ids of what a call creates are taken from the recording.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from publisher.testing.clock import MovableClock
from publisher.testing.faults import Fault, Kind
from publisher.testing.keys import ApiKey, oauth_signature
from publisher.testing.orders import place_order
from publisher.testing.server import Storefront
from publisher.testing.shop import Shop, Version
from publisher.testing.stock import EXTERNAL, GROUPED, SIMPLE, VARIABLE, VARIATION
from publisher.testing.webhooks import Delivery
from publisher.testing.wire import Answer

EXCHANGES = Path(__file__).parent / "exchanges"
VERSIONS = {8102: "10.0.2", 8103: "8.9.3", 8104: "5.9.0"}
BEHIND_TLS = frozenset((8098, *VERSIONS))
"""Ports of plain http whose shops believe in TLS (HTTPS=on)."""
START_S = 1_795_248_000.0
PROXY_LIMIT_BYTES = 17 * 1024 * 1024
TELLING = frozenset(
    [
        "deliveries",
        "webhooks",
        "while_disabled",
        "after_reactivation",
        "after_success",
        "reset",
        "after_draft",
        "after_place",
    ]
)
KEYS = {
    "ck_all": ApiKey(secret="cs_all"),
    "ck_read": ApiKey(secret="cs_read", permission="read"),
    "ck_write": ApiKey(secret="cs_write", permission="write"),
}
HEADER_FAULTS = {
    "fatal-early": Fault(kind=Kind.FATAL_EARLY),
    "fatal-rest": Fault(kind=Kind.FATAL_EARLY),
    "fatal-mid": Fault(kind=Kind.FATAL_AT_ITEM, items=3),
    "timeout-mid": Fault(kind=Kind.FATAL_AT_ITEM, items=3),
    "exc-mid": Fault(kind=Kind.HOOK_EXCEPTION, items=2),
    "die-html": Fault(kind=Kind.CHALLENGE_PAGE),
    "wp_die": Fault(kind=Kind.PLUGIN_REFUSES),
    "echo": Fault(kind=Kind.HTML_BEFORE_JSON),
}


Line = dict[str, Any]
Scene = Callable[[Storefront], None]


@dataclass(frozen=True, slots=True)
class Difference:
    """An exchange whose answer the double does not give: file, place in it and label, and what differs."""

    where: str
    what: str


@dataclass(slots=True)
class Receiver:
    """Takes the webhooks' deliveries and answers with what the recording's receiver answered."""

    status: int = 200
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    def __call__(self, url: str, headers: dict[str, str], body: bytes) -> int:
        """Keep a delivery."""
        self.got.append((url, headers, body))
        return self.status


def recordings() -> list[str]:
    """Return the files in the order in which they were recorded."""

    def began(path: Path) -> tuple[float, str]:
        times = [line["at"] for line in json.loads(path.read_bytes()) if line.get("at") is not None]
        return (min(times, default=0.0), path.name)

    return [path.name for path in sorted(EXCHANGES.glob("*.json"), key=began)]


class Replay:
    """The four shops, and the comparison of their answers with the recorded ones."""

    def __init__(self) -> None:
        self.clock = MovableClock(START_S)
        self.receiver = Receiver()
        self.shops = {
            version: Storefront(shop=_sample_shop(version, self.clock), send=self.receiver)
            for version in ("10.5.0", *VERSIONS.values())
        }
        self.replayed = 0

    def run(self, name: str) -> Iterator[Difference]:
        """Replay a file and yield what differs."""
        default = next((v for v in self.shops if v in name), "10.5.0")
        lines = json.loads((EXCHANGES / name).read_bytes())
        first_lines = {
            line["answer"]["id"]: line["answer"]["line_items"][0]["id"]
            for line in reversed(lines)
            if isinstance(line.get("answer"), dict) and line["answer"].get("line_items")
        }
        for index, line in enumerate(lines):
            where = f"{name}#{index} {line.get('label', 'note')}"
            if "note" in line:
                yield from (Difference(where, text) for text in self._note(line["note"]))
                continue
            self.clock.advance(max(0.0, (line["at"] or 0.0) - self.clock()))
            storefront = self.shops[VERSIONS.get(line["port"], default)]
            scene = SCENES.get((name, line["label"]))
            if scene is not None:
                scene(storefront)
            self.replayed += 1
            take_ids(storefront.shop, line, first_lines)
            answer = self._sent(storefront, line)
            yield from (Difference(where, text) for text in differences_of_answers(line, answer))

    def _sent(self, storefront: Storefront, line: Line) -> Answer:
        """Send an exchange's request, with ids of new things as the recording has them."""
        fault = HEADER_FAULTS.get(line["sent"].get("x-test-fault", ""))
        if fault is not None:
            fault.hits = 0
            storefront.faults.add(fault)
        url, headers = signed(line, storefront.shop.home_url, self.clock(), index=self.replayed)
        body = line["body"]
        if isinstance(body, dict) and "__long_text__" in body:
            payload = b'{"update": [{"id": 70, "description": "' + b"x" * PROXY_LIMIT_BYTES + b'"}]}'
        elif isinstance(body, str):
            payload = raw_text(body)
        else:
            payload = b"" if body is None else json.dumps(body).encode()
        if payload and "content-type" not in headers:
            headers["content-type"] = "application/json"
        return storefront.call(
            line["method"], url, headers=headers, body=payload, tls=line["tls"] or line["port"] in BEHIND_TLS
        )

    def _note(self, note: Line) -> Iterator[str]:
        """Do and compare what a note tells about webhooks and reservations."""
        storefront = self.shops["10.5.0"]
        shop = storefront.shop
        if "reserved" in note:
            held = [
                f"{order}\t{one.product_id}\t{one.quantity}\t{round(one.expires_s - shop.orders[order].modified_s)}"
                for order, ones in shop.reservations.items()
                for one in ones
            ]
            if held != [text for text in note["reserved"] if text]:
                yield f"reserved {held} for {note['reserved']}"
        if not TELLING & set(note):
            return
        failing = "failure_number" in note or str(note.get("case", "")).startswith(("500 once", "7 orders"))
        self.receiver.status = int(note.get("answer", 500 if failing else 200))
        sent = storefront.deliver_webhooks()
        for name in ("deliveries", "while_disabled", "after_reactivation"):
            if isinstance(note.get(name), int) and len(sent) != note[name]:
                yield f"{name}: {len(sent)} for {note[name]}"
        for name in ("deliveries", "after_draft", "after_place"):
            if isinstance(note.get(name), list):
                expected = [_delivered(one) for one in note[name]]
                shown = [_shown_delivery(one, like=note[name]) for one in sent]
                if (sorted(shown) != sorted(expected)) if name == "deliveries" else (shown != expected):
                    yield f"{name}: {shown} for {expected}"
        for text in [one for name in ("webhooks", "after_success", "reset") for one in note.get(name, ())]:
            number, _, status, failures = text.split("\t")[:4]
            hook = shop.webhooks[int(number)]
            if (hook.status, hook.failure_count) != (status, int(failures)):
                yield f"webhook {number} is {hook.status} {hook.failure_count} for {status} {failures}"


def _delivered(note: Any) -> str:
    """Return a noted delivery as text: its topic alone, with id and status, or with the stock too."""
    if isinstance(note, str):
        return note
    facts = (
        [note.get(key) for key in ("path", "id", "status", "stock")] if isinstance(note, dict) else note[:3]
    )
    return " ".join(str(fact) for fact in facts)


def _shown_delivery(sent: Delivery, *, like: list[Any]) -> str:
    """Return a delivery of the double as the note would tell it."""
    payload = json.loads(sent.body)
    facts: list[object] = [
        f"/{sent.topic}",
        payload.get("id"),
        payload.get("status"),
        payload.get("stock_quantity"),
    ]
    if like and isinstance(like[0], str):
        facts = facts[:1]
    elif like and isinstance(like[0], list):
        facts = facts[:3]
    return " ".join(str(fact) for fact in facts)


def raw_text(body: str) -> bytes:
    """Return a body that was recorded as text; one was recorded as the repr of bytes."""
    if body.startswith("b'"):
        return body[2:-1].encode().decode("unicode_escape").encode("latin-1")
    return body.encode()


def take_ids(shop: Shop, line: Line, first_lines: dict[int, int]) -> None:
    """Let the shop number what the call creates as the recording numbered it."""
    answer = line["answer"]
    if line["status"] >= 300 or not isinstance(answer, dict):
        return
    path = urlsplit(line["url"]).path
    made = answer.get("create") or ([answer] if line["status"] == 201 else [])
    if "order_id" in answer and answer["order_id"] not in shop.orders:
        shop.next_post_id = answer["order_id"]
    if made and "id" in made[0]:
        if path.endswith("/webhooks"):
            shop.next_webhook_id = made[0]["id"]
        else:
            shop.next_post_id = made[0]["id"]
            shop.next_line_id = first_lines.get(made[0]["id"], shop.next_line_id)
    for order in made or [answer]:
        known = (
            {line.id for line in shop.orders[order["id"]].lines} if order.get("id") in shop.orders else set()
        )
        new = [one["id"] for one in order.get("line_items") or [] if one.get("id") not in known]
        if new:
            shop.next_line_id = new[0]
            break


def signed(line: Line, home_url: str, now_s: float, *, index: int) -> tuple[str, dict[str, str]]:
    """Return the URL and the headers with the keys that the recording's label speaks of."""
    label, kind, url = line["label"], line["auth"], line["url"]
    key, secret = "ck_all", "cs_all"
    if label.startswith("read-only") or label == "ro":
        key, secret = "ck_read", "cs_read"
    elif label.startswith("write-only"):
        key, secret = "ck_write", "cs_write"
    elif "unknown key" in label or label == "bad key":
        key = "ck_unknown"
    elif "wrong secret" in label:
        secret = "cs_wrong"
    headers = dict(line["sent"])
    if kind == "basic":
        headers["authorization"] = "Basic " + base64.b64encode(f"{key}:{secret}".encode()).decode()
    elif kind == "qs":
        url += ("&" if "?" in url else "?") + urlencode({"consumer_key": key, "consumer_secret": secret})
    elif kind in ("oauth", "oauth-h"):
        pairs = parse_qsl(urlsplit(url).query, keep_blank_values=True)
        query = [(name, value) for name, value in pairs if not name.startswith("oauth_")]
        at_s = now_s - (20 * 60 if "-20min" in label else 0)
        nonce = "deadbeef01" if "nonce" in label else f"nonce-{index}"
        oauth = [
            ("oauth_consumer_key", key),
            ("oauth_nonce", nonce),
            ("oauth_signature_method", "HMAC-SHA256"),
            ("oauth_timestamp", str(int(at_s))),
        ]
        base = (home_url.replace("http:", "https:") if line["tls"] else home_url) + urlsplit(url).path
        oauth.append(("oauth_signature", oauth_signature(line["method"], base, [*query, *oauth], secret)))
        if kind == "oauth":
            url = f"{urlsplit(url).path}?{urlencode([*query, *oauth])}"
        else:
            url = urlsplit(url).path + (f"?{urlencode(query)}" if query else "")
            headers["authorization"] = "OAuth " + ", ".join(f'{n}="{quote(v, safe="")}"' for n, v in oauth)
    return url, headers


def differences_of_answers(line: Line, answer: Answer) -> Iterator[str]:
    """Yield what of a recorded answer the double's does not have."""
    if answer.status != line["status"]:
        yield f"status {answer.status} for {line['status']}: {answer.body[:200]!r}"
        return
    shown = {name.lower(): value for name, value in answer.headers.items()}
    kind = shown.get("content-type", "").partition(";")[0]
    if kind != line["kind"]:
        yield f"content type {kind} for {line['kind']}"
    for name, value in line["headers"].items():
        if shown.get(name) != value:
            yield f"{name} {shown.get(name)} for {value}"
    recorded = line["answer"]
    if isinstance(recorded, str):
        start = recorded[:40].replace("\r\n", "")
        if recorded != "trimmed" and not answer.body.decode().replace("\r\n", "").startswith(start):
            yield f"body {answer.body[:60]!r} for {recorded[:60]!r}"
        return
    yield from differences(recorded, json.loads(answer.body), "")


def differences(recorded: Any, shown: Any, path: str) -> Iterator[str]:
    """Yield what differs of a JSON value, in the fields that were kept of the recorded one."""
    if isinstance(recorded, list):
        if any(isinstance(one, str) and "trimmed" in one for one in recorded):
            recorded = [one for one in recorded if not isinstance(one, str)][:3]
            shown = shown[: len(recorded)] if isinstance(shown, list) else shown
        if not isinstance(shown, list) or len(shown) != len(recorded):
            yield f"{path}: {str(shown)[:160]} for a list of {len(recorded)}"
            return
        for index, (one, other) in enumerate(zip(recorded, shown, strict=True)):
            yield from differences(one, other, f"{path}[{index}]")
        return
    if not isinstance(recorded, dict):
        same = recorded == shown and type(recorded) is type(shown)
        if not same:
            yield f"{path}: {shown!r} for {recorded!r}"
        return
    if not isinstance(shown, dict):
        yield f"{path}: {shown!r} for an object"
        return
    if set(recorded) >= {"code", "status"}:
        data = shown.get("data")
        shown = {**shown, "status": data.get("status") if isinstance(data, dict) else None}
    if {"manage_stock", "stock_quantity", "backorders"} <= set(recorded):
        for name in ("type", "parent_id"):
            if name in shown and name not in recorded:
                yield f"{path}.{name}: shown, but not recorded"
    for name, value in recorded.items():
        if name not in shown:
            yield f"{path}.{name}: missing"
        else:
            yield from differences(value, shown[name], f"{path}.{name}")


# --- the scene


def _sample_shop(version: str, clock: MovableClock) -> Shop:
    """Return a shop with WooCommerce's sample products, numbered as in the recording of the version."""
    first = 11 if version == "10.5.0" else 10
    shop = Shop(clock=clock, version=Version(version), home_url="http://127.0.0.1:8099", keys=dict(KEYS))
    shop.next_post_id = first
    names = {0: "woo-vneck-tee", 1: "woo-hoodie", 2: "woo-hoodie-with-logo", 3: "woo-tshirt"}
    for offset in range(14):
        kind = VARIABLE if offset < 2 else SIMPLE
        shop.add(names.get(offset, f"woo-sample-{offset}"), kind=kind)
    for parent, colours in ((first, ("red", "green", "blue")), (first + 1, ("red", "green", "blue"))):
        stem = names[parent - first]
        for colour in colours:
            shop.add(f"{stem}-{colour}", kind=VARIATION, parent=parent)
    for sku, kind in (
        ("woo-20", SIMPLE),
        ("woo-21", SIMPLE),
        ("logo-collection", GROUPED),
        ("wp-pennant", EXTERNAL),
    ):
        shop.add(sku, kind=kind)
    shop.add("woo-hoodie-blue-logo", kind=VARIATION, parent=first + 1)
    shop.products[first + 2].modified_s -= 1
    return shop


def set_stock(shop: Shop, quantities: dict[int, int]) -> None:
    """Set quantities beside the API."""
    for product_id, quantity in quantities.items():
        product = shop.products[product_id]
        product.manage_stock, product.quantity = True, quantity
        shop.store(product, tell=False)


def _stock(quantities: dict[int, int]) -> Scene:
    return lambda storefront: set_stock(storefront.shop, quantities)


def _fault(**how: Any) -> Scene:
    def arm(storefront: Storefront) -> None:
        storefront.faults.add(Fault(**how))

    return arm


def _orders(product_id: int, count: int) -> Scene:
    def sell(storefront: Storefront) -> None:
        for _ in range(count):
            place_order(storefront.shop, [{"product_id": product_id, "quantity": 1}], created_via="rest-api")

    return sell


def _settings(**values: Any) -> Scene:
    def change(storefront: Storefront) -> None:
        for name, value in values.items():
            setattr(storefront.shop.settings, name, value)

    return change


def _client_went_away(storefront: Storefront) -> None:
    """The batch of 60 whose caller gave up after 0.4 s: the shop went on."""
    set_stock(storefront.shop, dict.fromkeys(range(70, 130), 506))


def _without_webhooks(*webhook_ids: int) -> Scene:
    def remove(storefront: Storefront) -> None:
        for webhook_id in webhook_ids:
            storefront.shop.webhooks.pop(webhook_id, None)

    return remove


SCENES: dict[tuple[str, str], Scene] = {
    ("08b-webhook-failures.json", "full webhook object"): _without_webhooks(13, 14, 15, 16),
    ("07b-races.json", "expected 76"): _orders(51, 24),
    ("07b-races.json", "expected 88"): _orders(51, 12),
    ("09-errors.json", "read back after client timeout"): _client_went_away,
    ("09-errors.json", "maintenance mode"): _fault(kind=Kind.MAINTENANCE),
    ("09-errors.json", "maintenance GET"): _fault(kind=Kind.MAINTENANCE),
    ("09-errors.json", "DB down"): _fault(kind=Kind.DATABASE_DOWN),
    ("09-errors.json", "DB down index"): _fault(kind=Kind.DATABASE_DOWN),
    ("09-errors.json", "php-fpm down"): _fault(kind=Kind.BAD_GATEWAY),
    ("09b-silent-db-failures.json", "batch while the _stock row of 81 is locked for 14 s"): _fault(
        kind=Kind.LOCK_TIMEOUT, ids=frozenset({81}), seconds=2.0
    ),
    ("09b-silent-db-failures.json", "batch while the database is read-only"): _fault(kind=Kind.READ_ONLY),
    ("09b-silent-db-failures.json", "PUT while the database is read-only"): _fault(kind=Kind.READ_ONLY),
    ("10-modified-cache-limits.json", "Store API with limit 5/10s GET #1"): _settings(store_limit=(5, 10.0)),
    ("12-cross-parent-variations-and-decimals.json", "decimal shop: 3.5"): _settings(whole_units=False),
    ("12-cross-parent-variations-and-decimals.json", "after decimals off again"): _settings(whole_units=True),
}
