"""Open orders: what a source still has to ship, beside what the ledger commits, line by line. Pure.

A line may go by any of its order's linked names. Where the ledger knows a sku of an order without a line, all lines of
that sku are one, as in the ledger. Only nodes in scope count, on both sides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from availability.v1 import stock_pb2 as pb

Key = tuple[str, str, str, str]
"""Order source, order, line, sku."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderRow:
    """One row of a snapshot. ``row``: its place in the file."""

    row: int
    order_source: str
    order_ref: str
    line: str
    sku: str
    node: str
    quantity: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderVariance:
    """One line that differs, in units open at the nodes in scope. ``said_at``, ``ledger_at``: by node.

    ``elsewhere``: open units at other nodes. ``placed``: the total is right and the nodes are not; ``variance`` is then
    the units at a wrong node.
    """

    order_source: str
    order_ref: str
    line: str
    sku: str
    said: int
    ledger: int
    variance: int
    said_at: Mapping[str, int] = field(default_factory=dict)
    ledger_at: Mapping[str, int] = field(default_factory=dict)
    shipped: int = 0
    elsewhere: int = 0
    confirmed: bool = False
    ordered: bool = True
    known: bool = True
    settled: bool = True
    placed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OrdersCompared:
    """The outcome; ``doubled``: keys that come twice, with their rows: then nothing was compared."""

    variances: tuple[OrderVariance, ...]
    lines: int = 0
    units: int = 0
    missing: int = 0
    doubled: tuple[tuple[str, tuple[int, ...]], ...] = ()


def compare_orders(
    rows: Iterable[OrderRow],
    lines: Sequence[pb.OrderLineOpen],
    *,
    nodes: Sequence[str],
    order_sources: Sequence[str],
    absent: Literal["IGNORE", "ZERO"],
) -> OrdersCompared:
    """Compare a snapshot's rows with the ledger's open lines."""
    names, whole = _names(lines)
    said: dict[Key, dict[str, int]] = defaultdict(dict)
    places: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row in rows:
        places[row.order_source, row.order_ref, row.line, row.sku, row.node].append(row.row)
        source, ref = names.get((row.order_source, row.order_ref), (row.order_source, row.order_ref))
        key = (source, ref, "" if (source, ref, row.sku) in whole else row.line, row.sku)
        said[key][row.node] = said[key].get(row.node, 0) + row.quantity
    doubled = tuple(
        (f"order {key[1]} line {key[2] or '-'} {key[3]} at {key[4]}", tuple(found))
        for key, found in places.items()
        if len(found) > 1
    )
    if doubled:
        return OrdersCompared(variances=(), doubled=doubled)
    scope = set(nodes)
    found: list[OrderVariance] = []
    units = missing = counted = 0
    seen: set[Key] = set()
    for line in lines:
        at = {one.node: one.open_quantity for one in line.nodes if one.open_quantity}
        inside = {node: quantity for node, quantity in at.items() if not scope or node in scope}
        key = (line.order_source, line.order_ref, line.line, line.sku)
        seen.add(key)
        theirs = said.get(key)
        if theirs is None and not inside:
            continue
        if order_sources and line.order_source not in order_sources and theirs is None:
            continue
        counted += 1
        units += sum(inside.values())
        if theirs is None:
            missing += 1
            if absent == "IGNORE":
                continue
        variance = _variance(line, inside, theirs or {}, sum(at.values()))
        if variance is not None:
            found.append(variance)
    for key, at_nodes in said.items():
        total = sum(at_nodes.values())
        if key not in seen and total:
            found.append(
                OrderVariance(
                    order_source=key[0],
                    order_ref=key[1],
                    line=key[2],
                    sku=key[3],
                    said=total,
                    ledger=0,
                    variance=-total,
                    said_at=at_nodes,
                    known=(key[0], key[1]) in names,
                )
            )
    return OrdersCompared(variances=tuple(found), lines=counted, units=units, missing=missing)


def _names(
    lines: Iterable[pb.OrderLineOpen],
) -> tuple[dict[tuple[str, str], tuple[str, str]], set[tuple[str, str, str]]]:
    """Return every name of an order → its first, and (order, sku) that the ledger knows without a line."""
    names: dict[tuple[str, str], tuple[str, str]] = {}
    whole = set()
    for line in lines:
        first = (line.order_source, line.order_ref)
        names[first] = first
        for link in line.links:
            names[link.order_source, link.order_ref] = first
        if not line.line:
            whole.add((*first, line.sku))
    return names, whole


def _variance(
    line: pb.OrderLineOpen, inside: Mapping[str, int], theirs: Mapping[str, int], total: int
) -> OrderVariance | None:
    said, ledger = sum(theirs.values()), sum(inside.values())
    misplaced = sum(max(0, units - theirs.get(node, 0)) for node, units in inside.items())
    if said == ledger and not misplaced:
        return None
    return OrderVariance(
        order_source=line.order_source,
        order_ref=line.order_ref,
        line=line.line,
        sku=line.sku,
        said=said,
        ledger=ledger,
        variance=ledger - said if said != ledger else misplaced,
        said_at=dict(theirs),
        ledger_at=dict(inside),
        shipped=line.shipped,
        elsewhere=total - ledger,
        confirmed=any(one.confirmed for one in line.nodes),
        ordered=line.HasField("ordered"),
        settled=line.settling == pb.SETTLING_SETTLED,
        placed=said == ledger,
    )
