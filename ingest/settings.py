"""What an operator writes down about sources: one TOML file each, checked as a whole, all errors at once."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from availability.domain.limits import REJECTED_NUMBERS_KEPT
from ingest.formats import FormatSettings
from ingest.mapping_settings import MappingSettings
from ingest.redaction import RedactSettings

ENTRY_ID_COLUMN = "_entry_id"
ID_PATTERN = r"[^\s/][^/]{0,63}"


class SettingsRefused(Exception):
    """The files are wrong; the message names every error with its place."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DropFolder(_Section):
    """Where files appear. Names that end in ``unfinished`` are still being written; ``done_suffix``: a file counts once
    its companion (``stock.csv.done``) is there."""

    folder: Path = Field(description="Where files appear; `archive` and `rejected` are made below it.")
    pattern: str = Field("*", description="Names that count, as a shell writes them.")
    unfinished: tuple[str, ...] = Field(
        (".tmp", ".part", ".filepart"), description="Names that end so are still being written."
    )
    done_suffix: str = Field("", description="A file counts once its companion of this ending is there.")
    settle_ms: int = Field(500, ge=0, le=600_000, description="Least age of a file's last change.")


class Webhook(_Section):
    """A door over HTTP. The lock is a bearer secret, or an HMAC-SHA256 of the raw body in a header, in hex."""

    lock: Literal["bearer", "hmac"] = Field(
        "bearer", description="A bearer secret, or a signature of the raw body."
    )
    secret_file: Path = Field(description="Holds the secret, 16 bytes at least.")
    signature_header: str = Field(
        "", description="Header of the HMAC-SHA256 in hex; empty: x-signature-sha256."
    )
    body_bytes_max: int = Field(1_000_000, ge=1, le=100_000_000, description="Size of one request.")
    events_max: int = Field(5_000, ge=1, le=100_000, description="Events of one request.")
    spool_bytes_max: int = Field(
        1_000_000_000, ge=1_000, description="Events that wait on the disk, in bytes."
    )
    rotate_ms: int = Field(200, ge=10, le=60_000, description="A file is closed and carried after so long.")


class _Fetched(_Section):
    """What all feeds have that are fetched into the drop folder."""

    interval_ms: int = Field(30_000, ge=10, le=86_400_000, description="Pause where nothing new was there.")
    waiting_bytes_max: int = Field(
        1_000_000_000, ge=1, description="Nothing is fetched while more than this waits in the drop folder."
    )


class Sftp(_Fetched):
    """Files at an SFTP server. A key_file is OpenSSH's own format or PKCS #8, with a passphrase or without.

    Names and unfinished ones are told apart as in the drop folder; a file counts once its
    size and time have not changed for ``settle_ms``, or its companion (``stock.csv.done``) is there."""

    host: str = Field(min_length=1, description="Server.")
    port: int = Field(22, ge=1, le=65_535, description="Port.")
    username: str = Field(min_length=1, description="User there.")
    known_hosts: Path = Field(
        description="OpenSSH's format. A server whose key is not there is not spoken to."
    )
    key_file: Path | None = Field(None, description="Private key, OpenSSH or PKCS #8; or:")
    passphrase_file: Path | None = Field(None, description="Passphrase of the key.")
    password_file: Path | None = Field(None, description="Password.")
    folder: str = Field(".", description="Folder there.")
    done_suffix: str = Field("", description="A file counts once its companion of this ending is there.")
    settle_ms: int = Field(
        5_000, ge=0, le=600_000, description="A file counts when size and time have not changed for so long."
    )
    after: Literal["leave", "rename", "delete"] = Field(
        "leave", description="What becomes of a file there once it is fetched."
    )
    renamed_suffix: str = Field(".fetched", min_length=1, description="Its new ending, where it is renamed.")
    file_bytes_max: int = Field(10_000_000_000, ge=1, description="A larger file is not fetched.")
    files_max: int = Field(10_000, ge=1, le=100_000, description="Files of one look.")
    timeout_ms: int = Field(30_000, ge=100, le=600_000, description="Longest wait for the server.")
    remember_days: int = Field(90, ge=1, description="A file that is gone there is forgotten after so long.")

    @model_validator(mode="after")
    def _one_lock(self) -> Sftp:
        if (self.key_file is None) == (self.password_file is None):
            raise ValueError("give key_file or password_file")
        if self.passphrase_file is not None and self.key_file is None:
            raise ValueError("a passphrase_file is of a key_file")
        return self


