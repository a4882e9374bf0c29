"""From a call to its answer: parsing as PHP parses, keys, routes, ``_fields``, and the failures around them.

``respond`` is transport-free: it yields the work between two effects and returns the answer. The lock is held while
it runs, never while it waits.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable, Generator
from urllib.parse import parse_qsl

import orjson

from publisher.testing import checkout, listing, orders, products, webhooks
from publisher.testing.faults import Active, Kind
from publisher.testing.fields import trimmed, wanted_fields
from publisher.testing.keys import authenticate
from publisher.testing.orders import order_view
from publisher.testing.product_writes import Refuse
from publisher.testing.products import Handler, Reply, Request
from publisher.testing.shop import Logged, Shop
from publisher.testing.wire import HTML_TYPE, JSON_TYPE, Answer, Call, Json, RestError, Step, Work, no_route

BODY_MAX_BYTES = 16 * 1024 * 1024
MAINTENANCE_RETRY_S = 600
ROOT = "/wp-json"
_CACHE = "no-cache, must-revalidate, max-age=0, no-store, private"
_FATAL = (
    "<p>There has been a critical error on this website.</p>"
    '<p><a href="https://wordpress.org/documentation/article/faq-troubleshooting/">'
    "Learn more about troubleshooting WordPress.</a></p>"
)
_WARNING = b"<br />\n<b>Warning</b>:  Undefined variable in plugin.php on line 3<br />\n"
_ID = r"(\d+)"

Routes = list[tuple[str, re.Pattern[str], Callable[..., Handler], str]]


def _routes() -> Routes:
    """Return method, path, handler and what is refused without a key, in order of trial."""
    item = f"/wc/v3/products/{_ID}"
    variations = f"{item}/variations"
    order = f"/wc/v3/orders/{_ID}"
    hook = f"/wc/v3/webhooks/{_ID}"
    edit = "POST|PUT|PATCH"
    table: list[tuple[str, str, Callable[..., Handler], str]] = [
        ("GET|HEAD", "/wc/v3/products", listing.list_products, "view"),
        ("POST", "/wc/v3/products", products.post_product, "create"),
        (edit, "/wc/v3/products/batch", products.batch_products, "batch"),
        ("GET|HEAD", item, products.get_product, "view"),
        (edit, item, products.put_product, "edit"),
        ("DELETE", item, products.delete_product, "delete"),
        ("GET|HEAD", variations, listing.list_variations, "view"),
        ("POST", variations, products.post_variation, "create"),
        (edit, f"{variations}/batch", products.batch_variations, "batch"),
        ("GET|HEAD", f"{variations}/{_ID}", products.get_variation, "view"),
        (edit, f"{variations}/{_ID}", products.put_variation, "edit"),
        ("DELETE", f"{variations}/{_ID}", products.delete_variation, "delete"),
        ("GET|HEAD", "/wc/v3/variations", listing.list_all_variations, "view"),
        ("GET|HEAD", "/wc/v3/orders", _list_orders, "view"),
        ("POST", "/wc/v3/orders", orders.post_order, "create"),
        (edit, "/wc/v3/orders/batch", orders.batch_orders, "batch"),
        ("GET|HEAD", order, orders.get_order, "view"),
        (edit, order, orders.put_order, "edit"),
        ("DELETE", order, orders.delete_order_call, "delete"),
        ("GET|HEAD", f"{order}/refunds", orders.get_refunds, "view"),
        ("POST", f"{order}/refunds", orders.post_refund, "create"),
        ("GET|HEAD", "/wc/v3/webhooks", webhooks.list_webhooks, "view"),
        ("POST", "/wc/v3/webhooks", webhooks.post_webhook, "create"),
        ("GET|HEAD", hook, webhooks.get_webhook, "view"),
        (edit, hook, webhooks.put_webhook, "edit"),
        ("DELETE", hook, webhooks.delete_webhook, "delete"),
        (f"GET|{edit}", "/wc/v3/settings/products/(\\w+)", webhooks.setting_reply, "view"),
        ("GET|HEAD", "/wc/v3/system_status", _system_status, "view"),
        ("GET", "/wc/store/v1/products", checkout.store_products, ""),
        ("GET", f"/wc/store/v1/products/{_ID}", checkout.store_product, ""),
        ("GET", "/wc/store/v1/cart", checkout.get_cart, ""),
        ("POST", "/wc/store/v1/cart/add-item", checkout.add_item, ""),
        ("GET", "/wc/store/v1/checkout", checkout.get_checkout, ""),
        (edit, "/wc/store/v1/checkout", checkout.post_checkout, ""),
    ]
    return [(methods, re.compile(path + r"\Z"), handler, right) for methods, path, handler, right in table]


def _list_orders(request: Request) -> Handler:
    return listing.list_orders(request, lambda order: order_view(request.shop, order))


def _system_status(request: Request) -> Handler:
    yield Step(Work.READ_ITEM, 20)
    return Reply(body={"environment": {"version": request.shop.version.text}})


ROUTES = _routes()


def respond(shop: Shop, call: Call) -> Generator[Step, None, Answer]:
    """Answer a call. Yields the work; the caller lets time pass for it. Holds no lock while it waits."""
    path = re.sub("//+", "/", call.url.partition("?")[0])
    faults = shop.faults.take(call.method, path)
    slow = faults.fault(Kind.SLOW)
    factor = slow.factor if slow is not None else 1.0
    work = _answered(shop, call, path, faults)
    try:
        step = next(work)
        while True:
            yield Step(step.work, step.count * factor)
            step = work.send(None)
    except StopIteration as end:
        answer: Answer = end.value
    late = faults.fault(Kind.HANG) or faults.fault(Kind.GATEWAY_TIMEOUT)
    if late is not None:
        yield Step(Work.WAIT, late.seconds)
    return answer


def _answered(shop: Shop, call: Call, path: str, faults: Active) -> Generator[Step, None, Answer]:
    """Do the call and dress its answer."""
    early = _refused_outside(call, path, faults)
    if early is not None:
        yield Step(Work.REQUEST, 0.1)
        _log(shop, call, path, {}, early.status)
        return early
    yield Step(Work.REQUEST)
    query = dict(parse_qsl(call.url.partition("?")[2], keep_blank_values=True))
    request = Request(
        method=_method(call, query),
        path=path.removeprefix(ROOT).rstrip("/"),
        query=query,
        params=dict(query),
        shop=shop,
        faults=faults,
        headers=call.headers,
    )
    allow = ""
    try:
        handler = _routed(request, call)
        allow = _allowed(request.path)
        reply = yield from handler()
        answer = _dressed(shop, reply, wanted_fields(request.params.get("_fields")), faults)
    except RestError as error:
        answer = _json(shop, error.status, error.body())
        if error.code == "rate_limit_exceeded":
            answer.headers["RateLimit-Retry-After"] = "9"
    except Refuse:
        allow = ""
        answer = _json(
            shop, 500, {"code": "internal_server_error", "message": _FATAL, "data": {"status": 500}}
        )
    if allow:
        answer.headers["Allow"] = allow
    _log(shop, call, path, request.params, answer.status)
    after = faults.fault(Kind.AFTER_READ)
    if after is not None and after.action is not None:
        after.action()
    if call.method == "HEAD":
        answer.body = b""
    return answer


def _routed(request: Request, call: Call) -> Callable[[], Handler]:
    """Return the handler, with the key checked; the body is read when it begins. Raises RestError."""
    if request.method == "OPTIONS":
        return functools.partial(_options, request)
    for methods, pattern, handler, right in ROUTES:
        found = pattern.match(request.path)
        if found is None or request.method not in methods.split("|"):
            continue
        if right:
            _admit(request.shop, call, right)
        else:
            _limit_store(request.shop)
        return functools.partial(_handled, request, call, handler, found.groups())
    raise no_route()


def _handled(
    request: Request, call: Call, handler: Callable[..., Handler], groups: tuple[str, ...]
) -> Handler:
    """Read the body and run the handler."""
    request.params.update(_body(call))
    for name in ("consumer_key", "consumer_secret"):
        request.params.pop(name, None)
    return (yield from handler(request, *groups))


def _options(request: Request) -> Handler:
    yield Step(Work.READ_ITEM)
    return Reply(body={"namespace": "wc/v3", "methods": _allowed(request.path).split(", ")})


def _allowed(path: str) -> str:
    """Return the methods of a path, as the Allow header names them."""
    methods = {one for names, pattern, _, _ in ROUTES if pattern.match(path) for one in names.split("|")}
    return ", ".join(one for one in ("GET", "POST", "PUT", "PATCH", "DELETE") if one in methods)


def _admit(shop: Shop, call: Call, right: str) -> None:
    """Raise RestError where the call shows no key that may do this."""
    if authenticate(call, shop.keys, shop.nonces, shop.home_url, shop.clock()):
        return
    texts = {
        "view": "Sorry, you cannot list resources.",
        "batch": "Sorry, you are not allowed to batch manipulate this resource.",
    }
    text = texts.get(right, f"Sorry, you are not allowed to {right} this resource.")
    raise RestError(f"woocommerce_rest_cannot_{right}", text, 401)


def _limit_store(shop: Shop) -> None:
    """Raise RestError over the Store API's limit: 400, not 429."""
    limit = shop.settings.store_limit
    if limit is None:
        return
    most, seconds = limit
    now_s = shop.clock()
    while shop.store_calls and shop.store_calls[0] <= now_s - seconds:
        shop.store_calls.popleft()
    if len(shop.store_calls) >= most:
        text = "Too many requests. Please wait 9 seconds before trying again."
        raise RestError("rate_limit_exceeded", text, 400)
    shop.store_calls.append(now_s)


