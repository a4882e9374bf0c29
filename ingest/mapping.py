"""From a source's row to the canonical delta, by configuration.

A mapping says for each field of a delta where its value comes from, and how codes, units, nodes and times are
translated. It is checked as a whole when it is read; a row that it cannot translate is refused with a category and a
sentence, and never guessed: a unit that does not divide is an error, not a rounded number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from operator import itemgetter
from typing import Any, get_args
from zoneinfo import ZoneInfo

from google.protobuf.timestamp_pb2 import Timestamp

from availability.domain.limits import QUANTITY_MAX
from availability.telemetry import Trace
from availability.v1 import stock_pb2 as pb
from ingest.mapping_settings import MappingSettings, Movement, TypeName
from ingest.rows import Category, Row, RowRefused, Value

_SHARED = ("type", "node", "to_node", "stream", "order_source", "reason", "author")
"""Fields of few different values: what they make of a delta is made once for each combination of their cells."""
_TEXTS = ("order_ref", "line", "reference", "correlation_id")
CACHED_MAX = 10_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_from_bytes = pb.Delta.FromString


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Template:
    """What the shared fields of a row make. ``delta`` is encoded; None: ignored by its code.

    ``without_quantity``: an empty cell is no error, the type needs none. One is equal to itself alone.
    """

    movement: Movement | None
    delta: bytes | None
    stream: str = ""
    without_quantity: bool = False


class Mapper:
    """A mapping at work: rows in, deltas out.

    ``mark`` is what every delta carries of mapping and version in its author field, where the row names none.
    """

    def __init__(self, source: str, mapping: MappingSettings) -> None:
        self.source = source
        self.columns: Sequence[str] = tuple(dict.fromkeys(mapping.columns.values()))
        self.mark = f"{mapping.author} mapping {mapping.version}"
        place = {column: number for number, column in enumerate(self.columns)}
        self.places = {name: place[column] for name, column in mapping.columns.items()}
        self.constants = dict(mapping.constants)
        self._movements = dict(mapping.movements)
        self._nodes, self._skus = mapping.nodes, mapping.skus
        self._refuse_other_nodes = mapping.other_nodes == "refuse"
        self._known_skus = (
            frozenset((*mapping.skus, *mapping.skus.values())) if mapping.other_skus == "refuse" else None
        )
        self._sku_pattern = re.compile(mapping.sku_pattern) if mapping.sku_pattern else None
        self._units = mapping.units
        self.units_by_sku = bool(mapping.units.by_sku)
        self._zone = ZoneInfo(mapping.times.zone)
        self._formats = mapping.times.formats
        self._decimal, self._thousands = mapping.decimal_separator, mapping.thousands_separator
        self.texts = [
            (name, self.places.get(name), self.constants.get(name, ""))
            for name in _TEXTS
            if name in self.places or name in self.constants
        ]
        self._correlated = "correlation_id" in self.places
        self._types: dict[str, int] = {
            name: pb.DeltaType.Value(f"DELTA_TYPE_{name}") for name in get_args(TypeName)
        }
        shared = [self.places[name] for name in _SHARED if name in self.places]
        self._key: Callable[[Sequence[Value]], object] = itemgetter(*shared) if shared else lambda _: ()
        self.shared = shared
        """Places of the cells that make a row's key in `templates`."""
        self.templates: dict[object, Template] = {}
        self._occurred_place, self._due_place = (
            self.places.get("occurred_time"),
            self.places.get("due_time"),
        )
        self._times_seen: dict[Value, tuple[int, int]] = {}
        self._sequence_place = self.places.get("source_sequence")
        self._event_place = self.places.get("event_id")
        self.has_quantity = "quantity" in self.places or "quantity" in self.constants
        self.has_unit = "unit" in self.places or "unit" in self.constants
        self._shipped = "shipped_quantity" in self.places
        self.of_orders = "order_ref" in self.places or "order_ref" in self.constants
        self.named_by_place = not {"source_sequence", "event_id"} & self.places.keys()
        # Of the delta made last, so that nobody has to read them from it again: each reading makes an object.
        self.stream, self.number, self.occurred_s = "", 0, 0.0

    def delta(self, row: Row, event_id: str) -> pb.Delta | None:
        """Translate a row; ``event_id`` names it where the source does not. None: ignored by its movement code.

        Raises RowRefused.
        """
        values = row.values
        try:
            found = self.templates.get(self._key(values))
        except TypeError:  # a cell that is a list or an object
            found = None
        template = found if found is not None else self.template(values)
        if template.delta is None:
            return None
        delta = _from_bytes(template.delta)
        place = self._sequence_place
        if place is None:
            self.number = 0
            self._name(delta, values, event_id)
        else:
            number = values[place]
            if type(number) is not int:
                number = self._sequence(values)
            try:
                delta.source_sequence = self.number = number
            except ValueError as error:
                raise RowRefused(Category.VALIDATION, "SEQUENCE", f"{number!r} is no sequence") from error
        self.stream, self.occurred_s = template.stream, 0.0
        sku = self.sku(self._cell(values, "sku"))
        if sku:
            delta.sku = sku
        if self.has_quantity:
            unit = self._text(values, "unit") if self.has_unit else ""
            quantity = self.quantity(template, self._cell(values, "quantity"), unit, sku)
            if quantity is not None:
                delta.quantity = quantity
        if self._shipped:
            shipped = self.shipped(self._cell(values, "shipped_quantity"))
            if shipped is not None:
                delta.shipped_quantity = shipped
        for name, place, constant in self.texts:
            value = constant if place is None else values[place]
            if value is not None and value != "":
                setattr(delta, name, value if isinstance(value, str) else str(value))
        if self._correlated:
            delta.correlation_id = correlation(delta.correlation_id)
        place = self._occurred_place
        if place is not None:
            value = values[place]
            if value is not None and value != "":
                self.occurred_s = self._set_moment(delta.occurred_time, value, "occurred_time")
        place = self._due_place
        if place is not None:
            value = values[place]
            if value is not None and value != "":
                self._set_moment(delta.due_time, value, "due_time")
        return delta

    def _set_moment(self, field: Timestamp, value: Value, name: str) -> float:
        """Set a time as the row says it; return it in seconds since 1970."""
        if type(value) is not str and isinstance(value, (list, dict)):
            value = str(value)
        seconds, nanos = self._times_seen.get(value) or self.moment(value, name)
        field.seconds = seconds
        if nanos:
            field.nanos = nanos
            return seconds + nanos / 1e9
        return float(seconds)

    def template(self, values: Sequence[Value]) -> Template:
        """Make what a delta has of the shared fields, and remember it."""
        movement, kind = self._kind(values)
        if kind is None:
            return self._remember(values, Template(movement=movement, delta=None))
        delta = pb.Delta(source=self.source, type=kind)  # type: ignore[arg-type]  # a plain int
        node = self._text(values, "node")
        if node:
            delta.node = self._node(node)
        if "to_node" in self.places or "to_node" in self.constants:
            delta.to_node = self._node(self._text(values, "to_node"))
        for name in ("stream", "order_source", "reason", "author"):
            place = self.places.get(name)
            value = self.constants.get(name) if place is None else values[place]
            if value is not None and value != "":
                setattr(delta, name, value if isinstance(value, str) else str(value))
        if movement is not None:
            if movement.reason and not delta.reason:
                delta.reason = movement.reason
            if movement.quarantined:
                delta.state = pb.STOCK_STATE_QUARANTINED
            if movement.basis:
                delta.allocation_basis = pb.AllocationBasis.Value(f"ALLOCATION_BASIS_{movement.basis}")
        if not delta.author:
            delta.author = self.mark
        without = kind in (pb.DELTA_TYPE_ORDER_CANCELLED, pb.DELTA_TYPE_LINK_ORDER)
        made = Template(
            movement=movement,
            delta=delta.SerializeToString(),
            stream=delta.stream,
            without_quantity=without,
        )
        return self._remember(values, made)

    def _remember(self, values: Sequence[Value], made: Template) -> Template:
        cells = [values[place] for place in self.shared]
        if all(cell is None or isinstance(cell, str) or (type(cell) is int and cell > 1) for cell in cells):
            # Only of types whose equal values are written equally: 1 and true are one key, and not one text.
            if len(self.templates) >= CACHED_MAX:
                self.templates.clear()
            self.templates[self._key(values)] = made
        return made

    def number_only(self, row: Row) -> pb.Delta | None:
        """Return what consumes the source's number of a row that cannot be translated, so that the next is no gap.

        None where the row has no number that can be read.
        """
        if "source_sequence" not in self.places:
            return None
        stream, sequence = self._text(row.values, "stream"), self._text(row.values, "source_sequence")
        if not stream or not sequence.isascii() or not sequence.isdigit():
            return None
        return pb.Delta(source=self.source, stream=stream, source_sequence=int(sequence))

    # --- Fields -------------------------------------------------------------------------------------------

    def _text(self, values: Sequence[Value], name: str) -> str:
        place = self.places.get(name)
        if place is None:
            return self.constants.get(name, "")
        value = values[place]
        if value is None:
            return ""
        return value.strip() if isinstance(value, str) else str(value)

    def _kind(self, values: Sequence[Value]) -> tuple[Movement | None, int | None]:
        code = self._text(values, "type")
        movement = self._movements.get(code)
        if movement is not None:
            return movement, None if movement.ignore else self._types[str(movement.type)]
        if self._movements or code not in self._types:
            raise RowRefused(Category.MAPPING, "MOVEMENT_CODE", f"the movement code {code!r} is not mapped")
        return None, self._types[code]

    def _sequence(self, values: Sequence[Value]) -> int:
        sequence = self._text(values, "source_sequence")
        if not sequence:
            raise RowRefused(Category.VALIDATION, "SEQUENCE", "the row has no sequence")
        try:
            return int(sequence)
        except ValueError as error:
            raise RowRefused(Category.VALIDATION, "SEQUENCE", f"{sequence!r} is no sequence") from error

    def _name(self, delta: pb.Delta, values: Sequence[Value], event_id: str) -> None:
        if self._event_place is not None:
            event_id = self._text(values, "event_id")
            if not event_id:
                raise RowRefused(Category.VALIDATION, "EVENT_ID", "the row has no event id")
        delta.event_id = event_id

    def _node(self, code: str) -> str:
        node = self._nodes.get(code)
        if node is not None:
            return node
        if self._refuse_other_nodes:
            raise RowRefused(Category.UNKNOWN_NODE, "NODE_CODE", f"the node code {code!r} is not mapped")
        return code

    def _cell(self, values: Sequence[Value], name: str) -> Value:
        place = self.places.get(name)
        return self.constants.get(name) if place is None else values[place]

    def sku(self, value: Value) -> str:
        """Return the sku that a cell names; '' where it is empty. Raises RowRefused."""
        sku = value.strip() if isinstance(value, str) else "" if value is None else str(value)
        if not sku:
            return ""
        if self._sku_pattern is not None and self._sku_pattern.fullmatch(sku) is None:
            raise RowRefused(Category.MAPPING, "SKU_PATTERN", f"{sku!r} does not look like a sku")
        if self._known_skus is not None and sku not in self._known_skus:
            raise RowRefused(Category.MAPPING, "UNKNOWN_SKU", f"{sku!r} is none of the mapping's skus")
        return self._skus.get(sku, sku)

    def quantity(self, template: Template, value: Value, unit: str, sku: str) -> int | None:
        """Return base units; None where the cell is empty and the type needs none. Raises RowRefused."""
        if template.without_quantity and (value is None or (isinstance(value, str) and not value.strip())):
            return None
        if not unit and type(value) is int:
            quantity = value
        else:
            text = value.strip() if isinstance(value, str) else value
            if not unit and isinstance(text, str) and text.isascii() and text.isdigit():
                quantity = int(text)
            else:
                number = self._number(text, "quantity")
                if unit:
                    number *= self._factor(unit, sku)
                quantity = self._whole(number, "quantity" if not unit else f"quantity in {unit}")
        movement = template.movement
        if movement is not None:
            if movement.absolute:
                quantity = abs(quantity)
            quantity *= movement.sign
        if abs(quantity) > QUANTITY_MAX:
            raise RowRefused(Category.VALIDATION, "QUANTITY", f"{quantity} is beyond {QUANTITY_MAX}")
        return quantity

    def shipped(self, value: Value) -> int | None:
        """Return a shipped quantity; None where the cell is empty. Raises RowRefused."""
        text = value.strip() if isinstance(value, str) else "" if value is None else str(value)
        if not text:
            return None
        return self._whole(self._number(text, "shipped_quantity"), "shipped_quantity")

    def _number(self, value: Any, what: str) -> Decimal:  # Any: a cell
        text = str(value if value is not None else "").strip()
        if self._thousands:
            text = text.replace(self._thousands, "")
        if self._decimal == ",":
            text = text.replace(",", ".")
        if text.endswith("-") and len(text) > 1:  # as SAP writes negative numbers
            text = f"-{text[:-1]}"
        try:
            number = Decimal(text)
        except InvalidOperation:
            raise RowRefused(Category.VALIDATION, "NUMBER", f"{what} {text!r} is no number") from None
        if not number.is_finite() or abs(number) > QUANTITY_MAX:
            raise RowRefused(Category.VALIDATION, "QUANTITY", f"{what} {text} is out of range")
        return number

    def _whole(self, number: Decimal, what: str) -> int:
        if number != number.to_integral_value():
            raise RowRefused(
                Category.VALIDATION, "REMAINDER", f"{what} is {number} base units, no whole number"
            )
        return int(number)

    def _factor(self, unit: str, sku: str) -> Decimal:
        own = self._units.by_sku.get(sku)
        factor = own.get(unit) if own else None
        if factor is None:
            factor = self._units.factors.get(unit)
        if factor is None:
            raise RowRefused(Category.MAPPING, "UNIT", f"the unit {unit!r} is not mapped")
        return factor

    def moment(self, value: Value, name: str) -> tuple[int, int]:
        """Return seconds since 1970 and nanoseconds, and remember them."""
        if type(value) is str and not self._formats:
            try:
                moment = datetime.fromisoformat(value)
            except ValueError:
                moment = self._parsed(value.strip(), name)
        elif isinstance(value, datetime):
            moment = value
        else:
            moment = self._parsed(str(value).strip(), name)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=self._zone)
        try:
            since = moment - _EPOCH
        except OverflowError as error:
            raise RowRefused(Category.VALIDATION, "TIME", f"{name} {value!r} is out of range") from error
        made = since.days * 86_400 + since.seconds, since.microseconds * 1_000
        if len(self._times_seen) >= CACHED_MAX:
            self._times_seen.clear()
        self._times_seen[value] = made
        return made

    def _parsed(self, text: str, name: str) -> datetime:
        for format in self._formats:
            try:
                return datetime.strptime(text, format)  # noqa: DTZ007 - the zone is the mapping's
            except ValueError:
                continue
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            raise RowRefused(Category.VALIDATION, "TIME", f"{name} {text!r} is no time") from None


def correlation(text: str) -> str:
    """Return what a correlation id is kept as: a column may hold the event's traceparent."""
    trace = Trace.parse(text)
    return text if trace is None else trace.trace_id


def describe(mapping: MappingSettings) -> Mapping[str, str]:
    """Say where each field comes from, for a person."""
    said = {name: f"column {column}" for name, column in mapping.columns.items()}
    return said | {name: f"always {value!r}" for name, value in mapping.constants.items()}
