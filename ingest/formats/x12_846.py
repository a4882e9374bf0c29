"""X12 846, Inventory Inquiry/Advice: one row for each QTY of each LIN.

Columns: ``sku`` (of the qualifiers named, in their order), ``node`` (N1 of the line, else of the message), ``code``
(the quantity's qualifier, QTY01), ``quantity``, ``unit``, ``time`` (the line's DTM, else BIA), ``reference`` (BIA03),
``line``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field

from ingest.formats.edi import Segment, SegmentTooLong, Signs, segments
from ingest.rows import ArtifactRefused, BadRow, Row

COLUMNS = ("sku", "node", "code", "quantity", "unit", "time", "reference", "line")
ISA_BYTES = 106


class X12Settings(BaseModel):
    """Which qualifiers name a sku (LIN02, LIN04 …) and a node (N101)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["x12_846"] = "x12_846"
    sku_qualifiers: tuple[str, ...] = Field(
        ("SK", "VN", "VP", "UP", "EN", "BP"),
        min_length=1,
        description="Qualifiers that name a sku, the best first.",
    )
    node_qualifiers: tuple[str, ...] = Field(
        ("WH", "SF", "ST", "LC"), min_length=1, description="Parties that are nodes."
    )
    encoding: str = Field("latin-1", description="Encoding, as Python names it.")


class X12Decoder:
    """Keeps one line in memory. Positions are numbers of segments."""

    context = b""

    def __init__(self, settings: X12Settings) -> None:
        self._settings = settings

    def rows(self, artifact: BinaryIO, columns: Sequence[str]) -> Iterator[Row | BadRow]:
        """Yield rows with the columns asked for. Raises ArtifactRefused for what is no 846."""
        unknown = [column for column in columns if column not in COLUMNS]
        if unknown:
            raise ArtifactRefused(f"an 846 has no {', '.join(unknown)}; it has {', '.join(COLUMNS)}")
        begun = artifact.read(ISA_BYTES)
        if len(begun) < ISA_BYTES or not begun.startswith(b"ISA"):
            raise ArtifactRefused("this is no X12: no ISA segment at its start")
        head = begun.decode("latin-1")
        signs = Signs(segment=head[105], element=head[3], component=head[104])
        message = _Message(self._settings, columns)
        last = 0
        try:
            for segment in segments(artifact, signs, self._settings.encoding, begun):
                last = segment.position
                if segment.tag == "ST" and segment.get(1) != "846":
                    raise ArtifactRefused(f"transaction set {segment.get(1)!r} instead of 846")
                if segment.tag == "ISA":
                    message.envelope = segment.text + signs.segment
                yield from message.take(segment, signs)
        except SegmentTooLong as error:
            yield BadRow(last + 1, "TRUNCATED", str(error), b"")


class _Message:
    """Where in a message we are: its header, then the line."""

    def __init__(self, settings: X12Settings, columns: Sequence[str]) -> None:
        self._settings = settings
        self._columns = columns
        self.envelope = ""
        self._node = self._time = self._reference = ""
        self._line: dict[str, str] | None = None
        self._line_segments: list[str] = []

    def take(self, segment: Segment, signs: Signs) -> Iterator[Row | BadRow]:
        tag = segment.tag
        if tag == "ST":
            self._node = self._time = self._reference = ""
            self._line = None
        elif tag == "BIA":
            self._reference, self._time = segment.get(3), _time(segment.get(4), segment.get(5))
        elif tag == "LIN":
            self._line = {"line": segment.get(1), "sku": self._sku(segment)}
        elif tag == "N1" and segment.get(1) in self._settings.node_qualifiers:
            node = segment.get(4) or segment.get(2)
            if self._line is None:
                self._node = node
            else:
                self._line["node"] = node
        elif tag == "DTM" and self._line is not None:
            self._line["time"] = _time(segment.get(2), segment.get(3))
        elif tag in ("SE", "CTT"):
            self._line = None
        elif tag == "QTY":
            yield self._row(segment, signs)

    def _row(self, segment: Segment, signs: Signs) -> Row | BadRow:
        raw = segment.text.encode()
        if self._line is None:
            return BadRow(segment.position, "MALFORMED_ROW", "a QTY that belongs to no LIN", raw)
        found = {
            "node": self._node,
            "time": self._time,
            "reference": self._reference,
            **self._line,
            "code": segment.get(1),
            "quantity": segment.get(2),
            "unit": segment.get(3),
        }
        return Row(segment.position, [found[column] for column in self._columns], self._alone(found, signs))

    def _sku(self, segment: Segment) -> str:
        named = {segment.get(at): segment.get(at + 1) for at in range(2, len(segment.elements) - 1, 2)}
        return next((named[one] for one in self._settings.sku_qualifiers if named.get(one)), "")

    def _alone(self, found: dict[str, str], signs: Signs) -> bytes:
        """The row as an interchange of its own, for a replay."""
        parts = [
            ["ST", "846", "1"],
            ["BIA", "", "", found["reference"], found["time"][:8], found["time"][8:]],
            ["LIN", found["line"], self._settings.sku_qualifiers[0], found["sku"]],
            ["N1", self._settings.node_qualifiers[0], "", "", found["node"]],
            ["QTY", found["code"], found["quantity"], found["unit"]],
        ]
        text = "".join(signs.element.join(part) + signs.segment for part in parts)
        return (self.envelope + text).encode(self._settings.encoding, "replace")


def _time(date: str, time: str) -> str:
    return f"{date}{time}"
