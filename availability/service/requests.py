"""What every request is checked for before the ledger sees it, and its idempotency key.

Shape only: text, ranges, sizes. What depends on the state of the ledger is decided inside the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from availability.domain.errors import Reason, ServiceError, invalid
from availability.domain.limits import (
    HOLD_MS_MAX,
    HOLD_MS_MIN,
    ID_BYTES_MAX,
    QUANTITY_MAX,
    REASON_TEXT_BYTES_MAX,
    REFERENCE_BYTES_MAX,
)
from availability.domain.text import text_problem
from availability.ledger.calls import RequestKey
from availability.ledger.ledger import bucket, fingerprint
from availability.service.context import CallContext
from availability.v1 import common_pb2


def check_id(value: str, what: str, *, required: bool = True) -> None:
    """Refuse an identifier (sku, node, channel, source, stream) that is not printable text of 1 to 64 bytes."""
    problem = text_problem(value, what, required=required)
    if problem is not None:
        raise invalid(problem, field=what)


def check_reference(value: str, what: str, *, required: bool = False) -> None:
    """Refuse a reference (order_ref, reservation_id) that is not printable text of at most 128 bytes."""
    problem = text_problem(value, what, bytes_max=REFERENCE_BYTES_MAX, required=required)
    if problem is not None:
        raise invalid(problem, field=what)


def check_reason(value: str) -> None:
    """Refuse a change without a sentence that says why."""
    problem = text_problem(value, "reason", bytes_max=REASON_TEXT_BYTES_MAX)
    if problem is not None:
        raise invalid(problem, field="reason")


def check_quantity(value: int, what: str, *, least: int = 1) -> None:
    """Refuse a quantity outside least..1e9."""
    if not least <= value <= QUANTITY_MAX:
        raise invalid(f"{what} must be {least} to {QUANTITY_MAX}, not {value}", field=what)


def grouped_lines(lines: Sequence[common_pb2.RequestedLine], lines_max: int) -> list[tuple[str, int]]:
    """Check lines and add up equal skus, in order of first appearance."""
    if not lines:
        raise invalid("lines is empty", field="lines")
    if len(lines) > lines_max:
        raise ServiceError(
            Reason.BATCH_TOO_LARGE, f"{len(lines)} lines, at most {lines_max}", limit=str(lines_max)
        )
    totals: dict[str, int] = {}
    for line in lines:
        sku, quantity = line.sku, line.quantity
        check_id(sku, "sku")
        check_quantity(quantity, "quantity")
        total = totals.get(sku, 0) + quantity
        if total > QUANTITY_MAX:
            raise invalid(
                f"the lines of a sku are {total} together, at most {QUANTITY_MAX}", field="quantity"
            )
        totals[sku] = total
    return list(totals.items())


def duration_ms(duration: Duration, what: str, *, least: int, most: int) -> int:
    """Milliseconds of a duration within its limits, which are milliseconds too."""
    value = duration.seconds * 1000 + duration.nanos // 1_000_000
    if not least <= value <= most:
        raise invalid(f"{what} must be {least / 1000:g} s to {most / 1000:g} s", field=what)
    return value


def hold_ms(duration: Duration) -> int:
    """Milliseconds of a hold, 1 s to 24 h."""
    value = duration.seconds * 1000 + duration.nanos // 1_000_000
    if not HOLD_MS_MIN <= value <= HOLD_MS_MAX:
        raise invalid("hold_duration must be 1 s to 24 h", field="hold_duration")
    return value


def request_key(request_id: str, content: Message, ctx: CallContext) -> RequestKey:
    """Key of a mutating request; two requests with one id are the same when all their fields are."""
    problem = text_problem(request_id, "request_id", bytes_max=ID_BYTES_MAX)
    if problem is not None:
        raise invalid(problem, field="request_id")
    raw = content.DESCRIPTOR.name.encode() + content.SerializeToString(deterministic=True)
    return RequestKey(
        request_id,
        bucket(request_id),
        fingerprint(raw),
        uuid7_ms(request_id),
        ctx.principal.id,
        ctx.correlation_id,
    )


def uuid7_ms(text: str) -> int:
    """Time in a UUIDv7's text form, milliseconds since 1970; 0 for any other text."""
    if len(text) != 36 or text[14] != "7" or not (text[8] == text[13] == text[18] == text[23] == "-"):
        return 0
    digits = text.replace("-", "")
    if len(digits) != 32 or not all(c in "0123456789abcdefABCDEF" for c in digits):
        return 0
    return int(digits[:12], 16)


def timestamp(ms: int) -> Timestamp:
    """Milliseconds since 1970 as a protobuf time."""
    return Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)


def set_time(field: Timestamp, ms: int) -> None:
    """Set a message's time to milliseconds since 1970."""
    field.seconds, field.nanos = ms // 1000, ms % 1000 * 1_000_000


def first_problem(problems: Iterable[str | None]) -> str | None:
    """The first that is one."""
    return next((problem for problem in problems if problem is not None), None)