def _body(call: Call) -> Json:
    """Return the parameters in the body; one of another content type is not read. Raises RestError."""
    kind = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" and call.body:
        try:
            body = json.loads(call.body.decode())
        except (ValueError, RecursionError):
            raise RestError("rest_invalid_json", "Invalid JSON body passed.", 400) from None
        return body if isinstance(body, dict) else {}
    if kind == "application/x-www-form-urlencoded":
        return dict(parse_qsl(call.body.decode("utf-8", "replace"), keep_blank_values=True))
    return {}


def _method(call: Call, query: dict[str, str]) -> str:
    """Return the method; a POST may name another one in ``_method``."""
    return query["_method"].upper() if call.method == "POST" and "_method" in query else call.method


def _refused_outside(call: Call, path: str, faults: Active) -> Answer | None:
    """Return the answer of a call that never reaches WooCommerce."""
    ending = faults.ending
    if len(call.body) > BODY_MAX_BYTES:
        return _html(413, "413 Request Entity Too Large")
    if ending is not None:
        answer = _failure(ending.kind, ending.seconds)
        if answer is not None:
            return answer
    if "rest_route=" in call.url:
        return Answer(
            status=401,
            body=orjson.dumps(
                {
                    "code": "woocommerce_rest_cannot_view",
                    "message": "Sorry, you cannot list resources.",
                    "data": {"status": 401},
                }
            ),
            headers={"Content-Type": JSON_TYPE},
        )
    if path.endswith(".php"):
        return Answer(status=404, body=b"File not found.\n", headers={"Content-Type": HTML_TYPE})
    if not path.startswith(f"{ROOT}/"):
        return Answer(status=301, body=b"", headers={"Content-Type": HTML_TYPE, "Location": call.url})
    return None


