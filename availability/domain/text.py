"""Identifiers from outside: opaque text that must be printable and short. Nothing else is assumed of them."""

from __future__ import annotations

from availability.domain.limits import ID_BYTES_MAX


def text_problem(
    value: str, what: str, *, bytes_max: int = ID_BYTES_MAX, required: bool = True
) -> str | None:
    """Say in one sentence what is wrong with an identifier, or None.

    Printable means what Unicode calls so, plus space: braces, colons and any script are fine, control characters
    and lone separators are not (CONTRACT section 1).
    """
    if not value:
        return f"{what} is required" if required else None
    if len(value) > bytes_max or len(value.encode()) > bytes_max:
        return f"{what} is longer than {bytes_max} bytes"
    if not value.isprintable():
        return f"{what} has a character that cannot be printed"
    return None
