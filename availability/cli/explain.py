"""`availability explain`: one answer as a sum that can be checked by eye, and who is behind each number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from availability.cli.errors import CommandError
from availability.cli.output import table, word
from availability.v1 import availability_pb2 as av

LISTED_MAX = 12
NUMBERS = (
    "on_hand",
    "− quarantined",
    "− safety_stock",
    "= give",
    "− reserved",
    "− committed",
    "= net",
    "to the pool",
)


def draw(answer: av.ExplainAvailabilityResponse, console: Console) -> None:
    """Print the sum. Raises CommandError where the terms do not add up: that is a bug of the service."""
    terms, state = answer.terms, word(av.AvailabilityState, answer.terms.state)
    console.print(f"[bold]{escape(answer.sku)}[/] in [bold]{escape(answer.channel)}[/]\n")
    console.print(_nodes(terms))
    console.print(_sum(terms, state))
    _list(console, "held by", ("reservation", "node", "units"), _holds(terms))
    _list(console, "ordered by", ("order", "of", "node", "units"), _orders(terms))
    _list(console, "policies", ("number", "value", "set for", "at", "by", "because"), _policies(terms))
    _list(console, "feeds", ("source", "stream", "last number", "heard"), _streams(terms))
    if (problem := sum_problem(terms)) is not None:
        raise CommandError("DOES_NOT_ADD_UP", problem)


def contribution(node: av.NodeTerms) -> int:
    """Return what a node adds to the pool."""
    return node.net if node.counted else min(0, node.net)


def sum_problem(terms: av.AvailabilityTerms) -> str | None:
    """Say where the terms do not add up to the answer, or None."""
    for node in terms.nodes:
        give = max(0, node.on_hand - max(0, node.quarantined) - node.safety_stock)
        if node.give != give or node.net != give - node.reserved - node.committed:
            return f"the terms of {node.node} do not add up"
    if sum(map(contribution, terms.nodes)) != terms.pool:
        return f"the nodes do not add up to the pool {terms.pool}"
    stopped = terms.blocked or terms.state == av.AVAILABILITY_STATE_UNKNOWN_SKU
    if terms.sellable_quantity != (0 if stopped else max(0, _difference(terms))):
        return f"the terms do not add up to {terms.sellable_quantity}"
    return None


def _difference(terms: av.AvailabilityTerms) -> int:
    return terms.pool - terms.buffer - terms.fenced + terms.oversell_limit


def _nodes(terms: av.AvailabilityTerms) -> Table:
    rows = table("node", *NUMBERS, "", right=NUMBERS)
    for node in terms.nodes:
        quarantined = sorted(node.quarantined_by_reason.items())
        remarks = [f"not counted: {node.not_counted_reason}"] if not node.counted else []
        remarks += ["quarantined: " + ", ".join(f"{units} {reason}" for reason, units in quarantined)] * bool(
            quarantined
        )
        if node.on_hand - max(0, node.quarantined) - node.safety_stock < 0:
            remarks.append("give is never below 0")
        numbers = (
            node.on_hand,
            node.quarantined,
            node.safety_stock,
            node.give,
            node.reserved,
            node.committed,
            node.net,
            contribution(node),
        )
        style = "" if node.counted else "bright_black"
        rows.add_row(escape(node.node), *map(str, numbers), escape("; ".join(remarks)), style=style)
    return rows


def _sum(terms: av.AvailabilityTerms, state: str) -> Table:
    rows = Table.grid(padding=(0, 2))
    rows.add_column()
    rows.add_column(justify="right")
    rows.add_column(style="bright_black")
    because = {policy.term: f"{policy.value} ({policy.level.lower()})" for policy in terms.policies}
    nodes = " + ".join(str(contribution(node)) for node in terms.nodes) or "no nodes"
    rows.add_row("", "", "")
    rows.add_row("  pool", str(terms.pool), nodes.replace("+ -", "− "))
    rows.add_row("− buffer", str(terms.buffer), escape(because.get("buffer", "")))
    rows.add_row("− fenced", str(terms.fenced), "")
    rows.add_row("+ oversell_limit", str(terms.oversell_limit), escape(because.get("oversell_limit", "")))
    difference = _difference(terms)
    remark = state
    if not terms.blocked and difference < 0:
        remark = f"{state}: {difference}, and never below 0"
    rows.add_row("= sellable", f"[bold]{terms.sellable_quantity}[/]", remark, style="bold")
    return rows


def _list(console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    lines = list(rows)
    if not lines:
        return
    made = table(*columns, right=("units", "last number", "heard"))
    for line in lines[:LISTED_MAX]:
        made.add_row(*map(escape, line))
    console.print(f"\n[bold]{title}[/]" + (f" ({len(lines)})" if len(lines) > 1 else ""))
    console.print(made)
    if len(lines) > LISTED_MAX:
        console.print(f"… and {len(lines) - LISTED_MAX} more; --json shows all", style="bright_black")


def _holds(terms: av.AvailabilityTerms) -> Iterable[Sequence[str]]:
    return ((hold.reservation_id, hold.node, str(hold.quantity)) for hold in terms.holds)


def _orders(terms: av.AvailabilityTerms) -> Iterable[Sequence[str]]:
    return ((one.order_ref, one.order_source, one.node, str(one.quantity)) for one in terms.orders)


def _policies(terms: av.AvailabilityTerms) -> Iterable[Sequence[str]]:
    for one in terms.policies:
        if one.level != "DEFAULT":
            yield one.term, one.value, one.level.lower(), one.version, one.author, one.reason


def _streams(terms: av.AvailabilityTerms) -> Iterable[Sequence[str]]:
    for one in terms.streams:
        yield one.source, one.stream, str(one.last_sequence), f"{one.age_ms / 1000:.1f} s ago"
