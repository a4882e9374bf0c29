"""JSON lines: one object a line. Numbers stay exact: quantities are whole numbers or text, never rounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, Literal

import msgspec
from pydantic import BaseModel, ConfigDict

from ingest.rows import BadRow, Row

LINE_BYTES_MAX = 1_000_000


_values = msgspec.structs.astuple


class JsonLinesSettings(BaseModel):
    """A column is a key, or a path of keys joined by dots: ``item.sku``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["json_lines"] = "json_lines"


class JsonLinesDecoder:
    """Reads by lines; keeps one in memory. Decimal fractions come as exact text."""

    context = b""

    def __init__(self, _: JsonLinesSettings) -> None:
        self._decode = msgspec.json.Decoder(float_hook=str).decode

    def rows(self, artifact: BinaryIO, columns: Sequence[str]) -> Iterator[Row | BadRow]:
        """Yield rows with the columns asked for, None where a key is absent."""
        paths = [tuple(column.split(".")) for column in columns]
        flat = all(len(path) == 1 for path in paths)
        decode = _picking(columns) if flat else self._decode
        position = 0
        while raw := artifact.readline(LINE_BYTES_MAX):
            position += 1
            if len(raw) == LINE_BYTES_MAX and not raw.endswith(b"\n"):
                head = raw[:1000]
                while raw and not raw.endswith(b"\n"):
                    raw = artifact.readline(LINE_BYTES_MAX)
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


def _picking(columns: Sequence[str]) -> Callable[[bytes], Any]:  # Any: the structure made here
    """Return what reads the keys asked for, absent ones as None: half the time of reading all into a dict."""
    fields = [(f"column_{number}", Any, None) for number in range(len(columns))]
    names = {field[0]: column for field, column in zip(fields, columns, strict=True)}
    line = msgspec.defstruct("Line", fields, rename=names, gc=False)
    return msgspec.json.Decoder(line, float_hook=str).decode


def _at(found: Any, path: tuple[str, ...]) -> object:  # Any: JSON
    for key in path:
        if not isinstance(found, dict):
            return None
        found = found.get(key)
    return found
