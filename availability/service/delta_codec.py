"""Deltas as the ledger takes them: shape judged, content fingerprinted, packed.

A delta whose shape is wrong still goes to the ledger, with its reason: its number is consumed there.
"""

from __future__ import annotations

import msgspec
from google.protobuf.timestamp_pb2 import Timestamp

from availability.domain.limits import (
    BALANCE_ABS_MAX,
    ID_BYTES_MAX,
    ORDER_NAMES_MAX,
    QUANTITY_MAX,
    REFERENCE_BYTES_MAX,
)
from availability.domain.text import text_problem
from availability.ledger.ledger import bucket, fingerprint
from availability.v1 import stock_pb2 as pb

_encode = msgspec.msgpack.Encoder().encode

_SIGNED = frozenset({pb.DELTA_TYPE_ADJUSTMENT, pb.DELTA_TYPE_SHIPMENT})
_ABSOLUTE = frozenset(
    {pb.DELTA_TYPE_ORDER_PLACED, pb.DELTA_TYPE_ORDER_CHANGED, pb.DELTA_TYPE_ORDER_ALLOCATED}
)
_ORDER = _ABSOLUTE | {pb.DELTA_TYPE_ORDER_CANCELLED, pb.DELTA_TYPE_LINK_ORDER}
_WITHOUT_SKU = frozenset({pb.DELTA_TYPE_ORDER_CANCELLED, pb.DELTA_TYPE_LINK_ORDER})
_STOCK = frozenset(
    {
        pb.DELTA_TYPE_RECEIPT,
        pb.DELTA_TYPE_ADJUSTMENT,
        pb.DELTA_TYPE_SHIPMENT,
        pb.DELTA_TYPE_QUARANTINE,
        pb.DELTA_TYPE_QUARANTINE_RELEASE,
        pb.DELTA_TYPE_WRITE_OFF,
        pb.DELTA_TYPE_RETURN_RECEIVED,
        pb.DELTA_TYPE_SET_ON_HAND,
        pb.DELTA_TYPE_EXPECTED,
        pb.DELTA_TYPE_TRANSFER_OUT,
        pb.DELTA_TYPE_TRANSFER_IN,
    }
)
_FROM_ZERO = _ABSOLUTE | {pb.DELTA_TYPE_SET_ON_HAND, pb.DELTA_TYPE_EXPECTED}
_SUPPLY = frozenset({pb.DELTA_TYPE_SET_ON_HAND, pb.DELTA_TYPE_EXPECTED, pb.DELTA_TYPE_TRANSFER_OUT})
_REASONED = frozenset({pb.DELTA_TYPE_QUARANTINE, pb.DELTA_TYPE_QUARANTINE_RELEASE, pb.DELTA_TYPE_WRITE_OFF})
_PLAIN = frozenset(
    {
        pb.DELTA_TYPE_RECEIPT,
        pb.DELTA_TYPE_ADJUSTMENT,
        pb.DELTA_TYPE_SHIPMENT,
        pb.DELTA_TYPE_RETURN_RECEIVED,
        pb.DELTA_TYPE_TRANSFER_IN,
    }
)
"""Types with no rule but those that `pack` looks at first: most of every feed."""
_LINKS = {-1: 0, 0: 1, 1: 1}
"""Quantity of a LINK_ORDER, as sent → as the ledger knows it: 1 joins, 0 takes it back."""
_RELIEF = frozenset({pb.DELTA_TYPE_SHIPMENT, pb.DELTA_TYPE_TRANSFER_OUT}) | _ORDER
"""Types that must work while Redis is out of memory: facts about orders, and what leaves."""

MESSAGES = {
    "CONFLICT": "the same event came before with other content",
    "UNKNOWN_NODE": "the node was never declared",
    "TOO_MANY_NODES": "as many nodes as there may be are declared already",
    "TOO_MANY_STREAMS": "the source has as many streams as it may have: is a number of each message in its name?",
    "EVENT_TOO_OLD": "older than event ids are remembered; an operator has to release it",
    "KIT_SKU": "this sku is a kit: name the plain skus that it is made of",
    "ORDER_CLOSED": "the order was closed long ago",
    "BALANCE_OUT_OF_RANGE": f"a balance would pass {BALANCE_ABS_MAX}",
    "OTHER_SOURCE": "the delta's source is not the request's",
    "INVALID_SEQUENCE": "source_sequence must be 1 to 2^53 - 1",
    "ID_REQUIRED": "exactly one of source_sequence and event_id is required",
    "INVALID_TYPE": "no such type",
    "INVALID_BASIS": "no such basis",
    "NET_NEEDS_SNAPSHOT": "what was confirmed at the point of one net figure is not known; send PHYSICAL or a snapshot",
    "INVALID_KIND": "no such expected_kind",
    "POINT_TOO_OLD": "changes after the count's point are not remembered one by one any more; count again",
    "TO_NODE_REQUIRED": "to_node is required",
    "SAME_NODE": "a transfer goes to another node",
    "SHIPPED_QUANTITY_REQUIRED": "an OPEN allocation names the shipped quantity that it leaves out",
    "LINKED_ORDER_REQUIRED": "a link needs a second order name: linked_order_ref, or the reference",
    "INVALID_REQUEST": "a link names one order twice",
    "LINK_CYCLE": "the two names are linked already, through others",
    "LINK_CONFLICT": "a source gives an order one name only: the two orders have names of one source",
    "TOO_MANY_NAMES": f"an order has at most {ORDER_NAMES_MAX} names",
    "INVALID_QUANTITY": "quantity is outside what its type allows",
    "INVALID_TEXT": "a text is too long or cannot be printed",
    "SKU_REQUIRED": "sku is required",
    "NODE_REQUIRED": "node is required",
    "ORDER_REQUIRED": "order_ref is required",
    "REASON_REQUIRED": "reason is required",
    "STREAM_REQUIRED": "stream is required with source_sequence",
    "INVALID_STATE": "no such state, or not for this type; a RECEIPT goes into quarantine by its reason",
    "PERMISSION_DENIED": "the token is not for this node",
    "INVALID_TIME": "a time is outside 1970 to 2200",
}
_TIME_US_MAX = 7_258_118_400_000_000


