"""Every setting of a server, each with its name, default, bounds and a sentence about it.

Defaults < a TOML file < the environment: `limits.lines_max` is `AVAIL_LIMITS__LINES_MAX` there. All that is
wrong is told at once. Nothing is read until `load_settings()` is called, and only composition roots call it;
the parts get their own small options from them. `python -m availability.config` prints the README's table.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from availability.domain import limits as contract

ENV_PREFIX = "AVAIL_"
ENV_FILE_NAME = "AVAIL_CONFIG"
NESTED = "__"

Profile = Literal["demo", "single-strict", "ha", "ha-confirmed"]


class SettingsError(Exception):
    """The settings cannot be used; the message has one line per problem and no secret."""


class _Section(BaseModel):
    # Not strict: the environment is text. Unknown names are errors: a misspelt limit is no limit.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class RedisSettings(_Section):
    """The ledger's Redis."""

    url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        description="Address, with user and password where it needs them; of one server, or of Sentinels or a Cluster"
        " to ask.",
    )
    prefix: str = Field("avail", pattern=r"^[A-Za-z0-9_-]{1,32}$", description="First part of every key.")
    profile: Profile = Field(
        "single-strict",
        description="Durability profile; the server refuses a Redis that is not set up for it.",
    )
    connect_timeout_ms: int = Field(1_000, ge=10, le=60_000, description="Longest wait for a connection.")
    socket_timeout_ms: int = Field(2_000, ge=10, le=60_000, description="Longest wait for one reply.")
    shared_database_allowed: bool = Field(
        False, description="Serve from a database that holds keys of others too; eviction must still be off."
    )
    wait_replicas: int = Field(
        1, ge=0, le=10, description="Replicas that confirm each group of writes; ha-confirmed only."
    )
    wait_timeout_ms: int = Field(
        500, ge=1, le=60_000, description="Longest wait for them; after it DURABILITY_UNCONFIRMED."
    )


