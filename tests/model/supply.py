"""Counts, and what is expected: absolute words and the changes after them, in any order of arrival."""

from __future__ import annotations

from dataclasses import replace

from tests.model.facts import Word
from tests.model.reservations import Reservations
from tests.model.state import Cell, Moment, Position
from tests.model.told import Delta, Key

NOW_US = 4_000_000_000_000_000
"""What names no time happens when it arrives, and later than all that names one."""


class Supply(Reservations):
    """What stock deltas do to a position and to what is expected."""

    def _moment(self, delta: Delta, units: int) -> Moment:
        stream = (delta.source, delta.stream) if delta.source_sequence else None
        return Moment(self._key(delta), units, stream, delta.source_sequence)

    def _key(self, delta: Delta) -> Key:
        return replace(delta, occurred_us=delta.occurred_us or NOW_US + self._arrived).key()

    def _change_on_hand(self, position: Position, delta: Delta, units: int) -> None:
        """Change on_hand, but where the latest count has seen the change already."""
        change = self._moment(delta, units)
        if position.count is None or not change.before(position.count):
            position.changes.append(change)
            position.on_hand += units

    def _count(self, delta: Delta) -> bool:
        """Take a count: later changes stay on top. False where a later count is known."""
        position = self._position(delta.sku, delta.node)
        count = self._moment(delta, delta.quantity)
        if position.count is not None and count.key < position.count.key:
            return False
        position.count = count
        position.changes = [change for change in position.changes if not change.before(count)]
        position.on_hand = count.units + sum(change.units for change in position.changes)
        return True

    def _cell(self, delta: Delta, node: str, kind: str, reference: str, line: str) -> Cell:
        return self.cells.setdefault((delta.sku, node, kind, reference, line), Cell())

    def _expect(self, delta: Delta) -> bool:
        """Take a word about expected supply. False where a later one is known."""
        kind = delta.expected_kind or "PURCHASE"
        reference = delta.reference or (delta.order_ref if kind == "RETURN" else "")
        cell = self._cell(delta, delta.node, kind, reference, delta.line)
        word = Word(self._key(delta), delta.quantity)
        if cell.word is not None and word.key < cell.word.key:
            return False
        cell.word = word
        cell.dues.append((word.key, delta.due_us))
        return True

    def _move_expected(self, delta: Delta) -> None:
        """Let what came in, or was sent on its way, change what is expected of its reference."""
        node, line, units = delta.node, delta.line, -delta.quantity
        if delta.type == "RECEIPT" and delta.reference:
            kind, reference = "PURCHASE", delta.reference
        elif delta.type == "RETURN_RECEIVED" and (delta.reference or delta.order_ref):
            kind, reference = "RETURN", delta.reference or delta.order_ref
        elif delta.type == "TRANSFER_IN":
            kind, reference = "TRANSFER", delta.reference
        elif delta.type == "TRANSFER_OUT":
            kind, reference, node, units = "TRANSFER", delta.reference, delta.to_node, delta.quantity
            line = "" if delta.order_ref else line
        else:
            return
        cell = self._cell(delta, node, kind, reference, line)
        cell.moves.append((self._key(delta), units))
        if units > 0 and delta.due_us:
            cell.dues.append((self._key(delta), delta.due_us))

    def expected(self, sku: str) -> set[tuple[str, str, str, str, int, int]]:
        """Give (node, kind, reference, line, units, due_us) of what is announced and not here yet."""
        found = set()
        for (of, node, kind, reference, line), cell in self.cells.items():
            if of == sku and cell.units():
                found.add((node, kind, reference, line, cell.units(), cell.due_us()))
        return found
