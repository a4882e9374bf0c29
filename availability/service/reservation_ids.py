"""New reservation ids: 128 bits in 26 characters, 48 of them time, so that ids sort by age."""

from __future__ import annotations

import os
import time

_BASE32HEX = "0123456789abcdefghijklmnopqrstuv"
_TWO_DIGITS = [high + low for high in _BASE32HEX for low in _BASE32HEX]
_RANDOM_BYTES = 10
_DRAWN_AT_ONCE = 256
_drawn: list[bytes] = []
"""Random bytes of ids to come. To draw them gives up the interpreter, which each call would then wait to get back."""

os.register_at_fork(after_in_child=_drawn.clear)  # a child must not draw its parent's ids


def new_reservation_id() -> str:
    """Draw an id. Any thread may; 80 bits of it are the system's randomness."""
    bits = int.from_bytes(int(time.time() * 1000).to_bytes(6, "big") + _random()) << 2
    return "".join([_TWO_DIGITS[bits >> shift & 1023] for shift in range(120, -1, -10)])


def _random() -> bytes:
    try:
        return _drawn.pop()
    except IndexError:
        fresh = os.urandom(_RANDOM_BYTES * _DRAWN_AT_ONCE)
        _drawn.extend([fresh[at : at + _RANDOM_BYTES] for at in range(0, len(fresh), _RANDOM_BYTES)])
        return os.urandom(_RANDOM_BYTES)
