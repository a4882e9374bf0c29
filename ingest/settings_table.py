"""The table of ingest/README.md: what a source's file may say. Run it: ``python -m ingest.settings_table``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ingest.settings import SourceSettings


def settings_table(model: type[BaseModel] = SourceSettings, without: tuple[str, ...] = ()) -> str:
    """Return every setting of a source (or another model) as a Markdown table, in the order of the classes.

    ``without``: beginnings of names that another table has.
    """
    rows = ["| setting | default | bounds | what it is |", "|---|---|---|---|"]
    rows += [
        f"| `{name}` | {_default(field)} | {_bounds(field)} | {field.description} |"
        for name, field in settings_of(model)
        if not name.startswith(without)
    ]
    return "\n".join(rows)


def settings_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield (dotted name, field); the keys of a table are ``*``, the entries of a list ``[]``."""
    for name, field in model.model_fields.items():
        inner = list(_models(field.annotation))
        if not inner:
            yield f"{prefix}{name}", field
        for suffix, one in inner:
            kind = one.model_fields.get("kind")
            variant = f" ({kind.default})" if kind is not None else ""
            for inner_name, inner_field in settings_of(one, f"{prefix}{name}{suffix}."):
                if not inner_name.endswith(".kind"):
                    yield f"{inner_name}{variant}", inner_field
                elif kind is not None and kind.default == "csv":
                    yield inner_name, _kinds(inner)


def _kinds(variants: list[tuple[str, type[BaseModel]]]) -> FieldInfo:
    names = tuple(one.model_fields["kind"].default for _, one in variants)
    return FieldInfo(annotation=Literal[names], description="The format.")  # type: ignore[arg-type]  # made from names


def _models(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:  # Any: an annotation
    """Yield the models in an annotation, with what their place adds to the name."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "", annotation
        return
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        for one in inner:
            yield from _models(one)
    elif origin is dict:
        yield from ((f".*{suffix}", one) for suffix, one in _models(inner[1]))
    elif origin is tuple:
        yield from ((f"[]{suffix}", one) for suffix, one in _models(inner[0]))


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None or value == "" or value == () or value == {}:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(f"`{one}`" for one in value)
    return f"{value:,}" if isinstance(value, (int, float)) else f"`{value}`"


def _bounds(field: FieldInfo) -> str:
    low = next((item.ge for item in field.metadata if hasattr(item, "ge")), None)
    high = next((item.le for item in field.metadata if hasattr(item, "le")), None)
    if low is not None:
        return f"{low:,} to {high:,}" if high is not None else f"{low:,} at least"
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    if choices and len(choices) <= 10:
        return ", ".join(f"`{choice}`" if choice != "" else "none" for choice in choices)
    return ""


if __name__ == "__main__":
    sys.stdout.write(settings_table() + "\n")
