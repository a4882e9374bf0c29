"""Crossings of a channel's low stock threshold: out of stock, low, back in stock, each once, with hysteresis.

A sku goes down from in stock to low to out, and comes back only when it is well above the threshold: between the
threshold and there nothing is told, so that a quantity that goes up and down by a unit does not call people twice. Pure
arrays; where the stages are kept: ``replica.columns``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from availability.domain.formula import Flags, Ints

Stages = npt.NDArray[np.int8]
NOT_SEEN, OUT_OF_STOCK, LOW_STOCK, BACK_IN_STOCK = range(4)
"""Stages; but for the first, numbers of availability.v1 ThresholdKind. A sku in stock has the last one."""


def back_above(threshold: int, hysteresis_units: int, hysteresis_percent: int) -> int:
    """Return the quantity above which a sku is back: the larger hysteresis counts, percent is of the threshold."""
    return threshold + max(hysteresis_units, -(-threshold * hysteresis_percent // 100))


def staged(before: Stages, sellables: Ints, known: Flags, threshold: int, back: int) -> tuple[Stages, Flags]:
    """Return the stages after new quantities, and which of them are crossings to tell.

    A sku that is seen for the first time takes its stage silently; one that is not known keeps none.
    """
    out = sellables <= 0
    low = ~out & (sellables <= threshold) & (before != OUT_OF_STOCK)
    up = (sellables > back) | ((before == NOT_SEEN) & ~out & ~low)
    after = np.where(out, OUT_OF_STOCK, np.where(low, LOW_STOCK, np.where(up, BACK_IN_STOCK, before)))
    after = np.where(known | (before != NOT_SEEN), after, NOT_SEEN).astype(np.int8)
    return after, (after != before) & (before != NOT_SEEN)
