"""Looks for what a person must see, again and again, and reports it to the ledger.

Every server looks; the ledger keeps one exception of a thing however many report it, so nobody is elected. What is not
seen any more is over only after it stayed away for a while: a number that flaps opens one exception, not one a second.
Positions are looked at in memory (``replica.anomalies``), streams, feeds and orders in the ledger. One thread;
``inspect`` is one look, for tests.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import structlog
from msgspec.structs import replace

from availability.domain.exceptions import (
    AT_RISK_MAX,
    EXCEPTIONS_OPEN_MAX,
    REPORT_MAX,
    ExceptionCategory,
)
from availability.domain.version import ZERO, Version
from availability.ledger import calls
from availability.ledger.errors import LedgerError
from availability.ledger.exceptions import ExceptionReporter, sighting
from availability.ledger.ledger import Behind, Ledger, split_order_name, split_pair
from availability.ledger.record import AtRisk, ExceptionState
from availability.replica.anomalies import Anomalies, Wrong
from availability.replica.replica import Replica
from availability.service.exception_book import ExceptionBook, counted
from availability.telemetry import ExceptionFigures

_LOG = structlog.get_logger(__name__)

AUTHOR = "availability"
LEDGER_INTERVAL_S = 5.0
"""How often streams, feeds and orders are asked for: the ledger walks through every stream for it."""
DETAILS_PER_LOOK = 20
"""Skus and orders of which one look asks the ledger who is at risk."""
REPORTED_PER_LOOK = 10 * REPORT_MAX
SKUS_PER_NODE = 5
"""Skus of an offline node whose orders are named."""

OF_POSITIONS = frozenset(
    {
        ExceptionCategory.OVERSOLD,
        ExceptionCategory.NEGATIVE_ON_HAND,
        ExceptionCategory.NODE_OFFLINE_WITH_HOLDS,
    }
)
OF_THE_LEDGER = frozenset(
    {
        ExceptionCategory.ORDER_UNCONFIRMED,
        ExceptionCategory.FEED_STALE,
        ExceptionCategory.PARKED_STREAM,
        ExceptionCategory.SHORT_PICK,
        ExceptionCategory.DAMAGE,
    }
)

Publish = Callable[[Mapping[tuple[int, int], int], Mapping[int, int], ExceptionFigures], None]
"""Is told the open exceptions by (category, severity), those not kept by category, and how old and large they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectorSettings:
    """When something is worth a person's look. Times in milliseconds; units of one position, 0: never."""

    interval_ms: int = 1_000
    resolve_after_ms: int = 10_000
    change_ms: int = 10_000
    seen_ms: int = 30_000
    keep_ms: int = 24 * 3_600_000
    parked_ms: int = 30_000
    order_unconfirmed_ms: int = 3_600_000
    short_pick_units: int = 10
    damage_units: int = 10
    open_max: int = EXCEPTIONS_OPEN_MAX
    max_staleness_ms: int = 2_000


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something wrong now; ``places`` are (sku, nodes) whose orders are at risk, ``order`` an order that is."""

    seen: calls.Sighting
    places: tuple[tuple[str, tuple[str, ...]], ...] = ()
    order: tuple[str, str] | None = None


class Inspector:
    """See the module."""

    def __init__(
        self,
        ledger: Ledger,
        replica: Replica,
        book: ExceptionBook,
        settings: InspectorSettings,
        monotonic: Callable[[], float],
        *,
        publish: Publish | None = None,
    ) -> None:
        self._ledger = ledger
        self._replica = replica
        self._book = book
        self._settings = settings
        self._monotonic = monotonic
        self._publish = publish
        self._reporter = ExceptionReporter(
            ledger,
            AUTHOR,
            monotonic,
            change_ms=settings.change_ms,
            keep_ms=settings.keep_ms,
            seen_ms=settings.seen_ms,
            open_max=settings.open_max,
        )
        self._anomalies = Anomalies(replica)
        self._told: set[str] | None = None
        """Skus of which an order fact said that nothing covers it; None until those of before are known."""
        self._of_skus: dict[str, dict[str, Candidate]] = {}
        self._of_nodes: dict[str, Candidate] = {}
        self._of_ledger: dict[str, Candidate] = {}
        self._oversold_units = 0
        self._unconfirmed_age_s = self._parked_age_s = 0.0
        self._looked_at: Version = ZERO
        self._ledger_looked_at: Version | None = None
        self._ask_at = 0.0
        self._absent: dict[str, float] = {}
        self._failing = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="inspector", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the look under way."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while not self._stopped.wait(self._settings.interval_ms / 1000):
            try:
                self.inspect()
                if self._failing:
                    self._failing = False
                    _LOG.info("exceptions are looked for again")
            except LedgerError as error:
                if not self._failing:
                    self._failing = True
                    _LOG.warning("exceptions cannot be looked for", error=str(error))
            except Exception:
                if not self._failing:
                    self._failing = True
                    _LOG.exception("looking for exceptions failed")

    # --- One look -----------------------------------------------------------------------------------------

    def inspect(self) -> None:
        """Look once and report. Raises LedgerError."""
        self._book.refresh()
        if self._replica.ready and self._replica.freshness_ms() <= self._settings.max_staleness_ms:
            self._look_at_positions()
            self._look_at_ledger()
            self._report()
            self._book.refresh()
        if self._publish is not None:
            known = self._book.open()
            left_out = Counter(
                one.seen.category for _, one in self._candidates() if one.seen.exception_id not in known
            )
            self._publish(counted(known.values()), left_out, self._figures(known.values()))

    def _figures(self, known: Iterable[ExceptionState]) -> ExceptionFigures:
        clock_ms = self._book.clock_ms
        oldest: dict[int, float] = {}
        for one in known:
            age_s = max(0, clock_ms - one.first_seen_ms) / 1000
            oldest[one.category] = max(oldest.get(one.category, 0.0), age_s)
        return ExceptionFigures(
            oversold_units=self._oversold_units,
            unconfirmed_order_age_s=self._unconfirmed_age_s,
            parked_stream_age_s=self._parked_age_s,
            oldest_age_s=oldest,
        )

    def _look_at_positions(self) -> None:
        if self._told is None:
            open_ones = self._book.open().values()
            self._told = {one.sku for one in open_ones if one.category == ExceptionCategory.OVERSOLD}
        scan = self._anomalies.scan()
        self._looked_at = scan.version
        self._told |= scan.uncovered
        found = self._anomalies.found
        self._told = {sku for sku in self._told if sku in found and found[sku].short}
        if scan.moved is None:
            self._of_skus = {sku: made for sku, wrong in found.items() if (made := self._of_sku(wrong))}
        else:
            for sku in scan.moved | scan.uncovered:
                made = self._of_sku(found[sku]) if sku in found else {}
                if made:
                    self._of_skus[sku] = made
                else:
                    self._of_skus.pop(sku, None)
        if scan.moved is None or scan.moved:
            self._of_nodes = _of_nodes(found)
        if scan.moved is None or scan.moved or scan.uncovered:
            self._oversold_units = sum(self._units_over(wrong) for wrong in found.values())

    def _units_over(self, wrong: Wrong) -> int:
        """Units of a sku promised beyond what its nodes can give, or, where a fact said so, beyond what one can."""
        return wrong.deficit or (
            sum(units for _, units in wrong.short) if wrong.sku in (self._told or ()) else 0
        )

    def _of_sku(self, wrong: Wrong) -> dict[str, Candidate]:
        made = []
        sku = wrong.sku
        units = self._units_over(wrong)
        if units:
            message = f"{units} units of {sku} are promised beyond what its nodes can give"
            nodes = tuple(node for node, _ in wrong.short)
            seen = sighting(ExceptionCategory.OVERSOLD, (sku,), message, sku=sku, quantity=units)
            made.append(Candidate(seen, ((sku, nodes),)))
        for node, on_hand in wrong.negative:
            seen = sighting(
                ExceptionCategory.NEGATIVE_ON_HAND,
                (sku, node),
                f"on hand of {sku} at {node} is {on_hand}: a movement was counted wrongly or not at all",
                sku=sku,
                node=node,
                quantity=on_hand,
            )
            made.append(Candidate(seen))
        return {one.seen.exception_id: one for one in made}

    def _look_at_ledger(self) -> None:
        now = self._monotonic()
        if now < self._ask_at:
            return
        s = self._settings
        troubles = self._ledger.troubles(
            parked_ms=s.parked_ms,
            unconfirmed_ms=s.order_unconfirmed_ms,
            count=min(1_000, s.open_max),
            short_pick_units=s.short_pick_units,
            damage_units=s.damage_units,
        )
        self._ask_at = now + LEDGER_INTERVAL_S
        self._ledger_looked_at = troubles.head.version
        self._of_ledger = {one.seen.exception_id: one for one in _of_troubles(troubles)}
        clock_ms = troubles.clock_ms
        self._unconfirmed_age_s = _oldest_s(clock_ms, (committed for _, committed in troubles.orders))
        self._parked_age_s = _oldest_s(clock_ms, (since for *_, since, _ in troubles.parked))

    def _candidates(self) -> Iterator[tuple[str, Candidate]]:
        for made in self._of_skus.values():
            yield from made.items()
        yield from self._of_nodes.items()
        yield from self._of_ledger.items()

    # --- What is reported ---------------------------------------------------------------------------------

    def _report(self) -> None:
        known = self._book.open()
        new, again, present = list[Candidate](), list[Candidate](), set[str]()
        for id_, candidate in self._candidates():
            before = known.get(id_)
            if before is None:
                new.append(candidate)
                continue
            present.add(id_)
            if self._is_due(before, candidate.seen):
                again.append(candidate)
        gone = self._gone(known, present)
        new = self._with_room(new, known, len(gone))
        chosen = [*new, *again][:REPORTED_PER_LOOK]
        detailed = self._detailed(chosen, known)
        for categories, version in ((OF_POSITIONS, self._looked_at), (OF_THE_LEDGER, self._ledger_looked_at)):
            sightings = [seen for seen in detailed if seen.category in categories]
            ended = [id_ for id_ in gone if known[id_].category in categories]
            if version is not None and (sightings or ended):
                self._reporter.tell(sightings, ended, version)

    def _is_due(self, before: ExceptionState, seen: calls.Sighting) -> bool:
        clock_ms = self._book.clock_ms
        differs = (before.quantity, before.message, before.severity) != (
            seen.quantity,
            seen.message,
            seen.severity,
        )
        if differs and clock_ms - before.changed_ms >= self._settings.change_ms:
            return True
        return clock_ms - self._book.last_seen_ms(before.exception_id) >= self._settings.seen_ms

    def _gone(self, known: Mapping[str, ExceptionState], present: set[str]) -> list[str]:
        """Ids of open exceptions that stayed away long enough."""
        now = self._monotonic()
        watched = OF_POSITIONS | (OF_THE_LEDGER if self._ledger_looked_at is not None else frozenset())
        away = {id_ for id_, one in known.items() if one.category in watched and id_ not in present}
        self._absent = {id_: self._absent.get(id_, now) for id_ in away}
        after_s = self._settings.resolve_after_ms / 1000
        gone = [id_ for id_, since in self._absent.items() if now - since >= after_s][:REPORTED_PER_LOOK]
        for id_ in gone:
            del self._absent[id_]  # should it come again, it must stay away anew
        return gone

    def _with_room(
        self, new: list[Candidate], known: Mapping[str, ExceptionState], leaving: int
    ) -> list[Candidate]:
        """The most severe first; those without room only where they are more severe than one that is kept."""
        room = self._settings.open_max - len(known) + leaving
        if len(new) <= room:
            return new
        new.sort(key=lambda one: -one.seen.severity)
        least = min((one.severity for one in known.values()), default=0)
        return new[: max(0, room)] + [one for one in new[max(0, room) :] if one.seen.severity > least]

    def _detailed(self, chosen: list[Candidate], known: Mapping[str, ExceptionState]) -> list[calls.Sighting]:
        """Add who is at risk, for so many; others keep what was known, and get it when they change."""
        asked = 0
        sightings = []
        for candidate in chosen:
            seen = candidate.seen
            before = known.get(seen.exception_id)
            unchanged = before is not None and before.quantity == seen.quantity
            if not candidate.places and candidate.order is None:
                at_risk: list[AtRisk] = []
            elif before is not None and (unchanged or asked >= DETAILS_PER_LOOK):
                at_risk = before.at_risk
            elif asked >= DETAILS_PER_LOOK:
                at_risk = []
            else:
                asked += max(1, len(candidate.places))
                at_risk = self._at_risk(candidate)
            sightings.append(replace(seen, at_risk=at_risk))
        return sightings

    def _at_risk(self, candidate: Candidate) -> list[AtRisk]:
        if candidate.order is not None:
            source, ref = candidate.order
            skus = self._ledger.order(source, ref)[2]
            risks = [
                AtRisk(source, ref, "", sku, node, units)
                for sku, state in skus
                for line in state.lines
                for node, units in sorted(line.sourced.items() if isinstance(line.sourced, dict) else ())
            ]
            return risks[:AT_RISK_MAX]
        risks = []
        for sku, nodes in candidate.places:
            if len(risks) < AT_RISK_MAX:
                risks += _behind(self._ledger.behind(sku), sku, nodes)
        return risks[:AT_RISK_MAX]


def _oldest_s(clock_ms: int, times_ms: Iterable[int]) -> float:
    """Age of the earliest of some times in seconds; 0 where there is none."""
    return max(0, clock_ms - min(times_ms, default=clock_ms)) / 1000


def _of_nodes(found: Mapping[str, Wrong]) -> dict[str, Candidate]:
    units: Counter[str] = Counter()
    skus: dict[str, list[str]] = {}
    for wrong in found.values():
        for node, promised in wrong.offline:
            units[node] += promised
            skus.setdefault(node, []).append(wrong.sku)
    made = {}
    for node, promised in units.items():
        seen = sighting(
            ExceptionCategory.NODE_OFFLINE_WITH_HOLDS,
            (node,),
            f"{node} is offline, and {promised} promised units of {len(skus[node])} skus wait there",
            node=node,
            quantity=promised,
        )
        places = tuple((sku, (node,)) for sku in sorted(skus[node], key=str.encode)[:SKUS_PER_NODE])
        made[seen.exception_id] = Candidate(seen, places)
    return made


def _of_troubles(troubles: calls.Troubles) -> Iterator[Candidate]:
    for source, node in troubles.feeds:
        message = f"{source} is silent about {node} for longer than was agreed"
        yield Candidate(
            sighting(ExceptionCategory.FEED_STALE, (source, node), message, source=source, node=node)
        )
    for source, stream, mark, _, parked, *_ in troubles.parked:
        message = f"stream {stream!r} of {source} waits for number {mark + 1}; {parked} came already"
        yield Candidate(
            sighting(
                ExceptionCategory.PARKED_STREAM,
                (source, stream),
                message,
                source=source,
                stream=stream,
                quantity=mark + 1,
            )
        )
    for name, _ in troubles.orders:
        source, ref = split_order_name(name)
        message = f"order {ref} of {source} was committed, and nobody has confirmed or served it since"
        seen = sighting(ExceptionCategory.ORDER_UNCONFIRMED, (source, ref), message, source=source)
        yield Candidate(seen, order=(source, ref))

    yield from _of_quarantine(
        ExceptionCategory.SHORT_PICK, troubles.short_picks, "were not found by a picker and are to be counted"
    )
    yield from _of_quarantine(
        ExceptionCategory.DAMAGE, troubles.damages, "are damaged and wait for a decision"
    )


def _of_quarantine(
    category: ExceptionCategory, found: Iterable[tuple[str, int]], what: str
) -> Iterator[Candidate]:
    for name, units in found:
        sku, node = split_pair(name)
        yield Candidate(
            sighting(
                category,
                (sku, node),
                f"{units} units of {sku} at {node} {what}",
                sku=sku,
                node=node,
                quantity=units,
            )
        )


def _behind(behind: Behind, sku: str, nodes: tuple[str, ...]) -> list[AtRisk]:
    """Orders, then holds, that count on a sku at some nodes."""
    risks = [
        AtRisk(*split_order_name(name), "", sku, node, units)
        for name, places in sorted(behind.orders)
        for node, units in sorted(places.items())
        if units > 0 and node in nodes
    ]
    risks += [
        AtRisk("", "", reservation, sku, node, units)
        for reservation, sources in sorted(behind.holds)
        for node, units in sources
        if units > 0 and node in nodes
    ]
    return risks
