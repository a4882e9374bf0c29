"""What is left of every ring-fence, by sku: few skus have one, and grants change them all the time.

A change is worked out first (``Changed``, nothing that a reader can see moves) and committed by the caller
under its lock, as positions are. What a fence means for another channel: ``compute`` and ``domain.formula``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from availability.ledger.record import FenceLeft, FenceState

FencesOfSku = tuple[FenceState, ...]
"""One sku's fences by bytewise channel; ``left`` as it is now."""


class Fences:
    """All fences. One writer; readers hold the lock of ``commit``'s caller."""

    def __init__(self) -> None:
        self.by_sku: dict[int, FencesOfSku] = {}
        self._skus: dict[str, set[int]] = {}

    def load(self, sku: int, fences: Iterable[FenceState]) -> None:
        """Take a sku's fences as the ledger keeps them, used up ones included."""
        self.commit({sku: _ordered(fences)})

    def channels(self) -> set[str]:
        """Return the channels that have one."""
        return {channel for channel, skus in self._skus.items() if skus}

    def of_channel(self, channel: str) -> Iterable[int]:
        """Return the skus of which a channel has a fence."""
        return self._skus.get(channel, ())

    def commit(self, changed: Mapping[int, FencesOfSku]) -> None:
        """Make changes visible."""
        for sku, fences in changed.items():
            for fence in self.by_sku.get(sku, ()):
                self._skus[fence.channel].discard(sku)
            for fence in fences:
                self._skus.setdefault(fence.channel, set()).add(sku)
            if fences:
                self.by_sku[sku] = fences
            else:
                self.by_sku.pop(sku, None)


class Changed:
    """Changes of fences that are not visible yet, record by record in order."""

    def __init__(self, fences: Fences) -> None:
        self._before = fences.by_sku
        self.by_sku: dict[int, FencesOfSku] = {}

    def of(self, sku: int) -> FencesOfSku:
        """Return a sku's fences as they will be."""
        found = self.by_sku.get(sku)
        return self._before.get(sku, ()) if found is None else found

    def set(self, sku: int, fence: FenceState) -> None:
        """Set a fence: a new generation. Nothing left removes it."""
        rest = [other for other in self.of(sku) if other.channel != fence.channel]
        self.by_sku[sku] = _ordered([*rest, fence] if fence.left > 0 else rest)

    def left(self, sku: int, change: FenceLeft) -> None:
        """Take what is left of a fence.

        A log that is replayed over newer pages tells of fences that were set anew since (left alone here) or
        removed (kept until their removal comes by).
        """
        fences = {fence.channel: fence for fence in self.of(sku)}
        old = fences.get(change.channel)
        if old is None:
            old = FenceState(change.channel, change.sku, 0, change.generation, "", "", 0)
        if old.version == change.generation:
            fences[change.channel] = msgspec.structs.replace(old, left=change.left)
            self.by_sku[sku] = _ordered(fences.values())


def _ordered(fences: Iterable[FenceState]) -> FencesOfSku:
    return tuple(sorted(fences, key=lambda fence: fence.channel.encode()))
