"""A look for what does not add up in the ledger, and for what was forgotten. It changes nothing."""

from __future__ import annotations

from availability.domain.errors import invalid
from availability.ledger.ledger import split_order_name
from availability.ledger.snapshots import Finding, SnapshotLedger
from availability.service.context import CallContext
from availability.service.ledger_calls import call
from availability.v1 import stock_pb2 as pb

SKUS_PER_PAGE = 100
"""Redis serves nobody else while it adds up a page, and a sku may have thousands of holds."""
FORGOTTEN_PER_PAGE = 500
UNCONFIRMED_MS = 3_600_000
STUCK_MS = 7 * 86_400_000
SILENT_MS = 86_400_000
OVERDUE_MS = 5_000
AGE_MS_MAX = 400 * 86_400_000

_ORDERS = frozenset({pb.AUDIT_KIND_ORDER_UNCONFIRMED, pb.AUDIT_KIND_ORDER_STUCK})


class AuditHandlers:
    """The part of StockService that audits."""

    def __init__(self, store: SnapshotLedger) -> None:
        self._store = store

    def audit_ledger(self, request: pb.AuditLedgerRequest, ctx: CallContext) -> pb.AuditLedgerResponse:
        """Look at one page: sums by sku first, then what was forgotten."""
        part, number = _page(request.page_token)
        ages = {
            name: _age(getattr(request, name), name, default)
            for name, default in (
                ("unconfirmed_ms", UNCONFIRMED_MS),
                ("stuck_ms", STUCK_MS),
                ("silent_ms", SILENT_MS),
                ("overdue_ms", OVERDUE_MS),
            )
        }
        if part == "sums":
            sums = call(ctx, lambda: self._store.sums(number, SKUS_PER_PAGE))
            next_page = "forgotten.0" if sums.next_index < 0 else f"sums.{sums.next_index}"
            head, findings = sums.head, sums.findings
        else:
            found = call(ctx, lambda: self._store.forgotten(number, FORGOTTEN_PER_PAGE, **ages))
            next_page = f"forgotten.{number + FORGOTTEN_PER_PAGE}" if found.more else ""
            head, findings = found.head, found.findings
        return pb.AuditLedgerResponse(
            findings=[_shown(one) for one in findings], next_page_token=next_page, version=str(head.version)
        )


def _page(token: str) -> tuple[str, int]:
    if not token:
        return "sums", 0
    part, _, number = token.partition(".")
    if part not in ("sums", "forgotten") or not (
        number.isascii() and number.isdecimal() and len(number) <= 15
    ):
        raise invalid("page_token is not one that this call gave", field="page_token")
    return part, int(number)


def _age(value: int, name: str, default: int) -> int:
    if not 0 <= value <= AGE_MS_MAX:
        raise invalid(f"{name} must be 0 to {AGE_MS_MAX}", field=name)
    return value or default


def _shown(one: Finding) -> pb.AuditFinding:
    kind = pb.AuditKind.ValueType(one.kind)
    source, ref = split_order_name(one.name) if kind in _ORDERS else ("", "")
    return pb.AuditFinding(
        kind=kind,
        sku=one.sku,
        node=one.node,
        reservation_id=one.name if kind == pb.AUDIT_KIND_HOLD_OVERDUE else "",
        order_source=source,
        order_ref=ref,
        source=one.name if kind == pb.AUDIT_KIND_SOURCE_SILENT else "",
        quantity=one.quantity,
        expected_quantity=one.expected,
        age_ms=max(0, one.age_ms),
        message=_message(one, source, ref),
    )


def _message(one: Finding, source: str, ref: str) -> str:
    place = f"{one.sku} at {one.node}"
    if one.kind == pb.AUDIT_KIND_RESERVED_MISMATCH:
        return f"{place}: {one.quantity} are reserved, its active holds add up to {one.expected}"
    if one.kind == pb.AUDIT_KIND_COMMITTED_MISMATCH:
        return f"{place}: {one.quantity} are committed, its order lines add up to {one.expected}"
    if one.kind == pb.AUDIT_KIND_QUARANTINED_MISMATCH:
        return f"{place}: {one.quantity} are quarantined, its reasons add up to {one.expected}"
    if one.kind == pb.AUDIT_KIND_HOLD_OVERDUE:
        return f"reservation {one.name} is past its deadline and holds {one.quantity} units"
    if one.kind == pb.AUDIT_KIND_ORDER_UNCONFIRMED:
        return f"order {ref} of {source} holds {one.quantity} units; nobody has confirmed or served it"
    if one.kind == pb.AUDIT_KIND_ORDER_STUCK:
        return f"order {ref} of {source} holds {one.quantity} units; nothing was heard of it for long"
    return f"nothing was heard of {one.name} for long"
