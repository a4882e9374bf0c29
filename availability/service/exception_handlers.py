"""Exceptions told to people and service desks: a list, a hand that takes one, a stream that can be resumed.

And reported by programs that see what no server can: how ingest, reconciliation and publishers fare.
"""

from __future__ import annotations

import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as BadBase64
from collections.abc import Collection, Iterator

from msgspec.structs import replace

from availability.domain.errors import Reason, ServiceError, invalid
from availability.domain.exceptions import (
    NOTE_BYTES_MAX,
    REPORT_MAX,
    REPORTED,
    RULES,
    SUBJECT_NAMES_MAX,
    ExceptionCategory,
    exception_id,
)
from availability.domain.exceptions import ExceptionState as Life
from availability.domain.limits import BALANCE_ABS_MAX, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX
from availability.domain.text import text_problem
from availability.domain.version import Version
from availability.ledger import calls
from availability.ledger.exceptions import point, sighting
from availability.ledger.ledger import Ledger
from availability.ledger.record import ExceptionState
from availability.replica.replica import Replica
from availability.service.context import CallContext
from availability.service.exception_book import ExceptionBook
from availability.service.ledger_calls import call, ledger_failures, refuse
from availability.service.requests import check_id, check_reference, request_key, timestamp
from availability.v1 import exception_pb2 as pb

WATCH_POLL_S = 0.5
MESSAGE_MAX = 200
"""Exceptions of one message of the stream; those of one version stay together."""
REPORT_MESSAGE_BYTES_MAX = 2_000
"""Of a reported sentence, before it is cut to what is kept."""
RESUME_WAIT_S = 2.0
"""How long a watcher that is ahead of this server waits for it."""

_REPORTED = frozenset(int(category) for category in REPORTED)

SortKey = tuple[int, int, str]


class ExceptionHandlers:
    """ExceptionService."""

    def __init__(
        self, ledger: Ledger, replica: Replica, book: ExceptionBook, limits: calls.ReportLimits
    ) -> None:
        self._ledger = ledger
        self._replica = replica
        self._book = book
        self._limits = limits

    def list_exceptions(
        self, request: pb.ListExceptionsRequest, ctx: CallContext
    ) -> pb.ListExceptionsResponse:
        """Return a page, the most severe first, then the oldest."""
        categories = _categories(request.categories)
        if request.state not in pb.ExceptionState.values():
            raise invalid("no such state", field="state")
        size = request.page_size or PAGE_SIZE_DEFAULT
        if not 1 <= size <= PAGE_SIZE_MAX:
            raise invalid(f"page_size must be 1 to {PAGE_SIZE_MAX}", field="page_size")
        after = _page_token(request.page_token)
        call(ctx, self._book.refresh)
        states = (request.state,) if request.state else (Life.OPEN, Life.ACKNOWLEDGED)
        rows = [
            one
            for one in self._book.all()
            if one.category in categories and one.state in states and (after is None or _key(one) > after)
        ]
        rows.sort(key=_key)
        page = rows[:size]
        return pb.ListExceptionsResponse(
            exceptions=[_shown(one, self._book.clock_ms) for one in page],
            next_page_token=_token(page[-1]) if len(rows) > size else "",
            version=str(self._book.version),
        )

    def acknowledge_exception(
        self, request: pb.AcknowledgeExceptionRequest, ctx: CallContext
    ) -> pb.AcknowledgeExceptionResponse:
        """Take an exception in hand."""
        check_reference(request.exception_id, "exception_id", required=True)
        problem = text_problem(request.note, "note", bytes_max=NOTE_BYTES_MAX, required=False)
        if problem is not None:
            raise invalid(problem, field="note")
        command = calls.Acknowledge(
            request_key(request.request_id, request, ctx), request.exception_id, request.note
        )
        reply = call(ctx, lambda: self._ledger.acknowledge_exception(command, ctx.deadline))
        if reply.status != "OK":
            raise refuse(reply.status, exception_id=request.exception_id)
        call(ctx, self._book.refresh)
        state = self._book.get(request.exception_id)
        return pb.AcknowledgeExceptionResponse(
            exception=None if state is None else _shown(state, self._book.clock_ms),
            version=reply.version,
            replayed=reply.replayed,
        )

    def report_exceptions(
        self, request: pb.ReportExceptionsRequest, ctx: CallContext
    ) -> pb.ReportExceptionsResponse:
        """Keep what a program sees is wrong, and end what it sees is over."""
        check_id(request.source, "source")
        for name, told in (("wrong", request.wrong), ("over", request.over)):
            if len(told) > REPORT_MAX:
                raise ServiceError(
                    Reason.BATCH_TOO_LARGE,
                    f"{len(told)} in {name}, at most {REPORT_MAX}",
                    limit=str(REPORT_MAX),
                )
        seen = [_sighting(request.source, one) for one in request.wrong]
        over = [_reported_id(request.source, one) for one in request.over]
        command = calls.Report(ctx.principal.id, 0, 0, seen, over, self._limits)
        reply = call(ctx, lambda: self._ledger.report_exceptions(command, ctx.deadline))
        if reply.status != "OK":
            raise refuse(reply.status)
        return pb.ReportExceptionsResponse(
            exception_ids=[one.exception_id for one in seen],
            opened_count=reply.opened,
            resolved_count=reply.resolved,
            left_out_count=reply.left_out,
            version=reply.version,
        )

    def watch_exceptions(
        self, request: pb.WatchExceptionsRequest, ctx: CallContext
    ) -> Iterator[pb.WatchExceptionsResponse]:
        """Stream what is open, or what changed since a version, then each change."""
        categories = _categories(request.categories)
        cursor = self._resumed(request.resume_version)
        with ledger_failures():
            self._book.refresh()
        generation = self._book.generation
        if cursor is not None and cursor < self._book.floor:
            cursor = None
        while not ctx.cancelled():
            if generation != self._book.generation:
                generation, cursor = self._book.generation, None
            initial = cursor is None
            version = self._book.version  # before the rows: what comes later is sent again, never lost
            rows = self._book.all(after=-1 if cursor is None else cursor)
            if initial:
                rows = [one for one in rows if one.state != Life.RESOLVED]
            if initial or rows:
                yield from self._messages(rows, categories, version, initial=initial)
                last = point(Version.parse(rows[-1].version)) if rows else 0
                cursor = max(last, point(version))
            else:
                self._book.wait(WATCH_POLL_S)

    def _messages(
        self, rows: list[ExceptionState], categories: Collection[int], version: Version, *, initial: bool
    ) -> Iterator[pb.WatchExceptionsResponse]:
        wanted = [one for one in rows if one.category in categories]
        first = 0
        while True:
            last = min(first + MESSAGE_MAX, len(wanted))
            while last < len(wanted) and wanted[last].version == wanted[last - 1].version:
                last += 1
            ends = last == len(wanted)
            if initial or last > first:
                yield pb.WatchExceptionsResponse(
                    exceptions=[_shown(one, self._book.clock_ms) for one in wanted[first:last]],
                    initial=initial,
                    # Of what was open before, a part is no point to resume from: older ones may be missing.
                    version=str(version) if ends else "" if initial else wanted[last - 1].version,
                )
            if ends:
                return
            first = last

    def _resumed(self, text: str) -> int | None:
        if not text:
            return None
        try:
            version = Version.parse(text)
        except ValueError as error:
            raise invalid(str(error), field="resume_version") from error
        if version.shard:
            raise invalid("this ledger has one shard", field="resume_version")
        if not self._replica.wait_for(version, time.monotonic() + RESUME_WAIT_S):
            raise ServiceError(
                Reason.STALE, "this server has not reached the version yet", version=str(version)
            )
        return point(version)


