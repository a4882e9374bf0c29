"""The loose conversions of PHP and of WordPress' REST schema, as far as stock values meet them.

A single write is checked by the schema first (``is_integer``, ``is_boolean``); inside a batch nothing is checked and
everything is cast (``to_int``), which is how "abc" becomes 0 and a product sold out.
"""

from __future__ import annotations

import math
import re

_NUMERIC = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*\Z")
_LEADING = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)")
_INT64 = 1 << 64
_SIGN = 1 << 63


def wrapped(number: int) -> int:
    """Return the number as a signed 64-bit integer, cut as PHP cuts it."""
    cut = number % _INT64
    return cut - _INT64 if cut >= _SIGN else cut


def to_number(value: object) -> int | float:
    """Return PHP's (float) or (int) reading of a JSON value: text by its leading number, a list by being empty."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int | float):
        return value
    if isinstance(value, str):
        found = _LEADING.match(value)
        if found is None:
            return 0
        text = found.group(1)
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    if isinstance(value, list | dict):
        return 1 if value else 0
    return 0


def to_int(value: object) -> int:
    """Return PHP's (int) cast."""
    number = to_number(value)
    if isinstance(number, float) and not math.isfinite(number):
        return 0
    return wrapped(int(number))


def to_decimal(value: object) -> int | float:
    """Return the value as a shop with decimal quantities keeps it: 14 significant digits, whole numbers as integers."""
    number = float(f"{float(to_number(value)):.14g}")
    return int(number) if number.is_integer() else number


def is_numeric(value: object) -> bool:
    """Whether PHP takes the value for a number."""
    if isinstance(value, bool):
        return False
    if isinstance(value, int | float):
        return True
    return isinstance(value, str) and _NUMERIC.match(value) is not None


def is_integer(value: object) -> bool:
    """Whether the REST schema takes the value for an integer: 3.0, " 9 " and "1e3" are, 3.7, true and "" are not."""
    if not is_numeric(value):
        return False
    number = float(to_number(value))
    return math.isfinite(number) and number.is_integer()


def is_boolean(value: object) -> bool:
    """Whether the REST schema takes the value for a boolean."""
    if isinstance(value, str):
        return value.lower() in ("true", "false", "0", "1")
    return isinstance(value, bool) or (isinstance(value, int) and value in (0, 1))


def schema_bool(value: object) -> bool:
    """Return what a checked boolean means."""
    return value.lower() in ("true", "1") if isinstance(value, str) else bool(value)


def string_to_bool(value: object) -> bool:
    """Return WooCommerce's own reading of an unchecked value: yes, true and 1 are true, all else is false."""
    if isinstance(value, str):
        return value.lower() in ("yes", "true", "1")
    return value is True or (isinstance(value, int) and value == 1)
