"""What an operator writes down about sources: one TOML file each, checked as a whole, all errors at once."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ingest.formats import FormatSettings
from ingest.mapping import MappingSettings
from ingest.redaction import RedactSettings

ID_PATTERN = r"[^\s/][^/]{0,63}"


class SettingsRefused(Exception):
    """The files are wrong; the message names every error with its place."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DropFolder(_Section):
    """Where files appear. Names that end in ``unfinished`` are still being written; ``done_suffix``: a file counts once
    its companion (``stock.csv.done``) is there."""

    folder: Path
    pattern: str = "*"
    unfinished: tuple[str, ...] = (".tmp", ".part", ".filepart")
    done_suffix: str = ""
    settle_ms: int = Field(500, ge=0, le=600_000, description="Least age of a file's last change.")


class Webhook(_Section):
    """A door over HTTP. The lock is a bearer secret, or an HMAC-SHA256 of the raw body in a header, in hex."""

    lock: Literal["bearer", "hmac"] = "bearer"
    secret_file: Path
    signature_header: str = ""
    body_bytes_max: int = Field(1_000_000, ge=1, le=100_000_000)
    events_max: int = Field(5_000, ge=1, le=100_000, description="Events of one request.")
    spool_bytes_max: int = Field(
        1_000_000_000, ge=1_000, description="Events that wait on the disk, in bytes."
    )
    rotate_ms: int = Field(200, ge=10, le=60_000, description="A file is closed and carried after so long.")


class Sample(_Section):
    """A golden sample: an artifact beside the mapping, and what must come out of it."""

    artifact: str
    expect: str


class Retention(_Section):
    """How long is kept what nobody waits for any more. Waiting letters, and that a file was carried, stay for ever."""

    letters_days: int = Field(90, ge=1, le=3_650, description="Letters that were replayed or discarded.")
    runs_days: int = Field(400, ge=1, le=3_650, description="What a run needs to be reversed.")


class SourceSettings(_Section):
    """One source: how its artifacts are found, read and translated."""

    source: str = Field(min_length=1, max_length=64)
    format: FormatSettings
    mapping: MappingSettings
    drop: DropFolder | None = None
    webhook: Webhook | None = None
    all_or_nothing: bool = Field(False, description="One bad row refuses the whole artifact.")
    mode: Literal["apply", "shadow"] = Field("apply", description="Shadow: compared, not applied.")
    shadow_channel: str = Field("", max_length=64, description="Channel by which shadow reads the ledger.")
    heartbeat_s: float = Field(0, ge=0, le=86_400, description="An idle source is heard so often; 0: never.")
    parked_alarm_s: float = Field(900, ge=1, le=604_800, description="A stream parked for longer is told.")
    redact: RedactSettings = Field(default_factory=RedactSettings)
    retention: Retention = Field(default_factory=lambda: Retention.model_validate({}))
    batch_deltas: int = Field(1_000, ge=1, le=5_000)
    unacked_batches: int = Field(8, ge=1, le=64)
    rows_max: int = Field(100_000_000, ge=1)
    samples: tuple[Sample, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> SourceSettings:
        if self.webhook is not None and (self.drop is None or self.format.kind != "json_lines"):
            raise ValueError("a webhook needs a [drop] folder for its files and the format json_lines")
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
    if settings.webhook is not None:
        secret_file = (folder / settings.webhook.secret_file).resolve()
        webhook = settings.webhook.model_copy(update={"secret_file": secret_file})
        settings = settings.model_copy(update={"webhook": webhook})
    return settings


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
