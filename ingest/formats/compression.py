"""gzip and zstd, told by their first bytes; a truncated artifact gives what it has and then says so."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import BinaryIO

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
BUFFER_BYTES = 1 << 18


class Truncated(Exception):
    """The compressed data end too early, or are damaged from here on."""


def opened(artifact: BinaryIO) -> BinaryIO:
    """Return the artifact's content, uncompressed where it is compressed. Reading raises Truncated."""
    buffered = io.BufferedReader(artifact, BUFFER_BYTES) if isinstance(artifact, io.RawIOBase) else artifact
    magic = peek(buffered, 4)
    if magic.startswith(GZIP_MAGIC):
        return io.BufferedReader(_Checked(gzip.GzipFile(fileobj=buffered, mode="rb")), BUFFER_BYTES)
    if magic == ZSTD_MAGIC:
        import zstandard

        reader = zstandard.ZstdDecompressor().stream_reader(buffered, read_across_frames=True)
        return io.BufferedReader(_Checked(reader), BUFFER_BYTES)
    return buffered


def peek(artifact: BinaryIO, count: int) -> bytes:
    """Return the next bytes, which are read again. Raises Truncated."""
    look = getattr(artifact, "peek", None)
    if look is not None:
        found: bytes = look(count)
        return found[:count]
    found = artifact.read(count)
    artifact.seek(-len(found), io.SEEK_CUR)
    return found


class _Checked(io.RawIOBase):
    """A decompressor whose many errors are one."""

    def __init__(self, inner: object) -> None:
        self._inner = inner

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]  # BufferedReader hands in what it may
        try:
            found: bytes = self._inner.read(len(view))  # type: ignore[attr-defined]
        except (EOFError, OSError, zlib.error) as error:
            raise Truncated(f"the compressed data end too early: {error}") from error
        except Exception as error:
            if type(error).__module__.startswith("zstd") or type(error).__name__ == "ZstdError":
                raise Truncated(f"the compressed data are damaged: {error}") from error
            raise
        view[: len(found)] = found
        return len(found)
