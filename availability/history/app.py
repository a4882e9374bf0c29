"""The historian put together: the one place that builds its parts and runs them. No rule of the history lives here."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import SecretStr
from sqlalchemy.engine import Engine

from availability.app import ledger_settings, without_password
from availability.config import Settings
from availability.domain.version import Version
from availability.history.baseline import read_baseline
from availability.history.database import DatabaseUnreachable, HistoryError, open_database
from availability.history.historian import CONSUMER, Historian, HistorianSettings
from availability.history.journal import Journal
from availability.history.reconcile_figures import reconcile_figures
from availability.history.seal import Sealer, SealKeyError
from availability.ledger.commit_queue import NoLedger
from availability.ledger.errors import LedgerError
from availability.ledger.ledger import Ledger
from availability.telemetry import HistoryMetrics, setup_logging, start_metrics_listener

_LOG = structlog.get_logger(__name__)
CALL_TIMEOUT_S = 5.0
DATABASE_PAUSE_S = 2.0
"""Between two attempts to open a database that does not answer when the historian starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSide:
    """The ledger as a reader and as the keeper of checkpoints. The ledger's own queue does the handshake."""

    ledger: Ledger

    def note(self, version: Version) -> None:
        """Note a place. Raises LedgerError."""
        deadline = time.monotonic() + CALL_TIMEOUT_S
        self.ledger.checkpoint(CONSUMER, version, required=True, deadline=deadline)

    def forget(self) -> None:
        """Give the log free: nobody waits for this historian any more. Raises LedgerError."""
        self.ledger.forget_consumer(CONSUMER, time.monotonic() + CALL_TIMEOUT_S)


def with_redis(settings: Settings, url: str | None) -> Settings:
    """Return settings that read another Redis, as a server's ready file names it."""
    if not url:
        return settings
    return settings.model_copy(update={"redis": settings.redis.model_copy(update={"url": SecretStr(url)})})


def history_engine(settings: Settings) -> Engine:
    """Open the database of the settings. Raises HistoryError."""
    return open_database(settings.history.database_url.get_secret_value(), settings.data_dir)


def archive_dir(settings: Settings) -> Path:
    """Return where days go that leave the database."""
    return settings.history.archive_dir or settings.data_dir / "archive"


@contextmanager
def ledger_side(settings: Settings) -> Iterator[LedgerSide]:
    """Connect to the ledger that is there; makes none. Raises LedgerError."""
    ledger = Ledger(ledger_settings(settings))
    try:
        head = ledger.head()
        if not head.ledger_id:
            raise NoLedger("there is no ledger in this Redis yet: start a server first")
        ledger.queue.start(head.ledger_id)
        yield LedgerSide(ledger=ledger)
    finally:
        ledger.close()


def run(settings: Settings, *, metrics_listen: str = "", once: bool = False) -> int:
    """Follow the log until SIGTERM or SIGINT, or with ``once`` until everything is written; return the exit code."""
    setup_logging(settings.logging.level, settings.logging.format)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        with ExitStack() as stack:
            sealer = Sealer.from_file(settings.history.seal_key_file)
            engine = _opened(settings, stop)
            if engine is None:
                return 0
            stack.callback(engine.dispose)
            side = _connected(settings, stop, stack)
            if side is None:
                return 0
            metrics = HistoryMetrics()
            made = build(settings, side, engine, sealer, metrics, stop)
            metrics.watch_lag(made.lag)
            metrics.watch_reconcile(lambda: reconcile_figures(engine, time.time()))
            stop_metrics = start_metrics_listener(metrics_listen or settings.metrics.listen, metrics.registry)
            if stop_metrics is not None:
                stack.callback(stop_metrics)
            redis = without_password(settings.redis.url.get_secret_value())
            _LOG.info("historian runs", redis=redis, database=engine.dialect.name, sealed=sealer.keyed)
            while not stop.is_set():
                pause = made.step()
                if once and made.caught_up:
                    break
                stop.wait(pause)
            if made.place is not None:
                _LOG.info("historian ends", place=str(made.place.version))
    except (HistoryError, SealKeyError) as error:
        print(f"availability: {error}", file=sys.stderr)
        return 1
    return 0


def build(
    settings: Settings,
    side: LedgerSide,
    engine: Engine,
    sealer: Sealer,
    metrics: HistoryMetrics,
    stop: threading.Event,
) -> Historian:
    """Build a historian of an open ledger and database."""
    chance = random.Random()
    limits = settings.history

    return Historian(
        side.ledger,
        side,
        Journal(engine, sealer),
        HistorianSettings(
            batch_records=limits.batch_records,
            batch_bytes=limits.batch_bytes,
            checkpoint_ms=limits.checkpoint_ms,
        ),
        baseline=lambda head: read_baseline(side.ledger, head, chance, stopped=stop.is_set),
        monotonic=time.monotonic,
        wall_ms=lambda: time.time_ns() // 1_000_000,
        random_source=chance,
        observer=metrics,
    )


def _opened(settings: Settings, stop: threading.Event) -> Engine | None:
    """Open the database, waiting for one that does not answer yet; None when told to stop meanwhile."""
    told = False
    while not stop.is_set():
        try:
            return history_engine(settings)
        except DatabaseUnreachable as error:
            if not told:
                told = True
                _LOG.warning("history waits", cause="database", reason=str(error))
            stop.wait(DATABASE_PAUSE_S)
    return None


def _connected(settings: Settings, stop: threading.Event, stack: ExitStack) -> LedgerSide | None:
    """Find the ledger, waiting for one that is not there yet; None when told to stop meanwhile."""
    told = False
    while not stop.is_set():
        try:
            return stack.enter_context(ledger_side(settings))
        except LedgerError as error:
            if not told:
                told = True
                _LOG.warning("history waits", cause="ledger", reason=str(error))
            stop.wait(DATABASE_PAUSE_S)
    return None
