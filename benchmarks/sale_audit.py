"""What the sale came to: figures of the business from the shoppers' journals, the feeds' book and the ledger. Pure.

Nothing here trusts the service's own word for what it promised: units sold are added up from the answers that shoppers
got and compared with what the WMS ever had.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Figures:
    """Times in seconds. ``fairness``: Jain's index of what each connection got of what it asked of the sale's skus."""

    reserves: int = 0
    granted: int = 0
    refused: int = 0
    committed: int = 0
    released: int = 0
    abandoned: int = 0
    holds_lost: int = 0
    paid_too_late: int = 0
    oversold_units: int = 0
    ledger_oversold_units: int = 0
    hot_units_sold: int = 0
    hot_units_had: int = 0
    sold_out_s: dict[str, float] = field(default_factory=dict)
    stale_reads: int = 0
    stale_read_s: float = 0.0
    fairness: float = 1.0
    differences: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether everything that was promised was kept."""
        return not (self.oversold_units or self.ledger_oversold_units or self.holds_lost or self.differences)


def read_journals(folder: Path) -> list[dict[str, Any]]:
    """Return all lines of the shoppers' journals."""
    found = []
    for path in sorted(folder.glob("shoppers-*.jsonl")):
        found += [{**json.loads(line), "process": path.stem} for line in path.read_text().splitlines()]
    return found


def figures(
    journal: Sequence[Mapping[str, Any]],
    received: Mapping[str, int],
    hot: Sequence[str],
) -> Figures:
    """Add the journals up. ``received``: units of each sku that were ever received, less what counts took away."""
    found = Figures()
    kinds = Counter(line["kind"] for line in journal)
    reserves = [line for line in journal if line["kind"] == "reserve"]
    found.reserves = len(reserves)
    found.granted = sum(1 for line in reserves if line["id"])
    found.refused = found.reserves - found.granted
    found.committed, found.released, found.abandoned = kinds["commit"], kinds["release"], kinds["abandon"]
    found.holds_lost, found.paid_too_late = kinds["lost"], kinds["late"]
    sold: Counter[str] = Counter()
    for line in journal:
        if line["kind"] == "commit":
            for sku, _, units in line["lines"]:
                sold[sku] += units
    found.oversold_units = sum(max(0, units - received.get(sku, 0)) for sku, units in sold.items())
    found.hot_units_sold = sum(sold[sku] for sku in hot)
    found.hot_units_had = sum(received.get(sku, 0) for sku in hot)
    for sku in hot:
        _sold_out(found, sku, reserves, journal)
    found.fairness = jain(_shares(reserves))
    return found


def _sold_out(
    found: Figures, sku: str, reserves: Iterable[Mapping[str, Any]], journal: Iterable[Mapping[str, Any]]
) -> None:
    """How long from the last grant to the first refusal, and how long reads showed some afterwards.

    Reads are judged up to the next grant: what was given back or restocked may be shown again, rightly.
    """
    mine = sorted((line for line in reserves if line["hot"] == sku), key=lambda line: line["told"])
    refusal = next((line for line in mine if not line["id"]), None)
    if refusal is None:
        return
    before = [line["told"] for line in mine if line["id"] and line["told"] <= refusal["told"]]
    after = [line["asked"] for line in mine if line["id"] and line["told"] > refusal["told"]]
    last_grant, next_grant = max(before, default=refusal["asked"]), min(after, default=float("inf"))
    found.sold_out_s[sku] = max(0.0, refusal["told"] - last_grant)
    stale = [
        line["asked"] - refusal["told"]
        for line in journal
        if line["kind"] == "read"
        and line["sku"] == sku
        and refusal["told"] < line["asked"] < next_grant - 1.0
        and line["sellable"] > 0
    ]
    found.stale_reads += len(stale)
    found.stale_read_s = max([found.stale_read_s, *stale])


def _shares(reserves: Iterable[Mapping[str, Any]]) -> list[float]:
    """Success of each (process, connection) with what was on sale."""
    asked: dict[tuple[Any, Any], int] = defaultdict(int)
    got: dict[tuple[Any, Any], int] = defaultdict(int)
    for line in reserves:
        if line["hot"]:
            place = line["process"], line["connection"]
            asked[place] += 1
            got[place] += bool(line["id"])
    return [got[place] / count for place, count in asked.items() if count >= 10]


def jain(shares: Sequence[float]) -> float:
    """Return Jain's index: 1 where all have the same, 1/n where one has all."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0
