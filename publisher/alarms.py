"""What of a storefront a person must see, as exceptions of the service: letters that wait, a shop that takes nothing.

Everything is looked at anew each time and told as it is, what is over too: nothing has to be remembered over a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from availability.client import ClientError
from availability.history.database import DatabaseUnreachable
from availability.v1 import exception_pb2 as exc
from publisher.letters import LettersSummary
from publisher.pace import Breaker
from publisher.shop_publisher import Parts
from publisher.storefront import Category

_LOG = structlog.get_logger(__name__)

LOOK_S = 5.0
TOLD_AGAIN_S = 60.0
FAILING_S = 60.0
"""A breaker that stays open for so long is an exception; a shorter one is the shop's everyday life."""
MESSAGE_CHARS_MAX = 300
SHOP = "shop"
_FAILED = exc.EXCEPTION_CATEGORY_PUBLISH_FAILED


class Reports(Protocol):
    """What takes reports: ``availability.client.Client``. Raises ClientError."""

    def report_exceptions(
        self, source: str, wrong: list[exc.ReportedException], over: list[exc.ReportedException]
    ) -> object: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Concern:
    """Something of a shop that a person must see, besides letters. ``message`` empty: it is over."""

    subject: str
    message: str
    quantity: int = 0
    warning: bool = False


class Alarms:
    """One shop's. Subjects: each category of letters, the shop itself, and whatever else is of ``concern``.

    ``concerns`` is asked at each look, on a thread; it names every subject, those that are over too.
    """

    def __init__(
        self,
        reports: Reports,
        source: str,
        now: Callable[[], float],
        concerns: Callable[[], Sequence[Concern]] = tuple,
    ) -> None:
        self._reports, self._source, self._now = reports, source, now
        self._concerns = concerns
        self._failing_since: float | None = None
        self._told: tuple[float, list[exc.ReportedException]] = (0.0, [])
        self._refused = False

    async def run(self, parts: Parts, _: asyncio.Event) -> None:
        """Look for ever."""
        while True:
            await self.look(parts)
            await asyncio.sleep(LOOK_S)

    async def look(self, parts: Parts) -> None:
        """Report what changed since the last look, and everything once a minute; a failure is tried again then."""
        shop, now = parts.shop, self._now()
        try:
            letters = await shop.records.call(parts.letters.summary, shop.channel)
            concerns = await shop.records.call(self._concerns)
        except DatabaseUnreachable:
            return
        wrong = [
            *_of_letters(shop.channel, letters),
            *self._of_shop(parts, now),
            *(
                _wrong(one.subject, one.message, one.quantity, warning=one.warning)
                for one in concerns
                if one.message
            ),
        ]
        told_at, before = self._told
        if wrong == before and now - told_at < TOLD_AGAIN_S:
            return
        subjects = {one.subject[0] for one in wrong}
        over = [
            exc.ReportedException(category=_FAILED, subject=[subject])
            for subject in (*(one.value for one in Category), SHOP, *(one.subject for one in concerns))
            if subject not in subjects
        ]
        try:
            await asyncio.to_thread(self._reports.report_exceptions, self._source, wrong, over)
            self._told = now, wrong
        except ClientError as error:
            if error.code != "PERMISSION_DENIED" or not self._refused:
                _LOG.warning("exceptions are not reported", channel=shop.channel, reason=error.reason)
            self._refused = error.code == "PERMISSION_DENIED"

    def _of_shop(self, parts: Parts, now: float) -> Sequence[exc.ReportedException]:
        shop, stopped = parts.shop, parts.delivery.stopped_reason
        if stopped:
            return [_wrong(SHOP, f"{shop.channel} refuses the keys, nothing is published: {stopped}", 0)]
        if shop.pace.breaker is Breaker.CLOSED:
            self._failing_since = None
            return []
        self._failing_since = self._failing_since if self._failing_since is not None else now
        if now - self._failing_since < FAILING_S:
            return []
        return [
            _wrong(
                SHOP, f"{shop.channel} takes no numbers: {parts.outcomes.last_failure}", len(shop.coalescer)
            )
        ]


def _of_letters(channel: str, letters: Mapping[str, LettersSummary]) -> Sequence[exc.ReportedException]:
    return [
        _wrong(
            category,
            f"{one.count} numbers could not be published to {channel} ({category}), as of {one.sku!r}: {one.message}",
            one.count,
            warning=category == Category.MAPPING.value,
        )
        for category, one in sorted(letters.items())
    ]


def _wrong(subject: str, message: str, quantity: int, *, warning: bool = False) -> exc.ReportedException:
    shown = "".join(sign if sign.isprintable() else " " for sign in message)[:MESSAGE_CHARS_MAX]
    reported = exc.ReportedException(category=_FAILED, subject=[subject], message=shown, quantity=quantity)
    if warning:
        reported.severity = exc.EXCEPTION_SEVERITY_WARNING
    return reported
