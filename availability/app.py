"""A server put together: the one place that builds the parts and runs them. No rule of the domain lives here."""

from __future__ import annotations

import gc
import os
import random
import re
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import msgspec
import structlog
from pydantic import SecretStr

from availability.config import RedisSettings, Settings
from availability.domain.exceptions import ExceptionCategory, ExceptionSeverity
from availability.ledger.calls import ReportLimits
from availability.ledger.commit_queue import QueueSettings
from availability.ledger.connection import ConnectionSettings
from availability.ledger.embedded import EmbeddedError, EmbeddedRedis
from availability.ledger.errors import LedgerError
from availability.ledger.last_seen import LastSeen, LedgerLost
from availability.ledger.ledger import Ledger, LedgerSettings
from availability.ledger.preflight import inspect
from availability.ledger.upkeep import Upkeep
from availability.replica.replica import Replica
from availability.replica.settings import ReplicaSettings
from availability.service.admission import Admission, AdmissionLimits
from availability.service.auth import (
    Authenticator,
    NoAuth,
    NotLoopback,
    TokenFileError,
    TokenRate,
    TokenStore,
    require_loopback,
)
from availability.service.availability_handlers import AvailabilityHandlers
from availability.service.delta_calls import DeltaSender
from availability.service.exception_book import ExceptionBook
from availability.service.exception_handlers import ExceptionHandlers
from availability.service.explain import Explainer
from availability.service.freshness import Freshness
from availability.service.grpc_adapter import GrpcServer, ServerOptions
from availability.service.health import Health, service_checks
from availability.service.inspector import Inspector, InspectorSettings
from availability.service.ledger_calls import DURABILITIES, ledger_failures
from availability.service.policy_handlers import PolicyHandlers
from availability.service.pool import LendingPool
from availability.service.reservation_handlers import ReservationHandlers
from availability.service.reservation_ids import new_reservation_id
from availability.service.stock_handlers import StockHandlers
from availability.service.tls import TlsFileError, TlsFiles, server_credentials
from availability.telemetry import Telemetry, setup_logging, start_metrics_listener
from availability.telemetry.spans import Spans, TracingUnavailable

_LOG = structlog.get_logger(__name__)

READY_TIMEOUT_S = 120.0
LEDGER_ANSWER_MAX_S = 5.0
"""Writes are NOT_SERVING once the ledger has not answered for so long; the sweep asks four times a second."""
WATCHDOG_INTERVAL_S = 0.5
YOUNG_OBJECTS = 20_000

# As gRPC reads it; without a port it would take 443, and an IPv6 address needs brackets before one.
_LISTEN = re.compile(
    r"unix(-abstract)?:.+|(((ipv4|dns):(///)?)?[^\s:\[\]]*|(ipv6:)?\[[^\s\]]+\]):(?P<port>\d{1,5})"
)


class StartRefused(Exception):
    """The server does not start; the message is for the operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningServer:
    """Where a server can be reached. ``redis`` has no password in it."""

    grpc: str
    redis: str
    pid: int


Look = Callable[[], None]
"""What looks after a server that runs; wants a call every WATCHDOG_INTERVAL_S."""


def serve(settings: Settings, *, embedded: bool, ready_file: Path | None) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code. Call it from the main thread."""
    return serve_until_told(settings, lambda: running(settings, embedded=embedded), ready_file)


