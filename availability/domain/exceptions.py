"""What a person must see: the product's one list of categories, how severe each is, and who is asked to act.

Numbers are those of availability.v1. Pure: who looks for them is ``service.inspector`` (and, of what other programs
see, those programs by ReportExceptions); where they are kept is the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b

AT_RISK_MAX = 100
"""Orders and reservations named by one exception."""
NOTE_BYTES_MAX = 500
"""What a person says when taking an exception in hand."""
EXCEPTIONS_OPEN_MAX = 10_000
"""Exceptions kept at once; beyond it the least severe, newest ones are counted and not kept."""
REPORT_MAX = 100
"""Exceptions of one ledger call."""


class ExceptionCategory(IntEnum):
    """What is wrong."""

    OVERSOLD = 1
    NEGATIVE_ON_HAND = 2
    ORDER_UNCONFIRMED = 3
    NODE_OFFLINE_WITH_HOLDS = 4
    FEED_STALE = 5
    PARKED_STREAM = 6
    DEAD_LETTER = 7
    VARIANCE = 8
    PUBLISH_FAILED = 9
    SHORT_PICK = 10
    DAMAGE = 11
    UNKNOWN_SKU = 12
    FEED_FAILED = 13


class ExceptionSeverity(IntEnum):
    """How soon a person must look: INFO to know, WARNING today, CRITICAL now."""

    INFO = 1
    WARNING = 2
    CRITICAL = 3


class ExceptionState(IntEnum):
    """Where an exception is in its life."""

    OPEN = 1
    ACKNOWLEDGED = 2
    RESOLVED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How severe a category is, and who is asked to act: stock, orders, feeds or storefront."""

    severity: ExceptionSeverity
    owner: str


RULES: Mapping[ExceptionCategory, Rule] = {
    ExceptionCategory.OVERSOLD: Rule(severity=ExceptionSeverity.CRITICAL, owner="orders"),
    ExceptionCategory.NEGATIVE_ON_HAND: Rule(severity=ExceptionSeverity.WARNING, owner="stock"),
    ExceptionCategory.ORDER_UNCONFIRMED: Rule(severity=ExceptionSeverity.WARNING, owner="orders"),
    ExceptionCategory.NODE_OFFLINE_WITH_HOLDS: Rule(severity=ExceptionSeverity.CRITICAL, owner="orders"),
    ExceptionCategory.FEED_STALE: Rule(severity=ExceptionSeverity.WARNING, owner="feeds"),
    ExceptionCategory.PARKED_STREAM: Rule(severity=ExceptionSeverity.WARNING, owner="feeds"),
    ExceptionCategory.DEAD_LETTER: Rule(severity=ExceptionSeverity.WARNING, owner="feeds"),
    ExceptionCategory.VARIANCE: Rule(severity=ExceptionSeverity.WARNING, owner="stock"),
    ExceptionCategory.PUBLISH_FAILED: Rule(severity=ExceptionSeverity.CRITICAL, owner="storefront"),
    ExceptionCategory.SHORT_PICK: Rule(severity=ExceptionSeverity.WARNING, owner="stock"),
    ExceptionCategory.DAMAGE: Rule(severity=ExceptionSeverity.WARNING, owner="stock"),
    ExceptionCategory.UNKNOWN_SKU: Rule(severity=ExceptionSeverity.WARNING, owner="feeds"),
    ExceptionCategory.FEED_FAILED: Rule(severity=ExceptionSeverity.CRITICAL, owner="feeds"),
}

REPORTED = frozenset(
    {
        ExceptionCategory.DEAD_LETTER,
        ExceptionCategory.VARIANCE,
        ExceptionCategory.PUBLISH_FAILED,
        ExceptionCategory.UNKNOWN_SKU,
        ExceptionCategory.FEED_FAILED,
    }
)
"""What programs outside of the service report, and what they alone end; the others are the servers' own."""
SUBJECT_NAMES_MAX = 8


def exception_id(category: ExceptionCategory, *subject: str) -> str:
    """Return the id of what is wrong with a subject (its names, in an order that is the category's own).

    The same category and subject give the same id on every server; lengths are hashed with the names, so that no two
    subjects can be mistaken for each other.
    """
    digest = blake2b(digest_size=8)
    for name in subject:
        raw = name.encode()
        digest.update(len(raw).to_bytes(4, "big") + raw)
    return f"{category.name.lower().replace('_', '-')}-{digest.hexdigest()}"
