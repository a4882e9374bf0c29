"""Kits as the replica needs them: recipes in plain skus as arrays, and which kits a moved sku is part of.

Immutable, replaced as a whole when a recipe changes. It knows no answers: ``compute`` makes a kit's from those
of its parts. Recipes are flattened by the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from availability.domain.formula import Ints
from availability.ledger.record import KitState
from availability.replica.columns import contains, ranges


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipes:
    """Some kits: rows ``offsets[i]`` to ``offsets[i + 1] - 1`` are the parts of kit ``skus[i]``."""

    skus: Ints
    offsets: Ints
    parts: Ints
    units: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Kits:
    """All kits, by sku number. ``using`` are the kits of ``sorted_parts``, entry by entry."""

    by_sku: Mapping[int, KitState]
    recipes: Recipes
    sorted_parts: Ints
    using: Ints

    @property
    def skus(self) -> Ints:
        """Sku numbers of all kits, sorted."""
        return self.recipes.skus

    @classmethod
    def of(cls, by_sku: Mapping[int, KitState], number_of: Callable[[str], int]) -> Kits:
        """Make the arrays. ``number_of`` numbers skus, so parts may be skus that nobody knows yet."""
        ordered = sorted(by_sku.items())
        parts = [number_of(sku) for _, kit in ordered for sku, _ in kit.flat]
        units = [units for _, kit in ordered for _, units in kit.flat]
        recipes = Recipes(
            skus=np.array([number for number, _ in ordered], np.int64),
            offsets=np.cumsum([0, *(len(kit.flat) for _, kit in ordered)]),
            parts=np.array(parts, np.int64),
            units=np.array(units, np.int64),
        )
        order = np.argsort(recipes.parts, kind="stable")
        using = np.repeat(recipes.skus, np.diff(recipes.offsets))
        return cls(by_sku=by_sku, recipes=recipes, sorted_parts=recipes.parts[order], using=using[order])

    def changed(self, changes: Mapping[int, KitState], number_of: Callable[[str], int]) -> Kits:
        """Return the kits after some changes; one without components is no kit any more."""
        by_sku = {**self.by_sku, **changes}
        return Kits.of({number: kit for number, kit in by_sku.items() if kit.flat}, number_of)

    def near(self, skus: Ints) -> Ints:
        """Return the kits among some skus and those that have one of them as a part, sorted."""
        first = np.searchsorted(self.sorted_parts, skus)
        part = contains(self.sorted_parts, skus, first)
        own = skus[contains(self.skus, skus)]
        if not part.any():
            return own
        first = first[part]
        rows, _ = ranges(first, np.searchsorted(self.sorted_parts, skus[part], side="right") - first)
        return np.unique(np.concatenate((own, self.using[rows])))

    def recipes_of(self, skus: Ints) -> Recipes:
        """Return the recipes of some kits, given sorted."""
        whole = self.recipes
        if skus.size == whole.skus.size:
            return whole
        at = np.searchsorted(whole.skus, skus)
        rows, offsets = ranges(whole.offsets[at], whole.offsets[at + 1] - whole.offsets[at])
        return Recipes(skus=skus, offsets=offsets, parts=whole.parts[rows], units=whole.units[rows])


_NOTHING: Ints = np.empty(0, np.int64)
NO_KITS = Kits(
    by_sku={},
    recipes=Recipes(skus=_NOTHING, offsets=np.zeros(1, np.int64), parts=_NOTHING, units=_NOTHING),
    sorted_parts=_NOTHING,
    using=_NOTHING,
)
