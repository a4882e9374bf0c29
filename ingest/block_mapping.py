"""A block of rows to encoded deltas: each different cell is translated once, and the rows are put together from these.

What a cell means is the mapper's word alone (`mapping.py`); here its words are remembered as the bytes that they are on
the wire. A block in which a row is refused, ignored or out of the ordinary is not translated here but row by row, so
that there is one place that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime
from itertools import repeat
from typing import Generic, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from availability.domain.wire import BYTES, varint
from availability.v1 import stock_pb2 as pb
from ingest.mapping import Mapper, Template, correlation
from ingest.marks import note
from ingest.rows import Block, RowRefused, Value

REMEMBERED_MAX = 50_000
"""Different cells of a column; after as many it begins anew."""
_SEQUENCE_END = 2**53
_PLAIN = frozenset((str, int, type(None), datetime, date))
"""Equal values of these are written equally: 1, 1.0 and true are one key, and not one text."""
_NUMBERS = {field.name: field.number for field in pb.Delta.DESCRIPTOR.fields}
_LOW_BITS = 7
_LOWS = [bytes([_NUMBERS["source_sequence"] << 3, 0x80 | low]) for low in range(1 << _LOW_BITS)]
"""The tag of a sequence, and a varint's first byte where more follow."""


_NEVER = 0.0, b""
_SECONDS, _NANOS = (Timestamp.DESCRIPTOR.fields_by_name[name].number << 3 for name in ("seconds", "nanos"))

Made = TypeVar("Made")


class EncodedRows:
    """A block's deltas as they travel, and what is needed of them besides; without numbers or times these are empty."""

    __slots__ = ("_numbers", "_occurred", "_streams", "deltas")

    def __init__(
        self,
        deltas: list[bytes],
        streams: Sequence[str],
        occurred: Sequence[tuple[float, bytes]],
        numbers: Sequence[int],
    ) -> None:
        self.deltas = deltas
        self._streams = streams
        self._occurred = occurred
        """Seconds since 1970, and the field."""
        self._numbers = numbers

    @property
    def size(self) -> int:
        """Bytes of all deltas."""
        return sum(map(len, self.deltas))

    def note(self, latest: dict[str, list[float]], first: int, last: int) -> None:
        """Note a slice of them by stream, each as `marks.note` does."""
        occurred, numbers = self._occurred[first:last] or (_NEVER,), self._numbers[first:last] or (0,)
        if len(self._streams) == 1:
            note(latest, self._streams[0], max(occurred)[0], max(numbers))
            return
        times = occurred if self._occurred else repeat(_NEVER)
        places = numbers if self._numbers else repeat(0)
        for stream, (seconds, _), number in zip(self._streams[first:last], times, places, strict=False):
            note(latest, stream, seconds, number)


class _Memory(dict[object, Made], Generic[Made]):
    """What cells become, made once for each different one. Raises what making it raises."""

    def __init__(self, make: Callable[..., Made]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, cell: object) -> Made:
        made = self._make(cell)
        if len(self) >= REMEMBERED_MAX:
            self.clear()
        self[cell] = made
        return made


