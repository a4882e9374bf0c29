"""What the carrying process does between files: heartbeats of idle sources, alarms of parked streams, cleaning up."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import structlog
from sqlalchemy.engine import Engine

from ingest.letters import Letters
from ingest.marks import Marks
from ingest.retention import clean
from ingest.settings import SourceSettings
from ingest.sources.drop_folder import DropFolderSource
from ingest.status import ParkedAlarm

_LOG = structlog.get_logger(__name__)

CLEAN_S = 3_600.0


class Upkeep:
    """Call `after_files` after each look at the folders."""

    def __init__(
        self,
        engine: Engine,
        letters: Letters,
        sources: Mapping[str, SourceSettings],
        folders: Mapping[str, DropFolderSource],
        heartbeat: Callable[[str], object],
        now: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._letters = letters
        self._sources = sources
        self._folders = folders
        self._heartbeat = heartbeat
        self._now = now
        self._heard_at: dict[str, float] = {}
        self._cleaned_at = 0.0
        self._alarm = ParkedAlarm(now)

    def carried(self, source: str) -> None:
        """Note that a source was heard by its own deltas."""
        self._heard_at[source] = self._now()

    def after_files(self) -> None:
        """Do what is due. Raises ClientError where a heartbeat cannot be sent."""
        now = self._now()
        for name, settings in self._sources.items():
            self._alarm.look(Marks(self._engine, name).all(), settings.parked_alarm_s)
        if now - self._cleaned_at >= CLEAN_S:
            self._cleaned_at = now
            for settings in self._sources.values():
                letters, runs = clean(self._engine, self._letters, settings, now)
                if letters or runs:
                    _LOG.info("kept long enough", source=settings.source, letters=letters, runs=runs)
        for name, settings in self._sources.items():
            due = settings.heartbeat_s and now - self._heard_at.get(name, 0.0) >= settings.heartbeat_s
            if due and settings.mode == "apply" and self._idle(name):
                self._heartbeat(name)
                self._heard_at[name] = now

    def _idle(self, name: str) -> bool:
        """Nothing waits, and something that came would be seen."""
        folder = self._folders.get(name)
        try:
            return folder is not None and not folder.ready()
        except OSError as error:
            _LOG.warning("a folder cannot be read: no heartbeat", source=name, error=str(error))
            return False
