"""The formats: one file each. Adding one is a file and a line here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ingest.formats.csv_text import CsvDecoder, CsvSettings
from ingest.formats.fixed_width import FixedWidthDecoder, FixedWidthSettings
from ingest.formats.json_lines import JsonLinesDecoder, JsonLinesSettings
from ingest.formats.parquet import ParquetDecoder, ParquetSettings
from ingest.rows import Decoder

FormatSettings = Annotated[
    CsvSettings | FixedWidthSettings | JsonLinesSettings | ParquetSettings, Field(discriminator="kind")
]


def decoder_for(settings: FormatSettings) -> Decoder:
    """Return what reads the format."""
    if isinstance(settings, CsvSettings):
        return CsvDecoder(settings)
    if isinstance(settings, FixedWidthSettings):
        return FixedWidthDecoder(settings)
    if isinstance(settings, JsonLinesSettings):
        return JsonLinesDecoder(settings)
    return ParquetDecoder(settings)
