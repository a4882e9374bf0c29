"""Deltas as they travel: who has them encoded sends them as they are, without making messages of them.

A request is put together by hand: its repeated deltas are one after the other, each behind the field's tag and its own
length.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import overload

from availability.domain.wire import BYTES, varint
from availability.v1 import stock_pb2 as stk


class EncodedDeltas(Sequence[stk.Delta]):
    """A batch of encoded deltas. One is decoded when it is asked for."""

    __slots__ = ("_encoded",)

    def __init__(self, encoded: Sequence[bytes]) -> None:
        self._encoded = encoded

    def __len__(self) -> int:
        return len(self._encoded)

    @overload
    def __getitem__(self, index: int) -> stk.Delta: ...
    @overload
    def __getitem__(self, index: slice) -> EncodedDeltas: ...
    def __getitem__(self, index: int | slice) -> stk.Delta | EncodedDeltas:
        if isinstance(index, slice):
            return EncodedDeltas(self._encoded[index])
        return stk.Delta.FromString(self._encoded[index])

    def request(self, source: str, batch_number: int) -> bytes:
        """Return them as an encoded StreamDeltasRequest."""
        head = stk.StreamDeltasRequest(source=source, batch_number=batch_number).SerializeToString()
        encoded = self._encoded
        framed = zip(map(_HEADS.__getitem__, map(len, encoded)), encoded, strict=True)
        return head + b"".join(chain.from_iterable(framed))


class _Heads(dict[int, bytes]):
    """What stands before a delta of so many bytes. Few lengths are different."""

    def __missing__(self, length: int) -> bytes:
        made = self[length] = _TAG + varint(length)
        return made


_TAG = varint(stk.StreamDeltasRequest.DESCRIPTOR.fields_by_name["deltas"].number << 3 | BYTES)
_HEADS = _Heads()
