"""Compare the service with the books, number by number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from availability.client import Client
from availability.demo.books import Books
from availability.demo.journal import Journal
from availability.v1 import availability_pb2 as av


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What the comparison found."""

    compared: int
    differences: list[str]
    oversold: int
    broken_promises: list[str]
    """Grants and refusals that were wrong at their own version."""

    @property
    def clean(self) -> bool:
        """Say whether everything agrees and nothing was oversold."""
        return not (self.differences or self.oversold or self.broken_promises)


def audit(client: Client, journal: Journal, skus: tuple[str, ...]) -> Audit:
    """Post the journal to fresh books and compare every sku × channel × node with the service's answers."""
    books = Books()
    journal.post_all(books)
    compared, differences = 0, []
    for channel in books.channels:
        for sku in skus:
            for what, ours, theirs in _numbers(client, books, channel, sku, journal.last_version):
                compared += 1
                if ours != theirs:
                    differences.append(f"{channel} {sku}: {what} is {theirs}, the books say {ours}")
    return Audit(
        compared=compared,
        differences=differences,
        oversold=books.oversold,
        broken_promises=books.problems,
    )


def _numbers(
    client: Client, books: Books, channel: str, sku: str, version: str
) -> Iterator[tuple[str, object, object]]:
    """Yield (what, by the books, by the service) for one sku of one channel."""
    answer = client.get(channel, sku, include_nodes=True, min_version=version)
    yield "sellable", books.sellable(sku, channel), answer.sellable_quantity
    if sku in books.kits:
        yield from _kit_numbers(books, client.explain(channel, sku).terms, channel, sku)
        return
    nodes = books.channels[channel].nodes
    yield "the order of its nodes", list(nodes), [node.node for node in answer.nodes]
    for node in answer.nodes:
        at = f"at {node.node}"
        free = max(0, books.net(sku, node.node))
        yield f"free {at}", free, node.free_quantity
        yield f"sellable {at}", books.sellable_at(sku, channel, node.node), node.sellable_quantity

    terms = client.explain(channel, sku).terms
    yield "explained sellable", books.sellable(sku, channel), terms.sellable_quantity
    yield "pool", books.pool(sku, channel), terms.pool
    yield "buffer", books.buffer(sku, channel), terms.buffer
    yield "fenced", books.fenced(sku, channel), terms.fenced
    for fence in terms.fences:
        yield f"what is left of {fence.channel}'s fence", books.fences[fence.channel, sku].left, fence.left
    yield "the sum of the terms", terms.sellable_quantity, _added_up(terms)
    for term in terms.nodes:
        yield from _node_numbers(books, sku, term)
        holds = sum(hold.quantity for hold in terms.holds if hold.node == term.node)
        orders = sum(order.quantity for order in terms.orders if order.node == term.node)
        yield f"holds listed at {term.node}", term.reserved, holds
        yield f"orders listed at {term.node}", term.committed, orders


def _kit_numbers(
    books: Books, terms: av.AvailabilityTerms, channel: str, sku: str
) -> Iterator[tuple[str, object, object]]:
    parts = books.kits[sku]
    yield "explained sellable", books.sellable(sku, channel), terms.sellable_quantity
    yield "its parts", parts, {part.sku: part.units for part in terms.components}
    for part in terms.components:
        yield f"sellable of its {part.sku}", books.sellable(part.sku, channel), part.sellable_quantity
    yield (
        "the least of its parts",
        terms.sellable_quantity,
        min(part.sellable_quantity // part.units for part in terms.components),
    )


def _node_numbers(books: Books, sku: str, term: av.NodeTerms) -> Iterator[tuple[str, object, object]]:
    node, at = term.node, f"at {term.node}"
    yield f"on_hand {at}", books.on_hand[sku, node], term.on_hand
    yield f"quarantined {at}", books.quarantined[sku, node], term.quarantined
    yield f"safety_stock {at}", books.safety.get((sku, node), 0), term.safety_stock
    yield f"give {at}", books.give(sku, node), term.give
    yield f"reserved {at}", books.reserved(sku, node), term.reserved
    yield f"committed {at}", books.committed(sku, node), term.committed
    yield f"net {at}", books.net(sku, node), term.net
    yield f"counted {at}", node not in books.offline, term.counted


def _added_up(terms: av.AvailabilityTerms) -> int:
    pool = sum(node.net if node.counted else min(0, node.net) for node in terms.nodes)
    return max(0, pool - terms.buffer - terms.fenced + terms.oversell_limit)
