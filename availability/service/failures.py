"""From an exception to a status with google.rpc.ErrorInfo: the one place that decides what a caller is told.

Nothing unexpected reaches a caller but an id, under which the log has the traceback. Reasons and codes:
`availability.domain.errors`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import lru_cache

import grpc
import structlog
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]  # it ships no types
from grpc_status import rpc_status  # type: ignore[import-untyped]  # it ships no types

from availability.domain.errors import Reason, ServiceError
from availability.ledger.errors import LedgerOutOfMemory, LedgerUnreachable
from availability.service.admission import Overload
from availability.service.pool import PoolBusy

_LOG = structlog.get_logger(__name__)

DOMAIN = "availability"
MESSAGE_CHARS_MAX = 1_000
FACT_CHARS_MAX = 200
FACTS_MAX = 16
"""The three keep a status within the 8 KB of metadata that clients accept."""
RETRY_AFTER_MS_DEFAULT = 200


def overloaded(overload: Overload) -> ServiceError:
    """Make the error of a refusal by admission."""
    return ServiceError(Reason.OVERLOADED, overload.cause, retry_after_ms=str(overload.retry_after_ms))


def as_service_error(
    error: Exception,
    *,
    method: str,
    correlation_id: str,
    new_id: Callable[[], str] = lambda: secrets.token_hex(8),
) -> ServiceError:
    """Return what a caller is told of an exception; an unexpected one is logged and told by its id only."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, PoolBusy):
        return ServiceError(
            Reason.OVERLOADED, "too many calls wait already", retry_after_ms=str(RETRY_AFTER_MS_DEFAULT)
        )
    if isinstance(error, LedgerUnreachable):
        return ServiceError(Reason.LEDGER_UNREACHABLE, "the ledger did not answer; send the request again")
    if isinstance(error, LedgerOutOfMemory):
        return ServiceError(Reason.LEDGER_OUT_OF_MEMORY, "the ledger is out of memory; nothing was done")
    told_id = correlation_id or new_id()
    _LOG.error("call_failed", method=method, correlation_id=told_id, exc_info=error)
    return ServiceError(
        Reason.INTERNAL, "an internal error; the server's log has it under this id", correlation_id=told_id
    )


def grpc_status(error: ServiceError) -> grpc.Status:
    """Return the status of an error, with its ErrorInfo, and RetryInfo where it is OVERLOADED."""
    if error.reason is Reason.OVERLOADED:
        return _overloaded_status(error.message, error.facts.get("retry_after_ms", ""))
    return _status(error.reason, error.message, error.facts, ())


@lru_cache(maxsize=64)
def _overloaded_status(message: str, retry_after_ms: str) -> grpc.Status:
    # Kept, because refusing must be cheap exactly when it happens most.
    delay = Duration()
    delay.FromMilliseconds(int(retry_after_ms) if retry_after_ms.isdecimal() else RETRY_AFTER_MS_DEFAULT)
    facts = {"retry_after_ms": retry_after_ms} if retry_after_ms else {}
    return _status(Reason.OVERLOADED, message, facts, (error_details_pb2.RetryInfo(retry_delay=delay),))


def _status(
    reason: Reason,
    message: str,
    facts: dict[str, str],
    more: tuple[error_details_pb2.RetryInfo, ...],
) -> grpc.Status:
    info = error_details_pb2.ErrorInfo(
        reason=reason.value,
        domain=DOMAIN,
        metadata={key: str(value)[:FACT_CHARS_MAX] for key, value in list(facts.items())[:FACTS_MAX]},
    )
    details = []
    for detail in (info, *more):
        packed = Any()
        packed.Pack(detail)
        details.append(packed)
    status: grpc.Status = rpc_status.to_status(
        status_pb2.Status(
            code=code_pb2.Code.Value(reason.code.value), message=message[:MESSAGE_CHARS_MAX], details=details
        )
    )
    return status
