"""How a program reports what it sees is wrong: one call per exception, and one when it is over.

For what a program decides by itself: a delta that it had to put aside (DEAD_LETTER), a variance that it may not
correct (VARIANCE), a storefront that does not take a quantity (PUBLISH_FAILED). Composition roots make a reporter and
hand it to the parts. What servers see in stock, feeds and orders is ``service.inspector``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from availability.domain.exceptions import (
    AT_RISK_MAX,
    EXCEPTIONS_OPEN_MAX,
    REPORT_MAX,
    RULES,
    ExceptionCategory,
    exception_id,
)
from availability.domain.version import ZERO, Version
from availability.ledger import calls
from availability.ledger.record import AtRisk

POINT_EPOCH = 1 << 40
"""A version as one number, as the functions order exceptions: epochs below 8,192 stay exact."""
MESSAGE_CHARS_MAX = 300


def point(version: Version) -> int:
    """Return a version as one number."""
    return version.epoch * POINT_EPOCH + version.seq


class ReportsTo(Protocol):
    """The ledger, as far as a reporter needs it. Raises LedgerError."""

    def report_exceptions(self, call: calls.Report, deadline: float) -> calls.ReportReply: ...


def sighting(
    category: ExceptionCategory,
    subject: Sequence[str],
    message: str,
    *,
    sku: str = "",
    node: str = "",
    source: str = "",
    stream: str = "",
    quantity: int = 0,
    at_risk: Iterable[AtRisk] = (),
) -> calls.Sighting:
    """Make a sighting by the rules of its category. ``subject`` names what it is about, and with it the exception."""
    rule = RULES[category]
    return calls.Sighting(
        exception_id(category, *subject),
        int(category),
        int(rule.severity),
        rule.owner,
        message[:MESSAGE_CHARS_MAX],
        sku,
        node,
        source,
        stream,
        quantity,
        list(at_risk)[:AT_RISK_MAX],
    )


class ExceptionReporter:
    """Reports under a program's name. Calls wait for the ledger: not for a hot path."""

    def __init__(
        self,
        ledger: ReportsTo,
        author: str,
        monotonic: Callable[[], float],
        *,
        timeout_s: float = 2.0,
        change_ms: int = 10_000,
        keep_ms: int = 24 * 3_600_000,
        seen_ms: int = 30_000,
        open_max: int = EXCEPTIONS_OPEN_MAX,
    ) -> None:
        self._ledger = ledger
        self._author = author
        self._monotonic = monotonic
        self._timeout_s = timeout_s
        self._limits = calls.ReportLimits(change_ms, keep_ms, open_max, seen_ms)

    def report(
        self,
        category: ExceptionCategory,
        subject: Sequence[str],
        message: str,
        *,
        sku: str = "",
        node: str = "",
        source: str = "",
        stream: str = "",
        quantity: int = 0,
        at_risk: Iterable[AtRisk] = (),
    ) -> str:
        """Say that something is wrong; saying it again is the same exception. Returns its id. Raises LedgerError."""
        seen = sighting(
            category,
            subject,
            message,
            sku=sku,
            node=node,
            source=source,
            stream=stream,
            quantity=quantity,
            at_risk=at_risk,
        )
        self.tell([seen], [])
        return seen.exception_id

    def resolve(self, category: ExceptionCategory, subject: Sequence[str]) -> None:
        """Say that it is over; nothing happens where it was not known. Raises LedgerError."""
        self.tell([], [exception_id(category, *subject)])

    def tell(
        self, sightings: Sequence[calls.Sighting], gone: Sequence[str], version: Version = ZERO
    ) -> calls.ReportReply:
        """Report many, as seen at a version (none: now), in calls of at most 100. Returns the sums."""
        opened = resolved = left_out = 0
        reply = calls.ReportReply("OK", "")
        for first in range(0, max(len(sightings), len(gone)), REPORT_MAX):
            part = slice(first, first + REPORT_MAX)
            call = calls.Report(
                self._author,
                version.epoch,
                version.seq,
                list(sightings[part]),
                list(gone[part]),
                self._limits,
            )
            reply = self._ledger.report_exceptions(call, self._monotonic() + self._timeout_s)
            opened, resolved = opened + reply.opened, resolved + reply.resolved
            left_out += reply.left_out
        return calls.ReportReply(reply.status, reply.version, opened, resolved, left_out)
