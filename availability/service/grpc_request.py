"""What is read off one call: who calls, under which name it can be found again, and its message."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from google.protobuf.message import DecodeError, Message

from availability.domain.errors import Reason, ServiceError, invalid
from availability.domain.limits import REFERENCE_BYTES_MAX
from availability.service.auth import Principal
from availability.service.rpcs import Rpc

NO_DEADLINE_S = 1e8
"""gRPC tells a call without a deadline as one that ends in centuries."""
_TRACEPARENT = re.compile(r"\A[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-|\Z)")

Metadata = Iterable[tuple[str, str | bytes]]


def scan(metadata: Metadata | None) -> tuple[str, str]:
    """Return (authorization, correlation id) of a call's metadata, "" where there is none."""
    authorization = correlation_id = trace_id = ""
    for key, value in metadata or ():
        if key == "authorization":
            authorization = value if isinstance(value, str) else ""
        elif key == "x-correlation-id":
            if len(value) <= REFERENCE_BYTES_MAX and isinstance(value, str) and value.isprintable():
                correlation_id = value
        elif key == "traceparent" and isinstance(value, str):
            found = _TRACEPARENT.match(value)
            trace_id = found[1] if found else ""
    return authorization, correlation_id or trace_id


def traceparent(metadata: Metadata | None) -> str:
    """Return the W3C trace context of a call's metadata, "" where there is none."""
    for key, value in metadata or ():
        if key == "traceparent" and isinstance(value, str):
            return value
    return ""


def check_scope(principal: Principal, rpc: Rpc) -> None:
    """Raise ServiceError PERMISSION_DENIED where a principal may not call a method."""
    if rpc.scope not in principal.scopes:
        raise ServiceError(
            Reason.PERMISSION_DENIED,
            f"{rpc.method} needs the scope {rpc.scope.value}",
            scope=rpc.scope.value,
            principal=principal.id,
        )


def only(requests: Iterator[bytes]) -> bytes:
    """Return a unary call's message. Raises ServiceError INVALID_REQUEST where there is none."""
    try:
        return next(requests)
    except StopIteration:
        raise no_message() from None


def no_message() -> ServiceError:
    return invalid("the call has no request message")


def decoded(decode: Callable[[bytes], Message], raw: bytes) -> Message:
    """Decode a message. Raises ServiceError INVALID_REQUEST for bytes that are none."""
    try:
        return decode(raw)
    except DecodeError:
        raise invalid("the request message cannot be decoded") from None
