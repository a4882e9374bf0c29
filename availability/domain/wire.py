"""The few words of protobuf's wire format that are written by hand, where making messages would cost the most.

https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

BYTES = 2
"""Wire type of texts, bytes, messages and packed numbers: a length and as many bytes."""


def varint(number: int) -> bytes:
    """Encode a number that is not negative."""
    made = bytearray()
    while number >= 0x80:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)
