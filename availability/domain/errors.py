"""What can go wrong, as reasons a stranger may read. The gRPC adapter turns them into status and ErrorInfo."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Code(StrEnum):
    """Canonical gRPC status names; the domain knows the words, not the library."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ABORTED = "ABORTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    INTERNAL = "INTERNAL"


class Reason(StrEnum):
    """Reasons of the contract (CONTRACT section 3), each with one canonical code."""

    INVALID_REQUEST = "INVALID_REQUEST"
    BATCH_TOO_LARGE = "BATCH_TOO_LARGE"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    UNKNOWN_NODE = "UNKNOWN_NODE"
    UNKNOWN_CHANNEL = "UNKNOWN_CHANNEL"
    RESERVATION_NOT_FOUND = "RESERVATION_NOT_FOUND"
    ORDER_NOT_FOUND = "ORDER_NOT_FOUND"
    STREAM_NOT_FOUND = "STREAM_NOT_FOUND"
    KIT_SKU = "KIT_SKU"
    FENCE_OVER_POOL = "FENCE_OVER_POOL"
    EXCEPTION_NOT_FOUND = "EXCEPTION_NOT_FOUND"
    EXCEPTION_RESOLVED = "EXCEPTION_RESOLVED"
    ETAG_MISMATCH = "ETAG_MISMATCH"
    UNTIL_IN_PAST = "UNTIL_IN_PAST"
    KIT_CYCLE = "KIT_CYCLE"
    KIT_TOO_DEEP = "KIT_TOO_DEEP"
    KIT_TOO_LARGE = "KIT_TOO_LARGE"
    KIT_IN_TOO_MANY_KITS = "KIT_IN_TOO_MANY_KITS"
    KIT_HAS_STOCK = "KIT_HAS_STOCK"
    RESERVATION_NOT_ACTIVE = "RESERVATION_NOT_ACTIVE"
    RESERVATION_EXPIRED = "RESERVATION_EXPIRED"
    VERSION_LOST = "VERSION_LOST"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    OVERLOADED = "OVERLOADED"
    LEDGER_NOT_READY = "LEDGER_NOT_READY"
    LEDGER_UNREACHABLE = "LEDGER_UNREACHABLE"
    LEDGER_OUT_OF_MEMORY = "LEDGER_OUT_OF_MEMORY"
    DURABILITY_UNCONFIRMED = "DURABILITY_UNCONFIRMED"
    STALE = "STALE"
    REQUEST_ID_TOO_OLD = "REQUEST_ID_TOO_OLD"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    INTERNAL = "INTERNAL"

    @property
    def code(self) -> Code:
        """Canonical status of this reason."""
        return _CODES[self]


_CODES: Mapping[Reason, Code] = {
    Reason.INVALID_REQUEST: Code.INVALID_ARGUMENT,
    Reason.BATCH_TOO_LARGE: Code.INVALID_ARGUMENT,
    Reason.REQUEST_ID_REUSED: Code.INVALID_ARGUMENT,
    Reason.UNKNOWN_NODE: Code.NOT_FOUND,
    Reason.UNKNOWN_CHANNEL: Code.NOT_FOUND,
    Reason.RESERVATION_NOT_FOUND: Code.NOT_FOUND,
    Reason.ORDER_NOT_FOUND: Code.NOT_FOUND,
    Reason.STREAM_NOT_FOUND: Code.NOT_FOUND,
    Reason.KIT_SKU: Code.INVALID_ARGUMENT,
    Reason.FENCE_OVER_POOL: Code.FAILED_PRECONDITION,
    Reason.EXCEPTION_NOT_FOUND: Code.NOT_FOUND,
    Reason.EXCEPTION_RESOLVED: Code.FAILED_PRECONDITION,
    Reason.ETAG_MISMATCH: Code.ABORTED,
    Reason.UNTIL_IN_PAST: Code.INVALID_ARGUMENT,
    Reason.KIT_CYCLE: Code.INVALID_ARGUMENT,
    Reason.KIT_TOO_DEEP: Code.INVALID_ARGUMENT,
    Reason.KIT_TOO_LARGE: Code.INVALID_ARGUMENT,
    Reason.KIT_IN_TOO_MANY_KITS: Code.INVALID_ARGUMENT,
    Reason.KIT_HAS_STOCK: Code.FAILED_PRECONDITION,
    Reason.RESERVATION_NOT_ACTIVE: Code.FAILED_PRECONDITION,
    Reason.RESERVATION_EXPIRED: Code.FAILED_PRECONDITION,
    Reason.VERSION_LOST: Code.FAILED_PRECONDITION,
    Reason.UNAUTHENTICATED: Code.UNAUTHENTICATED,
    Reason.PERMISSION_DENIED: Code.PERMISSION_DENIED,
    Reason.OVERLOADED: Code.RESOURCE_EXHAUSTED,
    Reason.LEDGER_NOT_READY: Code.UNAVAILABLE,
    Reason.LEDGER_UNREACHABLE: Code.UNAVAILABLE,
    Reason.LEDGER_OUT_OF_MEMORY: Code.RESOURCE_EXHAUSTED,
    Reason.DURABILITY_UNCONFIRMED: Code.UNAVAILABLE,
    Reason.STALE: Code.UNAVAILABLE,
    Reason.REQUEST_ID_TOO_OLD: Code.OUT_OF_RANGE,
    Reason.DEADLINE_EXCEEDED: Code.DEADLINE_EXCEEDED,
    Reason.INTERNAL: Code.INTERNAL,
}


class ServiceError(Exception):
    """A failed request: a reason, a sentence for a person, and facts; never a secret or a payload."""

    def __init__(self, reason: Reason, message: str, **facts: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.facts = facts


def invalid(message: str, **facts: str) -> ServiceError:
    """Make the error of a request that breaks the contract's rules."""
    return ServiceError(Reason.INVALID_REQUEST, message, **facts)
