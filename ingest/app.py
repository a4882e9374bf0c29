"""Puts the parts of ingest together for the command line: the one place that opens databases and connections."""

from __future__ import annotations

import importlib.util
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Engine

from availability.client import Acked, Client, ClientError
from availability.telemetry import IngestMetrics
from availability.v1 import stock_pb2 as pb
from ingest.alarms import Alarms, AlarmThread
from ingest.carrying import Carriers
from ingest.database import artifacts, open_database
from ingest.feed_health import WEBHOOK, FeedHealth
from ingest.figures import RowCounter, source_figures
from ingest.ledger_views import LedgerRecipes, on_hand_of
from ingest.letters import DISCARDED, REPLAYED, KeptLetter, Letters
from ingest.operations import Operations
from ingest.pipeline import Pipeline
from ingest.redaction import Redactor
from ingest.rows import RowRefused
from ingest.runs import Progress
from ingest.settings import SettingsRefused, SourceSettings, read_sources
from ingest.sources.drop_folder import DropFolderSource
from ingest.sources.feed import Feed, FeedFailed, fetching
from ingest.stop import STOP_S, cut_off
from ingest.upkeep import Upkeep

_LOG = structlog.get_logger(__name__)

START_S = 10.0
CONNECTIONS_MAX = 256
"""Of webhooks at a time; what goes beyond is answered 503. What strangers send is in memory until its lock is tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One artifact's run, as it is listed. Times: seconds since 1970."""

    source: str
    run_id: str
    name: str
    state: str
    position: int
    applied: int
    repeated: int
    refused: int
    ignored: int
    deliveries: int
    reason: str
    begun_at: float
    ended_at: float | None


@dataclass(slots=True)
class Replayed:
    """What became of letters that were replayed."""

    applied: int = 0
    repeated: int = 0
    refused: list[tuple[str, str]] | None = None


