"""A drop folder: files appear, are carried once, and end in `archive` or `rejected` beside it.

A file counts when nobody writes it any more: its name does not end like an unfinished one, its last change has
settled, and its companion is there where the source says so. It is moved only after the ledger's durable ack; killed
in between, it is found again, and its checksum says that it was carried.
"""

from __future__ import annotations

import fnmatch
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import structlog

from availability.client import SequenceGapError
from ingest.pipeline import Pipeline
from ingest.runs import REFUSED, Outcome, Progress, shown_name
from ingest.settings import DropFolder

_LOG = structlog.get_logger(__name__)

ARCHIVE, REJECTED = "archive", "rejected"


class DropFolderSource:
    """Carries what appears in one folder, the oldest file first."""

    def __init__(
        self,
        settings: DropFolder,
        pipeline: Pipeline,
        *,
        now: Callable[[], float] = time.time,
        watch: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._now = now
        self._watch = watch
        self.waiting = 0
        """Files behind the one that `carry_ready` gave last."""
        for name in (ARCHIVE, REJECTED):
            (settings.folder / name).mkdir(parents=True, exist_ok=True)

    def ready(self) -> list[Path]:
        """Return the files that are complete, the oldest first."""
        settings, found = self._settings, []
        latest = self._now() - settings.settle_ms / 1000
        for entry in os.scandir(settings.folder):
            name = entry.name
            if not entry.is_file(follow_symlinks=False) or name.startswith("."):
                continue
            if name.endswith(settings.unfinished) or not fnmatch.fnmatch(name, settings.pattern):
                continue
            if settings.done_suffix and (
                name.endswith(settings.done_suffix) or not Path(entry.path + settings.done_suffix).exists()
            ):
                continue
            changed = entry.stat().st_mtime
            if changed <= latest:
                found.append((changed, name, Path(entry.path)))
        return [path for _, _, path in sorted(found)]

    def carry_ready(self) -> Iterator[tuple[Path, Outcome]]:
        """Carry each complete file and put it away. Raises ClientError, OSError: the file stays for the next time.

        One that cannot be read keeps no other waiting: it is told of when the others are carried.
        """
        paths, unreadable = self.ready(), None
        for number, path in enumerate(paths, 1):
            self.waiting = len(paths) - number
            try:
                outcome = self._pipeline.carry(path, watch=self._watch)
            except SequenceGapError as gap:  # the missing numbers may be in a file that comes later
                _LOG.warning(
                    "stream parked", name=shown_name(path), stream=gap.stream, waits_for=gap.expected_sequence
                )
                continue
            except OSError as error:
                if path.exists():
                    unreadable = unreadable or error
                else:
                    _LOG.warning("somebody took a file away before it was carried", name=shown_name(path))
                continue
            self._put_away(path, outcome)
            _LOG.info(
                "artifact",
                name=outcome.progress.name,
                state=outcome.state,
                known=outcome.known,
                applied=outcome.progress.applied,
                refused=outcome.progress.refused,
            )
            yield path, outcome
        if unreadable is not None:
            raise unreadable

    def _put_away(self, path: Path, outcome: Outcome) -> None:
        folder = self._settings.folder / (REJECTED if outcome.state == REFUSED else ARCHIVE)
        stamp = datetime.fromtimestamp(self._now(), UTC).strftime("%Y%m%dT%H%M%SZ")
        suffix = ".again" if outcome.known else ""
        target = folder / f"{stamp}_{outcome.run_id[:8]}{suffix}_{path.name}"
        if outcome.state == REFUSED:
            target.with_name(target.name + ".reason").write_text(outcome.reason + "\n", encoding="utf-8")
        path.replace(target)
        if self._settings.done_suffix:
            Path(str(path) + self._settings.done_suffix).unlink(missing_ok=True)
