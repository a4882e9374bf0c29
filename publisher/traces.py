"""Which event is behind a write: the trace of a source's event goes on to the storefront, as W3C trace context.

The feed notes the correlation id of each change, the delivery names the trace of what it is about to write, and the
storefront's client puts it into the call's header. A call that writes many values carries the trace of the one that
waited longest among those that have one; the log line of the call names the others.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from typing import Protocol

from availability.telemetry import Trace

REMEMBERED_MAX = 65_536
"""Skus of which the correlation id of the last change is remembered; the oldest are forgotten first."""
HEADER = "traceparent"
SAMPLED = "01"
"""Last field of a traceparent that is to be recorded."""

_CURRENT: ContextVar[str] = ContextVar("traceparent of the write under way", default="")


class Spans(Protocol):
    """Makes spans of calls to others: ``availability.telemetry.spans.Spans``."""

    def calling(self, name: str, traceparent: str, **attributes: str | int) -> AbstractContextManager[str]:
        """Wrap a call; the context gives the traceparent that it is to carry."""
        ...


def headers() -> dict[str, str]:
    """Return the headers that a call made now carries on: none where no event is known behind it."""
    current = _CURRENT.get()
    return {HEADER: current} if current else {}


def _span() -> str:
    return uuid.uuid4().hex[16:]  # the random half; the other holds the version's digit


class Traces:
    """Correlation ids by sku. On the publisher's loop only."""

    def __init__(self, new_span: Callable[[], str] = _span, spans: Spans | None = None) -> None:
        self._ids: dict[str, str] = {}
        self._new_span = new_span
        self._spans = spans

    def heard(self, skus: Sequence[str], correlation_ids: Sequence[str]) -> None:
        """Note whose event is behind each change; ``correlation_ids`` empty: nobody's is known."""
        for at, sku in enumerate(skus):
            self._ids.pop(sku, None)
            if correlation_ids and correlation_ids[at]:
                self._ids[sku] = correlation_ids[at]
        while len(self._ids) > REMEMBERED_MAX:
            del self._ids[next(iter(self._ids))]

    def of(self, skus: Sequence[str]) -> list[str]:
        """Return the correlation ids behind some skus, each once, in their order."""
        return list(dict.fromkeys(self._ids[sku] for sku in skus if sku in self._ids))

    @contextmanager
    def writing(self, skus: Sequence[str]) -> Iterator[list[str]]:
        """Let calls made meanwhile carry the trace of the first of these skus that has one; yield all their ids."""
        found = self.of(skus)
        traceparent = Trace.of_correlation(found[0], self._new_span()).traceparent() if found else ""
        with ExitStack() as stack:
            if self._spans is not None:
                if (
                    found
                ):  # whether the source's own span was sampled is not known here: this one is to be seen
                    traceparent = traceparent[:-2] + SAMPLED
                span = self._spans.calling("publish", traceparent, skus=len(skus))
                traceparent = stack.enter_context(span)
            token = _CURRENT.set(traceparent)
            try:
                yield found
            finally:
                _CURRENT.reset(token)