def _reported_id(source: str, one: pb.ReportedException) -> str:
    """The id of what a program reports; its source is part of it."""
    if int(one.category) not in _REPORTED:
        allowed = ", ".join(sorted(category.name for category in REPORTED))
        raise invalid(
            f"category must be one of {allowed}: the service sees the others itself", field="category"
        )
    if not 1 <= len(one.subject) <= SUBJECT_NAMES_MAX:
        raise invalid(f"subject must have 1 to {SUBJECT_NAMES_MAX} names", field="subject")
    for name in one.subject:
        check_reference(name, "subject", required=True)
    return exception_id(ExceptionCategory(one.category), source, *one.subject)


def _sighting(source: str, one: pb.ReportedException) -> calls.Sighting:
    _reported_id(source, one)
    problem = text_problem(one.message, "message", bytes_max=REPORT_MESSAGE_BYTES_MAX)
    if problem is not None:
        raise invalid(problem, field="message")
    for value, what in ((one.sku, "sku"), (one.node, "node"), (one.stream, "stream")):
        check_id(value, what, required=False)
    if abs(one.quantity) > BALANCE_ABS_MAX:
        raise invalid(f"quantity must be -{BALANCE_ABS_MAX} to {BALANCE_ABS_MAX}", field="quantity")
    if one.severity not in pb.ExceptionSeverity.values():
        raise invalid("no such severity", field="severity")
    category = ExceptionCategory(one.category)
    seen = sighting(
        category,
        (source, *one.subject),
        one.message,
        sku=one.sku,
        node=one.node,
        source=source,
        stream=one.stream,
        quantity=one.quantity,
    )
    return replace(seen, severity=one.severity or int(RULES[category].severity))


def _categories(asked: Collection[int]) -> Collection[int]:
    every = {int(category) for category in ExceptionCategory}
    for category in asked:
        if category not in every:
            raise invalid(f"{category} is no category", field="categories")
    return set(asked) or every


def _key(one: ExceptionState) -> SortKey:
    return -one.severity, one.first_seen_ms, one.exception_id


def _token(one: ExceptionState) -> str:
    severity, first_seen_ms, exception_id = _key(one)
    return urlsafe_b64encode(f"{-severity}.{first_seen_ms}.{exception_id}".encode()).decode()


def _page_token(text: str) -> SortKey | None:
    if not text:
        return None
    try:
        severity, first_seen_ms, exception_id = urlsafe_b64decode(text.encode()).decode().split(".", 2)
        return -int(severity), int(first_seen_ms), exception_id
    except (BadBase64, ValueError):
        raise invalid("page_token is not one that this call gave", field="page_token") from None


def _shown(one: ExceptionState, clock_ms: int) -> pb.Exception:
    return pb.Exception(
        exception_id=one.exception_id,
        category=pb.ExceptionCategory.ValueType(one.category),
        severity=pb.ExceptionSeverity.ValueType(one.severity),
        state=pb.ExceptionState.ValueType(one.state),
        owner=one.owner,
        message=one.message,
        sku=one.sku,
        node=one.node,
        source=one.source,
        stream=one.stream,
        quantity=one.quantity,
        at_risk=[
            pb.OrderAtRisk(
                order_source=risk.order_source,
                order_ref=risk.order_ref,
                reservation_id=risk.reservation_id,
                sku=risk.sku,
                node=risk.node,
                quantity=risk.quantity,
            )
            for risk in one.at_risk
        ],
        first_seen_time=timestamp(one.first_seen_ms),
        last_seen_time=timestamp(one.last_seen_ms),
        age_ms=max(0, clock_ms - one.first_seen_ms),
        acknowledged_by=one.acknowledged_by,
        note=one.note,
        version=one.version,
    )