class BlockMapper:
    """A mapper's work on whole blocks."""

    def __init__(self, mapper: Mapper) -> None:
        self._mapper = mapper
        places = mapper.places
        sku_field = _text_field("sku")
        self._skus = _Memory(lambda cell: sku_field(mapper.sku(cell)))
        self._quantities = _Memory(self._quantity)
        self._shipped = _Memory(self._shipped_quantity)
        self._highs = _Memory(varint)
        self._occurred = _Memory(self._occurred_time)
        self._due = _Memory(self._due_time)
        self._texts = [
            (
                place,
                constant,
                _Memory(_text_field(name, of_trace=name == "correlation_id" and place is not None)),
            )
            for name, place, constant in mapper.texts
        ]
        self._event = _text_field("event_id")
        self._order_place = places.get("order_ref")

    def encode(
        self, block: Block, named: str, *, is_kit: Callable[[Iterable[str]], bool] | None = None
    ) -> EncodedRows | None:
        """Translate a block; None: go row by row. Rows without a name of their own are called by ``named`` and place.

        ``is_kit`` tells whether one of these skus is a kit; asked where rows name orders. It may raise ClientError.
        """
        columns = block.columns
        if not block.plain and not all(_PLAIN.issuperset(map(type, column)) for column in columns):
            return None
        try:
            if is_kit is not None and self._mapper.of_orders and self._names_kit(columns, len(block), is_kit):
                return None
            return self._encoded(block, columns, named)
        except (RowRefused, ValueError, TypeError):  # row by row it is said of which row, and why
            return None

    def _encoded(self, block: Block, columns: Sequence[Sequence[Value]], named: str) -> EncodedRows | None:
        mapper, count = self._mapper, len(block)
        places = mapper.places
        templates = self._templates(columns, count)
        if templates is None:
            return None
        skus = columns[places["sku"]] if "sku" in places else [mapper.constants.get("sku")] * count
        parts: list[Iterable[bytes]] = [map(self._skus.__getitem__, skus)]
        parts.append(self._heads(templates, columns, skus, count))
        numbers: Sequence[int] = ()
        if "source_sequence" in places:
            numbers = list(map(int, columns[places["source_sequence"]]))  # type: ignore[arg-type]  # else a TypeError
            if min(numbers) < 1 or max(numbers) >= _SEQUENCE_END:
                return None
            parts.append(self._sequences(numbers))
        else:
            parts.append(self._names(block, columns, named))
        if "shipped_quantity" in places:
            parts.append(map(self._shipped.__getitem__, columns[places["shipped_quantity"]]))
        for place, constant, memory in self._texts:
            parts.append(
                repeat(memory[constant]) if place is None else map(memory.__getitem__, columns[place])
            )
        occurred: Sequence[tuple[float, bytes]] = ()
        if "occurred_time" in places:
            occurred = list(map(self._occurred.__getitem__, columns[places["occurred_time"]]))
            parts.append([field for _, field in occurred])
        if "due_time" in places:
            parts.append(map(self._due.__getitem__, columns[places["due_time"]]))
        streams: Sequence[str] = [one.stream for one in templates]
        if len({*streams}) == 1:
            streams = streams[:1]
        # Messages one after the other are one message: the order of fields means nothing.
        return EncodedRows(list(map(b"".join, zip(*parts, strict=False))), streams, occurred, numbers)

    # --- Columns ------------------------------------------------------------------------------------------

    def _templates(self, columns: Sequence[Sequence[Value]], count: int) -> list[Template] | None:
        mapper = self._mapper
        shared, known = mapper.shared, mapper.templates
        keys: Sequence[object]
        if not shared:
            keys = [()] * count
        elif len(shared) == 1:
            keys = columns[shared[0]]
        else:
            keys = list(zip(*(columns[place] for place in shared), strict=True))
        for key in {*keys}.difference(known):
            at = keys.index(key)
            mapper.template([column[at] for column in columns])
        found = list(map(known.get, keys))
        if any(one is None or one.delta is None for one in {*found}):  # not to be remembered, or ignored
            return None
        return found  # type: ignore[return-value]  # see the line above

    def _sequences(self, numbers: Sequence[int]) -> Iterable[bytes]:
        if min(numbers) < 1 << _LOW_BITS:
            return [bytes([_NUMBERS["source_sequence"] << 3]) + varint(number) for number in numbers]
        highs = self._highs
        return [_LOWS[number & 0x7F] + highs[number >> _LOW_BITS] for number in numbers]

    def _names(self, block: Block, columns: Sequence[Sequence[Value]], named: str) -> Iterable[bytes]:
        place = self._mapper.places.get("event_id")
        if place is None:
            return [
                self._event(f"{named}:{position}")
                for position in range(block.first, block.first + len(block))
            ]
        names = ["" if cell is None else str(cell).strip() for cell in columns[place]]
        if not all(names):
            raise ValueError("a row has no event id")
        return map(self._event, names)

    def _heads(
        self,
        templates: Sequence[Template],
        columns: Sequence[Sequence[Value]],
        skus: Sequence[Value],
        count: int,
    ) -> Iterable[bytes]:
        """What the shared cells make, with the quantity where there is one: both are of few different cells."""
        mapper = self._mapper
        if not mapper.has_quantity:
            return [one.delta or b"" for one in templates]
        place, unit = mapper.places.get("quantity"), mapper.places.get("unit")
        cells = [mapper.constants.get("quantity")] * count if place is None else columns[place]
        units = repeat(mapper.constants.get("unit")) if unit is None else columns[unit]
        of_skus = skus if mapper.units_by_sku else repeat(None)
        return map(self._quantities.__getitem__, zip(templates, cells, units, of_skus, strict=False))

    def _names_kit(
        self, columns: Sequence[Sequence[Value]], count: int, is_kit: Callable[[Iterable[str]], bool]
    ) -> bool:
        place, mapper = self._order_place, self._mapper
        if place is not None and not any(columns[place]):
            return False
        sku = mapper.places.get("sku")
        cells = [mapper.constants.get("sku")] if sku is None else {*columns[sku]}
        return is_kit({mapper.sku(cell) for cell in cells})

    # --- Cells --------------------------------------------------------------------------------------------

    def _quantity(self, key: tuple[Template, Value, Value, Value]) -> bytes:
        template, cell, unit, sku = key
        text = "" if unit is None else str(unit).strip()
        quantity = self._mapper.quantity(template, cell, text, self._mapper.sku(sku))
        head = template.delta or b""
        return head if quantity is None else head + pb.Delta(quantity=quantity).SerializeToString()

    def _shipped_quantity(self, cell: Value) -> bytes:
        quantity = self._mapper.shipped(cell)
        return b"" if quantity is None else pb.Delta(shipped_quantity=quantity).SerializeToString()

    def _occurred_time(self, cell: Value) -> tuple[float, bytes]:
        if cell is None or cell == "":
            return _NEVER
        seconds, nanos = self._mapper.moment(cell, "occurred_time")
        return seconds + nanos / 1e9, _time_field("occurred_time", seconds, nanos)

    def _due_time(self, cell: Value) -> bytes:
        if cell is None or cell == "":
            return b""
        return _time_field("due_time", *self._mapper.moment(cell, "due_time"))


def _time_field(name: str, seconds: int, nanos: int) -> bytes:
    if seconds < 0:
        return pb.Delta(**{name: Timestamp(seconds=seconds, nanos=nanos)}).SerializeToString()  # type: ignore[arg-type]
    time = bytes((_SECONDS,)) + varint(seconds)
    if nanos:
        time += bytes((_NANOS,)) + varint(nanos)
    return varint(_NUMBERS[name] << 3 | BYTES) + varint(len(time)) + time


def _text_field(name: str, *, of_trace: bool = False) -> Callable[[Value], bytes]:
    """Return what encodes a text of the delta."""
    tag = varint(_NUMBERS[name] << 3 | BYTES)

    def encode(cell: Value) -> bytes:
        if cell is None or cell == "":
            return b""
        text = cell if isinstance(cell, str) else str(cell)
        raw = (correlation(text) if of_trace else text).encode()
        return tag + varint(len(raw)) + raw

    return encode
