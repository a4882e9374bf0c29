"""Who may call: Basic or query keys over TLS, OAuth 1.0a where the transport is plain, with the shop's own errors."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote

from publisher.testing.wire import Call, RestError

TIMESTAMP_WINDOW_S = 15 * 60
NONCES_MAX = 10_000
_OAUTH = ("oauth_consumer_key", "oauth_timestamp", "oauth_nonce", "oauth_signature", "oauth_signature_method")
_HEADER_PAIR = re.compile(r'([a-z_]+)="([^"]*)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A consumer key's secret and what it may do: ``read``, ``write`` or ``read_write``."""

    secret: str = field(repr=False)
    permission: str = "read_write"


@dataclass(slots=True)
class Nonces:
    """Nonces that were used within the window."""

    seen: set[str] = field(default_factory=set)
    order: deque[str] = field(default_factory=deque)

    def use(self, nonce: str) -> bool:
        """Take a nonce; False if it was used before."""
        if nonce in self.seen:
            return False
        self.seen.add(nonce)
        self.order.append(nonce)
        if len(self.order) > NONCES_MAX:
            self.seen.discard(self.order.popleft())
        return True


def authenticate(call: Call, keys: Mapping[str, ApiKey], nonces: Nonces, home_url: str, now_s: float) -> bool:
    """Whether the call is somebody's; False where it shows no key that counts.

    Raises RestError for a key with a wrong secret, a bad signature or a missing permission.
    """
    query = parse_qsl(call.url.partition("?")[2], keep_blank_values=True)
    found: ApiKey | None = None
    if call.tls:
        name, secret = _plain_keys(call, dict(query))
        found = keys.get(name)
        if found is not None and not hmac.compare_digest(found.secret.encode(), secret.encode()):
            raise _refused("Consumer secret is invalid.")
    if found is None:
        found = _oauth(call, query, keys, nonces, home_url, now_s)
    if found is None:
        return False
    _check_permission(call.method, found.permission)
    return True


def oauth_signature(
    method: str, url: str, pairs: list[tuple[str, str]], secret: str, digest: str = "sha256"
) -> str:
    """Return the OAuth 1.0a signature of a call without its query, over all its parameters."""
    encoded = sorted((quote(name, safe="~"), quote(value, safe="~")) for name, value in pairs)
    joined = "&".join(f"{name}={value}" for name, value in encoded)
    base = "&".join((method.upper(), quote(url, safe="~"), quote(joined, safe="~")))
    return base64.b64encode(hmac.new(f"{secret}&".encode(), base.encode(), digest).digest()).decode()


def _plain_keys(call: Call, query: Mapping[str, str]) -> tuple[str, str]:
    """Return the key and the secret of the query or of a Basic header; empty where there are none."""
    if "consumer_key" in query and "consumer_secret" in query:
        return query["consumer_key"], query["consumer_secret"]
    header = call.headers.get("authorization", "")
    if header.lower().startswith("basic "):
        try:
            name, _, secret = base64.b64decode(header[6:], validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return "", ""
        return name, secret
    return "", ""


def _oauth(
    call: Call,
    query: list[tuple[str, str]],
    keys: Mapping[str, ApiKey],
    nonces: Nonces,
    home_url: str,
    now_s: float,
) -> ApiKey | None:
    """Return the key of an OAuth call, or None where the call is none. Raises RestError."""
    pairs = list(query)
    header = call.headers.get("authorization", "")
    if header.lower().startswith("oauth "):
        pairs += [(name, unquote(value)) for name, value in _HEADER_PAIR.findall(header) if name != "realm"]
    given = dict(pairs)
    if not any(name in given for name in _OAUTH):
        return None
    missing = [name for name in _OAUTH if name not in given]
    if missing:
        raise _refused(f"Missing OAuth parameters {', '.join(missing)}")
    found = keys.get(given["oauth_consumer_key"])
    if found is None:
        raise _refused("Consumer key is invalid.")
    if given["oauth_signature_method"] not in ("HMAC-SHA1", "HMAC-SHA256"):
        raise _refused("Invalid signature - signature method is invalid.")
    signed = [(name, value) for name, value in pairs if name != "oauth_signature"]
    url = home_url + call.url.partition("?")[0]
    digest = given["oauth_signature_method"].removeprefix("HMAC-").lower()
    expected = oauth_signature(call.method, url, signed, found.secret, digest)
    if not hmac.compare_digest(expected.encode(), given["oauth_signature"].encode()):
        raise _refused("Invalid signature - provided signature does not match.")
    if (
        not given["oauth_timestamp"].isdigit()
        or abs(now_s - int(given["oauth_timestamp"])) > TIMESTAMP_WINDOW_S
    ):
        raise _refused("Invalid timestamp.")
    if not nonces.use(given["oauth_nonce"]):
        raise _refused("Invalid nonce - nonce has already been used.")
    return found


def _check_permission(method: str, permission: str) -> None:
    """Raise RestError where the key may not do this. A missing permission is 401 here, not 403."""
    reading = method in ("GET", "HEAD", "OPTIONS")
    if reading and permission == "write":
        raise _refused("The API key provided does not have read permissions.")
    if not reading and permission == "read":
        raise _refused("The API key provided does not have write permissions.")


def _refused(message: str) -> RestError:
    return RestError("woocommerce_rest_authentication_error", message, 401)