def _failure(kind: Kind, seconds: float) -> Answer | None:
    """Return the answer of a failure that does nothing else; None for those that let the work be done."""
    if kind is Kind.BAD_GATEWAY:
        return _html(502, "502 Bad Gateway")
    if kind is Kind.TOO_MANY_REQUESTS:
        answer = _html(429, "429 Too Many Requests")
        answer.headers["Retry-After"] = str(int(seconds))
        return answer
    if kind is Kind.CHALLENGE_PAGE:
        page = b"<html><body>Checking your browser</body></html>"
        return Answer(status=200, body=page, headers={"Content-Type": "text/html;charset=UTF-8"})
    if kind is Kind.EMPTY_LIST:
        return Answer(status=200, body=b"[]", headers={"Content-Type": JSON_TYPE})
    died = {
        Kind.FATAL_EARLY: (500, "internal_server_error", _FATAL),
        Kind.DATABASE_DOWN: (500, "wp_die", "<h1>Error establishing a database connection</h1>"),
        Kind.PLUGIN_REFUSES: (500, "wp_die", "plugin says no"),
        Kind.MAINTENANCE: (
            503,
            "wp_die",
            "Briefly unavailable for scheduled maintenance. Check back in a minute.",
        ),
    }
    if kind not in died:
        return None
    status, code, text = died[kind]
    body = {"code": code, "message": text, "data": {"status": status}, "additional_errors": []}
    answer = Answer(status=status, body=orjson.dumps(body), headers={"Content-Type": JSON_TYPE})
    if kind is Kind.MAINTENANCE:
        answer.headers["Retry-After"] = str(int(seconds) or MAINTENANCE_RETRY_S)
    return answer


def _dressed(shop: Shop, reply: Reply, wanted: dict[str, object] | None, faults: Active) -> Answer:
    """Return a reply as it travels, with what the call's faults make of it."""
    answer = _json(shop, reply.status, trimmed(reply.body, wanted))
    answer.headers.update(reply.headers)
    if faults.has(Kind.HTML_BEFORE_JSON):
        answer.body = _WARNING + answer.body
    if faults.has(Kind.GATEWAY_TIMEOUT):
        return _html(504, "504 Gateway Time-out")
    answer.cut = faults.has(Kind.CUT_ANSWER)
    return answer


def _json(shop: Shop, status: int, body: object) -> Answer:
    headers = {
        "Content-Type": JSON_TYPE,
        "X-Robots-Tag": "noindex",
        "Link": f'<{shop.home_url}{ROOT}/>; rel="https://api.w.org/"',
        "X-Content-Type-Options": "nosniff",
        "Access-Control-Expose-Headers": "X-WP-Total, X-WP-TotalPages, Link",
        "Expires": "Wed, 11 Jan 1984 05:00:00 GMT",
        "Cache-Control": _CACHE,
    }
    return Answer(status=status, body=orjson.dumps(body), headers=headers)


def _html(status: int, title: str) -> Answer:
    page = f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n"
    return Answer(
        status=status, body=page.encode() + b"</body>\r\n</html>\r\n", headers={"Content-Type": "text/html"}
    )


def _log(shop: Shop, call: Call, path: str, params: Json, status: int) -> None:
    ids: tuple[int, ...] = ()
    if call.method not in ("GET", "HEAD", "OPTIONS"):
        with contextlib.suppress(TypeError, ValueError, AttributeError):
            ids = tuple(products.named_ids(params, path))
    shop.log.append(Logged(at_s=shop.clock(), method=call.method, path=call.url, items=ids, status=status))
