"""The table of publisher/README.md: what the file of shops may say. Run it: ``python -m publisher.settings_table``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import Enum
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from publisher.settings import SecretPlace, ShopSettings


def settings_table() -> str:
    """Return every setting of a shop as a Markdown table, in the order of the classes."""
    rows = ["| setting | default | bounds | what it is |", "|---|---|---|---|"]
    rows += [
        f"| `{name}` | {_default(field)} | {_bounds(field)} | {field.description} |"
        for name, field in settings_of(ShopSettings)
    ]
    return "\n".join(rows)


def settings_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield (dotted name, field) of a model and of the models in it; secrets are one setting each."""
    for name, field in model.model_fields.items():
        inner = [one for one in _types(field.annotation) if _is_model(one)]
        if not inner or inner == [SecretPlace]:
            yield f"{prefix}{name}", field
        for one in inner:
            if one is not SecretPlace:
                yield from settings_of(one, f"{prefix}{name}.")


def _types(annotation: Any) -> list[Any]:  # Any: annotations
    return list(get_args(annotation)) if get_origin(annotation) in (Union, UnionType) else [annotation]


def _is_model(annotation: Any) -> bool:  # Any: an annotation
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None or value == "" or value == () or value == {}:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return f"`{value.value}`"
    return f"{value:,}" if isinstance(value, (int, float)) else f"`{value}`"


def _bounds(field: FieldInfo) -> str:
    low = next((str(f"{item.ge:,}") for item in field.metadata if hasattr(item, "ge")), "")
    low = low or next((f"above {item.gt:,}" for item in field.metadata if hasattr(item, "gt")), "")
    high = next((f"{item.le:,}" for item in field.metadata if hasattr(item, "le")), "")
    if low and high:
        return f"{low} to {high}"
    if low:
        return f"{low} at least"
    annotation = _types(field.annotation)[0]
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{choice.value}`" for choice in annotation)
    return ""


if __name__ == "__main__":
    sys.stdout.write(settings_table() + "\n")
