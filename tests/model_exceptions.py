"""The plain model of exceptions: what the ledger keeps of what servers and programs report. One dict, no indexes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

OPEN, ACKNOWLEDGED, RESOLVED = 1, 2, 3


@dataclass(frozen=True)
class Seen:
    """What somebody reports: an id, how severe it is, and a number that stands for the rest."""

    id: str
    severity: int
    quantity: int


@dataclass(frozen=True)
class Kept:
    """One exception. ``at`` counts the logged changes of all; ``over_ms``: when a resolved one is forgotten."""

    id: str
    severity: int
    quantity: int
    state: int
    first_ms: int
    last_ms: int
    changed_ms: int
    by: str
    note: str
    at: int
    over_ms: int = 0


class Exceptions:
    """``report``, ``acknowledge`` and ``sweep`` as the contract says them."""

    def __init__(self, *, change_ms: int, keep_ms: int, open_max: int, seen_ms: int) -> None:
        self.change_ms, self.keep_ms, self.open_max, self.seen_ms = change_ms, keep_ms, open_max, seen_ms
        self.kept: dict[str, Kept] = {}
        self.clock_ms = 0
        self.at = 0
        self.left_out = 0

    def open(self) -> list[Kept]:
        return [one for one in self.kept.values() if one.state != RESOLVED]

    def report(self, sightings: Sequence[Seen], gone: Sequence[str], looked_at: int) -> bool:
        """Take a report of somebody who had seen ``looked_at`` changes; True where anything was logged."""
        before = dict(self.kept)
        at, touched = self.at + 1, set[str]()
        for id_ in gone:
            one = self.kept.get(id_)
            if one and one.state != RESOLVED and one.at <= looked_at and id_ not in touched:
                self._resolve(one, at)
                touched.add(id_)
        for seen in sightings:
            if seen.id in touched:
                continue
            one = self.kept.get(seen.id)
            if one and one.at > looked_at:
                continue
            if one and one.state != RESOLVED:
                touched |= self._again(one, seen, at)
            elif self._room(seen, touched, at):
                now = self.clock_ms
                self.kept[seen.id] = Kept(
                    seen.id, seen.severity, seen.quantity, OPEN, now, now, now, "", "", at
                )
                touched.add(seen.id)
            else:
                self.left_out += 1
        logged = bool(touched)
        if logged:
            self.at = at
        if any(one.state == RESOLVED and before.get(one.id) != one for one in self.kept.values()):
            over = [one for one in self.kept.values() if one.state == RESOLVED]
            before_now = [one for one in over if one.id not in touched]  # of one moment: what is new stays
            before_now.sort(key=lambda one: (one.over_ms, one.id))
            for one in before_now[: max(0, len(over) - self.open_max)]:
                del self.kept[one.id]
        return logged

    def _again(self, one: Kept, seen: Seen, at: int) -> set[str]:
        differs = (one.severity, one.quantity) != (seen.severity, seen.quantity)
        due = self.clock_ms - one.changed_ms >= self.change_ms or one.severity != seen.severity
        if differs and due:
            self.kept[one.id] = replace(
                one,
                severity=seen.severity,
                quantity=seen.quantity,
                last_ms=self.clock_ms,
                changed_ms=self.clock_ms,
                at=at,
            )
            return {one.id}
        if self.clock_ms - one.last_ms >= self.seen_ms:
            self.kept[one.id] = replace(one, last_ms=self.clock_ms)
        return set()

    def _resolve(self, one: Kept, at: int) -> None:
        self.kept[one.id] = replace(
            one, state=RESOLVED, changed_ms=self.clock_ms, at=at, over_ms=self.clock_ms + self.keep_ms
        )

    def _room(self, seen: Seen, touched: set[str], at: int) -> bool:
        if len(self.open()) < self.open_max:
            return True
        others = [one for one in self.open() if one.id not in touched]
        last = max(others, key=lambda o: (-o.severity, o.first_ms, o.id), default=None)
        if last is None or last.severity >= seen.severity:
            return False
        self._resolve(last, at)
        touched.add(last.id)
        return True

    def acknowledge(self, id_: str, by: str, note: str) -> str:
        one = self.kept.get(id_)
        if one is None:
            return "EXCEPTION_NOT_FOUND"
        if one.state == RESOLVED:
            return "EXCEPTION_RESOLVED"
        self.at += 1
        self.kept[id_] = replace(one, state=ACKNOWLEDGED, by=by, note=note, at=self.at)
        return "OK"

    def sweep(self) -> None:
        for one in list(self.kept.values()):
            if one.state == RESOLVED and one.over_ms <= self.clock_ms:
                del self.kept[one.id]
