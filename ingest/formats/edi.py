"""Segments of X12 and EDIFACT: text between separators. Both are read as streams; what they mean is in their own files.

Written here and not taken from a library: those that are kept hold whole interchanges in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK_BYTES = 1 << 16
SEGMENT_BYTES_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Signs:
    """The separators of an interchange; ``release`` "" where there is none."""

    segment: str
    element: str
    component: str
    release: str = ""


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment: its number from 1, its elements as lists of components, and its text."""

    position: int
    elements: list[list[str]]
    text: str

    @property
    def tag(self) -> str:
        return self.elements[0][0]

    def get(self, element: int, component: int = 0) -> str:
        """Return a component, "" where it is absent. Elements count from 1, components from 0."""
        if element >= len(self.elements):
            return ""
        components = self.elements[element]
        return components[component] if component < len(components) else ""


class SegmentTooLong(Exception):
    """No end of a segment where one must be: this is no EDI, or its end is missing."""


def segments(artifact: BinaryIO, signs: Signs, encoding: str, begun: bytes = b"") -> Iterator[Segment]:
    """Yield segments. ``begun``: what was read of the artifact before. Raises SegmentTooLong."""
    position, rest = 0, begun.decode(encoding, "replace")
    while True:
        block = artifact.read(BLOCK_BYTES)
        rest += block.decode(encoding, "replace")
        parts = _split(rest, signs.segment, signs.release)
        rest = parts.pop()
        for part in parts:
            text = part.strip("\r\n ")
            if text:
                position += 1
                yield Segment(position, _elements(text, signs), text)
        if len(rest) > SEGMENT_BYTES_MAX:
            raise SegmentTooLong(f"a segment of more than {SEGMENT_BYTES_MAX} characters")
        if not block:
            if rest.strip("\r\n "):
                raise SegmentTooLong("the last segment has no end")
            return


def _elements(text: str, signs: Signs) -> list[list[str]]:
    return [
        [_released(component, signs.release) for component in _split(element, signs.component, signs.release)]
        for element in _split(text, signs.element, signs.release)
    ]


def _split(text: str, sign: str, release: str) -> list[str]:
    if not release or release not in text:
        return text.split(sign)
    parts, begin, at = [], 0, 0
    while at < len(text):
        if text[at] == release:
            at += 2
            continue
        if text[at] == sign:
            parts.append(text[begin:at])
            begin = at + 1
        at += 1
    parts.append(text[begin:])
    return parts


def _released(text: str, release: str) -> str:
    if not release or release not in text:
        return text
    found, at = [], 0
    while at < len(text):
        if text[at] == release and at + 1 < len(text):
            at += 1
        found.append(text[at])
        at += 1
    return "".join(found)
