"""Plan a replay: an orders file → policies, supply and the steps that clients will play, in time order.

Everything here is decided by the file and the seed, nothing by answers of the service. The file's dirt is
kept: orders whose id begins with C cancel or return, other negative lines are write-offs. Look in
replay_play.py for what is done with a plan and in replay_check.py for how its end is proved.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl

NODES = ("MAIN", "NORTH", "STORE")
"""By name, as the order function walks them."""
MAIN, NORTH, STORE = range(3)
AUDIT_CHANNEL = "audit"
"""Sees every node; nobody orders there."""

SUPPLY_DAYS = 14
"""A sku is supplied every so many days, for the demand of those days."""
SHORT_SHARE = 0.05
"""Share of lines that shall find too little."""
BISECTIONS = 7
MATCH_SCAN_MAX = 500
"""Earlier order lines looked at for the one that a cancellation means."""
HOUR_S = 3600
DAY_S = 24 * HOUR_S

SCHEMA = {"order_id": pl.String, "sku": pl.String, "quantity": pl.Int64, "country": pl.String}
Flags: TypeAlias = npt.NDArray[np.bool_]


class OrdersUnreadable(Exception):
    """The orders file is missing or of another shape; the text says which."""


class ChannelRule(NamedTuple):
    """A channel's policy. ``nodes`` in sourcing order; ``all_nodes`` says that they are sent as such."""

    channel: str
    nodes: tuple[int, ...]
    all_nodes: bool = False
    buffer_units: int = 0
    buffer_percent: int = 0
    oversell_limit: int = 0


class SkuRule(NamedTuple):
    """What differs for one sku of a channel; None is absent."""

    channel: int
    sku: int
    buffer_units: int | None = None
    oversell_limit: int | None = None
    excluded_nodes: tuple[int, ...] = ()


class Receipt(NamedTuple):
    """Supply of one position."""

    sku: int
    node: int
    quantity: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An order as its shopper wants it. ``ships`` is (time, part): part -1 is everything."""

    number: int
    ref: str
    channel: int
    time_s: int
    lines: list[tuple[int, int]]
    ships: list[tuple[int, int]]
    cart: str
    """``""``, or what became of a first cart with the same lines: released, trimmed, expired or left."""
    extended: bool
    partial_first: bool
    named_early: bool
    repeated: bool
    """Its requests are sent twice, as if the first answer had been lost."""
    elsewhere: bool
    """The ERP allocates it at other nodes than the ledger sourced it from."""
    unallocated: bool
    """The ERP never speaks of it."""
    rerouted: bool
    """Ships in two halves, the first from other nodes than allocated; the ERP is not told."""


class CancelLine(NamedTuple):
    """A line of a C-order. ``order`` is the one it means, or -1."""

    sku: int
    quantity: int
    order: int


class Cancel(NamedTuple):
    """A C-order."""

    time_s: int
    lines: list[CancelLine]


class Loss(NamedTuple):
    """A negative line without C: damaged (quarantined, then written off) or lost (adjusted)."""

    time_s: int
    sku: int
    quantity: int
    node: int
    damaged: bool


Step: TypeAlias = Order | Cancel | Loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that is played. Indices everywhere: into ``skus``, ``rules`` (channels) and ``NODES``."""

    skus: list[str]
    rules: list[ChannelRule]
    sku_rules: list[SkuRule]
    node_safety_stock: dict[int, int]
    safety_stock: dict[tuple[int, int], int]
    """By (sku, node); stands before the node's."""
    blocked: list[tuple[int, int]]
    """(channel, sku) stopped when everything has been played."""
    steps: list[Step]
    step_days: list[int]
    """Trading day of each step."""
    receipts: list[list[Receipt]]
    """By trading day; must be there before its first order."""
    orders: list[Order]
    seed: int
    lines_total: int = field(default=0)


def read_orders(path: Path, limit: int | None) -> pl.DataFrame:
    """Read an orders file in time order, the first ``limit`` orders of it. Raises OrdersUnreadable."""
    if not path.is_file():
        raise OrdersUnreadable(f"no orders file at {path}; name one with --orders")
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise OrdersUnreadable(f"{path} is not a parquet file: {error}") from error
    missing = sorted({*SCHEMA, "timestamp"} - set(frame.columns))
    if missing:
        raise OrdersUnreadable(f"{path} lacks the column(s) {', '.join(missing)}")
    frame = (
        frame.select(
            *(pl.col(name).cast(kind) for name, kind in SCHEMA.items()),
            pl.col("timestamp").cast(pl.Datetime("us")).dt.epoch("s").alias("time_s"),
        )
        .filter(pl.col("quantity") != 0)
        .drop_nulls()
        .sort("time_s", maintain_order=True)
    )
    if limit is not None:
        wanted = frame["order_id"].unique(maintain_order=True).head(limit)
        frame = frame.filter(pl.col("order_id").is_in(wanted.implode()))
    if frame.is_empty():
        raise OrdersUnreadable(f"{path} holds no lines")
    return frame


