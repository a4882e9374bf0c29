"""What a shop's answer means: signed calls, answers that are none, and failures by kind."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path
from urllib.parse import quote

import pytest
from pydantic import SecretStr

from publisher.settings import Credentials, Mode, SettingsRefused, read_shops
from publisher.storefront import FailureKind, Kind, Listing, Managed, ShopFailure, StockStatus
from publisher.woocommerce.answers import plain, read_answer, retry_after_s
from publisher.woocommerce.auth import authorization, signature_base

KEYS = Credentials(SecretStr("ck_1"), SecretStr("cs_2"))
JSON = {"content-type": "application/json; charset=UTF-8"}
HTML = {"content-type": "text/html; charset=UTF-8"}


def header(url: str, params: list[tuple[str, str]], home_url: str = "", base_url: str = "") -> str:
    return authorization(
        "GET", url, params, KEYS, home_url=home_url, base_url=base_url, now=1_700_000_000.0, nonce="n1"
    )


def test_basic_over_https() -> None:
    """Over https the keys travel as Basic."""
    assert header("https://shop.example/wp-json/wc/v3/products", []) == (
        "Basic " + base64.b64encode(b"ck_1:cs_2").decode()
    )


def test_signature_over_http() -> None:
    """Over http nothing but a signature travels; it is RFC 5849's over the sorted, twice encoded parameters."""
    url = "http://shop.example/wp-json/wc/v3/products"
    told = header(url, [("sku", "A&B,ü ~"), ("_fields", "id")])
    assert "cs_2" not in told
    oauth = dict(part.split("=", 1) for part in told.removeprefix("OAuth ").split(", "))
    text = "&".join(
        quote(part, safe="~")
        for part in (
            "GET",
            url,
            "_fields=id&oauth_consumer_key=ck_1&oauth_nonce=n1&oauth_signature_method=HMAC-SHA256"
            "&oauth_timestamp=1700000000&oauth_version=1.0&sku=A%26B%2C%C3%BC%20~",
        )
    )
    digest = base64.b64encode(hmac.new(b"cs_2&", text.encode(), hashlib.sha256).digest()).decode()
    assert oauth["oauth_signature"] == f'"{quote(digest, safe="")}"'


def test_signature_is_of_wordpress_own_address() -> None:
    """Behind a proxy the signature is made of home_url, as WooCommerce checks it."""
    direct = header("http://home.example/wp-json/wc/v3/products", [])
    assert direct == header(
        "http://10.0.0.5:81/wp-json/wc/v3/products", [], "http://home.example", "http://10.0.0.5:81"
    )


def test_a_value_that_looks_encoded_is_signed_as_it_is() -> None:
    """A sku `50%25` is another one than `50%`."""
    assert signature_base("GET", "http://a", [("sku", "50%25")]).endswith("sku%3D50%252525")
    assert signature_base("GET", "http://a", [("sku", "50%")]).endswith("sku%3D50%2525")


@pytest.mark.parametrize(
    ("status", "headers", "body", "kind"),
    [
        (200, HTML, b"<html>Checking your browser</html>", FailureKind.BROKEN),
        (200, JSON, b'<br /><b>Warning</b>{"update":[]}', FailureKind.BROKEN),
        (200, JSON, b"", FailureKind.BROKEN),
        (200, {}, b"[]", FailureKind.BROKEN),
        (301, HTML, b"", FailureKind.REJECTED),
        (400, JSON, b'{"code":"rest_invalid_param","message":"x"}', FailureKind.REJECTED),
        (401, JSON, b'{"code":"woocommerce_rest_cannot_view"}', FailureKind.AUTHENTICATION),
        (401, HTML, b"", FailureKind.AUTHENTICATION),
        (403, JSON, b'{"code":"rest_forbidden"}', FailureKind.AUTHENTICATION),
        (403, HTML, b"blocked", FailureKind.OVERLOADED),
        (404, JSON, b'{"code":"rest_no_route"}', FailureKind.REJECTED),
        (404, HTML, b"File not found.", FailureKind.REJECTED),
        (404, JSON, b'{"code":"woocommerce_rest_product_invalid_id"}', FailureKind.NOT_FOUND),
        (413, JSON, b'{"code":"woocommerce_rest_request_entity_too_large"}', FailureKind.TOO_LARGE),
        (413, HTML, b"<html>", FailureKind.TOO_LARGE),
        (429, JSON, b"{}", FailureKind.OVERLOADED),
        (500, JSON, b'{"code":"internal_server_error","message":"<p>critical</p>"}', FailureKind.BROKEN),
        (502, HTML, b"", FailureKind.BROKEN),
        (503, JSON, b'{"code":"wp_die"}', FailureKind.OVERLOADED),
        (504, HTML, b"", FailureKind.TIMEOUT),
    ],
)
def test_failures_by_kind(status: int, headers: dict[str, str], body: bytes, kind: FailureKind) -> None:
    """Each observed answer is one kind of failure; 200 with something else than JSON is one too."""
    with pytest.raises(ShopFailure) as caught:
        read_answer(status, headers, body, 0.0)
    assert caught.value.kind is kind
    assert caught.value.maybe_applied == (kind in (FailureKind.TIMEOUT, FailureKind.BROKEN))
    assert "<" not in str(caught.value)


