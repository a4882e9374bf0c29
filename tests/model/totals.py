"""Sums by key, and names in their order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from tests.model.told import Lines

K = TypeVar("K")


def add(totals: dict[K, int], key: K, amount: int) -> None:
    """Add to one of several totals."""
    totals[key] = totals.get(key, 0) + amount


def add_up(lines: Lines) -> dict[str, int]:
    """Add up equal skus, in order of first appearance."""
    wanted: dict[str, int] = {}
    for sku, quantity in lines:
        wanted[sku] = wanted.get(sku, 0) + quantity
    return wanted


def by_name(names: Iterable[str]) -> list[str]:
    """Sort names by their bytes."""
    return sorted(names, key=str.encode)