def pack(delta: pb.Delta, source: str, refused: str = "") -> tuple[msgspec.Raw, bool]:
    """Pack one delta of a request. Second: whether it must be taken when Redis is out of memory.

    ``refused`` is a reason for which the caller rejects it whatever its shape.
    """
    kind = delta.type
    occurred_us = _microseconds(delta.occurred_time) if delta.HasField("occurred_time") else 0
    due_us = _microseconds(delta.due_time) if delta.HasField("due_time") else 0
    # Every read of a field makes a new object, so each is read once.
    stream, event_id, sku, node, to_node = delta.stream, delta.event_id, delta.sku, delta.node, delta.to_node
    order_source, order_ref, line = delta.order_source, delta.order_ref, delta.line
    reference, reason = delta.reference, delta.reason
    correlation_id, author = delta.correlation_id, delta.author
    sequence = delta.source_sequence
    linked_source, linked_ref = "", ""
    if kind == pb.DELTA_TYPE_LINK_ORDER:
        linked_source, linked_ref = delta.linked_order_source or source, delta.linked_order_ref or reference
    quantity, state = delta.quantity, delta.state
    content: tuple[object, ...] = (
        stream,
        sequence,
        event_id,
        kind,
        sku,
        node,
        to_node,
        quantity if kind != pb.DELTA_TYPE_LINK_ORDER else _LINKS.get(quantity, quantity),
        state,
        order_source or source,
        order_ref,
        line,
        delta.allocation_basis,
        delta.shipped_quantity if delta.HasField("shipped_quantity") else -1,
        reference,
        reason,
        due_us,
        occurred_us,
    )
    extra: tuple[
        object, ...
    ] = ()  # what few types have: left out of the log and of fingerprints where it is not set
    if kind == pb.DELTA_TYPE_EXPECTED and delta.expected_kind:
        extra = (delta.expected_kind,)
    elif kind == pb.DELTA_TYPE_SET_ON_HAND and delta.basis:
        extra = (0, delta.basis)
    elif kind == pb.DELTA_TYPE_LINK_ORDER:
        extra = (0, 0, linked_source, linked_ref)
    problem = refused
    if not refused and not (
        # Nothing can be wrong with the common delta; a test holds this to what `_problem` says.
        kind in _PLAIN
        and 0 < quantity <= QUANTITY_MAX
        and 0 < sequence < 2**53
        and sku
        and node
        and stream
        and not event_id
        and not state
        and not due_us
        and 0 <= occurred_us <= _TIME_US_MAX
        and delta.source == source
    ):
        problem = _problem(delta, kind, source, occurred_us, due_us)
    if not problem:
        ids: tuple[str, ...] = stream, sku, node, to_node, order_source, line, reason
        references: tuple[str, ...] = event_id, order_ref, reference, correlation_id, author
        if linked_ref:
            ids, references = (*ids, linked_source), (*references, linked_ref)
        problem = _text_problem(ids, references)
    mark = fingerprint(_encode((*content, *extra)))
    if problem:
        content = (*_harmless(delta, problem), "", "")
    else:
        content = (*content, correlation_id, author, *extra)
    packed = _encode((mark, bucket(event_id) if event_id else 0, problem, content))
    return msgspec.Raw(packed), kind in _RELIEF and not problem


def _harmless(delta: pb.Delta, problem: str) -> tuple[object, ...]:
    """What is left of a delta that may only consume its number (not that of another source's stream)."""
    sequence, event_id, stream = delta.source_sequence, delta.event_id, delta.stream
    if problem == "OTHER_SOURCE" or not 0 <= sequence < 2**53 or text_problem(stream, "stream"):
        sequence, stream = 0, ""
    if sequence or text_problem(event_id, "event_id", bytes_max=REFERENCE_BYTES_MAX, required=False):
        event_id = ""
    return (stream, sequence, event_id, 0, "", "", "", 0, 0, "", "", "", 0, -1, "", "", 0, 0)


