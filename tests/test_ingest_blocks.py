"""Blocks of rows: what is done per column says what is said row by row, and nothing out of the ordinary is done so."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from availability.encoded_deltas import EncodedDeltas
from availability.v1 import stock_pb2 as pb
from ingest import block_mapping
from ingest.batches import Batch, RowsBehind
from ingest.block_mapping import BlockMapper
from ingest.formats import csv_text, json_lines, line_blocks
from ingest.formats.compression import Truncated, opened
from ingest.formats.csv_text import CsvDecoder, CsvSettings
from ingest.formats.json_lines import JsonLinesDecoder, JsonLinesSettings
from ingest.mapping import Mapper
from ingest.mapping_settings import MappingSettings
from ingest.marks import note
from ingest.rows import ArtifactRefused, BadRow, Block, BlockDecoder, Row, RowRefused

MOVEMENTS = {
    "1": {"type": "RECEIPT"}, "2": {"type": "ADJUSTMENT", "sign": -1, "reason": "count"},
    "C": {"type": "ORDER_CANCELLED"}, "9": {"ignore": True},
    "A": {"type": "ORDER_ALLOCATED", "basis": "OPEN"},
}  # fmt: skip
COMMON: dict[str, object] = {
    "version": "1", "author": "test", "movements": MOVEMENTS, "nodes": {"P1": "east"}, "skus": {"alias": "A"},
    "units": {"factors": {"EA": "1", "CS": "12"}, "by_sku": {"B": {"CS": "6"}}},
}  # fmt: skip
LETTERS = {
    "type": "t", "sku": "s", "node": "n", "quantity": "q", "shipped_quantity": "q", "unit": "u", "source_sequence": "i",
    "event_id": "e", "order_ref": "e", "correlation_id": "c", "occurred_time": "at", "due_time": "at", "stream": "r",
    "reason": "r", "author": "r", "line": "r",
}  # fmt: skip
"""Field = column, which is also the name of its cells below."""
STOCK = "type sku node quantity"
MAPPINGS: dict[str, tuple[str, dict[str, object]]] = {
    "numbered": (f"{STOCK} source_sequence occurred_time", {"constants": {"stream": "s"}}),
    "streams": (f"{STOCK} source_sequence occurred_time stream", {}),
    "by place": (f"{STOCK} unit reason author", {}),
    "by event": (
        "sku node quantity event_id due_time",
        {"constants": {"type": "1", "unit": "CS"}, "sku_pattern": "[A-Z]"},
    ),
    "orders": (
        f"{STOCK} order_ref line shipped_quantity correlation_id occurred_time",
        {"constants": {"order_source": "shop", "reference": "R"}, "other_nodes": "refuse"},
    ),
    "one shared": ("node sku", {"constants": {"type": "2", "quantity": "3"}, "other_skus": "refuse"}),
}
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
CELLS: dict[str, list[object]] = {
    "t": ["1", "2", 2, "C", "A", "9", 1, True, "x", None],
    "s": ["A", " A ", "B", "alias", 7, "", None, "ü", True, "x" * 200],
    "n": ["P1", "P1", "else", "", None],
    "q": ["3", 3, "4.0", " 5", "5-", 0, "0.5", "", None, True, "many", 10**10],
    "u": ["EA", "CS", "", None, "PAL"],
    "i": [1, 127, 128, 129, "130", " 200 ", 300_000, 2**53 - 1, 0, 2**53, -1, "", None, True, "1.0"],
    "at": ["2026-11-01T08:00:00Z", "2026-11-01T08:00:00.25+02:00", "1969-01-01", "", None, "when"],
    "r": ["one", "two", "", None, 5],
    "e": ["E1", "E2", " E3 ", 4, "", None],
    "c": ["id", TRACE, "", None],
}
LIKELY = {"t": 2, "s": 4, "n": 2, "q": 3, "u": 2, "i": 8, "at": 3, "r": 4, "e": 4, "c": 3}
"""So many of the first are what a feed has; the others come less often."""


def mapping(name: str) -> MappingSettings:
    fields, more = MAPPINGS[name]
    columns = {field: LETTERS[field] for field in fields.split()}
    return MappingSettings.model_validate({**COMMON, "columns": columns, **more})


def cells_of(columns: Sequence[str]) -> st.SearchStrategy[list[tuple[object, ...]]]:
    """Rows of a feed, and rows of which any cell may be odd."""
    likely = st.tuples(*(st.sampled_from(CELLS[column][: LIKELY[column]]) for column in columns))
    odd = st.tuples(*(st.sampled_from(CELLS[column]) for column in columns))
    return st.one_of(
        st.lists(likely, min_size=1, max_size=9), st.lists(st.one_of(likely, odd), min_size=1, max_size=4)
    )


def row_by_row(settings_of: MappingSettings, rows: Sequence[Row]) -> list[pb.Delta | None] | str:
    """The deltas, or the first refusal, of a mapper that has no memory of blocks."""
    mapper, found = Mapper("wms", settings_of), []
    try:
        for row in rows:
            name = f"file:{row.position}" if mapper.named_by_place else ""
            found.append(mapper.delta(row, name))
    except RowRefused as refused:
        return refused.reason
    return found


@pytest.mark.parametrize("name", list(MAPPINGS))
def test_a_block_means_what_its_rows_mean(name: str, full: bool) -> None:
    """Each delta, and the latest time and number of each stream; a block that has to go row by row does so."""
    found = mapping(name)
    seasoned = Mapper("wms", found)
    blocks, columns = BlockMapper(seasoned), seasoned.columns
    taken = [0, 0]

    @settings(max_examples=10_000 if full else 300, deadline=None, database=None)
    @given(cells_of(columns))
    def check(cells: list[tuple[object, ...]]) -> None:
        block = Block(5, list(zip(*cells, strict=True)), lambda: [b""] * len(cells), 0, False)
        encoded = blocks.encode(block, "file")
        rows = list(block.rows())
        expected = row_by_row(found, rows)
        taken[encoded is None] += 1
        if encoded is None:
            if isinstance(expected, str) or None in expected:
                return
            shared = [row.values[place] for row in rows for place in seasoned.shared]
            numbers = [delta.source_sequence for delta in expected if delta is not None]
            numbered = "source_sequence" in found.columns
            odd = any(isinstance(value, bool) for row in rows for value in row.values) or 1 in shared
            assert odd or (numbered and not all(0 < number < 2**53 for number in numbers))
            return
        deltas = list(EncodedDeltas(encoded.deltas))
        assert deltas == expected
        for first, last in ((0, len(rows)), (1, len(rows))):
            mine: dict[str, list[float]] = {}
            theirs: dict[str, list[float]] = {}
            if first < last:
                encoded.note(mine, first, last)
            for delta in deltas[first:last]:
                moment = delta.occurred_time
                note(theirs, delta.stream, moment.seconds + moment.nanos / 1e9, delta.source_sequence)
            assert mine == theirs

    check()
    assert min(taken) > 20, f"{taken}: both ways must be gone"


@pytest.mark.parametrize("other", [True, 1.0, ["1"], {"a": 1}])
def test_equal_cells_of_two_types_go_row_by_row(other: object) -> None:
    """1, 1.0 and true are equal, and not one text: what is remembered of one would be said of the other."""
    mapper = Mapper("wms", mapping("by place"))
    rows = [("2", sku, "P1", "3", "EA", "one") for sku in (1, other)]
    block = Block(1, list(zip(*rows, strict=True)), lambda: [b"", b""], 0, False)
    assert BlockMapper(mapper).encode(block, "file") is None
    said = row_by_row(mapping("by place"), list(block.rows()))
    assert [delta.sku for delta in said if isinstance(delta, pb.Delta)] == ["1", str(other)]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many different cells as may be, and then anew: within a block too."""
    monkeypatch.setattr(block_mapping, "REMEMBERED_MAX", 3)
    mapper = Mapper("wms", mapping("numbered"))
    blocks = BlockMapper(mapper)
    rows = [("1", f"s{n}", "P1", str(n + 1), n + 1, f"2026-11-01T08:00:{n:02d}Z") for n in range(20)]
    block = Block(1, list(zip(*rows, strict=True)), lambda: [b""] * len(rows), 0, True)
    encoded = blocks.encode(block, "")
    assert encoded is not None
    assert list(EncodedDeltas(encoded.deltas)) == row_by_row(mapping("numbered"), list(block.rows()))


