"""Request ids: UUIDv7 (RFC 9562, section 5.7), whose leading 48 bits are a time in milliseconds.

The ledger reads that time to tell a late retry from a new request (CONTRACT section 4.2). Time and chance are
inputs; nothing is read here.
"""

from __future__ import annotations

UUID7_RANDOM_BYTES = 10


def uuid7(unix_ms: int, random_bytes: bytes) -> str:
    """Return the text form of a UUIDv7 made of a time in milliseconds and 10 random bytes."""
    if len(random_bytes) != UUID7_RANDOM_BYTES:
        raise ValueError(f"a UUIDv7 takes {UUID7_RANDOM_BYTES} random bytes, not {len(random_bytes)}")
    bits = (unix_ms & 0xFFFF_FFFF_FFFF) << 80 | int.from_bytes(random_bytes, "big")
    bits = bits & ~(0xF << 76) | 0x7 << 76  # version
    bits = bits & ~(0x3 << 62) | 0x2 << 62  # variant
    text = f"{bits:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