def make_plan(frame: pl.DataFrame, seed: int) -> Plan:
    """Plan the replay of an orders frame (of read_orders). Same frame and seed, same plan."""
    chance = np.random.default_rng(seed)
    skus = frame["sku"].unique().sort().to_list()
    by_size = frame.group_by("country").len().sort("len", "country", descending=[True, False])
    rules = channel_rules(by_size["country"].to_list())
    frame = frame.with_columns(
        number_of("sku", skus),
        number_of("country", [rule.channel for rule in rules if rule.channel != AUDIT_CHANNEL], "channel"),
        pl.col("order_id").str.starts_with("C").alias("cancels"),
        (pl.col("time_s") // DAY_S).rank("dense").cast(pl.Int64).sub(1).alias("day"),
        (pl.col("time_s") // DAY_S - pl.col("time_s").min() // DAY_S).alias("calendar_day"),
    )
    wanted = frame.filter(~pl.col("cancels") & (pl.col("quantity") > 0))
    orders = plan_orders(wanted, chance)
    cancels = plan_cancels(frame.filter("cancels"), orders)
    lost = frame.filter(~pl.col("cancels") & (pl.col("quantity") < 0))
    losses = plan_losses(lost, chance)

    steps: list[Step] = sorted([*orders, *cancels, *losses], key=lambda step: step.time_s)
    first_times = frame.group_by("day").agg(pl.col("time_s").min() // DAY_S * DAY_S).sort("day")
    starts = first_times["time_s"].to_numpy()
    times = np.array([step.time_s for step in steps])
    calendar = (starts - starts[0]) // DAY_S
    return Plan(
        skus=skus,
        rules=rules,
        sku_rules=sku_rules(len(skus), len(rules) - 1),
        node_safety_stock={STORE: 1},
        safety_stock={(sku, MAIN): 2 for sku in range(5, len(skus), 97)},
        blocked=[(min(1, len(rules) - 1), sku) for sku in range(3, len(skus), 499)],
        steps=steps,
        step_days=(np.searchsorted(starts, times, side="right") - 1).tolist(),
        receipts=plan_supply(wanted, lost, len(skus), calendar, chance),
        orders=orders,
        seed=seed,
        lines_total=wanted.height,
    )


def number_of(column: str, names: list[str], alias: str | None = None) -> pl.Expr:
    """Replace names by their places in a list."""
    return (
        pl.col(column)
        .replace_strict(names, list(range(len(names))), return_dtype=pl.Int64)
        .alias(alias or column)
    )


def channel_rules(countries: list[str]) -> list[ChannelRule]:
    """Give each country a way to source, the largest the plainest; the last channel is the audit's."""
    patterns = (
        {"nodes": (NORTH, MAIN, STORE), "buffer_units": 1},
        {"nodes": (MAIN, NORTH), "buffer_percent": 2},
        {"nodes": (MAIN, NORTH, STORE)},
        {"nodes": (MAIN, NORTH, STORE), "all_nodes": True},
        {"nodes": (MAIN,), "oversell_limit": 3},
        {"nodes": (STORE, NORTH, MAIN), "buffer_percent": 1},
    )
    rules = [ChannelRule(countries[0], (MAIN, NORTH, STORE))]
    for rank, country in enumerate(countries[1:]):
        rules.append(ChannelRule(country, **patterns[rank % len(patterns)]))
    return [*rules, ChannelRule(AUDIT_CHANNEL, (MAIN, NORTH, STORE), all_nodes=True)]


def sku_rules(skus_count: int, channels_count: int) -> list[SkuRule]:
    """Make some skus of the first two channels differ in every way an override can."""
    rules = [SkuRule(0, sku, buffer_units=3) for sku in range(11, skus_count, 211)]
    rules += [SkuRule(0, sku, excluded_nodes=(STORE,)) for sku in range(12, skus_count, 223)]
    if channels_count > 1:
        rules += [SkuRule(1, sku, oversell_limit=2) for sku in range(13, skus_count, 227)]
        rules += [
            SkuRule(1, sku, buffer_units=0, excluded_nodes=(NORTH,)) for sku in range(14, skus_count, 229)
        ]
    return rules


def plan_orders(wanted: pl.DataFrame, chance: np.random.Generator) -> list[Order]:
    """Turn positive lines into orders and draw how each is bought, allocated and shipped."""
    grouped = wanted.group_by("order_id", maintain_order=True).agg(
        pl.col("channel").first(), pl.col("time_s").min(), "sku", "quantity"
    )
    grouped = grouped.sort("time_s", maintain_order=True)
    count = grouped.height
    end_s = int(wanted["time_s"].max() or 0)  # type: ignore[arg-type]  # an integer column

    def some(share: float) -> list[bool]:
        return [bool(draw < share) for draw in chance.random(count)]

    cart_draw = chance.random(count).tolist()
    extended, partial_first, named_early = some(0.02), some(0.3), some(0.5)
    repeated, elsewhere, unallocated, in_two = some(0.005), some(0.02), some(0.01), some(0.06)
    rerouted = some(0.3)
    speed = chance.random(count)
    lag_s = np.where(
        speed < 0.7,
        chance.integers(2 * HOUR_S, 30 * HOUR_S, count),
        np.where(
            speed < 0.95,
            chance.integers(DAY_S, 4 * DAY_S, count),
            chance.integers(7 * DAY_S, 30 * DAY_S, count),
        ),
    ).tolist()
    more_lag_s = chance.integers(HOUR_S, 5 * DAY_S, count).tolist()
    orders = []
    for i, (ref, channel, time_s, skus, quantities) in enumerate(grouped.iter_rows()):
        ships = [(time_s + lag_s[i], -1)]
        if in_two[i]:
            ships = [(time_s + lag_s[i], 0), (time_s + lag_s[i] + more_lag_s[i], 1)]
        orders.append(
            Order(
                number=i,
                ref=ref,
                channel=channel,
                time_s=time_s,
                lines=list(zip(skus, quantities, strict=True)),
                ships=ships,
                cart=cart_of(cart_draw[i], leave=time_s > end_s - DAY_S),
                extended=extended[i],
                partial_first=partial_first[i],
                named_early=named_early[i],
                repeated=repeated[i],
                elsewhere=elsewhere[i],
                unallocated=unallocated[i],
                rerouted=in_two[i] and rerouted[i],
            )
        )
    return orders


def cart_of(draw: float, *, leave: bool) -> str:
    """Say what became of a cart that came before the order: mostly there was none."""
    if leave and draw > 0.85:
        return "left"
    if draw < 0.02:
        return "released"
    if draw < 0.025:
        return "trimmed"
    return "expired" if draw < 0.027 else ""


def plan_cancels(cancelled: pl.DataFrame, orders: list[Order]) -> list[Cancel]:
    """Find the order that each C-line means: same country and sku, earlier, best of the same quantity."""
    grouped = cancelled.group_by("order_id", maintain_order=True).agg(
        pl.col("channel").first(), pl.col("time_s").max(), "sku", -pl.col("quantity")
    )
    grouped = grouped.sort("time_s", maintain_order=True)
    left: defaultdict[tuple[int, int], list[list[int]]] = defaultdict(list)  # [order, wanted, not cancelled]
    upcoming = iter(orders)
    order = next(upcoming, None)
    cancels = []
    for _, channel, time_s, skus, quantities in grouped.iter_rows():
        while order is not None and order.time_s <= time_s:
            together: defaultdict[int, int] = defaultdict(int)
            for sku, quantity in order.lines:
                together[sku] += quantity
            for sku, quantity in together.items():
                left[order.channel, sku].append([order.number, quantity, quantity])
            order = next(upcoming, None)
        lines = []
        for sku, quantity in zip(skus, quantities, strict=True):
            lines.append(CancelLine(sku, quantity, match(left[channel, sku], quantity)))
        cancels.append(Cancel(time_s, lines))
    return cancels


def match(candidates: list[list[int]], quantity: int) -> int:
    """Take a cancelled quantity off the latest order line that fits. -1: none does."""
    latest = candidates[: -MATCH_SCAN_MAX - 1 : -1]
    for found in [c for c in latest if c[1] == c[2] == quantity] + [c for c in latest if c[2] >= quantity]:
        found[2] -= quantity
        return found[0]
    return -1


def plan_losses(lost: pl.DataFrame, chance: np.random.Generator) -> list[Loss]:
    """Turn negative lines without C into damage (6 of 10) or loss, mostly where the stock is."""
    damaged = (chance.random(lost.height) < 0.6).tolist()
    nodes = chance.choice(3, lost.height, p=(0.7, 0.2, 0.1)).tolist()
    return [
        Loss(time_s, sku, -quantity, nodes[i], damaged[i])
        for i, (time_s, sku, quantity) in enumerate(lost.select("time_s", "sku", "quantity").iter_rows())
    ]


def plan_supply(
    wanted: pl.DataFrame,
    lost: pl.DataFrame,
    skus_count: int,
    calendar: npt.NDArray[np.int64],
    chance: np.random.Generator,
) -> list[list[Receipt]]:
    """Derive opening stock and receipts from demand, with as many short deliveries as SHORT_SHARE asks.

    Each sku is supplied every SUPPLY_DAYS days with what these days will want and a little more, unless the
    delivery is drawn to be short. ``calendar``: calendar day of each trading day. Returned by trading day.
    """
    period = (pl.col("calendar_day") + pl.col("sku") % SUPPLY_DAYS) // SUPPLY_DAYS
    demand = (
        pl.concat([wanted, lost.with_columns(-pl.col("quantity"))])
        .with_columns(period.alias("period"))
        .group_by("sku", "period")
        .agg(pl.col("quantity").sum())
        .sort("period", "sku")
        .to_numpy()
    )
    unknown = np.setdiff1d(np.arange(skus_count), demand[:, 0])
    demand = np.vstack([np.column_stack([unknown, unknown * 0, unknown * 0]), demand]).astype(np.int64)
    skus, periods, quantities = demand.T
    draw, cut, spare = chance.random((3, len(demand)))
    full = quantities + np.ceil(quantities * 0.05 * spare).astype(np.int64) + 2
    short = np.floor(quantities * (0.1 + 0.85 * cut)).astype(np.int64)
    delivery_days = np.searchsorted(calendar, np.maximum(0, periods * SUPPLY_DAYS - skus % SUPPLY_DAYS))
    delivery_days = np.minimum(delivery_days, len(calendar) - 1)

    lines = wanted.select("day", "sku", "quantity").rows()
    low, high = 0.0, 1.0
    supply = full
    for _ in range(BISECTIONS):
        share = (low + high) / 2
        supply = np.where(draw < share, short, full)
        found_short = simulate(lines, skus, delivery_days, supply, skus_count)
        low, high = (low, share) if found_short > SHORT_SHARE * len(lines) else (share, high)

    known: set[int] = set()
    receipts: list[list[Receipt]] = [[] for _ in range(len(calendar))]
    north = 0.1 + 0.25 * chance.random(skus_count)
    odd = chance.random(len(demand))
    for i, (sku, day, quantity) in enumerate(
        zip(skus.tolist(), delivery_days.tolist(), supply.tolist(), strict=True)
    ):
        if sku not in known:  # every sku has a position
            known.add(sku)
            quantity = max(1, quantity)
        shares = split(quantity, float(north[sku]), float(odd[i]))
        receipts[day] += [Receipt(sku, node, units) for node, units in enumerate(shares) if units]
    return receipts


def simulate(
    lines: list[tuple[int, int, int]],
    skus: npt.NDArray[np.int64],
    days: npt.NDArray[np.int64],
    supply: npt.NDArray[np.int64],
    skus_count: int,
) -> int:
    """Count the lines that would find too little, were all nodes one. A loop over rows: 0.2 s a year."""
    arrivals: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for sku, day, quantity in zip(skus.tolist(), days.tolist(), supply.tolist(), strict=True):
        arrivals[day].append((sku, quantity))
    stock = [0] * skus_count
    today = -1
    short = 0
    for day, sku, quantity in lines:
        while today < day:
            today += 1
            for arrived, units in arrivals.get(today, ()):
                stock[arrived] += units
        there = stock[sku]
        if there < quantity:
            short += 1
            stock[sku] = 0
        else:
            stock[sku] = there - quantity
    return short


def split(quantity: int, north: float, odd: float) -> tuple[int, int, int]:
    """Split a delivery over the nodes; small ones go to one place."""
    if quantity < 12:
        return (quantity, 0, 0) if odd < 0.85 else (0, quantity, 0)
    at_north = math.floor(quantity * north)
    at_store = math.floor(quantity * 0.08)
    return (quantity - at_north - at_store, at_north, at_store)