def test_a_json_answer_with_its_totals() -> None:
    """A list says how many there are."""
    answer = read_answer(200, {**JSON, "x-wp-total": "318", "x-wp-totalpages": "4"}, b'[{"id":1}]', 0.0)
    assert (answer.json, answer.total, answer.pages) == ([{"id": 1}], 318, 4)
    assert read_answer(200, JSON, b"{}", 0.0).total == -1


def test_retry_after() -> None:
    """Seconds, or a date; capped, and nothing where it cannot be read."""
    assert retry_after_s("600", 0.0) == 600
    assert retry_after_s("Thu, 01 Jan 1970 00:02:00 GMT", 20.0) == 100
    assert retry_after_s("99999999", 0.0) == 3_600
    assert retry_after_s("soon", 0.0) == retry_after_s("-5", 0.0) == 0


def test_html_is_no_message() -> None:
    """Error texts hold HTML; tables and logs do not."""
    assert plain("<p>A &amp; B</p>\n<a href='x'>more</a>") == "A & B more"
    assert len(plain("x" * 1_000)) == 200


@pytest.mark.parametrize(
    ("quantity", "status", "backorders", "torn"),
    [
        (5, StockStatus.OUT_OF_STOCK, False, True),
        (0, StockStatus.IN_STOCK, False, True),
        (5, StockStatus.IN_STOCK, False, False),
        (0, StockStatus.OUT_OF_STOCK, False, False),
        (-3, StockStatus.ON_BACKORDER, True, False),
        (0, StockStatus.OUT_OF_STOCK, True, True),
        (5, StockStatus.UNKNOWN, False, False),
        (None, StockStatus.OUT_OF_STOCK, False, False),
    ],
)
def test_torn(quantity: int | None, status: StockStatus, backorders: bool, torn: bool) -> None:
    """Number and status contradict each other, or not."""
    listing = Listing(
        listing_id="1",
        sku="a",
        kind=Kind.SIMPLE,
        managed=Managed.OWN,
        quantity=quantity,
        status=status,
        backorders=backorders,
    )
    assert listing.torn is torn


SHOPS = """
[shops.web]
url = "https://shop.example/"
key = { env = "WEB_KEY" }
secret = { file = "web.secret" }
aliases = { "SHOP-1" = "A-1" }
allow_list = "pilot.txt"

[shops.outlet]
url = "http://outlet.example"
mode = "MIRROR"
key = { env = "OUTLET_KEY" }
secret = { env = "OUTLET_SECRET" }
[shops.outlet.pace]
concurrency_max = 4
"""


def test_shops_are_read(tmp_path: Path) -> None:
    """Several shops, each with its mode and pace; secrets come from where the file says, and are never printed."""
    (tmp_path / "shops.toml").write_text(SHOPS)
    (tmp_path / "web.secret").write_text("cs_hidden\n")
    (tmp_path / "pilot.txt").write_text("# a pilot\nA-1\n\nB-2\n")
    shops = read_shops(tmp_path / "shops.toml")
    assert shops["web"].url == "https://shop.example"
    assert shops["web"].allowed() == frozenset({"A-1", "B-2"})
    assert (shops["outlet"].mode, shops["outlet"].pace.concurrency_max) == (Mode.MIRROR, 4)
    keys = shops["web"].credentials({"WEB_KEY": "ck_hidden"})
    assert keys.key.get_secret_value() == "ck_hidden"
    assert "hidden" not in repr(keys) + repr(shops) + str(keys)
    with pytest.raises(SettingsRefused, match="OUTLET_KEY is not set"):
        shops["outlet"].credentials({})


def test_all_errors_of_shops_at_once(tmp_path: Path) -> None:
    """Every error is told with its place, and no secret."""
    (tmp_path / "shops.toml").write_text(
        """
[shops.a]
url = "https://u:geheim@shop.example"
key = { env = "K" }
secret = { env = "S" }
[shops.b]
url = "https://b.example"
key = { env = "K", file = "k" }
secret = { env = "S" }
[shops.c]
url = "https://c.example"
[shops.d]
kind = "json_webhook"
mode = "MIRROR"
url = "https://d.example"
secret = { env = "S" }
pace = { items_start = 60 }
"""
    )
    with pytest.raises(SettingsRefused) as caught:
        read_shops(tmp_path / "shops.toml")
    told = str(caught.value)
    for part in ("shops.a.url", "shops.b.key", "shops.c:", "shops.d.pace", "items_start is above"):
        assert part in told
    assert "geheim" not in told