class TlsSettings(_Section):
    """Encryption of the gRPC port. Files are PEM and read at start."""

    cert_file: Path | None = Field(None, description="Server certificate and chain; none: plain text.")
    key_file: Path | None = Field(None, description="Its private key.")
    client_ca_file: Path | None = Field(
        None, description="Where set, every client must show a certificate signed by it."
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file belong together")
        if self.client_ca_file is not None and self.cert_file is None:
            raise ValueError("client_ca_file needs cert_file and key_file")
        return self


class AuthSettings(_Section):
    """Who may call."""

    tokens_file: Path | None = Field(
        None, description="Hashed tokens, as `availability token` writes them; read again when it changes."
    )
    no_auth: bool = Field(False, description="Let everybody do everything; on loopback addresses only.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.no_auth and self.tokens_file is not None:
            raise ValueError("no_auth and tokens_file exclude each other")
        return self


class LimitSettings(_Section):
    """How much of everything."""

    lines_max: int = Field(
        contract.LINES_DEFAULT, ge=1, le=contract.LINES_MAX, description="Lines of a reservation or basket."
    )
    batch_skus_max: int = Field(
        contract.BATCH_SKUS_MAX, ge=1, le=contract.BATCH_SKUS_MAX, description="skus of one batch read."
    )
    batch_deltas_max: int = Field(
        contract.BATCH_DELTAS_MAX, ge=1, le=contract.BATCH_DELTAS_MAX, description="Deltas of one request."
    )
    call_deltas_max: int = Field(
        contract.CALL_DELTAS_MAX,
        ge=1,
        le=contract.CALL_DELTAS_MAX,
        description="Deltas of one ledger call: as long as they take, nobody else is served by Redis.",
    )
    message_bytes_max: int = Field(
        4_194_304, ge=65_536, le=67_108_864, description="Size of one request message, in bytes."
    )
    threads_running: int = Field(
        2, ge=1, le=64, description="Threads that work at the same time; more cost more per call, measured."
    )
    threads_max: int = Field(
        128, ge=2, le=4_096, description="Threads in all: those beyond the running ones wait for the ledger."
    )
    calls_max: int = Field(
        4_096, ge=16, le=1_000_000, description="Calls in flight; beyond it every kind of call is refused."
    )
    stall_ms: int = Field(
        50, ge=5, le=10_000, description="A call that holds a thread this long while others queue lends it."
    )
    default_deadline_ms: int = Field(
        10_000, ge=10, le=600_000, description="Deadline of a call that brings none."
    )
    deadline_ms_max: int = Field(60_000, ge=10, le=600_000, description="Longest deadline of a unary call.")
    watchers_max: int = Field(64, ge=1, le=10_000, description="Open WatchAvailability streams.")
    watch_skus_max: int = Field(
        100_000, ge=1, le=5_000_000, description="skus with a value that a slow watcher has yet to get."
    )
    delta_streams_max: int = Field(32, ge=1, le=10_000, description="Open StreamDeltas streams.")
    unacked_batches_max: int = Field(
        4, ge=1, le=1_000, description="Batches of one stream that are read and not yet acknowledged."
    )
    channels_max: int = Field(1_000, ge=1, le=100_000, description="Channels with a policy.")
    source_streams_max: int = Field(
        contract.SOURCE_STREAMS_MAX,
        ge=1,
        le=1_000_000,
        description="Streams of one source, each kept for ever; deltas that would open more are rejected.",
    )
    token_calls_per_s: float = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Reads, reserves and policy calls of one token in a second, per server process; 0: no limit.",
    )
    token_burst: int = Field(
        0, ge=0, le=1_000_000, description="As many of them at once; 0: as many as in a second."
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.threads_running >= self.threads_max:
            raise ValueError("threads_max must be above threads_running, or no call may wait")
        if self.default_deadline_ms > self.deadline_ms_max:
            raise ValueError("default_deadline_ms is above deadline_ms_max")
        if self.call_deltas_max > self.batch_deltas_max:
            raise ValueError("call_deltas_max is above batch_deltas_max")
        return self


class ReadSettings(_Section):
    """Answers from memory."""

    max_staleness_ms: int = Field(
        2_000,
        ge=100,
        le=600_000,
        description="Older answers are refused, unless the caller allows stale ones.",
    )
    digest_skus_per_s: int = Field(
        300,
        ge=0,
        le=100_000,
        description="skus whose memory is compared with Redis, all in turn; 0 switches the digest off.",
    )
    page_size: int = Field(
        contract.PAGE_SIZE_DEFAULT,
        ge=1,
        le=contract.PAGE_SIZE_MAX,
        description="Rows of a page where the caller names no size.",
    )
    page_size_max: int = Field(
        contract.PAGE_SIZE_MAX, ge=1, le=contract.PAGE_SIZE_MAX, description="Rows of a page at most."
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.page_size > self.page_size_max:
            raise ValueError("page_size is above page_size_max")
        return self


class AdmissionSettings(_Section):
    """From where on calls are refused as OVERLOADED: reads first, then reserves. 0 switches a limit off."""

    reads_queue_wait_ms: int = Field(
        250, ge=0, le=60_000, description="Reads that waited longer for a thread are refused."
    )
    reserves_queue_wait_ms: int = Field(
        1_000, ge=0, le=60_000, description="Reserves that waited longer for a thread are refused."
    )
    reads_commit_queue_max: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Reads are refused while more writes wait for the ledger; off: reads are no load to it.",
    )
    reserves_commit_queue_max: int = Field(
        2_000, ge=0, le=1_000_000, description="Reserves are refused while more writes wait for the ledger."
    )
    reads_blocked_max: int = Field(
        32, ge=0, le=4_096, description="Reads that would wait are refused while more calls wait."
    )
    reserves_blocked_max: int = Field(
        96,
        ge=0,
        le=4_096,
        description="Reserves that would hold a thread are refused while more calls do.",
    )
    retry_after_ms: int = Field(
        100, ge=1, le=60_000, description="First value of RetryInfo; it doubles with the pressure."
    )
    retry_after_ms_max: int = Field(1_600, ge=1, le=600_000, description="Last value of RetryInfo.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for what in ("queue_wait_ms", "commit_queue_max", "blocked_max"):
            reads, reserves = getattr(self, f"reads_{what}"), getattr(self, f"reserves_{what}")
            if reads and reserves and reads > reserves:
                raise ValueError(f"reads_{what} is above reserves_{what}: reads are refused first")
        if self.retry_after_ms > self.retry_after_ms_max:
            raise ValueError("retry_after_ms is above retry_after_ms_max")
        return self


class SweepSettings(_Section):
    """Ending holds whose time is over."""

    interval_ms: int = Field(
        250, ge=10, le=500, description="Time between two sweeps: a hold may outlive its deadline by 1 s."
    )
    due_per_call: int = Field(100, ge=1, le=1_000, description="Holds that one ledger call ends at most.")


class LogSettings(_Section):
    """The change log in Redis."""

    records_kept: int = Field(
        1_000_000,
        ge=1_000,
        le=1_000_000_000,
        description="Records that stay while no consumer keeps a checkpoint; a quarter of them always stays.",
    )
    records_cap: int = Field(
        5_000_000,
        ge=1_000,
        le=1_000_000_000,
        description="Records at which reserves are refused rather than a required consumer passed;"
        " open snapshots are passed.",
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.records_kept > self.records_cap:
            raise ValueError("records_kept is above records_cap")
        return self


class CommitQueueSettings(_Section):
    """Group commit: writes that travel to the ledger together."""

    group_max: int = Field(100, ge=1, le=1_000, description="Ledger calls of one round trip.")
    gather_ms: int = Field(
        2, ge=0, le=100, description="Pause between round trips while calls come together, so that more do."
    )
    group_bytes_max: int = Field(
        256_000,
        ge=1_000,
        le=16_000_000,
        description="Bytes of one round trip: what a small call may wait for.",
    )
    ahead_bytes_min: int = Field(
        32_000,
        ge=1,
        le=16_000_000,
        description="A group of so many bytes is sent while another is under way.",
    )


class RetentionSettings(_Section):
    """How long what is over is remembered."""

    reservations_ended_hours: int = Field(24, ge=1, le=8_760, description="Ended reservations, in hours.")
    orders_closed_days: int = Field(
        30, ge=1, le=3_650, description="Closed order lines after their last fact, in days."
    )
    event_ids_days: int = Field(
        30,
        ge=1,
        le=400,
        description="Event ids, in days; older events are EVENT_TOO_OLD. Each 15 days are one more look an event.",
    )


class ExceptionSettings(_Section):
    """What a person must see: when it is one, and how long it stays."""

    interval_ms: int = Field(1_000, ge=50, le=60_000, description="Time between two looks for exceptions.")
    resolve_after_s: int = Field(
        10, ge=0, le=3_600, description="An exception is over when its cause stayed away for so long."
    )
    change_interval_s: int = Field(
        10, ge=0, le=3_600, description="Least time between two changes of one exception's figures."
    )
    seen_interval_s: int = Field(
        30, ge=1, le=3_600, description="How exact the time is at which an exception was last seen."
    )
    parked_after_s: int = Field(
        30, ge=0, le=86_400, description="A stream that waits for a number for so long is an exception."
    )
    order_unconfirmed_minutes: int = Field(
        60,
        ge=0,
        le=43_200,
        description="An order that only its commit told of, for so long; 0: never an exception.",
    )
    short_pick_units: int = Field(
        10, ge=0, le=1_000_000_000, description="Units of a position in quarantine as short_pick; 0: never."
    )
    damage_units: int = Field(
        10, ge=0, le=1_000_000_000, description="Units of a position in quarantine as damage; 0: never."
    )
    resolved_kept_hours: int = Field(24, ge=1, le=720, description="Exceptions that are over, in hours.")
    open_max: int = Field(
        10_000,
        ge=10,
        le=100_000,
        description="Exceptions kept at once; the least severe, newest beyond are counted only.",
    )


class WatchSettings(_Section):
    """Threshold events of watchers: how far above the threshold a sku is back in stock."""

    hysteresis_units: int = Field(
        0, ge=0, le=1_000_000, description="Units above the channel's low_stock_threshold; or by percent:"
    )
    hysteresis_percent: int = Field(
        20, ge=0, le=1_000, description="Percent of the threshold, rounded up; the larger of both counts."
    )


class DrainSettings(_Section):
    """Leaving."""

    notice_ms: int = Field(
        2_000, ge=0, le=600_000, description="From NOT_SERVING until new calls are no longer taken."
    )
    grace_ms: int = Field(10_000, ge=0, le=600_000, description="Time that open calls have to end.")


class TracingSettings(_Section):
    """OpenTelemetry; needs the extra `otel`."""

    otlp_endpoint: str = Field(
        "",
        pattern=r"^(|https?://\S+)$",
        description="Where spans go by OTLP over gRPC, as http://host:4317; empty: no spans.",
    )
    sample_percent: float = Field(
        1, ge=0, le=100, description="Calls with a span, of those whose caller does not say."
    )


class MetricsSettings(_Section):
    """Prometheus."""

    listen: str = Field(
        "",
        pattern=r"^(|\S*:\d{1,5})$",
        description="host:port of /metrics, worker i at port + i (from 0); empty: no listener.",
    )


class HistorySettings(_Section):
    """The journal's database; the publisher and reconciliation keep theirs there too."""

    database_url: SecretStr = Field(
        SecretStr(""),
        description="postgresql://user@host/name, or a SQLite file; empty: history.sqlite in data_dir.",
    )
    batch_records: int = Field(
        5_000, ge=1, le=100_000, description="Records of the log that the historian reads at once."
    )
    batch_bytes: int = Field(
        8_388_608,
        ge=65_536,
        le=1_073_741_824,
        description="About as many bytes of records in the historian's memory.",
    )
    checkpoint_ms: int = Field(
        1_000,
        ge=0,
        le=60_000,
        description="Least time between two notes, in the ledger, of how far the history has come.",
    )
    keep_days: int = Field(
        400, ge=0, le=36_500, description="Days whose records stay in the database; 0: for ever."
    )
    archive: bool = Field(
        True, description="Write days to Parquet files before they leave the database; false: drop them."
    )
    archive_dir: Path | None = Field(
        None, description="Where these files go; none: the folder archive in data_dir."
    )
    seal_key_file: Path | None = Field(
        None,
        description="Key (32 bytes or more) that seals days, gaps and forks; none: plain digests.",
    )


class LoggingSettings(_Section):
    """Logs on stderr."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least level written.")
    format: Literal["json", "text"] = Field("json", description="JSON lines, or text for a person.")


class Settings(BaseSettings):
    """All settings of a server."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=NESTED,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    listen: str = Field(
        "127.0.0.1:7443", min_length=1, description="Address of the gRPC port: host:port or unix:<path>."
    )
    workers: int = Field(
        1, ge=1, le=64, description="Server processes that share the port, each with the whole memory."
    )
    data_dir: Path = Field(Path("data"), description="Where the embedded ledger and local files live.")
    auto_create: bool = Field(
        False, description="Channels without a policy sell from every node; deltas declare nodes."
    )
    reflection: bool = Field(False, description="Serve gRPC reflection, to callers with any valid token.")
    redis: RedisSettings = Field(default_factory=RedisSettings)
    tls: TlsSettings = Field(default_factory=TlsSettings)
    auth: AuthSettings = Field(default_factory=AuthSettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    reads: ReadSettings = Field(default_factory=ReadSettings)
    admission: AdmissionSettings = Field(default_factory=AdmissionSettings)
    sweep: SweepSettings = Field(default_factory=SweepSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    commit_queue: CommitQueueSettings = Field(default_factory=CommitQueueSettings)
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    exceptions: ExceptionSettings = Field(default_factory=ExceptionSettings)
    watch: WatchSettings = Field(default_factory=WatchSettings)
    drain: DrainSettings = Field(default_factory=DrainSettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    tracing: TracingSettings = Field(default_factory=TracingSettings)
    history: HistorySettings = Field(default_factory=HistorySettings)
    logging: LoggingSettings = Field(default_factory=LoggingSettings)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 -- passed by name
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- same
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- same
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment outrank what `load_settings` read from the file. No .env file is looked for."""
        return env_settings, init_settings


# --- Loading ----------------------------------------------------------------------------------------------


def load_settings(config_file: Path | str | None = None) -> Settings:
    """Read file and environment; SettingsError lists all that is wrong.

    The file is `config_file`, or what AVAIL_CONFIG names, or none. A file that is named must exist.
    """
    file = config_file or os.environ.get(ENV_FILE_NAME)
    problems = _unknown_names(os.environ)
    from_file = _read_toml(Path(file)) if file else {}
    try:
        settings = Settings(**from_file)
    except ValidationError as error:
        problems += [_problem(detail) for detail in error.errors(include_input=False, include_url=False)]
    if problems:
        source = f" (file {file})" if file else ""
        raise SettingsError(f"the settings cannot be used{source}:\n" + "\n".join(f"  {p}" for p in problems))
    return settings


def _read_toml(path: Path) -> dict[str, Any]:  # Any: what a TOML file holds; Settings checks it
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read the settings file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"the settings file {path} is not TOML: {error}") from error


def _unknown_names(environment: Mapping[str, str]) -> list[str]:
    """Name variables of a section that does not exist; pydantic looks only at names that it knows."""
    return [
        f"{name}: no section {name.removeprefix(ENV_PREFIX).split(NESTED)[0].lower()!r}"
        for name in sorted(environment)
        if name.startswith(ENV_PREFIX)
        and NESTED in name
        and name.removeprefix(ENV_PREFIX).split(NESTED)[0].lower() not in Settings.model_fields
    ]


def _problem(detail: Any) -> str:  # Any: pydantic's ErrorDetails
    where = ".".join(str(part) for part in detail["loc"]) or "settings"
    what = "no such setting" if detail["type"] == "extra_forbidden" else detail["msg"]
    return f"{where}: {what}"


# --- The table of settings --------------------------------------------------------------------------------


def settings_table() -> str:
    """Return every setting as a Markdown table, in the order of the classes."""
    rows = ["| setting | default | bounds | what it is |", "|---|---|---|---|"]
    rows += [
        f"| `{name}` | {_default(field)} | {_bounds(field)} | {field.description} |"
        for name, field in _fields(Settings)
    ]
    return "\n".join(rows)


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _default(field: FieldInfo) -> str:
    value = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:,}" if isinstance(value, int) else f"`{value}`"


def _bounds(field: FieldInfo) -> str:
    low = next((item.ge for item in field.metadata if hasattr(item, "ge")), None)
    high = next((item.le for item in field.metadata if hasattr(item, "le")), None)
    if low is not None and high is not None:
        return f"{low:,} to {high:,}"
    choices = getattr(field.annotation, "__args__", ())
    if choices and all(isinstance(choice, str) for choice in choices):
        return ", ".join(f"`{choice}`" for choice in choices)
    return ""


if __name__ == "__main__":
    sys.stdout.write(settings_table() + "\n")
