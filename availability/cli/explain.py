"""`availability explain`: one answer as a sum that can be checked by eye, and who is behind each number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from availability.cli.errors import CommandError
from availability.cli.output import table, word
from availability.v1 import availability_pb2 as av

LISTED_MAX = 12
COLUMN_GAP = 3
REMARKS_WIDTH = 24
"""Least room for remarks beside the numbers of a node."""
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
    kind = "kit " if terms.components else ""
    console.print(f"{kind}[bold]{escape(answer.sku)}[/] in [bold]{escape(answer.channel)}[/]\n")
    if terms.components:
        console.print(_components(terms))
        console.print(_least(terms, state))
    else:
        _print_nodes(terms, console)
        console.print(_sum(terms, state))
    _list(console, "ring-fences", ("channel", "left", "to be left here", "set at"), _fences(terms))
    _list(console, "held by", ("reservation", "node", "units"), _holds(terms))
    _list(console, "ordered by", ("order", "of", "node", "units"), _orders(terms))
    _list(console, "policies", ("number", "value", "set for", "at", "by", "because"), _policies(terms))
    _list(
        console,
        "expected, not sold before it is here",
        ("node", "what", "document", "line", "units", "due"),
        _expected(terms),
    )
    _list(console, "watched feeds", ("source", "node", "heard", "limit", "state"), _feeds(terms))
    _list(console, "streams", ("source", "stream", "last number", "heard"), _streams(terms))
    if (problem := sum_problem(terms)) is not None:
        raise CommandError("DOES_NOT_ADD_UP", problem)


def contribution(node: av.NodeTerms) -> int:
    """Return what a node adds to the pool."""
    return node.net if node.counted else min(0, node.net)


def kits_of(part: av.ComponentTerm) -> int:
    """Return how many kits a part is enough for."""
    return part.sellable_quantity // part.units


def sum_problem(terms: av.AvailabilityTerms) -> str | None:
    """Say where the terms do not add up to the answer, or None."""
    if terms.components:
        if terms.sellable_quantity != (0 if terms.blocked else min(map(kits_of, terms.components))):
            return f"the parts do not make {terms.sellable_quantity} kits"
        return None
    for node in terms.nodes:
        give = max(0, node.on_hand - max(0, node.quarantined) - node.safety_stock)
        if node.give != give or node.net != give - node.reserved - node.committed:
            return f"the terms of {node.node} do not add up"
    if sum(map(contribution, terms.nodes)) != terms.pool:
        return f"the nodes do not add up to the pool {terms.pool}"
    if sum(fence.counted for fence in terms.fences) != terms.fenced:
        return f"the ring-fences do not add up to {terms.fenced}"
    if terms.sellable_quantity != (0 if stopped(terms) else max(0, _difference(terms))):
        return f"the terms do not add up to {terms.sellable_quantity}"
    return None


def stopped(terms: av.AvailabilityTerms) -> bool:
    """Return whether the answer is 0 whatever the sum says."""
    return terms.blocked or terms.state == av.AVAILABILITY_STATE_UNKNOWN_SKU


def _difference(terms: av.AvailabilityTerms) -> int:
    return terms.pool - terms.buffer - terms.fenced + terms.oversell_limit


def _print_nodes(terms: av.AvailabilityTerms, console: Console) -> None:
    """Print a row a node; where the terminal is too narrow for that, a column a node, as many as fit."""
    lines = list(_nodes(terms))
    wide = table("node", *NUMBERS, "", right=NUMBERS)
    for name, numbers, remark, style in lines:
        wide.add_row(escape(name), *numbers, escape(remark), style=style)
    remarks_width = REMARKS_WIDTH if any(remark for _, _, remark, _ in lines) else 0
    cells = [
        max(map(cell_len, column))
        for column in zip(NUMBERS, *(numbers for _, numbers, _, _ in lines), strict=True)
    ]
    names_width = max((cell_len(name) for name, _, _, _ in lines), default=0)
    if names_width + sum(cells) + COLUMN_GAP * (len(NUMBERS) + 2) + remarks_width <= console.width:
        console.print(wide)
        return
    while lines:
        used, count = max(map(cell_len, NUMBERS)) + COLUMN_GAP, 0
        for name, numbers, _, _ in lines:
            used += max(cell_len(name), *map(cell_len, numbers)) + COLUMN_GAP
            if used > console.width and count:
                break
            count += 1
        some, lines = lines[:count], lines[count:]
        turned = table("", *(escape(name) for name, _, _, _ in some))
        for column in turned.columns[1:]:
            column.justify = "right"
        for place, number in enumerate(NUMBERS):
            turned.add_row(number, *(numbers[place] for _, numbers, _, _ in some))
        console.print(turned)
        for name, _, remark, _ in some:
            if remark:
                console.print(f" {name}: {remark}", markup=False)


def _nodes(terms: av.AvailabilityTerms) -> Iterator[tuple[str, tuple[str, ...], str, str]]:
    """Yield name, numbers, remark and style of each node."""
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
        yield node.node, tuple(map(str, numbers)), "; ".join(remarks), style


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
    kept = " + ".join(f"{fence.counted} for {fence.channel}" for fence in terms.fences if fence.counted)
    rows.add_row("− fenced", str(terms.fenced), escape(kept))
    rows.add_row("+ oversell_limit", str(terms.oversell_limit), escape(because.get("oversell_limit", "")))
    difference = _difference(terms)
    remark = state
    if not stopped(terms) and difference < 0:
        remark = f"{state}: {difference}, and never below 0"
    rows.add_row("= sellable", f"[bold]{terms.sellable_quantity}[/]", remark, style="bold")
    return rows


def _components(terms: av.AvailabilityTerms) -> Table:
    rows = table("part", "sellable", "÷ units", "= kits", "", right=("sellable", "÷ units", "= kits"))
    least = min(map(kits_of, terms.components))
    for part in terms.components:
        remarks = [word(av.AvailabilityState, part.state)]
        remarks += ["sets the number of kits"] * (kits_of(part) == least and len(terms.components) > 1)
        numbers = (part.sellable_quantity, part.units, kits_of(part))
        rows.add_row(escape(part.sku), *map(str, numbers), ", ".join(remarks))
    return rows


def _least(terms: av.AvailabilityTerms, state: str) -> Table:
    rows = Table.grid(padding=(0, 2))
    rows.add_row("", "", "")
    each = ", ".join(str(kits_of(part)) for part in terms.components)
    rows.add_row("  least of", each, "", style="bright_black")
    rows.add_row("= sellable", f"[bold]{terms.sellable_quantity}[/]", state, style="bold")
    return rows


def _list(console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    lines = list(rows)
    if not lines:
        return
    made = table(*columns, right=("units", "last number", "heard", "limit", "left", "to be left here"))
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


def _fences(terms: av.AvailabilityTerms) -> Iterable[Sequence[str]]:
    for fence in terms.fences:
        yield fence.channel, str(fence.left), str(fence.counted), fence.generation


def _expected(terms: av.AvailabilityTerms) -> Iterable[Sequence[str]]:
    for one in terms.expected:
        due = f"{one.due_time.ToDatetime():%Y-%m-%d %H:%M} UTC" if one.HasField("due_time") else ""
        yield one.node, one.kind.lower(), one.reference, one.line, str(one.quantity), due


def _feeds(terms: av.AvailabilityTerms) -> Iterable[Sequence[str]]:
    for one in terms.feeds:
        state = "STALE" if one.stale else "fresh"
        yield one.source, one.node, f"{one.age_ms / 1000:.1f} s ago", f"{one.limit_ms / 1000:g} s", state


def _streams(terms: av.AvailabilityTerms) -> Iterable[Sequence[str]]:
    for one in terms.streams:
        number = str(one.last_sequence) if one.last_sequence else ""  # events have names, no numbers
        yield one.source, one.stream, number, f"{one.age_ms / 1000:.1f} s ago"