def _problem(delta: pb.Delta, kind: int, source: str, occurred_us: int, due_us: int) -> str:
    """Reason why the shape is wrong, its texts apart, or ''."""
    if delta.source != source:
        return "OTHER_SOURCE"
    sequence, event_id = delta.source_sequence, delta.event_id
    if (sequence != 0) == (event_id != ""):
        return "ID_REQUIRED"
    if not 0 <= sequence < 2**53:
        return "INVALID_SEQUENCE"
    if kind not in _STOCK and kind not in _ORDER:
        return "INVALID_TYPE"
    quantity = delta.quantity
    if kind in _SIGNED:
        if quantity == 0 or not -QUANTITY_MAX <= quantity <= QUANTITY_MAX:
            return "INVALID_QUANTITY"
    elif kind in _FROM_ZERO:
        if not 0 <= quantity <= QUANTITY_MAX:
            return "INVALID_QUANTITY"
    elif kind == pb.DELTA_TYPE_LINK_ORDER:
        if quantity not in (-1, 0, 1):
            return "INVALID_QUANTITY"
    elif kind != pb.DELTA_TYPE_ORDER_CANCELLED and not 1 <= quantity <= QUANTITY_MAX:
        return "INVALID_QUANTITY"
    if not delta.sku and kind not in _WITHOUT_SKU:
        return "SKU_REQUIRED"
    if kind == pb.DELTA_TYPE_ORDER_CANCELLED and delta.line and not delta.sku:
        return "SKU_REQUIRED"
    if not delta.node and (kind in _STOCK or kind == pb.DELTA_TYPE_ORDER_ALLOCATED):
        return "NODE_REQUIRED"
    if kind in _SUPPLY:
        problem = _supply_problem(delta, kind)
        if problem:
            return problem
    if kind in _ORDER and not delta.order_ref:
        return "ORDER_REQUIRED"
    if sequence and not delta.stream:
        return "STREAM_REQUIRED"
    if kind == pb.DELTA_TYPE_ORDER_ALLOCATED and (problem := _basis_problem(delta)):
        return problem
    if kind == pb.DELTA_TYPE_LINK_ORDER and (problem := _link_problem(delta, source)):
        return problem
    quarantined = delta.state == pb.STOCK_STATE_QUARANTINED
    if delta.state not in (0, pb.STOCK_STATE_AVAILABLE) and not (
        quarantined and kind == pb.DELTA_TYPE_ADJUSTMENT
    ):
        return "INVALID_STATE"
    if not delta.reason and (kind in _REASONED or quarantined):
        return "REASON_REQUIRED"
    if not 0 <= occurred_us <= _TIME_US_MAX or not 0 <= due_us <= _TIME_US_MAX:
        return "INVALID_TIME"
    return ""


def _supply_problem(delta: pb.Delta, kind: int) -> str:
    if kind == pb.DELTA_TYPE_TRANSFER_OUT:
        if not delta.to_node:
            return "TO_NODE_REQUIRED"
        return "SAME_NODE" if delta.to_node == delta.node else ""
    if kind == pb.DELTA_TYPE_EXPECTED:
        return "" if delta.expected_kind in pb.ExpectedKind.values() else "INVALID_KIND"
    if delta.basis == pb.SNAPSHOT_BASIS_NET:
        return "NET_NEEDS_SNAPSHOT"
    return "" if delta.basis in pb.SnapshotBasis.values() else "INVALID_BASIS"


def _basis_problem(delta: pb.Delta) -> str:
    """OPEN means: still to ship, as of a shipped quantity. Without one the sum would depend on what arrives when."""
    if delta.allocation_basis not in pb.AllocationBasis.values():
        return "INVALID_BASIS"
    if delta.allocation_basis != pb.ALLOCATION_BASIS_OPEN:
        return ""
    if not delta.HasField("shipped_quantity"):
        return "SHIPPED_QUANTITY_REQUIRED"
    return "" if 0 <= delta.shipped_quantity <= QUANTITY_MAX else "INVALID_QUANTITY"


def _link_problem(delta: pb.Delta, source: str) -> str:
    other_source, other_ref = delta.linked_order_source or source, delta.linked_order_ref or delta.reference
    if not other_ref:
        return "LINKED_ORDER_REQUIRED"
    if (other_source, other_ref) == (delta.order_source or source, delta.order_ref):
        return "INVALID_REQUEST"
    return ""


def _text_problem(ids: tuple[str, ...], references: tuple[str, ...]) -> str:
    whole = "".join((*ids, *references))
    if len(whole) <= ID_BYTES_MAX and whole.isascii() and whole.isprintable():
        return ""  # together they are shorter than each may be
    for values, bytes_max in ((ids, ID_BYTES_MAX), (references, REFERENCE_BYTES_MAX)):
        for value in values:
            if value and (
                len(value) > bytes_max or not value.isprintable() or len(value.encode()) > bytes_max
            ):
                return "INVALID_TEXT"
    return ""


def _microseconds(time: Timestamp) -> int:
    return time.seconds * 1_000_000 + time.nanos // 1000