def test_kits_go_row_by_row() -> None:
    """Only where a row of an order names one; who is no order is not asked for."""
    mapper = Mapper("wms", mapping("orders"))
    blocks, asked = BlockMapper(mapper), []

    def is_kit(skus: object) -> bool:
        asked.append(skus)
        return skus == {"KIT", "A"}

    def block(order: str, sku: str) -> Block:
        rows = [("C", one, "P1", "", order, "1", "", "") for one in (sku, "A")]
        return Block(1, list(zip(*rows, strict=True)), lambda: [b"", b""], 0, True)

    assert blocks.encode(block("", "KIT"), "", is_kit=is_kit) is not None
    assert asked == []
    assert blocks.encode(block("O1", "KIT"), "", is_kit=is_kit) is None
    assert blocks.encode(block("O1", "B"), "", is_kit=is_kit) is not None
    assert asked == [{"KIT", "A"}, {"B", "A"}]


# --- Decoders ---------------------------------------------------------------------------------------------

Found = list[tuple[object, ...]]


def read(decoder: BlockDecoder, artifact: bytes, columns: Sequence[str]) -> tuple[Found, bool]:
    """Rows and bad rows as they come, and whether there was a block of them."""
    found: Found = []
    blocks = False
    try:
        for piece in decoder.pieces(opened(io.BytesIO(artifact)), columns):
            blocks |= isinstance(piece, Block)
            for row in piece.rows() if isinstance(piece, Block) else [piece]:
                if isinstance(row, BadRow):
                    found.append((row.position, row.reason, row.raw))
                else:
                    found.append((row.position, *row.values, row.raw))
    except (ArtifactRefused, Truncated) as error:
        found.append((type(error).__name__,))
    return found, blocks


