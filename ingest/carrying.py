"""Carries what the drop folders hold, each source in a thread of its own, until stopped.

A long file, a slow disk or a source that is parked keeps no other source waiting: what a webhook wrote goes in while
millions of rows of a nightly file do. A source's own files go in one after the other, the oldest first. At most
SOURCES_AT_ONCE have a file under way, each with its batches (`unacked_batches`), so memory stays bounded however many
sources there are.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import sqlalchemy as sa
import structlog

from availability.client import ClientError
from availability.telemetry import IngestMetrics
from ingest.feed_health import FOLDER, FeedHealth
from ingest.figures import RowCounter
from ingest.runs import Outcome, Progress
from ingest.sources.drop_folder import DropFolderSource
from ingest.upkeep import Upkeep

_LOG = structlog.get_logger(__name__)

POLL_S = 0.25
UPKEEP_S = 1.0
STOP_POLL_S = 0.1
OUTAGE_PAUSE_S = 2.0
OUTAGE_PAUSE_MAX_S = 30.0
SOURCES_AT_ONCE = 8
"""Each has a stream to the server, which takes 32 (`limits.delta_streams`), and two connections to the database."""
_MENDED_BY_PEOPLE = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED", "INVALID_ARGUMENT"})


class Carriers:
    """The folders of all sources, and who carries what is in them. ``told`` hears a line per file, one at a time."""

    def __init__(
        self,
        folders: Mapping[str, DropFolderSource],
        counters: Mapping[str, RowCounter],
        health: FeedHealth,
        upkeep: Upkeep,
        metrics: IngestMetrics,
        told: Callable[[str], None],
    ) -> None:
        self._folders = folders
        self._counters = counters
        self._health = health
        self._upkeep = upkeep
        self._metrics = metrics
        self._told = told
        self._one_at_a_time = threading.Lock()
        self._slots = threading.Semaphore(SOURCES_AT_ONCE)
        self._over = threading.Event()
        self._away: dict[str, float] = {}
        """Who found the ledger away, and since when (monotonic)."""
        self._turned = threading.Condition()
        """The ledger was heard again by one of those who found it away, or everybody is to end."""
        self._turns = 0
        self._turned_at = float("-inf")
        self._failure: BaseException | None = None

    @property
    def over(self) -> Callable[[], bool]:
        """Whether everybody is to end; for what waits within a file."""
        return self._over.is_set

    def once(self, stopped: Callable[[], bool]) -> None:
        """Carry what is there, source by source. Raises what goes wrong."""
        for name, folder in self._folders.items():
            for _, outcome in folder.carry_ready():
                self._note(name, folder, outcome)
                if stopped():
                    return
            self._health.works(name, FOLDER)
        self._upkeep.after_files()

    def run(self, stopped: Callable[[], bool]) -> None:
        """Carry until stopped. Raises what people have to mend, and bugs; everything else is tried again."""
        threads = [
            threading.Thread(target=self._carry_on, args=(name,), name=f"carry-{name}", daemon=True)
            for name in self._folders
        ]
        for thread in threads:
            thread.start()
        try:
            due, pauses = time.monotonic(), _Pauses()
            while not stopped() and self._failure is None:
                if time.monotonic() >= due:
                    due = time.monotonic() + self._tried("", self._upkeep.after_files, pauses, UPKEEP_S)
                time.sleep(STOP_POLL_S)
        finally:
            self._over.set()
            self._turn()
            for thread in threads:
                thread.join()
        if self._failure is not None:
            raise self._failure

    def _carry_on(self, name: str) -> None:
        """One source's thread."""
        pauses = _Pauses()
        try:
            while not self._over.is_set():
                turns = self._turns
                pause_s = self._tried(name, lambda: self._round(name), pauses, POLL_S)
                with self._turned:
                    self._turned.wait_for(lambda: self._over.is_set() or self._turns != turns, pause_s)  # noqa: B023
        except BaseException as error:  # nobody sees a thread end: `run` raises it
            self._failure = self._failure or error

    def _round(self, name: str) -> None:
        folder = self._folders[name]
        try:
            if folder.ready():
                with self._slots:
                    for _, outcome in self._until_over(folder.carry_ready()):
                        self._note(name, folder, outcome)
            self._health.works(name, FOLDER)
        except OSError as error:
            where = os.fsencode(str(error.filename or "")).decode("utf-8", "backslashreplace")
            told = f"{type(error).__name__}: {error.strerror}: {where}"
            _LOG.error("a drop folder cannot be used", source=name, error=told)
            self._health.fails(name, FOLDER, "FOLDER_UNUSABLE", told)

    def _until_over(self, carried: Iterator[tuple[Path, Outcome]]) -> Iterator[tuple[Path, Outcome]]:
        while not self._over.is_set():
            found = next(carried, None)
            if found is None:
                return
            yield found

    def _tried(self, who: str, do: Callable[[], None], pauses: _Pauses, otherwise_s: float) -> float:
        """Do it; return how long to wait before the next time. Raises what trying again cannot mend."""
        try:
            do()
        except sa.exc.OperationalError as error:
            _LOG.error("the database of ingest does not answer", error=type(error.orig).__name__)
            return pauses.next_s()
        except ClientError as error:
            if self._over.is_set():
                return otherwise_s
            if error.code in _MENDED_BY_PEOPLE:
                raise
            self._set_away(who, True)
            waiting = {name: _waiting(folder) for name, folder in self._folders.items()}
            _LOG.warning("the ledger does not take deltas; files wait", reason=error.reason, waiting=waiting)
            return pauses.next_s()
        self._set_away(who, False)
        pauses.reset()
        return otherwise_s

    def _turn(self) -> None:
        """Let nobody sit out a pause whose reason is gone; who has another reason is not hurried more often than so."""
        with self._turned:
            now = time.monotonic()
            if now - self._turned_at < OUTAGE_PAUSE_S and not self._over.is_set():
                return
            self._turned_at = now
            self._turns += 1
            self._turned.notify_all()

    def _set_away(self, who: str, away: bool) -> None:
        with self._one_at_a_time:
            since = self._away.get(who)
            if away and since is None:
                self._away[who] = time.monotonic()
            elif not away and since is not None:
                del self._away[who]
                _LOG.info("caught up", source=who, away_s=round(time.monotonic() - since))
            self._metrics.ledger_away(bool(self._away))
        if not away and since is not None:
            self._turn()

    def _note(self, name: str, folder: DropFolderSource, outcome: Outcome) -> None:
        known = " (delivered before)" if outcome.known else ""
        reason = f": {outcome.reason}" if outcome.reason else ""
        left = f"; {folder.waiting} wait" if folder.waiting else ""
        became = "" if known or reason else f": {_became(outcome.progress)}"
        with self._one_at_a_time:
            self._told(f"{name}: {outcome.progress.name}: {outcome.state}{known}{reason}{became}{left}")
            back = outcome.progress.applied > 0 and bool(self._away)
        if back:
            self._turn()
        self._upkeep.carried(name)
        self._metrics.artifact(name, "known" if outcome.known else outcome.state.lower())
        self._counters[name].count(outcome.progress)


class _Pauses:
    """Waits between attempts, each twice as long as the last, up to a limit."""

    def __init__(self) -> None:
        self._next_s = OUTAGE_PAUSE_S

    def next_s(self) -> float:
        now_s = self._next_s
        self._next_s = min(now_s * 2, OUTAGE_PAUSE_MAX_S)
        return now_s

    def reset(self) -> None:
        self._next_s = OUTAGE_PAUSE_S


def _became(progress: Progress) -> str:
    """Say what became of a file's rows; a person must not have to look for refused ones."""
    counts = {
        "applied": progress.applied,
        "had been applied": progress.repeated,
        "refused (ingest letters list)": progress.refused,
        "ignored": progress.ignored,
        "compared": progress.compared,
        "before the cutover": progress.before_point,
    }
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count or what == "applied")


def _waiting(folder: DropFolderSource) -> int:
    try:
        return len(folder.ready())
    except OSError:  # carrying meets it too, and says so
        return 0
