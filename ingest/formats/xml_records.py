"""XML: one element is one row. Read as a stream; entities and external references are refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Literal
from xml.etree.ElementTree import Element, ParseError, tostring

from pydantic import BaseModel, ConfigDict, Field

from ingest.rows import ArtifactRefused, BadRow, Row


class XmlSettings(BaseModel):
    """Which element is a row. A column is a path below it (`Item/MATNR`), an attribute (`@id`, `Item/@id`), or a path
    from an element around it that came before (`../Header/BUDAT`). Namespaces are left out of names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["xml"] = "xml"
    record: str = Field(min_length=1, description="Name of the element that is a row.")


class XmlDecoder:
    """Keeps one row and the headers around it in memory. Positions count rows from 1."""

    context = b""

    def __init__(self, settings: XmlSettings) -> None:
        self._record = settings.record

    def rows(self, artifact: BinaryIO, columns: Sequence[str]) -> Iterator[Row | BadRow]:
        """Yield rows with the columns asked for, None where one is absent. A broken end is one bad row."""
        from defusedxml.common import DefusedXmlException  # type: ignore[import-untyped]  # it ships no types
        from defusedxml.ElementTree import iterparse  # type: ignore[import-untyped]  # it ships no types

        position = 0
        around: list[Element] = []
        try:
            for event, element in iterparse(artifact, events=("start", "end")):
                element.tag = _plain(element.tag)
                if event == "start":
                    around.append(element)
                    continue
                around.pop()
                if element.tag == self._record:
                    position += 1
                    values = [_value(element, around, column) for column in columns]
                    yield Row(position, values, self._alone(element, around))
                    element.clear()
                    if around:  # what is read is let go; headers before it stay
                        around[-1].remove(element)
        except ParseError as error:
            if position == 0 and not around:
                raise ArtifactRefused(f"this is no XML: {error}") from error
            yield BadRow(position + 1, "MALFORMED_ROW", f"the XML is broken from here on: {error}", b"")
        except DefusedXmlException as error:
            raise ArtifactRefused(f"the XML holds what none may: {error}") from error
        except (ValueError, LookupError) as error:  # an encoding nobody knows
            raise ArtifactRefused(f"this is no XML that can be read: {error}") from error

    def _alone(self, element: Element, around: Sequence[Element]) -> bytes:
        """The row with the headers around it, as an artifact of its own: what a dead letter is replayed from."""
        whole = tostring(element, encoding="unicode")
        for outer in reversed(around):
            headers = "".join(
                tostring(child, encoding="unicode")
                for child in outer
                if _plain(child.tag) != self._record and child not in around
            )
            name = _plain(outer.tag)
            whole = f"<{name}>{headers}{whole}</{name}>"
        return whole.encode()


def _plain(tag: Any) -> str:  # Any: comments have functions as tags
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def _value(element: Element, around: Sequence[Element], column: str) -> str | None:
    steps = column.split("/")
    up = 0
    while up < len(steps) and steps[up] == "..":
        up += 1
    if up > len(around):
        return None
    found: Element | None = element if up == 0 else around[-up]
    for step in steps[up:]:
        if found is None:
            return None
        if step.startswith("@"):
            return found.get(step[1:])
        found = next((child for child in found if _plain(child.tag) == step), None)
    return None if found is None or found.text is None else found.text.strip()
