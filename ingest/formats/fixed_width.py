"""Fixed width: each column has its place in the line, counted in characters."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ingest.rows import ArtifactRefused, BadRow, Row

LINE_BYTES_MAX = 100_000


class FixedColumn(BaseModel):
    """One column. ``start`` counts characters from 1, as the interface descriptions of such files do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: int = Field(ge=1, le=LINE_BYTES_MAX, description="First character, from 1.")
    width: int = Field(ge=1, le=LINE_BYTES_MAX, description="Characters.")


class FixedWidthSettings(BaseModel):
    """Where the columns stand. ``record_types``: lines that begin otherwise (headers, trailers) are left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["fixed_width"] = "fixed_width"
    encoding: str = Field("utf-8", description="Encoding, as Python names it.")
    columns: dict[str, FixedColumn]
    record_types: tuple[str, ...] = Field(
        (), description="Lines that begin otherwise are left out; none: all count."
    )
    skip_lines: int = Field(0, ge=0, le=1_000, description="Lines before anything counts.")

    @model_validator(mode="after")
    def _columns_there(self) -> FixedWidthSettings:
        if not self.columns:
            raise ValueError("columns is empty")
        codecs.lookup(self.encoding)
        return self


class FixedWidthDecoder:
    """Reads by lines; keeps one in memory."""

    def __init__(self, settings: FixedWidthSettings) -> None:
        self._settings = settings
        self.context = b"\n" * settings.skip_lines

    def rows(self, artifact: BinaryIO, columns: Sequence[str]) -> Iterator[Row | BadRow]:
        """Yield rows with the columns asked for, trimmed. Raises ArtifactRefused where one is not described."""
        settings = self._settings
        missing = [column for column in columns if column not in settings.columns]
        if missing:
            raise ArtifactRefused(f"columns have no place: {', '.join(missing)}")
        places = [settings.columns[column] for column in columns]
        slices = [slice(place.start - 1, place.start - 1 + place.width) for place in places]
        # The last column may be written shorter than it is wide.
        least = max((place.start for place in places), default=1)
        position = 0
        while raw := artifact.readline(LINE_BYTES_MAX):
            position += 1
            if position <= settings.skip_lines:
                continue
            if position == 1 and raw.startswith(codecs.BOM_UTF8):
                raw = raw[len(codecs.BOM_UTF8) :]
            try:
                line = raw.decode(settings.encoding).rstrip("\r\n")
            except UnicodeDecodeError:
                yield BadRow(position, "ENCODING", f"the line is not {settings.encoding}", raw)
                continue
            if not line.strip() or (settings.record_types and not line.startswith(settings.record_types)):
                continue
            if len(line) < least:
                yield BadRow(position, "COLUMN_COUNT", f"{len(line)} characters, at least {least}", raw)
                continue
            yield Row(position, [line[place].strip() for place in slices], raw)
