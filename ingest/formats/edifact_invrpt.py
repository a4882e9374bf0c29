"""EDIFACT INVRPT, the inventory report: one row for each QTY of each LIN.

Columns: ``sku`` (LIN, or PIA of the qualifiers named), ``node`` (LOC of the quantity or line, else NAD of the message),
``code`` (the quantity's qualifier, QTY), ``quantity``, ``unit``, ``time`` (DTM of the line, else of the message),
``reference`` (BGM), ``line``, ``status`` (GIR or STS of the line, where there is one).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field

from ingest.formats.edi import Segment, SegmentTooLong, Signs, segments
from ingest.rows import ArtifactRefused, BadRow, Row

COLUMNS = ("sku", "node", "code", "quantity", "unit", "time", "reference", "line", "status")
UNA_BYTES = 9
DEFAULT_SIGNS = Signs(segment="'", element="+", component=":", release="?")


class InvrptSettings(BaseModel):
    """Which code lists name a sku (LIN C212 7143, PIA) and a node (NAD)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["edifact_invrpt"] = "edifact_invrpt"
    sku_qualifiers: tuple[str, ...] = Field(
        ("SA", "IN", "SRV", "EN", "BP"),
        min_length=1,
        description="Code lists that name a sku, the best first.",
    )
    node_qualifiers: tuple[str, ...] = Field(
        ("WH", "GM", "SF"), min_length=1, description="Parties that are nodes."
    )
    encoding: str = Field("latin-1", description="Encoding, as Python names it.")


class InvrptDecoder:
    """Keeps one line in memory. Positions are numbers of segments."""

    context = b""

    def __init__(self, settings: InvrptSettings) -> None:
        self._settings = settings

    def rows(self, artifact: BinaryIO, columns: Sequence[str]) -> Iterator[Row | BadRow]:
        """Yield rows with the columns asked for. Raises ArtifactRefused for what is no INVRPT."""
        unknown = [column for column in columns if column not in COLUMNS]
        if unknown:
            raise ArtifactRefused(f"an INVRPT has no {', '.join(unknown)}; it has {', '.join(COLUMNS)}")
        begun = artifact.read(UNA_BYTES)
        signs = DEFAULT_SIGNS
        if begun.startswith(b"UNA") and len(begun) == UNA_BYTES:
            una = begun.decode("latin-1")
            release = una[6] if una[6] != " " else ""
            signs = Signs(segment=una[8], element=una[4], component=una[3], release=release)
            if len({*una[3:5], una[8]}) < 3:
                raise ArtifactRefused("the UNA names one sign twice")
            begun = b""
        elif not begun.startswith(b"UNB"):
            raise ArtifactRefused("this is no EDIFACT: it begins with neither UNA nor UNB")
        message = _Message(self._settings, columns, signs)
        last = 0
        try:
            for segment in segments(artifact, signs, self._settings.encoding, begun):
                last = segment.position
                if segment.tag == "UNH" and segment.get(2) != "INVRPT":
                    raise ArtifactRefused(f"message {segment.get(2)!r} instead of INVRPT")
                yield from message.take(segment)
            yield from message.end()
        except SegmentTooLong as error:
            yield from message.end()
            yield BadRow(last + 1, "TRUNCATED", str(error), b"")


class _Message:
    """Where in a message we are: header, line, quantity. A quantity's LOC comes after it, so rows are given late."""

    def __init__(self, settings: InvrptSettings, columns: Sequence[str], signs: Signs) -> None:
        self._settings = settings
        self._columns = columns
        self._signs = signs
        self._header: dict[str, str] = {}
        self._line: dict[str, str] | None = None
        self._quantity: tuple[int, dict[str, str]] | None = None

    def take(self, segment: Segment) -> Iterator[Row | BadRow]:
        tag = segment.tag
        if tag in ("UNH", "LIN", "QTY", "UNT"):
            yield from self.end()
        current = self._line if self._line is not None else self._header
        if tag == "UNH":
            self._header, self._line = {}, None
        elif tag == "BGM":
            self._header["reference"] = segment.get(2)
        elif tag == "NAD" and segment.get(1) in self._settings.node_qualifiers:
            current["node"] = segment.get(2)
        elif tag == "DTM":
            target = self._quantity[1] if self._quantity is not None else current
            target["time"] = segment.get(1, 1)
        elif tag == "LIN":
            self._line = {"line": segment.get(1), "sku": segment.get(3), "qualifier": segment.get(3, 1)}
        elif tag == "PIA" and self._line is not None:
            self._name(segment)
        elif tag == "STS" and self._line is not None:
            self._line["status"] = segment.get(2) or segment.get(1)
        elif tag == "LOC":
            target = self._quantity[1] if self._quantity is not None else current
            target["node"] = segment.get(2)
        elif tag == "QTY":
            if self._line is None:
                yield BadRow(
                    segment.position, "MALFORMED_ROW", "a QTY that belongs to no LIN", segment.text.encode()
                )
            else:
                told = {"code": segment.get(1), "quantity": segment.get(1, 1), "unit": segment.get(1, 2)}
                self._quantity = (segment.position, told)
        elif tag == "UNT":
            self._line = None

    def end(self) -> Iterator[Row]:
        """Give the quantity that was begun."""
        if self._quantity is not None and self._line is not None:
            position, told = self._quantity
            found = dict.fromkeys(COLUMNS, "") | self._header | self._line | told
            yield Row(position, [found[column] for column in self._columns], self._alone(found))
        self._quantity = None

    def _name(self, segment: Segment) -> None:
        assert self._line is not None
        wanted = self._settings.sku_qualifiers
        for element in range(2, len(segment.elements)):
            code, qualifier = segment.get(element), segment.get(element, 1)
            best = self._line["qualifier"]
            if (
                code
                and qualifier in wanted
                and (best not in wanted or wanted.index(qualifier) < wanted.index(best))
            ):
                self._line["sku"], self._line["qualifier"] = code, qualifier

    def _alone(self, found: dict[str, str]) -> bytes:
        """The row as an interchange of its own, for a replay."""
        signs = DEFAULT_SIGNS

        def said(text: str) -> str:
            return "".join(f"?{sign}" if sign in "'+:?" else sign for sign in text)

        text = (
            f"UNB+UNOC:3'UNH+1+INVRPT:D:96A:UN'BGM+35+{said(found['reference'])}'"
            f"DTM+137:{said(found['time'])}'LIN+{said(found['line'])}++{said(found['sku'])}:{found['qualifier']}'"
            f"STS++{said(found['status'])}'"
            f"QTY+{said(found['code'])}:{said(found['quantity'])}:{said(found['unit'])}'LOC+18+{said(found['node'])}'"
        )
        assert signs.segment == "'"
        return text.encode(self._settings.encoding, "replace")
