"""What a mapping may say, as it stands in a source's file; checked as a whole when it is read.

What it does with a row stands in `mapping.py`.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Literal, get_args
from zoneinfo import available_timezones

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

FIELDS = (
    "type",
    "sku",
    "node",
    "to_node",
    "quantity",
    "unit",
    "event_id",
    "source_sequence",
    "stream",
    "order_source",
    "order_ref",
    "line",
    "reference",
    "reason",
    "occurred_time",
    "due_time",
    "correlation_id",
    "author",
    "shipped_quantity",
)
"""Fields that a mapping may fill from columns. Those of the delta, and `unit`, which stays here."""
NEVER_CONSTANT = {"event_id", "source_sequence", "occurred_time", "due_time", "shipped_quantity"}

TypeName = Literal[
    "RECEIPT",
    "ADJUSTMENT",
    "SET_ON_HAND",
    "SHIPMENT",
    "QUARANTINE",
    "QUARANTINE_RELEASE",
    "WRITE_OFF",
    "RETURN_RECEIVED",
    "EXPECTED",
    "TRANSFER_OUT",
    "TRANSFER_IN",
    "ORDER_PLACED",
    "ORDER_CHANGED",
    "ORDER_ALLOCATED",
    "ORDER_CANCELLED",
    "LINK_ORDER",
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Movement(_Model):
    """What a source's movement code means. ``sign`` -1 turns the quantity around; ``ignore``: no delta at all."""

    type: TypeName | None = Field(None, description="Delta type.")
    sign: Literal[1, -1] = Field(1, description="-1 turns the quantity around.")
    absolute: bool = Field(False, description="The quantity's own sign is left out.")
    reason: str = Field("", description="Reason where the row has none.")
    quarantined: bool = Field(False, description="The quantity is of quarantined stock.")
    basis: Literal["", "CUMULATIVE", "OPEN"] = Field("", description="Basis of an allocation.")
    ignore: bool = Field(False, description="Rows of this code are no deltas.")

    @model_validator(mode="after")
    def _one(self) -> Movement:
        if self.ignore == (self.type is not None):
            raise ValueError("give a type, or ignore = true")
        return self


class Units(_Model):
    """Units of measure: base units in one of each. Exact: decimals as text. Per sku first, then for all."""

    factors: dict[str, Decimal] = Field(
        default_factory=dict, description="Base units in one of each, exact, as text."
    )
    by_sku: dict[str, dict[str, Decimal]] = Field(
        default_factory=dict, description="The same for single skus; these come first."
    )

    @field_validator("factors")
    @classmethod
    def _positive(cls, factors: dict[str, Decimal]) -> dict[str, Decimal]:
        for unit, factor in factors.items():
            if factor <= 0:
                raise ValueError(f"{unit}: {factor} base units in one")
        return factors


class Times(_Model):
    """How times are written: ISO 8601, or by `strptime` formats; ``zone`` where a time names none."""

    zone: str = Field("UTC", description="Time zone where a time names none.")
    formats: tuple[str, ...] = Field((), description="`strptime` formats, tried before ISO 8601.")

    @field_validator("zone")
    @classmethod
    def _known(cls, zone: str) -> str:
        if zone not in available_timezones():
            raise ValueError(f"no time zone is called {zone}")
        return zone


class MappingSettings(_Model):
    """A mapping as it stands in a source's file. ``version`` and ``author`` go into every delta."""

    version: str = Field(min_length=1, max_length=32, description="Goes into every delta.")
    author: str = Field(min_length=1, max_length=64, description="Goes into every delta.")
    columns: dict[str, str] = Field(min_length=1, description="Field of the delta = column of the row.")
    constants: dict[str, str] = Field(
        default_factory=dict, description="Field of the delta = what it always is."
    )
    movements: dict[str, Movement] = Field(
        default_factory=dict, description="By movement code; none: the codes are delta types."
    )
    nodes: dict[str, str] = Field(default_factory=dict, description="Node code = node.")
    other_nodes: Literal["as_they_are", "refuse"] = Field(
        "as_they_are", description="Codes that `nodes` does not name."
    )
    skus: dict[str, str] = Field(default_factory=dict, description="Alias = sku.")
    other_skus: Literal["as_they_are", "refuse"] = Field(
        "as_they_are", description="Skus that `skus` names neither as alias nor as sku; refused: UNKNOWN_SKU."
    )
    sku_pattern: str = Field("", description="Regular expression that every sku must match as a whole.")
    units: Units = Units()
    times: Times = Times()
    decimal_separator: Literal[".", ","] = Field(".", description="Sign before decimals.")
    thousands_separator: Literal["", ".", ",", " ", "'"] = Field("", description="Sign between thousands.")
    explode_kits: bool = Field(
        True, description="Order rows that name a kit are sent as its parts; off: they become letters."
    )

    @model_validator(mode="after")
    def _consistent(self) -> MappingSettings:
        problems = [
            f"no delta has a field {name}" for name in (*self.columns, *self.constants) if name not in FIELDS
        ]
        problems += [
            f"{name} comes from a column and from a constant"
            for name in self.columns
            if name in self.constants
        ]
        problems += [
            f"{name} differs from row to row: no constant" for name in NEVER_CONSTANT & {*self.constants}
        ]
        given = {*self.columns, *self.constants}
        if "type" not in given:
            problems.append("type is neither a column nor a constant")
        if not given & {"sku", "order_ref"}:
            problems.append("neither sku nor order_ref is given")
        if "source_sequence" in given and "stream" not in given:
            problems.append("source_sequence needs a stream: a column or a constant")
        if self.decimal_separator == self.thousands_separator:
            problems.append("decimal_separator and thousands_separator are the same")
        if (
            "type" in self.constants
            and not self.movements
            and self.constants["type"] not in get_args(TypeName)
        ):
            problems.append(f"no delta type is called {self.constants['type']}")
        try:
            re.compile(self.sku_pattern)
        except re.error as error:
            problems.append(f"sku_pattern: {error}")
        if problems:
            raise ValueError("; ".join(problems))
        return self
