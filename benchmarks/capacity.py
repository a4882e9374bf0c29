"""How many cores and how much memory a shop needs, reckoned from the unit costs of the last results.

``python -m benchmarks.capacity [--orders-per-hour N --positions N --nodes N]`` reads `results.json` beside it and
prints; with ``--write`` the page `CAPACITY.md` for the reference shop. Nothing here is measured: change the
assumptions, they are all named below.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

HERE = Path(__file__).resolve().parent
BUSY_MAX = 0.5
"""Share of a core that may be busy: what is left takes bursts and a lost neighbour."""
PEAK = 3.0
"""The hour's busiest minute over its mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shop:
    """What a shop asks of the service; the defaults are the reference shop."""

    orders_per_hour: int = 100_000
    positions: int = 10_000_000
    nodes: int = 500
    reads_per_order: float = 60.0
    """Product pages and listings that show a quantity, as calls of one sku."""
    reserves_per_order: float = 1.4
    """Baskets that come to the checkout; those beyond 1 are abandoned, and expire or are released."""
    writes_per_order: float = 2.0
    """Commit and, for the abandoned, release."""
    deltas_per_order: float = 9.0
    """Allocation, shipment, returns and receipts, for three lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Unit costs: µs of processor of the servers and of Redis; MB a million positions."""

    read_us: float
    reserve_us: float
    reserve_redis_us: float
    delta_us: float
    delta_redis_us: float
    server_mb: float
    redis_mb: float

    @classmethod
    def of(cls, raw: dict[str, Any]) -> Costs:
        """Take them from the raw results. Raises KeyError where one was not measured."""
        rows = {
            one["measure"]: one["raw"]
            for some in raw["found"].values()
            for one in some
            if one["kind"] == "Row"
        }
        read, reserve, delta = (rows[f"where a {name}'s time goes"] for name in ("read", "reserve", "delta"))
        sizes = [one for one in rows.values() if "redis_mb" in one]
        if not sizes:
            raise KeyError("start-up over positions")
        largest = max(sizes, key=lambda one: one["positions"])
        millions = largest["positions"] / 1e6
        return cls(
            read_us=read["transport_us"] + read["python_us"],
            reserve_us=reserve["transport_us"] + reserve["python_us"],
            reserve_redis_us=reserve["redis_us"],
            delta_us=delta["python_us"],
            delta_redis_us=delta["redis_us"],
            server_mb=largest["server_mb"] / millions,
            redis_mb=largest["redis_mb"] / millions,
        )


def page(shop: Shop, costs: Costs, machine: dict[str, Any]) -> str:
    """Return the reckoning as Markdown."""
    peak = shop.orders_per_hour / 3600 * PEAK
    writes = shop.reserves_per_order + shop.writes_per_order
    lines = [
        ("reads", peak * shop.reads_per_order, costs.read_us, 0.0),
        ("reserves, commits, releases", peak * writes, costs.reserve_us, costs.reserve_redis_us),
        ("deltas", peak * shop.deltas_per_order, costs.delta_us, costs.delta_redis_us),
    ]
    server = sum(rate * us for _, rate, us, _ in lines) / 1e6
    redis = sum(rate * us for _, rate, _, us in lines) / 1e6
    replica = peak * (writes + shop.deltas_per_order) * costs.delta_us / 1e6
    processes = math.ceil(server / BUSY_MAX)
    redis_rate = BUSY_MAX / (redis / peak) if redis else 0.0
    table = "\n".join(
        f"| {name} | {rate:,.0f} | {us:.0f} | {redis_us:.0f} | {rate * us / 1e6:.2f} | {rate * redis_us / 1e6:.2f} |"
        for name, rate, us, redis_us in lines
    )
    millions = shop.positions / 1e6
    return f"""# Capacity

Reckoned by `python -m benchmarks.capacity --write` from the unit costs in `results.json` (commit {machine["commit"]},
{machine["cores"]} cores, {machine["cpu"]}, a fixed loop at {machine["slowdown_before"]:.2f} × its best):
processor time, not rates, so that it holds where clients and servers do not share two cores. Its options
take your own numbers.

**The shop**: {shop.orders_per_hour:,} orders an hour, in the busiest minute {PEAK:g} × the mean =
{peak:,.0f} orders a second; {shop.positions:,} positions at {shop.nodes} nodes; an order brings
{shop.reads_per_order:g} reads, {writes:g} writes and {shop.deltas_per_order:g} deltas.
A core may be {BUSY_MAX:.0%} busy.

| what | a second | server µs | Redis µs | server cores | Redis cores |
|---|---|---|---|---|---|
{table}
| **all** | | | | **{server:.2f}** | **{redis:.2f}** |

- **Server processes**: {server:.2f} cores of work ÷ {BUSY_MAX:g} = **{processes}** processes of one core, and
  one more to lose. Each also follows the whole log, up to {replica:.2f} of a core: more processes do
  not make that part less.
- **Redis**: one core is {redis:.0%} busy, {"within" if redis <= BUSY_MAX else "above"} the {BUSY_MAX:.0%}. One core
  carries {redis_rate:,.0f} orders a second ({redis_rate * 3600 / PEAK:,.0f} an hour with this peak); there it ends, and
  shards begin.
- **Memory**: {millions:g} M positions × {costs.server_mb:.0f} MB = **{millions * costs.server_mb / 1000:.1f} GB** a
  server process, and × {costs.redis_mb:.0f} MB = **{millions * costs.redis_mb / 1000:.1f} GB** in Redis;
  twice that while Redis rewrites its AOF under writes.
- **{shop.nodes} nodes**: a grant reads only the nodes of its channel, in one command; what a sku has at other nodes
  costs memory, not time.

Not reckoned: your network, TLS, clients that open a connection for each call, and a channel with hundreds of nodes,
whose grants read as many values.
"""


def main() -> int:
    """Print or write the page. 1: a cost that is needed was not measured."""
    reference = Shop()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders-per-hour", type=int, default=reference.orders_per_hour)
    parser.add_argument("--positions", type=int, default=reference.positions)
    parser.add_argument("--nodes", type=int, default=reference.nodes)
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--write", action="store_true", help="write CAPACITY.md")
    options = parser.parse_args()
    if not options.results.exists():
        print(f"{options.results}: not there; python -m benchmarks.run writes it", file=sys.stderr)
        return 1
    raw = orjson.loads(options.results.read_bytes())
    shop = Shop(orders_per_hour=options.orders_per_hour, positions=options.positions, nodes=options.nodes)
    try:
        costs = Costs.of(raw)
    except KeyError as missing:
        print(f"{options.results} has no figure for {missing}: measure shares and positions", file=sys.stderr)
        return 1
    text = page(shop, costs, raw["machine"])
    if options.write:
        (HERE / "CAPACITY.md").write_text(text)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