class IngestDesk:
    """Everything that the commands need; close it after use."""

    def __init__(self, sources: dict[str, SourceSettings], engine: Engine, client: Client) -> None:
        self.metrics = IngestMetrics()
        self.sources = sources
        self.client = client
        self.engine = engine
        redactors = {name: Redactor(settings.redact) for name, settings in sources.items()}
        self.letters = Letters(engine, redactors)
        self.health = FeedHealth(engine, time.time)
        self._recipes = LedgerRecipes(client)
        self._stopped: Callable[[], bool] = lambda: False
        self.operations = Operations(engine, client, self.letters, self._pipeline)

    def pipeline(self, source: str) -> Pipeline:
        """Return the pipeline of a source. Raises SettingsRefused for one that has no file."""
        return self._pipeline(self.settings(source))

    def _pipeline(self, settings: SourceSettings) -> Pipeline:
        source = settings.source

        def open_sender(acked: Callable[[Acked], None]):  # type: ignore[no-untyped-def]  # the client's sender
            return self.client.delta_sender(
                source,
                acked=acked,
                unacked_batches_max=settings.unacked_batches,
                stopped=lambda: self._stopped(),
            )

        return Pipeline(
            settings,
            self.engine,
            self.letters,
            open_sender,
            now=time.time,
            new_run_id=lambda: uuid.uuid4().hex,
            recipes=self._recipes,
            on_hand=on_hand_of(self.client, settings.shadow_channel) if settings.shadow_channel else None,
            stopped=lambda: self._stopped(),
        )

    def settings(self, source: str) -> SourceSettings:
        """Return a source's settings. Raises SettingsRefused."""
        found = self.sources.get(source)
        if found is None:
            raise SettingsRefused(
                f"no file describes the source {source!r}; there are {', '.join(sorted(self.sources))}"
            )
        return found

    @contextmanager
    def doors(self, listen: str) -> Iterator[str]:
        """Serve the webhooks of all sources on HOST:PORT (0: any) meanwhile; yield where. Raises SettingsRefused."""
        import uvicorn

        from ingest.sources.webhook import webhook_app

        open_to = {
            name: (settings.webhook, settings.drop.folder)
            for name, settings in self.sources.items()
            if settings.webhook is not None and settings.drop is not None
        }
        if not open_to:
            raise SettingsRefused("no source has a [webhook]")
        try:
            application = webhook_app(open_to, lambda path: path.read_bytes().strip(), shut=self._door)
        except ValueError as error:
            raise SettingsRefused(str(error)) from error
        host, _, port = listen.rpartition(":")
        if not port.isascii() or not port.isdigit():
            raise SettingsRefused(f"{listen!r} is no HOST:PORT")
        server = uvicorn.Server(
            uvicorn.Config(
                application,
                host=host or "127.0.0.1",
                port=int(port),
                log_config=None,
                access_log=False,
                limit_concurrency=CONNECTIONS_MAX,
                timeout_graceful_shutdown=STOP_S,
            )
        )
        thread = threading.Thread(target=server.run, name="webhooks", daemon=True)
        thread.start()
        deadline = time.monotonic() + START_S
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise SettingsRefused(f"webhooks cannot listen on {listen}")
            time.sleep(0.01)
        try:
            bound = server.servers[0].sockets[0].getsockname()
            yield f"http://{bound[0]}:{bound[1]}"
        finally:
            server.should_exit = True
            thread.join(2 * STOP_S)

    def _door(self, source: str, shut: bool) -> None:
        """Note that a source's webhook answers 503, or does not any more."""
        try:
            if shut:
                self.health.fails(
                    source, WEBHOOK, "SPOOL_FULL", "as many events wait as may: senders get 503"
                )
            else:
                self.health.works(source, WEBHOOK)
        except sa.exc.SQLAlchemyError as error:  # who sends events is answered all the same
            _LOG.error("webhook", source=source, shut=shut, error=type(error).__name__)

    def run(
        self,
        *,
        once: bool,
        stopped: Callable[[], bool],
        watch: Callable[[str, Progress], None],
        told: Callable[[str], None],
    ) -> None:
        """Carry what the drop folders hold; not ``once``: until stopped. An unreachable ledger is waited for."""
        counters = {name: RowCounter(self.metrics, name) for name in self.sources}
        folders = {
            name: DropFolderSource(
                settings.drop, self.pipeline(name), watch=_watching(watch, name, counters[name])
            )
            for name, settings in self.sources.items()
            if settings.drop is not None
        }
        if not folders:
            raise SettingsRefused("no source has a [drop] folder")
        every = {name: folders.get(name) for name in self.sources}
        self.metrics.watch(lambda: source_figures(self.engine, every, time.time()))
        feeds = self.feeds()
        upkeep = Upkeep(
            self.engine,
            self.letters,
            self.sources,
            folders,
            lambda source: self.client.apply_deltas(source, []),
            time.time,
        )
        carriers = Carriers(folders, counters, self.health, upkeep, self.metrics, told)
        alarms = Alarms(self.engine, self.health, self.sources, self.client, time.time)
        self._stopped = stopped if once else carriers.over
        with cut_off(stopped, self.client.close):
            if once:
                self._once(carriers, alarms, feeds, stopped)
                return
            thread = AlarmThread(alarms)
            try:
                with fetching(feeds, told, self.health) as broken:
                    carriers.run(lambda: stopped() or broken())
            finally:
                thread.stop()

    def _once(
        self, carriers: Carriers, alarms: Alarms, feeds: list[Feed], stopped: Callable[[], bool]
    ) -> None:
        failures = []
        for feed in feeds:
            try:
                feed.fetch(once=True)
                self.health.works(feed.source, feed.kind)
            except FeedFailed as error:  # what the others brought is carried first
                self.health.fails(feed.source, feed.kind, error.reason, str(error))
                failures.append(f"{feed.source}: {feed.kind}: {error.reason}: {error}")
        try:
            carriers.once(stopped)
        except ClientError:
            if not stopped():
                raise
        alarms.look()
        if failures:
            raise FeedFailed("NOT_FETCHED", "\n".join(failures))

    def feeds(self) -> list[Feed]:
        """Return what fetches into drop folders, of all sources. Raises SettingsRefused."""
        found: list[Feed] = []
        for source, settings in self.sources.items():
            drop = settings.drop
            if drop is None:
                continue
            if settings.sftp is not None:
                if importlib.util.find_spec("asyncssh") is None:
                    raise SettingsRefused(
                        f"{source}: sftp needs the extra 'sftp': pip install availability[sftp]"
                    )
                from ingest.sources.sftp import SftpFeed

                try:
                    found.append(SftpFeed(source, settings.sftp, drop, self.engine))
                except ValueError as error:
                    raise SettingsRefused(str(error)) from error
            where = (drop.folder, self.engine)
            if settings.redis_stream is not None:
                from ingest.sources.redis_stream import RedisStreamFeed

                entries = RedisStreamFeed(
                    source, settings.redis_stream, *where, self.letters, settle_ms=drop.settle_ms
                )
                found.append(entries)
            if settings.rest is not None:
                from ingest.sources.rest import RestFeed

                found.append(RestFeed(source, settings.rest, *where, settle_ms=drop.settle_ms))
        return found

    def replay(self, letters: Iterable[KeptLetter]) -> Replayed:
        """Apply letters by the mappings as they are now; those that are applied are closed. Raises ClientError."""
        outcome = Replayed(refused=[])
        assert outcome.refused is not None
        for letter in letters:
            try:
                deltas = self.pipeline(letter.source).replayed(letter)
            except RowRefused as refused:
                outcome.refused.append((letter.letter_id, f"{refused.reason}: {refused.message}"))
                continue
            if deltas:
                answer = self.client.apply_deltas(letter.source, deltas)
                rejected = [one for one in answer.details if one.result == pb.DELTA_RESULT_REJECTED]
                if rejected:
                    outcome.refused.append((letter.letter_id, f"{rejected[0].reason}: {rejected[0].message}"))
                    continue
                applied = pb.DELTA_RESULT_APPLIED in answer.results
                outcome.applied += applied
                outcome.repeated += not applied
            self.letters.close([letter.letter_id], REPLAYED, "", time.time())
        return outcome

    def discard(self, letters: Iterable[KeptLetter], reason: str) -> int:
        """Give letters up, for a reason."""
        return self.letters.close([one.letter_id for one in letters], DISCARDED, reason, time.time())

    def runs(self, limit: int) -> list[RunRow]:
        """Return the latest runs, the newest first."""
        names = RunRow.__slots__
        query = (
            sa.select(*(artifacts.c[name] for name in names))
            .order_by(artifacts.c.begun_at.desc())
            .limit(limit)
        )
        with self.engine.connect() as connection:
            return [RunRow(**row) for row in connection.execute(query).mappings()]


def _watching(
    watch: Callable[[str, Progress], None], name: str, counter: RowCounter
) -> Callable[[Progress], None]:
    def progressed(progress: Progress) -> None:
        counter.count(progress)
        watch(name, progress)

    return progressed


@contextmanager
def desk(sources: Path, database: str, client: Client) -> Iterator[IngestDesk]:
    """Open what the commands need. Raises SettingsRefused."""
    found = read_sources(sources)
    engine = open_database(database)
    try:
        yield IngestDesk(found, engine, client)
    finally:
        engine.dispose()
        client.close()