CSV_LINES = st.sampled_from((
    b"A,1,x", b"B,2,y", b"C,,", "ü,4,z".encode(), b'"q",5,z', b'"two\nlines",6,', b"A,1", b"A,1,2,3", b"",
    b"\xff,1,x", b"A\r,7,x", b'A"B,8,x', b'"open,9,x', b" , , ", b"\x00,1,x", b"x" * 70 + b",1,x",
))  # fmt: skip
JSON_LINES = st.sampled_from((
    b'{"a":"A","b":1}', b'{"a":"B","b":"2","c":{"d":1}}', b'{"b":3}', b'{"a":1.0,"b":4.50}', b'{"a":true}', b"{}",
    b'{"a":{"b":1}', b',"c":{}}', b'{"a":"x}', b'{"}', b'{"a":1}{"a":2}', b'{"a":1} {"a":2}', b"[1]", b"", b"  ",
    b' {"a":"A"}', b'{"a":"A"} ', b'{"a":[1]}', b'{"a":12345678901234567890123}', b'{"a":"\xff"}', b'{"a":null}',
    b'{"a":"A"}\r', b'{"a":"\\u00fc","a":"B"}', b'{"a":1e2}', b'{"a":"' + b"x" * 70 + b'"}',
))  # fmt: skip


def by_lines_too(
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[], BlockDecoder],
    lines: st.SearchStrategy[bytes],
    head: bytes,
    columns: Sequence[str],
    regular: tuple[object, str],
    full: bool,
) -> None:
    """Compare with what is read where no block is ever regular. Blocks are small, so that there are many."""
    monkeypatch.setattr(line_blocks, "BLOCK_BYTES", 24)
    taken = [0, 0]

    @settings(
        max_examples=20_000 if full else 250,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(lines, max_size=12), st.sampled_from([b"\n", b"\r\n"]), st.booleans(), st.integers(0, 40))
    def check(found: list[bytes], end: bytes, ended: bool, cut: int) -> None:
        artifact = head + end.join(found) + (end if ended else b"")
        if cut > 30:  # a truncated gzip gives what it has
            artifact = gzip.compress(artifact)[: -(cut - 30)]
        mine, blocks = read(make(), artifact, columns)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(*regular, lambda *_: None)
            theirs, none = read(make(), artifact, columns)
        assert not none
        assert mine == theirs
        taken[blocks] += 1

    check()
    assert min(taken) > 20, f"{taken}: both ways must be gone"


