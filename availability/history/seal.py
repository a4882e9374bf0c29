"""Seals: what shows that a row of the history is as it was written. With a key nobody without it can make one.

HMAC-SHA256 over the fields of a row where a key file is set (`history.seal_key_file`), plain SHA-256 where none is:
that finds accidents, not somebody who computes it anew. The key is read from a file, and never shown.
"""

from __future__ import annotations

import hashlib
import hmac
import stat
from collections.abc import Iterable
from pathlib import Path

import msgspec

KEY_BYTES_MIN = 32
_encode = msgspec.msgpack.Encoder().encode


class SealKeyError(Exception):
    """The key file cannot be used; the message is for the operator."""

    reason = "SEAL_KEY"


class Sealer:
    """Makes and checks seals. Without a key they are plain digests and begin with ``sha256:``."""

    def __init__(self, key: bytes = b"") -> None:
        self._key = key

    @classmethod
    def from_file(cls, path: Path | None) -> Sealer:
        """Read the key. Raises SealKeyError for one that is too short, or that others may read."""
        if path is None:
            return cls()
        try:
            if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise SealKeyError(f"the key file {path} is open to others: chmod 600 it")
            key = path.read_bytes().strip()
        except OSError as error:
            raise SealKeyError(f"cannot read the key file {path}: {error.strerror}") from error
        if len(key) < KEY_BYTES_MIN:
            raise SealKeyError(f"the key file {path} has fewer than {KEY_BYTES_MIN} bytes")
        return cls(key)

    def __repr__(self) -> str:
        return f"Sealer(keyed={self.keyed})"

    @property
    def keyed(self) -> bool:
        """Tell whether only holders of a key can make these seals."""
        return bool(self._key)

    def seal(self, what: str, fields: Iterable[object]) -> str:
        """Return the seal of some fields (text, numbers, bytes); ``what`` keeps kinds of rows apart."""
        message = _encode([what, *fields])
        if self._key:
            return "hmac-sha256:" + hmac.new(self._key, message, hashlib.sha256).hexdigest()
        return "sha256:" + hashlib.sha256(message).hexdigest()

    def holds(self, seal: str, what: str, fields: Iterable[object]) -> bool:
        """Tell whether a seal is that of these fields, made with this key."""
        return hmac.compare_digest(seal.encode(), self.seal(what, fields).encode())