class RedisStream(_Fetched):
    """Entries of a Redis stream: fields as they are, or one field that holds a JSON object. Column ``_entry_id`` is the
    entry's id, and names the delta where the mapping names no other; golden samples have it too."""

    url: str = Field(min_length=1, description="Address, without a password.")
    username: str = Field("", description="User there.")
    password_file: Path | None = Field(None, description="Password.")
    stream: str = Field(min_length=1, description="Key of the stream.")
    json_field: str = Field(
        "", description="Field that holds the event as JSON; empty: the fields are the event."
    )
    entries_max: int = Field(1_000, ge=1, le=10_000, description="Entries of one read, and of one file.")
    timeout_ms: int = Field(10_000, ge=100, le=600_000, description="Longest wait for Redis.")
    interval_ms: int = Field(200, ge=10, le=86_400_000, description="Pause where nothing new was there.")

    @field_validator("url")
    @classmethod
    def _no_secret(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise ValueError("redis://, rediss:// or unix://")
        if parts.password is not None or "password=" in parts.query:
            raise ValueError("the password belongs into password_file")
        return url


class OAuth2(_Section):
    """Client credentials (RFC 6749, 4.4). The secret's file is read anew for every token."""

    token_url: str = Field(description="Where tokens are given.")
    client_id: str = Field(min_length=1, description="Who asks.")
    secret_file: Path = Field(description="Its secret, read anew for every token.")
    scope: str = Field("", description="Scope asked for.")
    sent: Literal["basic", "body"] = Field("basic", description="How the secret is sent.")

    @field_validator("token_url")
    @classmethod
    def _private(cls, url: str) -> str:
        return _private_url(url)


class Rest(_Fetched):
    """Events of a cloud ERP, asked for since a time. ``items``: path of an answer's list; "": the answer is one."""

    url: str = Field(description="Address of the list of events.")
    params: dict[str, str] = Field(default_factory=dict, description="Fixed parameters of every call.")
    since_param: str = Field(min_length=1, description="Parameter that takes the time.")
    start: AwareDatetime = Field(description="From when, at the very beginning.")
    cursor_column: str = Field(min_length=1, description="An event's time, ISO 8601: how far we are.")
    overlap_ms: int = Field(300_000, ge=0, le=86_400_000, description="Asked for again each time.")
    items: str = Field("", description="Path of the list in an answer; empty: the answer is the list.")
    paging: Literal["none", "link", "page"] = Field("none", description="How the next page is named.")
    next_column: str = Field("", description="Path of the next address; empty: the Link header.")
    page_param: str = Field("page", description="Parameter of the page's number.")
    page_first: int = Field(1, ge=0, description="Number of the first page.")
    pages_max: int = Field(10_000, ge=1, description="Pages of one round.")
    ascending: bool = Field(False, description="The oldest come first: a round that breaks off is not lost.")
    oauth2: OAuth2 | None = None
    token_file: Path | None = Field(None, description="A fixed bearer token instead.")
    calls_per_hour: int = Field(1_000, ge=1, description="Budget of calls.")
    attempts_max: int = Field(5, ge=1, le=20, description="Of one call, within a round.")
    answer_bytes_max: int = Field(50_000_000, ge=1_000, description="Size of one answer.")
    timeout_ms: int = Field(30_000, ge=100, le=600_000, description="Longest wait for an answer.")

    @field_validator("url")
    @classmethod
    def _private(cls, url: str) -> str:
        return _private_url(url)

    @model_validator(mode="after")
    def _one_lock(self) -> Rest:
        if self.oauth2 is not None and self.token_file is not None:
            raise ValueError("give oauth2 or token_file")
        return self


def _private_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.port == 0 or not parts.hostname:  # reading the port raises ValueError where it is none
        raise ValueError("no host, or no port")
    if parts.username is not None or parts.password is not None:
        raise ValueError("secrets belong into files, not into addresses")
    if parts.scheme != "https" and not (
        parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1", "::1")
    ):
        raise ValueError("https:// (http:// only to this machine)")
    return url


class Sample(_Section):
    """A golden sample: an artifact beside the mapping, and what must come out of it."""

    artifact: str = Field(description="A file as the source delivers it, beside this one.")
    expect: str = Field(description="What must come out of it, as JSON lines.")


class Retention(_Section):
    """How long is kept what nobody waits for any more. Waiting letters, and that a file was carried, stay for ever."""

    letters_days: int = Field(90, ge=1, le=3_650, description="Letters that were replayed or discarded.")
    runs_days: int = Field(400, ge=1, le=3_650, description="What a run needs to be reversed.")


class Alarms(_Section):
    """When something of a source is worth a person's look: an exception (`availability exceptions list`)."""

    letters: int = Field(100, ge=0, le=10_000_000, description="More waiting dead letters of one category.")
    letter_age_s: float = Field(900, ge=0, le=31_536_000, description="A dead letter that waits for longer.")
    unknown_skus: int = Field(10, ge=0, le=10_000_000, description="More skus that nobody knows.")
    feed_failing_s: float = Field(
        60, ge=0, le=604_800, description="A feed that fails, or a door that is shut, for so long."
    )


class SourceSettings(_Section):
    """One source: how its artifacts are found, read and translated."""

    source: str = Field(min_length=1, max_length=64, description="Name in the ledger.")
    format: FormatSettings
    mapping: MappingSettings
    drop: DropFolder | None = None
    webhook: Webhook | None = None
    sftp: Sftp | None = None
    redis_stream: RedisStream | None = None
    rest: Rest | None = None
    all_or_nothing: bool = Field(False, description="One bad row refuses the whole artifact.")
    mode: Literal["apply", "shadow"] = Field("apply", description="Shadow: compared, not applied.")
    shadow_channel: str = Field("", max_length=64, description="Channel by which shadow reads the ledger.")
    heartbeat_s: float = Field(0, ge=0, le=86_400, description="An idle source is heard so often; 0: never.")
    parked_alarm_s: float = Field(900, ge=1, le=604_800, description="A stream parked for longer is told.")
    alarms: Alarms = Field(default_factory=lambda: Alarms.model_validate({}))
    redact: RedactSettings = Field(default_factory=RedactSettings)
    retention: Retention = Field(default_factory=lambda: Retention.model_validate({}))
    batch_deltas: int = Field(1_000, ge=1, le=5_000, description="Deltas of one batch.")
    unacked_batches: int = Field(8, ge=1, le=64, description="Batches that are on their way at once.")
    rows_max: int = Field(100_000_000, ge=1, description="An artifact with more rows is refused.")
    samples: tuple[Sample, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _entries_name_deltas(cls, given: Any) -> Any:  # Any: as the file says it
        """Entries of a Redis stream have names already."""
        if isinstance(given, dict) and "redis_stream" in given and isinstance(given.get("mapping"), dict):
            mapping = dict(given["mapping"])
            columns = mapping.get("columns")
            if isinstance(columns, dict) and not columns.keys() & {"event_id", "source_sequence"}:
                mapping["columns"] = {**columns, "event_id": ENTRY_ID_COLUMN}
                given = {**given, "mapping": mapping}
        return given

    @model_validator(mode="after")
    def _fetched_files_are_found(self) -> SourceSettings:
        fetched = {
            name: section
            for name, section in (
                ("sftp", self.sftp),
                ("redis_stream", self.redis_stream),
                ("rest", self.rest),
            )
            if section is not None
        }
        if not fetched:
            return self
        if self.drop is None or self.drop.done_suffix:
            raise ValueError(f"{', '.join(fetched)}: a [drop] folder without done_suffix is needed")
        for name in fetched.keys() - {"sftp"}:
            if self.format.kind != "json_lines" or not fnmatch(f"{name}-0.jsonl", self.drop.pattern):
                raise ValueError(
                    f"{name}: the format is json_lines, and the drop folder's pattern takes {name}-*.jsonl"
                )
        if self.rest is not None and not self.mapping.columns.keys() & {"event_id", "source_sequence"}:
            raise ValueError("rest: events come more than once; map event_id (or source_sequence)")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> SourceSettings:
        if self.webhook is not None and (self.drop is None or self.format.kind != "json_lines"):
            raise ValueError("a webhook needs a [drop] folder for its files and the format json_lines")
        on_the_way = self.batch_deltas * self.unacked_batches
        if "source_sequence" in self.mapping.columns and on_the_way > REJECTED_NUMBERS_KEPT:
            raise ValueError(
                f"batch_deltas x unacked_batches is {on_the_way}; of a numbered stream at most {REJECTED_NUMBERS_KEPT}"
                " may be on their way, so that no refusal is lost in a crash"
            )
        if self.mode == "shadow" and not self.shadow_channel:
            raise ValueError("mode shadow needs a shadow_channel: by it the ledger's figures are read")
        read = {part for column in self.mapping.columns.values() for part in (column, *column.split("."))}
        for key in self.redact.json_keys:
            if key in read:
                raise ValueError(
                    f"redact.json_keys: the mapping reads {key}, and a letter could not be replayed"
                )
        return self


def read_source(path: Path) -> SourceSettings:
    """Read one source's file. Raises SettingsRefused."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsRefused(f"{path}: {error}") from error
    try:
        settings = SourceSettings.model_validate(found)
    except ValidationError as error:
        problems = [
            f"{path}: {'.'.join(str(part) for part in one['loc']) or 'file'}: {one['msg']}"
            for one in error.errors()
        ]
        raise SettingsRefused("\n".join(problems)) from error
    return _placed(settings, path.parent)


def _placed(settings: SourceSettings, folder: Path) -> SourceSettings:
    """Paths are relative to the file that names them."""
    if settings.drop is not None:
        drop = settings.drop.model_copy(update={"folder": (folder / settings.drop.folder).resolve()})
        settings = settings.model_copy(update={"drop": drop})
    placed = {
        name: _at(section, folder)
        for name in ("webhook", "sftp", "redis_stream", "rest")
        if (section := getattr(settings, name)) is not None
    }
    return settings.model_copy(update=placed)


def _at(section: BaseModel, folder: Path) -> BaseModel:
    """Every path of a section, and of the sections in it, from the folder on."""
    found: dict[str, object] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Path):
            found[name] = (folder / value).resolve()
        elif isinstance(value, BaseModel):
            found[name] = _at(value, folder)
    return section.model_copy(update=found)


def read_sources(folder: Path) -> dict[str, SourceSettings]:
    """Read every ``*.toml`` of a folder, by source. Raises SettingsRefused with all errors of all files."""
    problems: list[str] = []
    found: dict[str, SourceSettings] = {}
    paths = sorted(folder.glob("*.toml"))
    if not paths:
        raise SettingsRefused(f"{folder}: no *.toml of a source is here")
    for path in paths:
        try:
            settings = read_source(path)
        except SettingsRefused as error:
            problems.append(str(error))
            continue
        if settings.source in found:
            problems.append(f"{path}: the source {settings.source!r} has a file already")
        found[settings.source] = settings
    if problems:
        raise SettingsRefused("\n".join(problems))
    return found
