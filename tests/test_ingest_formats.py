"""Each format: what it says is what is read; what is broken is one bad row or one refusal, never a crash."""

from __future__ import annotations

import gzip
import io
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.formats import decoder_for
from ingest.formats.compression import Truncated, opened
from ingest.formats.csv_text import CsvSettings
from ingest.formats.edifact_invrpt import InvrptSettings
from ingest.formats.fixed_width import FixedColumn, FixedWidthSettings
from ingest.formats.json_lines import JsonLinesSettings
from ingest.formats.parquet import SLICE_ROWS, ParquetSettings
from ingest.formats.x12_846 import X12Settings
from ingest.formats.xml_records import XmlSettings
from ingest.rows import ArtifactRefused, BadRow, Row

ISA = "ISA*00*          *00*          *ZZ*SENDER         *ZZ*RECEIVER       *261101*0800*U*00401*000000001*0*P*>~"
X12 = (
    ISA + "GS*IB*A*B*20261101*0800*1*X*004010~ST*846*0001~BIA*00*DD*REF7*20261101*0800~N1*WH**92*W1~"
    "LIN*1*VN*v-1*SK*TEA~QTY*33*40*EA~QTY*QH*2*CA~LIN*2*SK*COFFEE~N1*WH**92*W2~DTM*405*20261102~QTY*33*7*EA~"
    "CTT*2~SE*11*0001~GE*1*1~IEA*1*000000001~"
)
INVRPT = (
    "UNA:+.? 'UNB+UNOC:3+S+R+261101:0800+1'UNH+1+INVRPT:D:96A:UN'BGM+35+REF?'8+9'DTM+137:202611010800:203'"
    "NAD+WH+W1'LIN+1++4012345:EN'PIA+5+TEA:SA'QTY+145:40:PCE'QTY+33:3:PCE'LOC+18+DAMAGED'"
    "LIN+2++COF?+FEE:SA'QTY+145:7:PCE'UNT+12+1'UNZ+1+1'"
)
XML = """<?xml version="1.0" encoding="utf-8"?>
<f:Movements xmlns:f="urn:x"><Header><BUDAT>20261101</BUDAT></Header>
<f:Item nr="1"><MATNR>TEA</MATNR><Qty uom="EA">3</Qty></f:Item>
<f:Item nr="2"><MATNR>COFFEE</MATNR></f:Item></f:Movements>"""


def read(settings: object, artifact: bytes, *columns: str) -> list[tuple[object, ...] | str]:
    """Rows as tuples, bad ones as their reasons."""
    rows = decoder_for(settings).rows(io.BytesIO(artifact), columns)  # type: ignore[arg-type]
    return [tuple(row.values) if isinstance(row, Row) else row.reason for row in rows]


def test_x12_lines_and_their_places() -> None:
    """A QTY is a row; its node and time are the line's, else the message's."""
    assert read(
        X12Settings(), X12.encode(), "sku", "node", "code", "quantity", "unit", "time", "reference"
    ) == [
        ("TEA", "W1", "33", "40", "EA", "202611010800", "REF7"),
        ("TEA", "W1", "QH", "2", "CA", "202611010800", "REF7"),
        ("COFFEE", "W2", "33", "7", "EA", "20261102", "REF7"),
    ]


def test_invrpt_lines_released_signs_and_places() -> None:
    """Own numbers before EANs; the sign after a release character is text; a LOC belongs to its quantity."""
    assert read(
        InvrptSettings(), INVRPT.encode(), "sku", "node", "code", "quantity", "reference", "time"
    ) == [
        ("TEA", "W1", "145", "40", "REF'8", "202611010800"),
        ("TEA", "DAMAGED", "33", "3", "REF'8", "202611010800"),
        ("COF+FEE", "W1", "145", "7", "REF'8", "202611010800"),
    ]


def test_xml_paths_attributes_and_headers() -> None:
    """Below the row, around it, and absent."""
    assert read(
        XmlSettings(record="Item"), XML.encode(), "MATNR", "Qty", "Qty/@uom", "@nr", "../Header/BUDAT"
    ) == [
        ("TEA", "3", "EA", "1", "20261101"),
        ("COFFEE", None, None, "2", "20261101"),
    ]


def test_xml_that_attacks_is_refused() -> None:
    """Entities are not expanded, nothing outside is read."""
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><x><Item><MATNR>&b;</MATNR></Item></x>'
    with pytest.raises(ArtifactRefused, match="none may"):
        read(XmlSettings(record="Item"), bomb.encode(), "MATNR")


def test_fixed_width_by_places() -> None:
    """Characters, not bytes; short lines and other record types apart."""
    columns = {"sku": FixedColumn(start=2, width=5), "quantity": FixedColumn(start=7, width=4)}
    form = FixedWidthSettings(columns=columns, record_types=("P",))
    text = "H header\nPthé    12\nPTEA  \nPTEA     3\n"
    assert read(form, text.encode(), "sku", "quantity") == [("thé", "12"), "COLUMN_COUNT", ("TEA", "3")]


def test_json_numbers_stay_exact() -> None:
    """Whole numbers are numbers, fractions are text as written, nested keys are paths."""
    lines = '{"sku":"T","q":{"n":3}}\n{"sku":"T","q":{"n":0.1000}}\n[1]\n{"sku"\n'
    found = read(JsonLinesSettings(), lines.encode(), "sku", "q.n")
    assert found == [("T", 3), ("T", "0.1000"), "MALFORMED_ROW", "MALFORMED_ROW"]


