"""The formats: one file each. Adding one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from ingest.formats.csv_text import CsvDecoder, CsvSettings
from ingest.formats.edifact_invrpt import InvrptDecoder, InvrptSettings
from ingest.formats.fixed_width import FixedWidthDecoder, FixedWidthSettings
from ingest.formats.json_lines import JsonLinesDecoder, JsonLinesSettings
from ingest.formats.parquet import ParquetDecoder, ParquetSettings
from ingest.formats.x12_846 import X12Decoder, X12Settings
from ingest.formats.xml_records import XmlDecoder, XmlSettings
from ingest.rows import Decoder

FormatSettings = Annotated[
    CsvSettings
    | FixedWidthSettings
    | JsonLinesSettings
    | ParquetSettings
    | XmlSettings
    | X12Settings
    | InvrptSettings,
    Field(discriminator="kind"),
]
_DECODERS: dict[type, Callable[[Any], Decoder]] = {  # Any: each takes its own settings
    CsvSettings: CsvDecoder,
    FixedWidthSettings: FixedWidthDecoder,
    JsonLinesSettings: JsonLinesDecoder,
    ParquetSettings: ParquetDecoder,
    XmlSettings: XmlDecoder,
    X12Settings: X12Decoder,
    InvrptSettings: InvrptDecoder,
}


def decoder_for(settings: FormatSettings) -> Decoder:
    """Return what reads the format."""
    return _DECODERS[type(settings)](settings)
