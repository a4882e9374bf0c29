"""Personal data in what is kept of refused rows: taken out by a source's rules before it is written down."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, field_validator

REDACTED = "[redacted]"


class RedactSettings(BaseModel):
    """What must not be kept: what a pattern (a regular expression, over UTF-8) finds, and values of JSON keys, at any
    depth. A letter is replayed from what is kept, so keys that the mapping reads are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    patterns: tuple[str, ...] = Field(
        (), description="Regular expressions: what they find is not kept in letters."
    )
    json_keys: tuple[str, ...] = Field((), description="Keys whose values are not kept, at any depth.")

    @field_validator("patterns")
    @classmethod
    def _compiles(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                found = re.compile(pattern.encode())
            except re.error as error:
                raise ValueError(f"{pattern!r}: {error}") from error
            if found.search(b"") is not None:
                raise ValueError(f"{pattern!r} finds nothing at all everywhere")
        return patterns


class Redactor:
    """The rules at work."""

    def __init__(self, settings: RedactSettings) -> None:
        self._patterns = [re.compile(pattern.encode()) for pattern in settings.patterns]
        self._keys = frozenset(settings.json_keys)
        alternatives = "|".join(re.escape(json.dumps(key)) for key in sorted(self._keys))
        self._from_key = re.compile(rf"({alternatives})\s*:.*".encode(), re.DOTALL)

    def __bool__(self) -> bool:
        return bool(self._patterns or self._keys)

    def kept(self, raw: bytes, message: str) -> tuple[bytes, str]:
        """Return a row and the sentence about it as they may be kept."""
        taken: set[str] = set()
        if self._keys:
            raw = self._without_keys(raw, taken)
        for value in sorted(taken, key=len, reverse=True):
            message = message.replace(value, REDACTED)
        said = message.encode()
        for pattern in self._patterns:
            raw = pattern.sub(REDACTED.encode(), raw)
            said = pattern.sub(REDACTED.encode(), said)
        return raw, said.decode("utf-8", "replace")

    def _without_keys(self, raw: bytes, taken: set[str]) -> bytes:
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            # What cannot be read cannot be searched either: from the first such key on it is not kept.
            return self._from_key.sub(rb'\1: "' + REDACTED.encode() + b'"', raw)
        found = self._walk(body, taken)
        if found == body:
            return raw
        return json.dumps(found, ensure_ascii=False).encode() + (b"\n" if raw.endswith(b"\n") else b"")

    def _walk(self, value: object, taken: set[str]) -> object:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if key in self._keys and isinstance(inner, str) and inner:
                    taken.add(inner)
            return {
                key: REDACTED if key in self._keys else self._walk(inner, taken)
                for key, inner in value.items()
            }
        return [self._walk(inner, taken) for inner in value] if isinstance(value, list) else value
