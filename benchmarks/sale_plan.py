"""The plan of a flash sale: how many shoppers when, what they want, what is there. Pure, shared by all its parts.

It travels to locust's processes as a JSON file that FLASH_SALE_PLAN names.
"""

from __future__ import annotations

import bisect
import itertools
import json
import os
import random
from dataclasses import asdict, dataclass
from pathlib import Path

PLAN_VARIABLE = "FLASH_SALE_PLAN"
CHANNEL = "web"
NODES = ("main", "north")
ZIPF_EXPONENT = 1.05
HOT_SHARE = 0.6
"""Of the baskets of the sale: how many are for what is on sale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Times in seconds from the load's start, stock in units. The curve: calm, ramp (×1 → ×``factor``), hold, cool."""

    target: str = "127.0.0.1:7443"
    token: str = ""
    out: str = "."
    seed: int = 7
    skus: int = 2_000
    hot_skus: int = 3
    stock: int = 1_000_000
    hot_stock: int = 400
    restock: int = 200
    base_users: int = 8
    factor: int = 20
    calm_s: float = 20.0
    ramp_s: float = 60.0
    hold_s: float = 60.0
    cool_s: float = 20.0
    reservation_s: int = 15
    pay_share: float = 0.8
    release_share: float = 0.12
    think_s: tuple[float, float] = (0.2, 1.5)
    pause_s: tuple[float, float] = (0.2, 1.0)
    connections: int = 4
    deltas_per_s: int = 100

    @property
    def length_s(self) -> float:
        """How long the load takes."""
        return self.calm_s + self.ramp_s + self.hold_s + self.cool_s

    @property
    def restock_at_s(self) -> float:
        """When the sale's skus get more: within the peak."""
        return self.calm_s + self.ramp_s + self.hold_s / 2

    def users_at(self, second: float) -> int | None:
        """Return how many shoppers there are; None when it is over."""
        if second >= self.length_s:
            return None
        into_ramp = (second - self.calm_s) / self.ramp_s if self.ramp_s else 1.0
        if second >= self.calm_s + self.ramp_s + self.hold_s:
            into_ramp = 0.0
        grown = 1 + (self.factor - 1) * min(1.0, max(0.0, into_ramp))
        return max(1, round(self.base_users * grown))

    def on_sale(self, second: float) -> bool:
        """Say whether the sale has begun and is not over."""
        return self.calm_s <= second < self.length_s - self.cool_s

    @property
    def hot(self) -> list[str]:
        """The skus of the sale; nobody else's stock moves them."""
        return [f"hot-{number}" for number in range(self.hot_skus)]

    def sku(self, number: int) -> str:
        """Return the name of an ordinary sku."""
        return f"sku-{number:06d}"

    def write(self, path: Path) -> None:
        """Keep it for the processes of the load."""
        path.write_text(json.dumps(asdict(self)))


def read_plan() -> Plan:
    """Return the plan that the environment names; the defaults where it names none (locust started by hand)."""
    path = os.environ.get(PLAN_VARIABLE)
    if not path:
        return Plan()
    found = json.loads(Path(path).read_text())
    for name in ("think_s", "pause_s"):
        found[name] = tuple(found[name])
    return Plan(**found)


class Zipf:
    """Draws ranks: the first often, the last rarely, as shops sell."""

    def __init__(self, count: int, chance: random.Random, exponent: float = ZIPF_EXPONENT) -> None:
        self._chance = chance
        self._sums = list(itertools.accumulate(1 / rank**exponent for rank in range(1, count + 1)))

    def draw(self) -> int:
        """Return a rank from 0."""
        return bisect.bisect_left(self._sums, self._chance.random() * self._sums[-1])