def serve_until_told(
    settings: Settings,
    start: Callable[[], AbstractContextManager[tuple[RunningServer, Look]]],
    ready_file: Path | None,
) -> int:
    """Keep what `start` starts up until SIGTERM or SIGINT; return the exit code. Main thread only."""
    setup_logging(settings.logging.level, settings.logging.format)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        if ready_file is not None:
            _forget_ready_file(ready_file)
        with start() as (server, look):
            if ready_file is not None:
                _write_ready_file(ready_file, server)
            _LOG.info("serving", grpc=server.grpc, redis=server.redis, pid=server.pid)
            while not stop.wait(WATCHDOG_INTERVAL_S):
                look()
    except (StartRefused, EmbeddedError, LedgerLost, TokenFileError, TlsFileError, NotLoopback) as error:
        print(f"availability: {error}", file=sys.stderr)
        return 1
    except LedgerError as error:
        print(f"availability: the ledger failed: {error}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def running(settings: Settings, *, embedded: bool) -> Iterator[tuple[RunningServer, Look]]:
    """Build and start a server; drain and stop it on leaving."""
    check_callers(settings)
    with ledger_home(settings, embedded=embedded) as (home, redis_process):
        preflight(home)
        with serving(home) as (server, ledger):
            yield server, Watchdog(ledger, LastSeen(settings.data_dir), redis_process)


@contextmanager
def ledger_home(settings: Settings, *, embedded: bool) -> Iterator[tuple[Settings, EmbeddedRedis | None]]:
    """Start the embedded Redis where one is asked for; give the settings of a server that uses it."""
    if not embedded:
        yield settings, None
        return
    strict = settings.redis.profile == "single-strict" and "redis" in settings.model_fields_set
    process = EmbeddedRedis(settings.data_dir / "redis", appendfsync="always" if strict else "everysec")
    process.start()
    try:
        redis = {"url": SecretStr(process.url), "profile": "single-strict" if strict else "demo"}
        home: dict[str, Any] = {"redis": settings.redis.model_copy(update=redis)}
        home |= {
            name: True for name in ("auto_create", "reflection") if name not in settings.model_fields_set
        }
        yield settings.model_copy(update=home), process
    finally:
        process.stop()


@contextmanager
def serving(settings: Settings, *, reuse_port: bool = False) -> Iterator[tuple[RunningServer, Ledger]]:
    """Build and start what answers calls; drain and stop it on leaving. The Redis has passed its preflight.

    ``reuse_port`` lets others of the same group listen at the port; two servers there by accident would share its
    calls.
    """
    authenticator = _authenticator(settings)
    credentials = _credentials(settings)
    sys.setswitchinterval(
        0.001
    )  # a waiting call gets the interpreter within 1 ms of a long computation's start
    with ExitStack() as stack:
        telemetry = Telemetry()
        ledger = Ledger(ledger_settings(settings), on_group=telemetry.ledger.travelled)
        stack.callback(ledger.close)
        open_ledger(ledger, LastSeen(settings.data_dir))
        replica = Replica(
            ledger,
            ReplicaSettings(
                auto_create=ledger.settings.auto_create,
                channels_max=settings.limits.channels_max,
                digest_skus_per_s=settings.reads.digest_skus_per_s,
                hysteresis_units=settings.watch.hysteresis_units,
                hysteresis_percent=settings.watch.hysteresis_percent,
            ),
            time.monotonic,
            random.Random(),
            on_fork=lambda fork: _LOG.error("history_lost", reason=fork.reason, seen=str(fork.seen)),
            on_resync=lambda reason: _LOG.info("memory_read", reason=reason),
        )
        upkeep = Upkeep(
            ledger,
            interval_ms=settings.sweep.interval_ms,
            due_per_sweep=settings.sweep.due_per_call,
            on_expired=lambda count: telemetry.outcomes.reservation("expired", count),
        )
        upkeep.sweep_all()
        replica.start()
        stack.callback(replica.stop)
        upkeep.start()
        stack.callback(upkeep.stop)
        _wait_until_ready(replica, settings.reads.max_staleness_ms)
        telemetry.exceptions.name(
            {int(category): category.name.lower() for category in ExceptionCategory},
            {int(severity): severity.name.lower() for severity in ExceptionSeverity},
        )
        book = ExceptionBook(ledger)
        inspector = Inspector(
            ledger,
            replica,
            book,
            inspector_settings(settings),
            time.monotonic,
            publish=telemetry.exceptions.publish,
        )
        inspector.start()
        stack.callback(inspector.stop)
        spans = spans_of(settings, "availability-server")
        if spans is not None:
            stack.callback(spans.shutdown)
        server, pool = _grpc_server(
            settings,
            ledger,
            replica,
            book,
            telemetry,
            authenticator,
            credentials,
            reuse_port=reuse_port,
            spans=spans,
        )
        stack.callback(pool.shutdown, wait=False)
        stop_metrics = start_metrics_listener(settings.metrics.listen, telemetry.registry)
        if stop_metrics is not None:
            stack.callback(stop_metrics)
        port = _start(server, settings.listen)
        stack.callback(
            server.drain, notice_s=settings.drain.notice_ms / 1000, grace_s=settings.drain.grace_ms / 1000
        )
        where = RunningServer(
            grpc=_address(settings.listen, port),
            redis=without_password(settings.redis.url.get_secret_value()),
            pid=os.getpid(),
        )
        _settle_memory()
        yield where, ledger


def spans_of(settings: Settings, service: str) -> Spans | None:
    """Return what makes and sends spans; None where nobody asked for them. Raises StartRefused."""
    tracing = settings.tracing
    if not tracing.otlp_endpoint:
        return None
    try:
        return Spans(service=service, endpoint=tracing.otlp_endpoint, sample_percent=tracing.sample_percent)
    except TracingUnavailable as error:
        raise StartRefused(str(error)) from error


def _feed_ages(ledger: Ledger) -> Iterator[tuple[str, str, float, bool]]:
    try:
        clock_ms, feeds = ledger.feeds()
    except LedgerError:
        return  # a scrape must not fail with the ledger; health tells of it
    for feed in feeds:
        yield feed.source, feed.node, max(0, clock_ms - feed.heard_ms) / 1000, feed.stale


def _settle_memory() -> None:
    """Take what start-up made out of the garbage collector's rounds, and let more gather between them.

    The catalogue in memory never becomes garbage, and calls leave few cycles; walking through both again and again
    cost a sixth of the processor time of a read.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 50)


class Watchdog:
    """Looks after what outlives a call: the embedded Redis, and the note of how far the ledger has come."""

    def __init__(self, ledger: Ledger, last_seen: LastSeen, redis_process: EmbeddedRedis | None) -> None:
        self._ledger = ledger
        self._last_seen = last_seen
        self._redis = redis_process
        self._warned = False

    def __call__(self) -> None:
        """Do it once. Never raises for a ledger that is away."""
        if self._redis is not None and not self._redis.alive():
            _LOG.error("the embedded Redis ended; starting it again over its data")
            try:
                self._redis.restart()
            except EmbeddedError as error:
                _LOG.error("it does not start", error=str(error))
                return
        try:
            self._last_seen.note(self._ledger.head())
            self._warned = False
        except LedgerError:
            return  # health and metrics tell; the next look may succeed
        except (OSError, LedgerLost) as error:
            if not self._warned:
                self._warned = True
                _LOG.warning("cannot note how far the ledger has come", error=str(error))


def check_callers(settings: Settings) -> None:
    """Refuse what says wrongly where and by whom it may be called, before anything is started.

    Raises what `serve_until_told` tells.
    """
    address = _LISTEN.fullmatch(settings.listen)
    if address is None or int(address["port"] or 0) > 65_535:
        raise StartRefused(
            f"cannot listen on {settings.listen!r}: give HOST:PORT (0: any free port) or unix:<path>"
        )
    _authenticator(settings)
    if _credentials(settings) is None and not settings.auth.no_auth:
        _LOG.info("tls is off", listen=settings.listen)


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    tls = settings.tls
    if tls.cert_file is None or tls.key_file is None:
        return None
    return server_credentials(
        TlsFiles(cert_file=tls.cert_file, key_file=tls.key_file, client_ca_file=tls.client_ca_file)
    )


def _authenticator(settings: Settings) -> Authenticator:
    if settings.auth.no_auth:
        require_loopback(settings.listen)
        return NoAuth()
    if settings.auth.tokens_file is None:
        raise StartRefused(
            "nobody could call: set auth.tokens_file (make one with `availability token create`), "
            "or --no-auth on a loopback address"
        )
    limits = settings.limits
    rate = TokenRate(calls_per_s=limits.token_calls_per_s, burst=limits.token_burst)
    return TokenStore(settings.auth.tokens_file, rate=rate)


def ledger_settings(settings: Settings) -> LedgerSettings:
    """Return the ledger's share of the settings."""
    redis: RedisSettings = settings.redis
    return LedgerSettings(
        connection=ConnectionSettings(
            url=redis.url.get_secret_value(),
            prefix=redis.prefix,
            connect_timeout_s=redis.connect_timeout_ms / 1000,
            timeout_s=redis.socket_timeout_ms / 1000,
        ),
        queue=QueueSettings(
            group_max=settings.commit_queue.group_max,
            gather_ms=settings.commit_queue.gather_ms,
            group_bytes_max=settings.commit_queue.group_bytes_max,
            ahead_bytes_min=settings.commit_queue.ahead_bytes_min,
            wait_replicas=redis.wait_replicas if redis.profile == "ha-confirmed" else 0,
            wait_timeout_ms=redis.wait_timeout_ms,
        ),
        auto_create=settings.auto_create,
        event_window_ms=settings.retention.event_ids_days * 86_400_000,
        source_streams_max=settings.limits.source_streams_max,
        ended_retention_ms=settings.retention.reservations_ended_hours * 3_600_000,
        order_retention_ms=settings.retention.orders_closed_days * 86_400_000,
        due_per_sweep_max=settings.sweep.due_per_call,
        log_records_kept=settings.log.records_kept,
        log_records_cap=settings.log.records_cap,
    )


def inspector_settings(settings: Settings) -> InspectorSettings:
    """Return what the inspector needs of the settings."""
    own = settings.exceptions
    return InspectorSettings(
        interval_ms=own.interval_ms,
        resolve_after_ms=own.resolve_after_s * 1000,
        change_ms=own.change_interval_s * 1000,
        seen_ms=own.seen_interval_s * 1000,
        keep_ms=own.resolved_kept_hours * 3_600_000,
        parked_ms=own.parked_after_s * 1000,
        order_unconfirmed_ms=own.order_unconfirmed_minutes * 60_000,
        short_pick_units=own.short_pick_units,
        damage_units=own.damage_units,
        open_max=own.open_max,
        max_staleness_ms=settings.reads.max_staleness_ms,
    )


def report_limits(settings: Settings) -> ReportLimits:
    """Return how often what programs report may change, and how long it stays."""
    own = settings.exceptions
    return ReportLimits(
        own.change_interval_s * 1000,
        own.resolved_kept_hours * 3_600_000,
        own.open_max,
        own.seen_interval_s * 1000,
    )


def preflight(settings: Settings) -> None:
    """Raise StartRefused for a Redis that cannot be trusted with a ledger."""
    redis = settings.redis
    findings = inspect(
        redis.url.get_secret_value(),
        redis.profile,
        redis.prefix,
        shared_database=redis.shared_database_allowed,
    )
    for finding in findings:
        if finding.severity == "warning":
            _LOG.warning("preflight", what=finding.what, found=finding.found, advice=finding.advice)
    errors = [f"{f.what}: {f.found}: {f.advice}" for f in findings if f.severity == "error"]
    if errors:
        raise StartRefused("this Redis cannot be trusted with a ledger: " + "; ".join(errors))


def open_ledger(ledger: Ledger, last_seen: LastSeen) -> None:
    """Open or make the ledger. Raises LedgerLost rather than make one beside a ledger that this machine knew."""
    lost = last_seen.check(ledger.head())
    if lost is not None:
        _LOG.error(
            "the ledger came back with less than it had", first_lost_seq=lost[0], last_lost_seq=lost[1]
        )
    ledger.open(uuid.uuid4().hex)


def _start(server: GrpcServer, listen: str) -> int:
    try:
        return server.start()
    except RuntimeError as error:
        raise StartRefused(f"cannot listen on {listen}: is another server there?") from error


def _wait_until_ready(replica: Replica, max_staleness_ms: int) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not replica.ready or replica.freshness_ms() > max_staleness_ms:
        if time.monotonic() > deadline:
            raise StartRefused(
                f"memory was not loaded in {READY_TIMEOUT_S:.0f} s: {replica.not_ready_reason}"
            )
        time.sleep(0.005)


def _grpc_server(
    settings: Settings,
    ledger: Ledger,
    replica: Replica,
    book: ExceptionBook,
    telemetry: Telemetry,
    authenticator: Authenticator,
    credentials: grpc.ServerCredentials | None,
    *,
    reuse_port: bool,
    spans: Spans | None,
) -> tuple[GrpcServer, LendingPool]:
    limits = settings.limits
    durability = DURABILITIES[settings.redis.profile]
    freshness = Freshness(ledger, replica, max_staleness_ms=settings.reads.max_staleness_ms)
    pool = LendingPool(
        running=limits.threads_running, threads_max=limits.threads_max, stall_ms=limits.stall_ms
    )
    telemetry.watch_replica_age(lambda: replica.freshness_ms() / 1000)
    telemetry.watch_commit_queue(ledger.queue.depth)
    telemetry.watch_pool(lambda: pool.queued, lambda: pool.blocked)
    telemetry.watch_feeds(partial(_feed_ages, ledger))
    telemetry.watch_digest(
        skus=lambda: replica.digest.skus,
        walks=lambda: replica.digest.walks,
        disagreements=lambda: replica.digest.disagreements,
        age_s=replica.digest_age_s,
        walk_s=lambda: replica.digest.walk_s,
    )
    handlers = {
        "AvailabilityService": AvailabilityHandlers(
            replica,
            freshness,
            Explainer(ledger, replica),
            batch_skus_max=limits.batch_skus_max,
            lines_max=limits.lines_max,
            watch_skus_max=limits.watch_skus_max,
        ),
        "ReservationService": ReservationHandlers(
            ledger,
            new_id=new_reservation_id,
            lines_max=limits.lines_max,
            durability=durability,
            outcomes=telemetry.outcomes,
            page_size=settings.reads.page_size,
            page_size_max=settings.reads.page_size_max,
        ),
        "StockService": StockHandlers(
            ledger,
            DeltaSender(
                ledger,
                batch_max=limits.batch_deltas_max,
                call_max=limits.call_deltas_max,
                outcomes=telemetry.outcomes,
            ),
            new_id=new_reservation_id,
            durability=durability,
            unacked_batches_max=limits.unacked_batches_max,
        ),
        "PolicyService": PolicyHandlers(ledger, replica, freshness, durability=durability),
        "ExceptionService": ExceptionHandlers(ledger, replica, book, report_limits(settings)),
    }

    def channel_of(reservation_id: str) -> str | None:
        with ledger_failures():
            view = ledger.reservation(reservation_id)
        return None if view is None else view.channel

    def ledger_answers() -> bool:
        return time.monotonic() - ledger.queue.last_answer < LEDGER_ANSWER_MAX_S

    server = GrpcServer(
        handlers=handlers,
        pool=pool,
        authenticator=authenticator,
        admission=Admission(AdmissionLimits(**settings.admission.model_dump()), ledger.queue.depth),
        health=Health(service_checks(freshness.is_fresh, ledger_answers)),
        options=ServerOptions(
            address=settings.listen,
            default_deadline_ms=limits.default_deadline_ms,
            deadline_ms_max=limits.deadline_ms_max,
            calls_max=limits.calls_max,
            streams_max={
                "WatchAvailability": limits.watchers_max,
                "StreamDeltas": limits.delta_streams_max,
                "WatchExceptions": limits.watchers_max,
            },
            message_bytes_max=limits.message_bytes_max,
            reuse_port=reuse_port,
            reflection=settings.reflection,
            client_certificates=settings.tls.client_ca_file is not None,
        ),
        metrics=telemetry.calls,
        credentials=credentials,
        channel_of=channel_of,
        tracing=spans,
    )
    return server, pool


def _address(listen: str, port: int) -> str:
    if listen.startswith("unix:"):
        return listen
    host = listen.rpartition(":")[0]
    return f"{host}:{port}"


def without_password(url: str) -> str:
    """The address alone: no user, no password, no query (which may hold one)."""
    scheme, separator, rest = url.partition("://")
    return scheme + separator + rest.partition("?")[0].rpartition("@")[2]


def _forget_ready_file(path: Path) -> None:
    """Remove what an earlier run left: whoever waits for the file would read a dead address."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StartRefused(f"the ready file {path} cannot be replaced: {error.strerror}") from error
    if not path.absolute().parent.is_dir():
        raise StartRefused(f"there is no folder for the ready file {path}")


def _write_ready_file(path: Path, server: RunningServer) -> None:
    """Write it whole or not at all: whoever waits for it may read at once."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_bytes(msgspec.json.encode({"grpc": server.grpc, "redis": server.redis, "pid": server.pid}))
    os.replace(draft, path)