def parquet_bytes(rows: int = 3) -> bytes:
    """A real file, uncompressed, with a row group for each slice."""
    buffer = io.BytesIO()
    frame = pl.DataFrame({"sku": [f"s{n}" for n in range(rows)], "quantity": range(rows)})
    frame = frame.with_columns(note=pl.lit("damage me"))
    frame.write_parquet(buffer, compression="uncompressed", row_group_size=SLICE_ROWS)
    return buffer.getvalue()


def test_parquet_by_names() -> None:
    """Columns in the order asked for; a missing one refuses the file."""
    buffer = io.BytesIO()
    pl.DataFrame({"quantity": [3, 4], "sku": ["T", "C"]}).write_parquet(buffer)
    assert read(ParquetSettings(), buffer.getvalue(), "sku", "quantity") == [("T", 3), ("C", 4)]
    with pytest.raises(ArtifactRefused, match="node"):
        read(ParquetSettings(), buffer.getvalue(), "node")


def test_compressed_parquet_is_read(tmp_path: Path) -> None:
    """Whole files may be gzipped, as any other may: what is unpacked cannot be wound back, and need not be."""
    for compress in (gzip.compress, zstandard.ZstdCompressor().compress):
        path = tmp_path / "a.parquet"
        path.write_bytes(compress(parquet_bytes()))
        with path.open("rb", buffering=0) as artifact:
            rows = list(decoder_for(ParquetSettings()).rows(opened(artifact), ("sku",)))
        assert [row.values[0] for row in rows if isinstance(row, Row)] == ["s0", "s1", "s2"]


def test_a_damaged_part_of_parquet_is_one_bad_row_and_the_others_are_read() -> None:
    """A row group that cannot be read is told with its rows; a file whose description is damaged is refused."""
    whole = parquet_bytes(rows=SLICE_ROWS + 5)
    at = whole.index(b"damage me")
    found = read(ParquetSettings(), whole[:at] + b"xxxxxxxxx" + whole[at + 9 :], "sku")
    assert found, "a text is no damage"
    body = bytearray(whole)
    body[8:60] = b"\xff" * 52  # the head of the first page
    found = read(ParquetSettings(), bytes(body), "sku")
    assert found == ["UNREADABLE", *[(f"s{SLICE_ROWS + n}",) for n in range(5)]]


COLUMNS: dict[str, tuple[object, Sequence[str], bytes]] = {
    "csv": (CsvSettings(), ("sku", "quantity"), b'sku,quantity\nT,1\n"a\nb",2\n'),
    "csv-16": (CsvSettings(encoding="utf-16"), ("sku",), "sku,q\nT,1\n".encode("utf-16")),
    "fixed": (FixedWidthSettings(columns={"sku": FixedColumn(start=1, width=3)}), ("sku",), b"T  1\n"),
    "json": (JsonLinesSettings(), ("sku",), b'{"sku":"T"}\n'),
    "xml": (XmlSettings(record="Item"), ("MATNR", "../Header/BUDAT"), XML.encode()),
    "x12": (X12Settings(), ("sku", "quantity", "time"), X12.encode()),
    "invrpt": (InvrptSettings(), ("sku", "quantity", "node"), INVRPT.encode()),
    "parquet": (ParquetSettings(), ("sku",), parquet_bytes()),
}


@pytest.mark.parametrize("name", list(COLUMNS))
def test_no_bytes_crash_a_decoder(name: str, full: bool) -> None:
    """Anything, and damaged real artifacts: rows, bad rows, or one refusal."""
    form, columns, real = COLUMNS[name]

    @st.composite
    def damaged(draw: st.DrawFn) -> bytes:
        whole = bytearray(real * draw(st.integers(1, 3)))
        for _ in range(draw(st.integers(0, 6))):
            at = draw(st.integers(0, max(0, len(whole) - 1)))
            whole[at : at + draw(st.integers(0, 9))] = draw(st.binary(max_size=9))
        return bytes(whole[: draw(st.integers(0, len(whole)))])

    @settings(
        max_examples=20_000 if full else 150,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(st.binary(max_size=400), damaged()))
    def check(artifact: bytes) -> None:
        try:
            for row in decoder_for(form).rows(opened(io.BytesIO(artifact)), columns):  # type: ignore[arg-type]
                if isinstance(row, BadRow):
                    assert row.reason
                    assert row.message
                else:
                    assert len(row.values) == len(columns)
        except (ArtifactRefused, Truncated):
            return

    check()


@pytest.mark.parametrize("name", [name for name in COLUMNS if name not in ("parquet", "csv-16")])
def test_a_row_s_raw_form_is_an_artifact_again(name: str) -> None:
    """What a dead letter keeps gives the same row when it is read again."""
    form, columns, real = COLUMNS[name]
    decoder = decoder_for(form)  # type: ignore[arg-type]
    for row in list(decoder.rows(io.BytesIO(real), columns)):
        again = list(decoder_for(form).rows(io.BytesIO(decoder.context + row.raw), columns))  # type: ignore[arg-type]
        assert isinstance(row, Row)
        assert [list(one.values) for one in again if isinstance(one, Row)] == [list(row.values)]
