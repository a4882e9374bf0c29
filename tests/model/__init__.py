"""The plain model: the contract's formula, grants, orders and deltas as dicts, ints and obvious loops.

It is the third, independent computation: it imports nothing of ours, is fast enough only for tests, and is
meant to be read beside CONTRACT.md sections 2 to 4, in its words. Where the ledger and this model disagree,
one of them has a bug. Time does not pass here: a test says `expire` when the ledger ended a hold.

Read it in the order in which one class stands on the other: what is told (`told`) and kept (`facts`, `state`),
then `formula`, `policies`, `whole`, `holds`, `orders`, `reservations`, `supply`, `deltas`.

Not modelled: what waits for a clock.
"""

from __future__ import annotations

from tests.model.deltas import Deltas
from tests.model.facts import Facts, place
from tests.model.told import (
    Buffer,
    Changed,
    Delta,
    Granted,
    Lines,
    Override,
    Policy,
    Refusal,
    Shortage,
    Terms,
    Units,
)
from tests.model.totals import add, add_up

__all__ = [
    "Buffer",
    "Changed",
    "Delta",
    "Facts",
    "Granted",
    "Lines",
    "Model",
    "Override",
    "Policy",
    "Refusal",
    "Shortage",
    "Terms",
    "Units",
    "add_up",
    "place",
]


class Model(Deltas):
    """A ledger that a reader can check by eye. Same calls in the same order, same state."""

    def audit(self) -> None:
        """Check the model against itself: what positions count is the sum of what holds and orders count."""
        reserved: dict[tuple[str, str], int] = {}
        for (_, sku), units in self._held.items():
            for node, amount in units.items():
                add(reserved, (sku, node), amount)
        committed: dict[tuple[str, str], int] = {}
        for order in self.orders.values():
            for sku, units in order.committed.items():
                for node, amount in units.items():
                    add(committed, (sku, node), amount)
        for mine, whole in ((self._reserved, reserved), (self._committed, committed)):
            assert {k: v for k, v in mine.items() if v} == {k: v for k, v in whole.items() if v}
