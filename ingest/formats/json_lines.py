"""JSON lines: one object a line. Numbers stay exact: quantities are whole numbers or text, never rounded.

Lines of which each is an object, and no blank ones between, are read by blocks; any other block line by line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Any, BinaryIO, Literal

import msgspec
from pydantic import BaseModel, ConfigDict

from ingest.formats.line_blocks import LINE_BYTES_MAX, LineBlocks
from ingest.rows import BadRow, Block, Row, rows_of

_values = msgspec.structs.astuple


class JsonLinesSettings(BaseModel):
    """A column is a key, or a path of keys joined by dots: ``item.sku``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["json_lines"] = "json_lines"


class JsonLinesDecoder:
    """Reads by blocks of lines; keeps one block in memory. Decimal fractions come as exact text."""

    context = b""

    def __init__(self, _: JsonLinesSettings) -> None:
        self._decode = msgspec.json.Decoder(float_hook=str).decode

    def rows(self, artifact: BinaryIO, columns: Sequence[str]) -> Iterator[Row | BadRow]:
        """Yield rows with the columns asked for, None where a key is absent."""
        return rows_of(self.pieces(artifact, columns))

    def pieces(self, artifact: BinaryIO, columns: Sequence[str]) -> Iterator[Block | Row | BadRow]:
        """Yield the same rows, in blocks where each line is an object."""
        paths = [tuple(column.split(".")) for column in columns]
        flat = all(len(path) == 1 for path in paths)
        picking = _picking(columns, Any)
        decode = picking.decode if flat else self._decode
        regular = _picking(columns, str | int | None)
        position = 0
        source = LineBlocks(artifact)
        while True:
            if flat and not source.holding:
                data = source.block()
                if not data:
                    return
                cells = _regular(data, regular)
                if cells is not None:
                    yield Block(position + 1, cells, cache(partial(data.splitlines, True)), len(data), True)
                    position += len(cells[0])
                    continue
                source.give_back(data)
            raw = source.readline()
            if not raw:
                return
            position += 1
            if len(raw) == LINE_BYTES_MAX and not raw.endswith(b"\n"):
                head = raw[:1000]
                while raw and not raw.endswith(b"\n"):
                    raw = source.readline()
                yield BadRow(position, "LINE_TOO_LONG", f"more than {LINE_BYTES_MAX} bytes", head)
                continue
            if position == 1 and raw.startswith(b"\xef\xbb\xbf"):
                raw = raw[3:]
            if not raw.strip():
                continue
            try:
                found = decode(raw)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                yield BadRow(position, "MALFORMED_ROW", str(error), raw)
                continue
            if flat:
                yield Row(position, _values(found), raw)
            elif isinstance(found, dict):
                yield Row(position, [_at(found, path) for path in paths], raw)
            else:
                yield BadRow(position, "MALFORMED_ROW", "the line is no JSON object", raw)


def _regular(data: bytes, picking: msgspec.json.Decoder[Any]) -> Sequence[Sequence[object]] | None:
    """Return by column what lines hold of which each is one object, of texts and integers; None: it is not so.

    One that goes on in the next line cannot be taken for two: after `}` nothing but a whole object is followed by `{`.
    """
    lines = data.count(b"\n") + (not data.endswith(b"\n"))
    if (
        len(data) > LINE_BYTES_MAX
        or b"\r" in data
        or not data.startswith(b"{")
        or not data.endswith((b"}", b"}\n"))
        or data.count(b"}\n{") != lines - 1
    ):
        return None
    try:
        found = picking.decode_lines(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return list(zip(*map(_values, found), strict=True)) if len(found) == lines else None


def _picking(
    columns: Sequence[str], cell: object
) -> msgspec.json.Decoder[Any]:  # Any: the structure made here
    """Return what reads the keys asked for, absent ones as None: half the time of reading all into a dict."""
    fields = [(f"column_{number}", cell, None) for number in range(len(columns))]
    names = {field[0]: column for field, column in zip(fields, columns, strict=True)}
    line = msgspec.defstruct("Line", fields, rename=names, gc=False)
    return msgspec.json.Decoder(line, float_hook=str)


def _at(found: Any, path: tuple[str, ...]) -> object:  # Any: JSON
    for key in path:
        if not isinstance(found, dict):
            return None
        found = found.get(key)
    return found
