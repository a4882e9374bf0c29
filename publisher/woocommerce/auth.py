"""How a call shows its keys: Basic over https, an OAuth 1.0a signature (HMAC-SHA256) over plain http. Pure.

WooCommerce ignores Basic over plain http, and checks a signature against WordPress's own address (``home_url``).
Parameters are normalised as RFC 5849 says, a value that looks percent-encoded included.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable
from urllib.parse import quote, urlsplit

from publisher.settings import Credentials


def authorization(
    method: str,
    url: str,
    params: Iterable[tuple[str, str]],
    credentials: Credentials,
    *,
    home_url: str = "",
    base_url: str = "",
    now: float,
    nonce: str,
) -> str:
    """Return the Authorization header of one call.

    ``url`` is the address without its query, ``params`` the query. ``home_url`` takes the place of ``base_url`` at the
    beginning of what is signed. ``now``: seconds since 1970; ``nonce`` is used once.
    """
    key, secret = credentials.key.get_secret_value(), credentials.secret.get_secret_value()
    if urlsplit(url).scheme == "https":
        return "Basic " + base64.b64encode(f"{key}:{secret}".encode()).decode()
    signed_url = home_url + url.removeprefix(base_url) if home_url else url
    oauth = {
        "oauth_consumer_key": key,
        "oauth_nonce": nonce,
        "oauth_signature_method": "HMAC-SHA256",
        "oauth_timestamp": str(int(now)),
        "oauth_version": "1.0",
    }
    text = signature_base(method, signed_url, [*params, *oauth.items()])
    digest = hmac.new(f"{secret}&".encode(), text.encode(), hashlib.sha256).digest()
    oauth["oauth_signature"] = base64.b64encode(digest).decode()
    return "OAuth " + ", ".join(f'{name}="{_encoded(value)}"' for name, value in oauth.items())


def signature_base(method: str, url: str, params: Iterable[tuple[str, str]]) -> str:
    """Return the text that is signed: method, address and sorted parameters, encoded."""
    pairs = sorted((_encoded(name), _encoded(value)) for name, value in params)
    query = "&".join(f"{name}={value}" for name, value in pairs)
    return "&".join((method.upper(), _encoded(url), _encoded(query)))


def _encoded(text: str) -> str:
    return quote(text, safe="-._~")