@pytest.mark.parametrize("columns", [("a", "b", "c"), ("b",)])
def test_csv_by_blocks_is_csv_by_lines(
    columns: Sequence[str], monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    """Whatever stands in the lines: the same rows, bad rows, positions and bytes."""
    by_lines_too(
        monkeypatch, lambda: CsvDecoder(CsvSettings()), CSV_LINES, b"a,b,c\n", columns,
        (csv_text.CsvDecoder, "_regular"), full,
    )  # fmt: skip


def test_csv_of_one_column_and_no_quotes_by_blocks(monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    """An empty line of one column is nothing, and no row."""
    form = CsvSettings(columns=("a",), quote="", delimiter=";")
    by_lines_too(
        monkeypatch, lambda: CsvDecoder(form), CSV_LINES, b"first\n", ("a",), (csv_text.CsvDecoder, "_regular"), full
    )  # fmt: skip


def test_json_by_blocks_is_json_by_lines(monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    """Objects that go on in the next line or share one, too: the same rows, bad rows, positions and bytes."""
    by_lines_too(
        monkeypatch, lambda: JsonLinesDecoder(JsonLinesSettings()), JSON_LINES, b"", ("a", "b"),
        (json_lines, "_regular"), full,
    )  # fmt: skip


def test_a_line_that_is_too_long_is_one_bad_row_among_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever blocks begin: it is found by its length."""
    for module in (line_blocks, csv_text):
        monkeypatch.setattr(module, "LINE_BYTES_MAX", 40)
    monkeypatch.setattr(csv_text, "FIELD_MAX", 40)
    monkeypatch.setattr(line_blocks, "BLOCK_BYTES", 24)
    for length in range(30, 60):
        long = b"L" * (length - 5) + b",1,x\n"
        rows, _ = read(CsvDecoder(CsvSettings()), b"a,b,c\n" + b"A,1,x\n" * 9 + long + b"B,1,x\n" * 9, ("a",))
        assert [row[0] for row in rows] == list(range(2, 21))
        assert rows[9][1] == ("MALFORMED_ROW" if length > 40 else "L" * (length - 5))


def test_rows_behind_deltas_are_found_by_index() -> None:
    """Single rows and slices of blocks, mixed: position and bytes of each."""
    behind = RowsBehind()
    lines = [f"row {n}".encode() for n in range(10, 20)]
    block = Block(10, [[str(n) for n in range(10, 20)]], lambda: lines, 0, True)
    behind.append(Row(1, ("x",), b"row 1"))
    behind.append(Row(1, ("x",), b"row 1"))  # two parts of a kit
    behind.extend(block, 3, 5)
    behind.append(Row(30, ("y",), b"row 30"))
    behind.extend(block, 9, 10)
    assert [behind.position(index) for index in range(len(behind))] == [1, 1, 13, 14, 30, 19]
    assert [behind[index].raw for index in range(6)] == [f"row {n}".encode() for n in (1, 1, 13, 14, 30, 19)]
    with pytest.raises(IndexError):
        behind[6]


def test_an_encoded_request_is_the_message() -> None:
    """Put together by hand, it is what protobuf would have written, whatever the lengths."""
    deltas = [pb.Delta(sku="s" * length, quantity=length + 1) for length in (0, 1, 100, 127, 200, 20_000)]
    request = EncodedDeltas([delta.SerializeToString() for delta in deltas]).request("wms", 7)
    assert pb.StreamDeltasRequest.FromString(request) == pb.StreamDeltasRequest(
        source="wms", deltas=deltas, batch_number=7
    )


def test_a_batch_of_a_block_counts_its_bytes() -> None:
    """Of the rows as they came or of the deltas, whichever are more: batches on their way stay small."""
    mapper = Mapper("wms", mapping("one shared"))
    block = Block(1, [["P1"] * 4, ["A"] * 4], lambda: [b"x" * 500] * 4, 2_000, True)
    encoded = BlockMapper(mapper).encode(block, "")
    assert encoded is not None
    batch = Batch()
    batch.put_block(block, encoded, 1, 3)
    assert (batch.raw_bytes, batch.last, len(batch)) == (1_000, 3, 2)
