"""How the sources fare: what waits, how far each stream is, and since when one waits for missing numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog

from availability.v1 import stock_pb2 as pb
from ingest.feed_health import FeedState
from ingest.marks import Mark

_LOG = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLine:
    """One stream of a source. Ages and waits in seconds; None: not known, or not so.

    ``watermark``: latest occurred_time that is settled, seconds since 1970.
    """

    stream: str
    last_sequence: int
    age_s: float | None
    parked_s: float | None
    waits_for: int
    watermark: float | None
    was_reset: bool = False
    """Its next number opens it, whatever that is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceLine:
    """One source. ``files``: complete and waiting; None: it has no folder, or that cannot be read."""

    source: str
    mode: str
    files: int | None
    letters: int
    streams: tuple[StreamLine, ...]
    feeds: tuple[FeedState, ...] = ()


def stream_lines(
    marks: Iterable[Mark], heard: Iterable[pb.StreamStatus], now: float
) -> tuple[StreamLine, ...]:
    """Put together what ingest has noted and what the ledger has heard, by stream."""
    noted = {mark.stream: mark for mark in marks}
    told = {status.stream: status for status in heard}
    lines = []
    for stream in sorted({*noted, *told}):
        mark, status = noted.get(stream), told.get(stream)
        parked = status is not None and status.state == pb.STREAM_STATE_PARKED
        parked_s = None
        if (
            parked or status is None
        ):  # the ledger's word counts: a stream may have been reset by another way than ours
            if mark is not None and mark.parked_at is not None:
                parked_s = max(0.0, now - mark.parked_at)
            elif parked:
                parked_s = 0.0
        age_s = None
        if status is not None:
            age_s = status.age_ms / 1000
        elif mark is not None and mark.settled_at:
            age_s = max(0.0, now - mark.settled_at)
        lines.append(
            StreamLine(
                stream=stream,
                last_sequence=status.last_sequence if status is not None else 0,
                age_s=age_s,
                parked_s=parked_s,
                waits_for=status.last_sequence + 1 if parked and status is not None else 0,
                watermark=mark.watermark if mark is not None and mark.watermark else None,
                was_reset=status is not None and status.state == pb.STREAM_STATE_RESET,
            )
        )
    return tuple(lines)


class ParkedAlarm:
    """Tells of streams that are parked for too long: once, and again after as long."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._told: dict[tuple[str, str], float] = {}

    def look(self, marks: Iterable[Mark], alarm_s: float) -> list[Mark]:
        """Log and return the streams that are told now."""
        now, told = self._now(), []
        for mark in marks:
            key = (mark.source, mark.stream)
            if mark.parked_at is None:
                self._told.pop(key, None)
            elif now - max(mark.parked_at, self._told.get(key, 0.0)) >= alarm_s:
                self._told[key] = now
                told.append(mark)
                _LOG.error(
                    "a stream is parked for too long",
                    source=mark.source,
                    stream=mark.stream,
                    waits_for=mark.waits_for,
                    parked_s=round(now - mark.parked_at),
                )
        return told
